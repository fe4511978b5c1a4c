"""What the process that times statements answers, asked without a process."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from depthgauge.timing import subject
from depthgauge.timing.subject import SubjectError, Subjects


def prepared(statement: str, setup: str = "", **options: Any) -> Subjects:
    subjects = Subjects()
    answer = subjects.prepare(key="a", statement=statement, setup=setup, pad=64, **options)
    assert answer["first"] > 0
    return subjects


def test_a_statement_sees_the_names_of_its_setup() -> None:
    subjects = prepared("seen.append(x)", "seen = []; x = 3")
    seconds = subjects.time(key="a", calls=4, rounds=3)["seconds"]
    assert len(seconds) == 3
    assert all(each > 0 for each in seconds)
    seen = subjects.loops["a"].__globals__["seen"]
    assert seen == [3] * (1 + 4 * 3)
    assert subjects.forget() == {}
    assert not subjects.loops
    assert not subjects.held


@pytest.mark.parametrize(("statement", "setup", "where"), [("x", "1 / 0", "setup"), ("1 / 0", "x = 1", "statement")])
def test_an_error_says_where_it_arose(statement: str, setup: str, where: str) -> None:
    with pytest.raises(SubjectError, match="ZeroDivisionError") as caught:
        Subjects().prepare(key="a", statement=statement, setup=setup, pad=0)
    assert caught.value.where == where


def test_an_error_of_a_later_call_is_the_statements() -> None:
    subjects = prepared("left.pop()", "left = [1]")
    for request in (
        lambda: subjects.time(key="a", calls=1, rounds=1),
        lambda: subjects.why(key="a", by="function"),
    ):
        with pytest.raises(SubjectError, match="IndexError") as caught:
            request()
        assert caught.value.where == "statement"


def test_time_is_told_by_function() -> None:
    subjects = prepared("f(); len('ab')", "def f():\n    return sum(range(2000))")
    answer = subjects.why(key="a", by="function")
    assert answer["by"] == "function"
    calls = {name: number for name, number, _ in answer["parts"]}
    assert calls["<built-in method builtins.sum>"] == 1
    assert sum(number for name, number in calls.items() if name.startswith("f (")) == 1


@pytest.fixture
def default_device() -> Iterator[None]:
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("default_device")
def test_the_device_that_is_waited_for_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [subject._on(each) for each in ("cpu", "cuda")] == ["cpu", "cuda"]
    assert not current  # torch takes none without a number
    assert subject._on("cuda:1") == "cuda:1"
    assert current == [torch.device("cuda:1")]


@pytest.mark.usefixtures("default_device")
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
def test_work_of_the_host_is_told_though_the_setup_used_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of it ran there, so that its operators' time there says nothing."""
    monkeypatch.setattr(subject, "_synchronize", lambda: lambda: None)
    monkeypatch.setattr(subject, "_ROUNDS", 1)
    answer = prepared("x @ x", "import torch; x = torch.ones(64, 64)").why(key="a", by="operator")
    seconds = {name: each for name, _, each in answer["parts"]}
    assert seconds["aten::mm"] > 0


def test_time_is_told_by_operator_where_torch_runs_one() -> None:
    subjects = prepared("x @ x", "import torch; x = torch.ones(64, 64)", device="cpu")
    answer = subjects.why(key="a", by="operator")
    assert answer["by"] == "operator"
    calls = {name: number for name, number, _ in answer["parts"]}
    assert calls["aten::mm"] == 1
    assert "nothing computes" in calls


def test_requests_are_answered_line_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests = [
        {"do": "prepare", "key": "a", "statement": "x + 1", "setup": "x = 1", "pad": 0},
        {"do": "time", "key": "a", "calls": 2, "rounds": 1},
        {"do": "prepare", "key": "b", "statement": "y", "setup": "", "pad": 0},
    ]
    answers = io.StringIO()
    opened = [io.StringIO("".join(f"{json.dumps(each)}\n" for each in requests)), answers]
    monkeypatch.setattr(os, "dup", lambda number: number)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "fdopen", lambda *_, **__: opened.pop(0))
    monkeypatch.setattr(subject.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["subject", ",".join(map(str, os.sched_getaffinity(0)))])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    subject.main()
    first, second, third = map(json.loads, answers.getvalue().splitlines())
    assert first["first"] > 0
    assert len(second["seconds"]) == 1
    assert third == {"error": "NameError: name 'y' is not defined", "where": "statement"}
