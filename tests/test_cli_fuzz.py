"""Random command lines: whatever is typed ends soon in an answer or a sentence, and writes nothing astray."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from depthgauge import discovery, profiling, roofline
from depthgauge.cli import main
from depthgauge.roofline import Ceilings

CODES = {0, 1, 2, 3, 4, 5}  # docs/command-line.md; 70 would be a bug of ours, and nothing here is stopped
LONGEST = 30.0  # seconds that a call may take on a machine that does other things as well

TINY = """
    from depthgauge.study import Grid, Study
    from depthgauge.verdict import Findings

    def run(cases, context):
        for case in cases:
            yield case.rows("x", 1.0)

    STUDY = Study(
        name="tiny", question="Is there anything?", presets={"quick": (Grid({"a": (0,)}, seeds=1),)},
        run=run, analyse=lambda frame: Findings(()), plot=lambda findings: (),
    )
"""
FACTORIES = """
    import sys
    import torch
    from depthgauge import Training
    from torch import nn

    def make(classes=10):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

    def trains():
        batches = [(torch.zeros(2, 784), torch.tensor([0, 1]))]
        return Training(make(), batches, optimizer=torch.optim.SGD(make().parameters(), lr=0.1))

    def raises():
        raise KeyError("nothing there")

    def leaves():
        sys.exit(0)

    def other():
        return 3
"""
NUMBERS = (
    "0", "1", "2", "-1", "0.01", "1e-300", "1e309", "nan", "inf", "-inf", "", "abc", "9" * 30, "9" * 5000, "0x10",
    "1,2", "1000000000,1000000000", "١",
)  # fmt: skip
WORDS = (
    "", " ", ".", "-", "a" * 300, "tiny", "tiny.py", "cuda:7", "nosuch", "nosuch/x", "file", "file/x", "folder", "fifo",
    "/dev/null", "/dev/zero", "/proc/self/mem", "tiny:STUDY", "a:b:c", "os:getcwd", "fuzzed:raises", "fuzzed:leaves",
    "fuzzed:other", ":", "é", "\udce9", "a\nb", "\x1b[31m", "[x", "{}", "%s", "*", "few.json", "deep.json", "1 +",
)  # fmt: skip
# What there is, by option, or by command for its arguments.
GOOD: dict[str, tuple[str, ...]] = {
    "check": ("fuzzed:make", "fuzzed:trains"), "--only": ("data", "signal,cost"), "--baseline": ("few.json",),
    "run": ("tiny",), "report": ("out",), "profile": ("perceptron", "mlp", "fuzzed:make"),
    "plan": ("softmax_regression", "fuzzed:make"), "--batches": ("8", "4,16"), "--devices": ("1", "1,2"),
    "--steps": ("50",), "--warm": ("0", "2"), "--examples": ("16",), "--link": ("pcie", "1e-5,1e-9"), "--lr": ("0.1",),
    "--optimizer": ("sgd", "adam"), "--data": ("digits",),
    "bench ab": ("pass", "1 + 1"),
    "bench compare": ("few.json", "same.json"), "--preset": ("quick", "small"), "--seeds": ("1", "3"),
    "--model": ("mlp", "fuzzed:make"), "--device": ("cpu", "auto"), "--workers": ("0",), "--out": ("out", "more/out"),
    "--studies": ("tiny.py", "."), "--time-limit": ("5",), "--dtype": ("float32", "bf16"),
    "--input-shape": ("784", "1,28,28"),
    "--tokens": ("7",), "--batch": ("2",), "--threads": ("1",), "--seconds": ("0.1",), "--port": ("0",),
    "--select": ("mlp",), "-k": ("mlp",), "--json": ("out.json",), "--save": ("name",), "--margin": ("5",),
    "--setup": ("pass",),
    "--time": ("pass",), "--budget": ("0.01",),
}  # fmt: skip
# What would take long, wait for somebody or start processes, is asked elsewhere.
LEFT_OUT = {"--dask", "--open", "--profile"}
GIVEN = {
    "run": ["--workers", "0", "--studies", "tiny.py"], "bench ab": ["--budget", "0.01"],
    "plan": ["--data", "digits", "--warm", "1", "--examples", "32"], "check": ["--budget", "0.2"],
}  # fmt: skip
LONG = {"--workers": {"1", "2"}, "--budget": {"1", "2"}}


def commands(
    group: click.Group = main, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


def typed(draw: random.Random) -> list[str]:
    """A command line: some of a command's options, and arguments; each is as it should be, or anything."""
    words, command = draw.choice(list(commands()))
    name, wrong = " ".join(words), draw.choice((0.0, 0.1, 0.5))  # most errors hide behind another one
    line = [*words, *GIVEN.get(name, [])]
    options = [one for one in command.params if isinstance(one, click.Option) and one.opts[0] not in LEFT_OUT]
    for option in draw.sample(options, draw.randrange(min(4, len(options) + 1))):
        line.append(option.opts[0])
        if not option.is_flag:
            line.append(_value(draw, option.opts[0], wrong))
    arguments = [one.nargs for one in command.params if isinstance(one, click.Argument)]
    count = draw.randrange(4) if draw.random() < wrong / 2 or -1 in arguments else len(arguments)
    line += [_value(draw, name, wrong) for _ in range(count)]
    if draw.random() < wrong / 5:
        line.insert(draw.randrange(len(line) + 1), draw.choice(("--help", "--nosuch", "--", "-x")))
    return line


def _value(draw: random.Random, what: str, wrong: float) -> str:
    if draw.random() >= wrong:
        return draw.choice(GOOD.get(what, WORDS))
    return draw.choice([one for one in draw.choice((NUMBERS, WORDS)) if one not in LONG.get(what, ())])


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study, a file, a pipe that nobody writes into, and hostile files of benchmarks."""
    inside = tmp_path / "inside"
    for folder in (inside / "folder", tmp_path / "outside", tmp_path / "temporary"):
        folder.mkdir(parents=True)
    (tmp_path / "outside" / "precious").write_text("precious")
    (inside / "tiny.py").write_text(textwrap.dedent(TINY))
    (inside / "file").write_text("{}")
    (inside / "fuzzed.py").write_text(textwrap.dedent(FACTORIES))
    for name, seconds in {"few": [1.0, 1.1], "same": [1.0] * 20}.items():
        stats = {"fullname": "a", "stats": {"data": seconds}, "extra_info": {"reference": True}}
        told = {"benchmarks": [stats, {**stats, "fullname": "b", "extra_info": {}}]}
        (inside / f"{name}.json").write_text(json.dumps(told))
    (inside / "deep.json").write_text("[" * 100_000)
    os.mkfifo(inside / "fifo")
    monkeypatch.chdir(inside)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked up once in a process
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds whatever is asked is left out: other studies, ceilings, the suite, a recording."""
    from depthgauge.timing import variants

    def unrecorded(*_: object, **__: object) -> None:
        raise profiling.ProfileError("nothing is recorded in this test")

    @contextlib.contextmanager
    def refused(*_: object, **__: object) -> Iterator[None]:
        raise variants.VariantError("nothing is timed in this test")
        yield

    ceilings = Ceilings("cpu", 1, {"float32": 1e9}, 1e9, 1e9)
    monkeypatch.setattr(discovery, "_in_package", _own(discovery._in_package))
    monkeypatch.setattr(roofline, "ceilings", lambda *_: ceilings)
    monkeypatch.setattr(profiling, "capture", unrecorded)
    monkeypatch.setattr(variants, "expressions", refused)
    monkeypatch.setattr(subprocess, "run", _without_pytest(subprocess.run))


def _own(package: Any) -> Any:
    def in_package(name: str) -> Any:
        return iter(()) if name == "depthgauge.studies" else package(name)

    return in_package


def _without_pytest(run: Any) -> Any:
    def ran(words: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(words, 0) if "pytest" in words else run(words, **options)

    return ran


def check(words: list[str], code: int, stdout: str, stderr: str) -> None:
    told = f"depthgauge {words!r:.1000}\n{code}\n{stdout[-2000:]}\n{stderr[-2000:]}"
    assert code in CODES, told
    assert "Traceback (most recent call last)" not in stdout + stderr, told
    if code in {1, 2, 5} and "Usage: " not in stderr:
        assert stderr.splitlines()[-1].startswith("depthgauge: "), told


def unchanged(place: Path, before: dict[str, tuple[int, int]]) -> None:
    assert contents(place / "outside") == before
    assert {path.name for path in place.iterdir()} == {"inside", "outside", "temporary"}
    assert not list((place / "temporary").glob("depthgauge-traceback-*"))


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])
def many(request: pytest.FixtureRequest) -> bool:
    """Whether there is time: only where slow tests are asked for by name."""
    if request.param and "slow" not in str(request.config.getoption("markexpr")):
        pytest.skip("ten times as many are for `pytest -m slow`")
    return bool(request.param)


def test_random_command_lines_in_this_process(place: Path, quick: None, many: bool) -> None:
    count = 4000 if many else 400
    draw, before = random.Random(count), contents(place / "outside")
    for _ in range(count):
        words = typed(draw)
        start = time.monotonic()
        result = CliRunner().invoke(main, words, prog_name="depthgauge")
        assert time.monotonic() - start < LONGEST, words
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        check(words, result.exit_code, result.stdout, result.stderr)
    unchanged(place, before)


TERMINALS: tuple[dict[str, str], ...] = (
    {},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"COLUMNS": "0"},
    {"COLUMNS": "1"},
    {"COLUMNS": "9" * 30},
    {"TERM": "dumb", "NO_COLOR": "1"},
)


def test_random_command_lines_as_processes(place: Path, many: bool) -> None:
    count = 120 if many else 12
    draw, before = random.Random(count), contents(place / "outside")
    for _ in range(count):
        words = typed(draw)
        if words[0] in {"run", "profile", "bench"} and "compare" not in words:
            words.append("--nosuch")  # what they start takes long; that much is tried in process
        done = subprocess.run(
            [sys.executable, "-m", "depthgauge", *words],
            env={**os.environ, **draw.choice(TERMINALS)}, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=LONGEST * 2,
        )  # fmt: skip
        check(words, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    unchanged(place, before)
