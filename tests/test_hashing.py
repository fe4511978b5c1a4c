"""A function's digest: other where anything that it computes with is other, the same in every process."""

from __future__ import annotations

import copyreg
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import hashing, origin
from depthgauge.hashing import UnreadableError, digest
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings

CELL = """
import math
from functools import lru_cache
import numpy as np

WIDTH = 2.0
TABLE = {"names": {"a", "b", "c", "d"}, "values": np.arange(3)}

def helper(x):
    return x * 2

@lru_cache
def cached(x):
    return x + 1

class Layer:
    SIZE = 3
    def forward(self, x):
        return helper(x) + self.SIZE

def scaled(by):
    def run(cases, context):
        for case in cases:
            yield Layer().forward(WIDTH) * by + cached(1) + TABLE["values"].sum() + (case in {"p", "q", "r"}) + math.pi
    return run

run = scaled(3)
"""


def of_cell(text: str) -> Callable[..., Any]:
    """`run`, as a notebook's cell makes it: in no file."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<cell>", "exec", dont_inherit=True), scope)
    return scope["run"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 2.0", "WIDTH = 2.5"), ("WIDTH = 2.0", "WIDTH = 2"), ("return x * 2", "return x * 4"),
        ("return x + 1", "return x - 1"), ("SIZE = 3", "SIZE = 4"), ("scaled(3)", "scaled(4)"), ('"d"}', '"e"}'),
        ("arange(3)", "arange(4)"), ("* by", "/ by"), ('"r"}', '"s"}'), ("math.pi", "math.e"),
    ],
)  # fmt: skip
def test_whatever_is_named_counts(old: str, new: str) -> None:
    assert old in CELL
    assert digest(of_cell(CELL)) != digest(of_cell(CELL.replace(old, new)))


def test_comments_lines_and_what_is_not_named_do_not_count() -> None:
    other = "UNUSED = object()\n\n" + CELL.replace("SIZE = 3", "SIZE = 3  # of it")
    run = of_cell(CELL)
    assert digest(run) == digest(of_cell(other)) == digest(run)
    run(["p"], None)
    assert digest(partial(run, 1)) != digest(partial(run, 2)) != digest(run)


def test_the_digest_is_that_of_another_process() -> None:
    code = f"""
        from depthgauge.hashing import digest
        scope = {{"__name__": "__main__"}}
        exec(compile({CELL!r}, "<cell>", "exec"), scope)
        print(digest(scope["run"]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == digest(of_cell(CELL))


@dataclass
class Measure:
    """A callable object; what it holds may hold itself."""

    size: int
    held: list[object]

    def __call__(self, *_: object) -> tuple[()]:
        return ()


def test_objects_count_with_what_they_hold() -> None:
    itself: list[object] = []
    itself.append(itself)
    assert digest(Measure(1, itself).__call__) == digest(Measure(1, itself).__call__)
    assert digest(Measure(1, [])) != digest(Measure(2, [])) != digest(Measure(2, [1]))
    assert digest(torch.ones(3)) == digest(torch.ones(3)) != digest(torch.ones(3, dtype=torch.bfloat16))
    layers = [torch.nn.Linear(2, 2) for _ in range(2)]
    assert digest(layers[0]) == digest(layers[0]) != digest(layers[1])
    assert digest([np.float32(1)]) != digest([np.float64(1)])
    assert digest(lru_cache(len)) == digest(lru_cache(len))
    assert len({digest(each) for each in (1, 1.0, True, "1", b"1", (1,), [1], {1}, None, 0.0, -0.0)}) == 11


def test_an_exception_that_was_raised_is_the_same_whoever_pickles_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = FileNotFoundError(2, "no such file")
    monkeypatch.setitem(copyreg.dispatch_table, FileNotFoundError, lambda e: (list, (), {"at": str(e.__traceback__)}))
    before = digest(error)
    with pytest.raises(FileNotFoundError):
        raise error
    assert digest(error) == before != digest(FileNotFoundError(2, "another"))


def test_what_cannot_be_told_is_named() -> None:
    run = of_cell("import threading\nLOCK = threading.Lock()\ndef run(cases, context):\n    return LOCK")
    with pytest.raises(UnreadableError, match=r"^LOCK \(lock\), which its code names, cannot be told from another$"):
        digest(run)
    nested: list[object] = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(UnreadableError, match="is nested too deep"):
        digest(nested)


def study(run: Any) -> Study:
    grid = Grid({"width": (1,)})
    return Study("made_here", "?", {"quick": (grid,)}, run, lambda _: Findings(verdicts=()), lambda _: ())


def test_a_scripts_files_count_and_stand_in_for_what_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hashed_helper.py").write_text("A = 1")
    script = tmp_path / "hashed_script.py"
    script.write_text(
        "import threading\nimport hashed_helper\nLOCK = threading.Lock()\ndef run(cases, context):\n    return LOCK\n"
    )
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(script.read_text(), str(script), "exec"), scope)
    made = study(partial(scope["run"], context=1))
    before = origin.digest(made)
    assert origin.digest(made) == before
    (tmp_path / "hashed_helper.py").write_text("A = 2")
    assert origin.digest(made) != before


def test_a_token_stands_for_no_digest() -> None:
    assert hashing.unknown() != hashing.unknown()
    assert hashing.unknown().startswith(hashing.UNKNOWN)
