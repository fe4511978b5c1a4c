"""The fault zoo: what it holds, how it judges, and that the check finds a part of its faults and spares sound ones."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import depthgauge
from depthgauge import Training
from depthgauge.checking import QUESTIONS, Answer, Checked, Finding, Status

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the package

from benchmarks.fault_zoo import cases, generated, halves, judging, oracle, running, tables
from benchmarks.fault_zoo.entry import Planted
from benchmarks.fault_zoo.peers import gradient_thresholds

sys.path.pop()

SET = {fault.name: fault for fault in halves.faults("set")}
SOUND = {each.name: each for each in halves.sounds("set")}
EVERY = (*halves.faults("set"), *halves.faults("score"))


def weights(training: Training) -> list[torch.Tensor]:
    return [each.detach().clone() for each in training.model.parameters()]


def numpys_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the generator that packages draw from


# -- what it holds -----------------------------------------------------------------------------------------------------


def test_it_holds_enough_of_both() -> None:
    sounds = [each.name for half in ("set", "score") for each in halves.sounds(half)]
    assert len(EVERY) >= 60
    assert len(sounds) >= 35
    names = [*(each.name for each in EVERY), *sounds]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("half", "planted", "sound"),
    [
        ("third", 24, 24),
        ("fourth", 36, 22),
        ("fifth", 30, 25),
        ("sixth", 31, 25),
        ("seventh", 30, 23),
        ("eighth", 30, 23),
        ("ninth", 33, 25),
    ],
)
def test_a_later_set_is_whole_and_has_names_of_its_own(half: halves.Half, planted: int, sound: int) -> None:
    faults, sounds = halves.faults(half), halves.sounds(half)
    assert len(faults) >= planted
    assert len(sounds) >= sound
    names = [each.name for half in halves.HALVES for each in (*halves.faults(half), *halves.sounds(half))]
    assert len(names) == len(set(names))
    assert {question for fault in faults for question, _ in fault.found_by} <= {question.id for question in QUESTIONS}
    assert all(re.compile(pattern) and fault.source for fault in faults for _, pattern in fault.found_by)


@pytest.mark.parametrize("fault", EVERY, ids=lambda fault: fault.name)
def test_a_fault_says_where_it_is_found_and_who_reported_it(fault: Planted) -> None:
    assert fault.found_by
    assert {question for question, _ in fault.found_by} <= {question.id for question in QUESTIONS}
    assert all(re.compile(pattern) for _, pattern in fault.found_by)
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", fault.source)


def test_a_seed_makes_one_training_and_leaves_all_generators_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), numpys_state()
    one, other, third = (SET["deep_sigmoid"].make(seed) for seed in (1, 1, 2))
    assert all(torch.equal(*pair) for pair in zip(weights(one), weights(other), strict=True))
    assert not torch.equal(weights(one)[0], weights(third)[0])
    assert all(torch.equal(*pair) for pair in zip(one.first()[0], other.first()[0], strict=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == numpys_state()


@pytest.mark.parametrize("name", ["dead_units", "double_softmax", "broadcast_targets", "rate_too_small"])
def test_the_fault_harms_and_the_twin_trains(name: str) -> None:
    harmed, sound = (oracle.train(made(3), 100) for made in (SET[name].make, SET[name].twin))
    assert sound.after < 0.5 * sound.before
    assert not sound.idle
    assert harmed.after > 2 * sound.after


def test_generated_trainings_are_told_sound_by_training_them() -> None:
    assert [generated.is_sound(seed) for seed in (2, 8, 15, 7)] == [True, True, True, False]
    assert torch.equal(weights(generated.make(15))[0], weights(generated.make(15))[0])


# -- how it judges -----------------------------------------------------------------------------------------------------


def checked(*findings: Finding, question: str = "data") -> Checked:
    return Checked((Answer(question, "?", "so", findings),), 30.0)


def test_only_faults_that_are_told_are_alarms() -> None:
    accusing = Finding("never_declared", Status.LOOK, "it is wrong", where=("loss",))
    unsure = Finding("never_declared", Status.UNDECIDED, "it may be", where=("loss",))
    unmeasured = Finding("not_measured", Status.LOOK, "no time", where=("loss",))
    told = judging.alarms(checked(accusing, unsure, unmeasured))
    assert [alarm.text for alarm in told] == ["it is wrong"]


@pytest.mark.parametrize(
    ("question", "where", "right"),
    [
        ("data", ("loss",), True),
        ("data", ("batches", "loss"), True),
        ("data", ("lossy",), False),
        ("signal", ("loss",), False),
        ("signal", ("blocks.3.weight",), True),
        ("signal", ("blocks.3",), True),
        ("signal", ("blocks.3.1.weight",), False),
        ("", ("loss",), True),
        ("data", (), False),
    ],
)
def test_a_place_is_right_where_question_and_name_match(question: str, where: tuple[str, ...], right: bool) -> None:
    alarm = judging.Alarm(question, "kind", "broken", where)
    assert judging.found([alarm], (("data", "loss"), ("signal", r"blocks\.3"))) is right


def row(group: str, *, told: int = 0, **more: Any) -> dict[str, Any]:
    alarm = {"question": "data", "kind": "x", "status": "look", "where": ["loss"], "text": "said"}
    base = {"tool": "t", "group": group, "half": "score", "name": "raw_pixels", "seed": 1, "failed": "", "seconds": 2.0}
    return {**base, "alarms": [alarm] * told, **more}


def test_shares_count_failures_and_leave_out_what_is_not_sound() -> None:
    rows = [row("fault", told=1, found=True), row("fault", told=1, found=False), row("fault", failed="late")]
    rows += [row("sound", told=2), *(row("twin") for _ in range(9))]
    rows += [row("generated", half="", sound=True), row("generated", half="", sound=False, told=1)]
    (score,) = tables.summary(rows)
    assert (score["found at the right place"]["events"], score["found at the right place"]["n"]) == (1, 3)
    assert score["any alarm on a fault"]["events"] == 2
    false = score["false alarms on sound trainings"]
    assert (false["events"], false["n"]) == (1, 10)
    assert false["low"] == pytest.approx(0.0179, abs=1e-3)  # Wilson: 1 of 10
    assert false["high"] == pytest.approx(0.4042, abs=1e-3)
    assert score["broken on sound trainings"]["events"] == 0
    assert score["false alarms on generated trainings"]["n"] == 1
    assert score["failed"] == 1
    text = tables.markdown(rows)
    assert "1 of 10 (2 to 40 %)" in text
    assert "Pixels of 0 to 255 as they are." in text


def test_tables_take_the_place_of_the_last_ones() -> None:
    page = "# Page\n\n<!-- scores: by a command -->\n<!-- end of scores -->\n\nend\n"
    once = tables.within(page, "| a |\n")
    assert once == "# Page\n\n<!-- scores: by a command -->\n\n| a |\n\n<!-- end of scores -->\n\nend\n"
    assert tables.within(once, "| b |\n") == once.replace("| a |", "| b |")
    with pytest.raises(ValueError, match="no place"):
        tables.within("# Page\n", "| a |\n")


def test_rows_are_kept_and_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def answer(case: cases.Case, _: float) -> dict[str, Any]:
        ran.append(case.name)
        return {"key": case.key, "tool": "t", "group": "sound", "name": case.name, "seed": 0, "failed": ""}

    monkeypatch.setattr(running, "_in_process", answer)
    path = tmp_path / "rows.jsonl"
    wanted = [cases.Case("t", "sound", "set", name, 0) for name in ("a", "b")]
    running.run_all(wanted[:1], path, jobs=2, limit=1)
    with path.open("a") as file:
        file.write('{"key": "cut o')  # a crash
    running.run_all(wanted, path, jobs=2, limit=1)
    assert ran == ["a", "b"]
    assert [each["name"] for each in running.rows(path)] == ["a", "b"]


def test_a_case_that_raises_has_a_row() -> None:
    told = cases.run(cases.Case("no such tool", "sound", "set", "regression", 1))
    assert "KeyError" in told["failed"]
    assert json.loads(json.dumps(told)) == told


def test_thresholds_find_what_vanishes_and_spare_its_twin() -> None:
    fault = SET["deep_sigmoid"]
    assert judging.found(gradient_thresholds(fault.make(1)), fault.found_by)
    assert gradient_thresholds(fault.twin(1)) == ()


# -- whether the check tells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["deep_sigmoid", "head_replaced", "unregistered_layers", "double_softmax", "missing_values", "same_batch"],
)
def test_the_check_finds_the_fault_at_its_place(name: str) -> None:
    fault = SET[name]
    found = depthgauge.check(fault.make(11), budget=8, only=[fault.found_by[0][0]])
    assert judging.found(judging.alarms(found), fault.found_by), found.asked


@pytest.mark.parametrize("name", ["frozen_backbone", "contrastive", "rare_words", "fine_tuned"])
def test_the_check_spares_the_sound(name: str) -> None:
    found = depthgauge.check(SOUND[name].make(11), budget=15)
    assert not judging.alarms(found)
