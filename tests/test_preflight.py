"""What a model cannot do is found before a run, costs what it must, and is told once."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from depthgauge import models, preflight, running, store
from depthgauge.cli import main
from depthgauge.discovery import find
from depthgauge.factories import Target
from depthgauge.request import Request
from depthgauge.restriction import restrict
from depthgauge.study import Case, Grid, Study, StudyError

STUDIES = Path(__file__).parent / "engine_studies"
CHECKOUT = Path(__file__).parents[1]
ABLE, WALK = str(STUDIES / "able.py"), str(STUDIES / "walk.py")
STUDY = find("able", [ABLE]).load()

NETS = """
    import os, time
    import torch
    from torch import nn

    KNOWN = {"relu": nn.ReLU, "tanh": nn.Tanh}
    TRAINED = {True: ("relu", "batch"), False: ()}

    class Net(nn.Module):
        def __init__(self, input_shape=(3,), classes=2):
            super().__init__()
            self.layer = nn.Linear(*input_shape, classes)

        def forward(self, x):
            return self.layer(x)

    def two(activation="relu", norm="none"):
        return nn.Sequential(nn.Linear(3, 4), KNOWN[activation](), nn.Linear(4, 2))

    def raises(activation="relu", norm="none"):
        if activation != "relu" or norm != "none":
            raise RuntimeError("no luck")
        return Net()

    class WrongShape(Net):
        def __init__(self, activation="relu", norm="none"):
            super().__init__(input_shape=(5,))

    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            raise ArithmeticError("no way back")

    class NoBackward(Net):
        def __init__(self, activation="relu", norm="none"):
            super().__init__()

        def forward(self, x):
            return OneWay.apply(super().forward(x))

    class Hangs(NoBackward):
        def forward(self, x):
            time.sleep(600)

    class Dies(NoBackward):
        def forward(self, x):
            os._exit(3)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `nets.py` to be in; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder) != CHECKOUT])
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS))
    yield tmp_path
    sys.modules.pop("nets", None)


def run(name, out="x", workers=0, **options):
    request = Request(model=models.target(f"nets:{name}"), **options)
    return running.run("able", out=out, request=request, workers=workers, sources=[ABLE])


def command(*words, out="x"):
    asked = ["run", "able", "--studies", ABLE, "--workers", "0", "--out", out]
    return CliRunner().invoke(main, [*asked, *words], prog_name="depthgauge")


def findings(out="x"):
    return json.loads(Path(out, "report", "findings.json").read_bytes())["studies"]


# -- which cases are tried, and what is left ---------------------------------------------------------------------------


def ways(restricted):
    return [way.id for grid in restricted.grids for way in preflight.ways(STUDY, grid)]


def test_every_combination_of_the_architecture_is_tried_once_on_the_smallest_case():
    restricted = restrict(STUDY, "quick", Target("a.b:c", None))
    assert ways(restricted) == ["activation=relu", "activation=tanh", "activation=gelu", "norm=none", "norm=batch"]
    smallest = preflight.ways(STUDY, restricted.grids[0])[Case.of({"activation": "gelu"})]
    assert smallest.id == "activation=gelu,batch=2,model=a.b:c,seed=0"
    plain = Study("plain", "?", STUDY.presets, run=list, analyse=list, plot=list, claims=STUDY.claims)
    assert not preflight.ways(plain, restricted.grids[0])


@pytest.mark.parametrize(
    ("smallest", "told"),
    [
        (lambda case: case["nothing"], "its preflight raised KeyError: "),
        (lambda _: None, "its preflight returned a NoneType, where a Case was expected"),
    ],
)
def test_a_preflight_that_is_wrong_is_one_sentence(smallest, told):
    wrong = Study(
        "wrong", "?", STUDY.presets, run=list, analyse=list, plot=list, claims=STUDY.claims, preflight=smallest
    )
    with pytest.raises(StudyError, match=f"^study 'wrong': {told}"):
        preflight.ways(wrong, STUDY.presets["quick"][0])


def test_a_combination_that_is_refused_leaves_the_others():
    grid = Grid(
        {"norm": ("none", "batch"), "skips": (False, True)}, fixed={"model": "a.b:c"}, seeds=2, selection=1,
        architecture=("norm", "skips"),
    )  # fmt: skip
    study = Study("s", "?", {"quick": (grid,)}, run=list, analyse=list, plot=list, preflight=lambda case: case)
    asked = preflight.ways(study, grid)
    both = Case.of({"norm": "batch", "skips": True})
    left = preflight.without(study, grid, "a.b:c", {asked[both]: "no luck"})
    assert left.grid is not None
    assert {way["seed"] for way in asked.values()} == {0}
    assert len([*left.grid.cases()]) == 9
    assert not any(case["norm"] == "batch" and case["skips"] for case in left.grid.cases())
    assert left.why == ("a.b:c cannot be run with norm=batch and skips=True: no luck",)
    assert preflight.without(study, grid, "a.b:c", {}).grid is grid
    none = preflight.without(study, grid, "a.b:c", dict.fromkeys(asked.values(), "no luck"))
    assert none == preflight.Runnable(
        None, ("a.b:c cannot be run in this part, which feeds it the study's own data: no luck",)
    )


def test_reasons_that_differ_in_the_value_alone_are_one():
    grid = restrict(STUDY, "quick", Target("a.b:c", None)).grids[0]
    refused = {case: f"KeyError: '{way['activation']}'" for way, case in preflight.ways(STUDY, grid).items()}
    left = preflight.without(STUDY, grid, "a.b:c", refused)
    assert left == preflight.Runnable(None, ("a.b:c cannot be run with activation=relu, tanh, gelu: KeyError: 'relu'",))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_value_that_a_factory_refuses_costs_that_value(here):
    done = command("--model", "nets:two")
    assert done.exit_code == 0, done.output
    why = "nets:two cannot be run with activation=gelu: KeyError: 'gelu' (in two, nets.py:18)"
    assert done.stderr.count(why) == 1
    frame = store.read("x").frame("able")
    assert set(frame["status"]) == {"ok"}
    assert set(frame["activation"].dropna()) == {"relu", "tanh"}
    told = findings()["able"]
    assert {verdict["status"] for verdict in told["verdicts"]} == {"inconclusive"}
    assert Path("x/report/able.md").read_text().count(f"- {why.partition(':')[0]}") == 1


def test_a_factory_that_raises_costs_the_grids_that_it_cannot_build(here):
    done = command("--model", "nets:raises")
    assert done.exit_code == 0, done.output
    assert len(store.read("x").frame("able")) == 8  # what it builds by default, in both grids


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("WrongShape", r"RuntimeError: mat1 and mat2 shapes cannot be multiplied \(2x3 and 5x2\)"),
        ("NoBackward", r"ArithmeticError: no way back"),
    ],
)
def test_what_a_module_cannot_do_is_not_applicable_and_nothing_is_run(here, name, why):
    done = command("--model", f"nets:{name}")
    assert done.exit_code == 1
    assert "nothing was measured: " in done.stderr.splitlines()[-1]
    told = findings()["able"]
    assert (told["cases"], told["failed"], told["unfinished"]) == (0, 0, 0)
    assert [verdict["status"] for verdict in told["verdicts"]] == ["not_applicable"] * 2
    for verdict in told["verdicts"]:
        assert re.search(
            rf"^nets:{name} cannot be run in this part, which feeds it the study's own data: {why}", verdict["why"]
        )
    assert not list(Path("x").glob("chunks/*/*.parquet"))
    assert command("--model", f"nets:{name}").exit_code == 1  # and again, resumed


def test_a_study_of_which_every_case_fails_is_no_success_beside_a_sound_one(here):
    """`inside` has no preflight, and its inputs of 28 x 28 do not fit."""
    done = command("inside", "--studies", str(STUDIES / "inside.py"), "--model", "nets:two")
    assert done.exit_code == 1
    assert re.search(r"nothing was measured in inside \(RuntimeError: .*\); the report", done.stderr.splitlines()[-1])
    told = findings()
    assert (told["able"]["cases"], told["able"]["failed"]) == (16, 0)
    assert {verdict["status"] for verdict in told["able"]["verdicts"]} == {"inconclusive"}
    assert {verdict["status"] for verdict in told["inside"]["verdicts"]} == {"not_measured", "not_applicable"}
    [problem] = told["inside"]["problems"]
    assert problem.startswith(f"Nothing was measured: all {told['inside']['cases']} cases failed: RuntimeError: ")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "seconds", "why"),
    [
        ("Hangs", 2.0, r"exceeded the limit of 2 s \(in "),
        ("Dies", 60.0, r"the worker ended: something in it left the process with exit code 3"),  # a start may take long
    ],
)
def test_a_module_that_hangs_or_ends_its_process_ends_its_try_alone(here, name, seconds, why):
    outcome = run(name, workers=1, time_limit=seconds)
    assert not outcome.rows
    request = outcome.stored.run["request"]["able"]
    assert len(request["tried"]) == 5
    assert set(request["not_applicable"]) == {"able/activation", "able/norm"}
    assert re.search(why, request["not_applicable"]["able/norm"])


def test_after_too_long_nothing_more_is_tried_and_what_is_left_runs(here, monkeypatch):
    monkeypatch.setattr(preflight, "TOTAL", -1.0)
    outcome = run("two")
    assert outcome.stored.run["request"]["able"].get("tried") is None
    assert outcome.failed == {"error": 4}


def test_what_was_well_is_not_tried_again_and_what_was_refused_is(here, monkeypatch):
    monkeypatch.setenv("DEPTHGAUGE_TEST_COUNTER", str(here / "counter"))
    first = run("two")
    assert len((here / "counter").read_text().split()) == 5 + 16
    (here / "counter").unlink()
    second = run("two")
    assert (second.ran, second.reused, second.rows) == (0, first.ran, first.rows)
    assert (here / "counter").read_text().split() == ["activation=gelu,batch=2,model=nets:two,seed=0"]


def test_rows_are_those_of_a_run_without_preflight(here, monkeypatch):
    run("raises", out="with")
    monkeypatch.setattr(preflight, "TOTAL", -1.0)
    run("raises", out="without")
    frames = [store.read(out).frame("able").query("status == 'ok'") for out in ("with", "without")]
    assert frames[0]["value"].tolist() == frames[1]["value"].tolist()
    assert frames[0]["case"].tolist() == frames[1]["case"].tolist()


def test_a_model_without_a_preflight_or_a_study_without_a_model_is_run_as_it_is(here):
    outcome = running.run("walk", out="y", workers=0, sources=[WALK])
    assert "tried" not in outcome.stored.run["request"]["walk"]
    outcome = running.run(
        "inside", request=Request(model=models.target("mlp")), out="z", workers=0, sources=[str(STUDIES / "inside.py")]
    )
    assert "tried" not in outcome.stored.run["request"]["inside"]
    assert outcome.rows


def test_where_no_time_is_left_a_case_is_taken_for_the_others_only_if_none_of_them_was_well():
    one, two, last = (Case.of({"x": x}) for x in range(3))
    assert preflight.untried(last, {}) == {}
    assert preflight.untried(last, {one: "no", two: "late"}) == {last: "late"}
    assert preflight.untried(last, {one: "no", two: ""}) == {}
