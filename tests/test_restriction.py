"""A study's grids on one model: of ours by name, or of a user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthgauge import discovery, environment, models
from depthgauge.factories import Target
from depthgauge.request import Request, ask
from depthgauge.restriction import equip, restrict
from depthgauge.study import Grid, Study, StudyError
from depthgauge.verdict import Claim

INSIDE = str(Path(__file__).parent / "engine_studies" / "inside.py")
STUDY = discovery.find("inside", [INSIDE]).load()


def cases(restricted):
    return [case for grid in restricted.grids for case in grid.cases()]


@pytest.mark.parametrize("name", ["lenet5", "vgg11", "mlp"])
def test_a_model_that_the_study_names_gives_the_cases_that_it_would_have_anyway(name):
    every = {case for chunk in STUDY.chunks("quick") for case in chunk.cases}
    restricted = restrict(STUDY, "quick", models.target(name))
    assert set(cases(restricted)) == {case for case in every if case.get("model") == name}
    told = restricted.not_applicable.get("inside/activation")
    assert told == (None if name == "mlp" else f"the study measures models other than {name}")


def test_a_model_that_it_does_not_name_takes_the_place_of_each():
    kept = cases(restrict(STUDY, "quick", models.target("resnet18")))
    assert {(case["activation"], case["norm"]) for case in kept} == {
        *((None, "none"), (None, "batch"), ("relu", None), ("tanh", None))
    }


def test_what_a_model_lacks_is_left_to_it_or_not_run():
    restricted = restrict(STUDY, "quick", Target("mine:net", frozenset({"width"})))
    assert {(case["model"], case["activation"], case["norm"]) for case in cases(restricted)} == {
        ("mine:net", None, None)
    }
    assert len(cases(restricted)) == 5  # two grids became one
    assert restricted.not_applicable == {
        "inside/activation": "mine:net has no parameter 'activation', which the study varies",
        "inside/own": "the study measures networks of its own, which no other model can replace",
    }
    assert restricted.left_out == tuple(restricted.not_applicable.values())


def test_a_parameter_with_one_value_is_not_varied():
    grid = Grid({"model": ("mlp",), "depth": (3,)}, seeds=5, architecture=("depth",))
    study = Study("alone", "Is it?", {"quick": (grid,)}, run=list, analyse=list, plot=list)
    [case, *_] = cases(restrict(study, "quick", Target("mine:net", frozenset())))
    assert case.id == "depth=None,model=mine:net,seed=0"


def test_given_leaves_to_the_model_what_is_none():
    [case, *_] = cases(restrict(STUDY, "quick", Target("mine:net", frozenset({"norm"}))))
    assert case.given("norm", "activation") == {"norm": "none"}


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (Grid({"x": (1,)}, claims=("other/claim",)), "answers what is not declared: 'other/claim' is none"),
        (Grid({"x": (1,)}, architecture=("depth",)), "architecture has no parameter 'depth'"),
    ],
)
def test_a_grid_that_contradicts_itself(grid, told):
    with pytest.raises(StudyError, match=told):
        Study("wrong", "?", {"quick": (grid,)}, run=list, analyse=list, plot=list, claims=(Claim("wrong/x", "x"),))


FAST, SLOW = Claim("devices/fast", "two devices are faster than one"), Claim("devices/slow", "one device is slow")
DEVICES = Study(
    "devices",
    "What do devices buy?",
    {
        "quick": (
            Grid({"x": (1, 2)}, claims=(SLOW.id,)),
            Grid({"x": (3,)}, claims=(SLOW.id, FAST.id), needs="cuda:2"),
        )
    },
    run=list,
    analyse=list,
    plot=list,
    claims=(FAST, SLOW),
)


def test_a_grid_that_needs_what_the_run_has_not_is_left_out_with_its_claims():
    here = equip(DEVICES, "quick", "cpu")
    assert [case.id for case in cases(here)] == ["x=1", "x=2"]
    assert here.not_applicable == {FAST.id: "2 CUDA devices would be needed, and this run is on cpu"}
    asked = ask(DEVICES, Request())
    assert [case.id for chunk in asked.chunks for case in chunk.cases] == ["x=1", "x=2"]
    assert asked.restricted == here


@pytest.mark.parametrize(("device", "count", "kept"), [("cuda", 1, 2), ("cuda", 2, 3), ("cuda:1", 2, 2)])
def test_a_grid_that_needs_devices_runs_where_there_are_as_many(monkeypatch, device, count, kept):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    here = equip(DEVICES, "quick", device)
    assert (3 if here is None else len(cases(here))) == kept


def test_what_is_needed_is_a_kind_and_a_number():
    assert environment.has("", "cpu")
    assert environment.has("cuda", "cuda:1")
    assert not environment.has("cuda", "cpu")
    with pytest.raises(StudyError, match="needs 'gpu'"):
        Study("s", "Is it?", {"quick": (Grid({"x": (1,)}, needs="gpu"),)}, run=list, analyse=list, plot=list)
