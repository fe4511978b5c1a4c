"""Profiles, traces and benchmark files that somebody edited, or made to do harm: one sentence each, soon."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from depthgauge import jsonfile
from depthgauge.cli import main
from depthgauge.operations import Operation
from depthgauge.profiling import Capture, ProfileError, analyse, read
from depthgauge.roofline import Ceilings
from depthgauge.timing import stored

MIB = 1 << 20


def event(cat: str, name: str, start: float, end: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": end - start, "args": args}


def host(name: str, start: float, end: float, link: int) -> dict[str, Any]:
    shapes = {"Input Dims": [[64, 32], [32, 16]], "Input type": ["float", "float"]}
    return event("cpu_op", name, start, end, **{"External id": link, **shapes})


TRACE = {
    "traceEvents": [
        event("user_annotation", "ProfilerStep#3", 0, 1000),
        event("user_annotation", "depthgauge: forward", 0, 300),
        host("aten::mm", 50, 250, 1),
        event("cuda_runtime", "cudaLaunchKernel", 60, 65, correlation=7),
        event("kernel", "gemm", 100, 400, correlation=7, stream=7, **{"External id": 1}),
        {**event("cpu_instant_event", "[memory]", 70, 70, Addr=1, Bytes=8, **{"Device Type": 1}), "ph": "i"},
    ]
}
CAPTURE = Capture(
    label="one", setting={"model": "one", "dtype": "float32", "device": "cuda", "compiled": False}, examples=64,
    precision="float32", plain=(0.001,) * 8, profiled=(0.002,) * 8, first=0.1,
    operations=(Operation("aten::mm", ((64, 32), (32, 16)), 65_536, 14_336, "float32"),),
    resident={"parameters": 2048}, ceilings=Ceilings("cuda", 1, {"float32": 1e9}, 1e9, 1e10),
    trace="traces/one/one.pt.trace.json.gz", fingerprint={"torch": "2.13.0", "commit": None}, command="",
)  # fmt: skip
BENCHMARKS = {
    "benchmarks": [
        {"fullname": "still", "stats": {"data": [1.0, 1.01] * 20}, "extra_info": {"reference": True}},
        {"fullname": "work", "stats": {"data": [2.0, 2.01] * 20}, "extra_info": {}},
    ]
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `depthgauge profile` leaves, and a benchmark file."""
    monkeypatch.chdir(tmp_path)
    CAPTURE.write(tmp_path)
    (tmp_path / CAPTURE.trace).parent.mkdir(parents=True)
    (tmp_path / CAPTURE.trace).write_bytes(gzip.compress(json.dumps(TRACE).encode()))
    (tmp_path / "run.json.bench").write_text(json.dumps(BENCHMARKS))
    return tmp_path


def replaced(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


WHOLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (pipe, "it is not a regular file"),
    "a device": (device, "it is not a regular file"),
    "a directory": (directory, "it is not a regular file"),
    "a terabyte": (large, "it is larger than "),
    "a bomb": (lambda path: replaced(path, gzip.compress(b" " * (257 * MIB), 1)), "it unpacks to more than "),
    "empty": (lambda path: replaced(path, b""), "it is not JSON: "),
    "no UTF-8": (lambda path: replaced(path, b'{"a": "\xe9"}'), "it is not JSON: it is not UTF-8 text"),
    "half of a pair": (lambda path: replaced(path, b'{"a": "\\ud800"}'), "it h"),
    "deep": (lambda path: replaced(path, b"[" * 100_000 + b"]" * 100_000), "it is nested more than 64 deep"),
    "NaN": (lambda path: replaced(path, b'{"a": NaN}'), "it is not JSON: it holds NaN as a number"),
    "huge": (lambda path: replaced(path, b'{"a": 1e999}'), "it is not JSON: it holds 1e999 as a number"),
    "huge and whole": (lambda path: replaced(path, b'{"a": ' + b"9" * 5000 + b"}"), "it is not JSON: it holds 9999999"),
    "a list": (lambda path: replaced(path, b"[]"), "it has a list as the whole, where an object belongs"),
}


def call(*words: str) -> Result:
    return CliRunner().invoke(main, words, prog_name="depthgauge")


def sentence(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("depthgauge: ")
    return line


@pytest.mark.parametrize("kind", WHOLE)
def test_a_profile_that_is_something_else(folder: Path, kind: str) -> None:
    make, told = WHOLE[kind]
    make(folder / "profiles/one.json")
    line = sentence(call("report", "."), 1)
    assert "profiles/one.json holds no profile: it " in line
    if kind != "half of a pair":
        assert told in line


@pytest.mark.parametrize("kind", WHOLE)
def test_a_trace_that_is_something_else(folder: Path, kind: str) -> None:
    make, told = WHOLE[kind]
    make(folder / CAPTURE.trace)
    line = sentence(call("report", "."), 1)
    assert f"{CAPTURE.trace} is not a trace of torch.profiler: it " in line
    assert told in line


@pytest.mark.parametrize("kind", WHOLE)
def test_a_benchmark_file_that_is_something_else(folder: Path, kind: str) -> None:
    make, told = WHOLE[kind]
    make(folder / "run.json.bench")
    line = sentence(call("bench", "compare", "run.json.bench", "run.json.bench"), 2)
    assert "run.json.bench is not a run of pytest-benchmark: it " in line
    if kind != "half of a pair":
        assert told in line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"trace": "../outside.json"}, "it names a trace outside of its folder: ../outside.json"),
        ({"trace": "/etc/passwd"}, "it names a trace outside of its folder: /etc/passwd"),
        ({"plain": []}, "it has no number in plain"),
        ({"plain": [0.1]}, "it has 1 numbers in plain and 8 in profiled"),
        ({"plain": [0.0] * 8}, "it has a number in plain that is not within 1e-12 to 1e+24"),
        ({"examples": -1}, "it has a number in examples that is not within"),
        ({"first": "soon"}, "it has text as profile.first, where a number belongs"),
        ({"ceilings": {}}, "it lacks profile.ceilings."),
        (
            {"ceilings": asdict(replace(CAPTURE.ceilings, levels=((1024, 0.0),)))},
            "it has a number in ceilings.levels that is not within",
        ),
        (
            {"operations": [["mm", [[1, -1.5]], 1, 1, ""]]},
            "it has a number as operations[0][1][0][1], where an integer",
        ),
        ({"schema": 2}, "it is not of this version of depthgauge"),
        ({"more": 1}, "it has no place for profile.more"),
    ],
)
def test_an_edited_profile_says_which_entry(folder: Path, change: dict[str, Any], told: str) -> None:
    path = folder / "profiles/one.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert told in sentence(call("report", "."), 1)


def test_a_trace_that_is_not_the_profiles(folder: Path) -> None:
    (folder / CAPTURE.trace).write_bytes(json.dumps({"traceEvents": []}).encode())
    assert "cannot be the trace of profiles/one.json: the trace has no step" in sentence(call("report", "."), 1)
    steps = [event("user_annotation", f"ProfilerStep#{place}", place, place + 1) for place in range(101)]
    (folder / CAPTURE.trace).write_bytes(json.dumps({"traceEvents": steps}).encode())
    assert "the trace has 101 steps; at most 100 are read" in sentence(call("report", "."), 1)
    (folder / CAPTURE.trace).unlink()
    line = sentence(call("report", "."), 1)
    assert line == f"depthgauge: there is no file {CAPTURE.trace}, which a profile names; profile that model again"


# -- wrong types at each key -------------------------------------------------------------------------------------------


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


BAD = (
    None, True, -1, 0, 1, 10**15, 1e308, -1e308, 1e-320, "x", "", "\ud800", "../x", "a" * 300, [], [1, 2], {}, {"a": 1},
    nested(50), [[-1]],
)  # fmt: skip


def places(value: object, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, (*before, key))


def edited(told: Any, draw: random.Random) -> Any:
    """A copy in which one entry, wherever it is, is another value or gone."""
    copy = json.loads(json.dumps(told))
    *before, last = draw.choice(list(places(copy)))
    inner = copy
    for key in before:
        inner = inner[key]
    if draw.random() < 0.1:
        del inner[last]
    else:
        inner[last] = draw.choice(BAD)
    return copy


@pytest.mark.parametrize("which", ["profile", "trace"])
def test_any_entry_of_a_profile_or_trace_may_be_anything(folder: Path, which: str) -> None:
    path = folder / ("profiles/one.json" if which == "profile" else CAPTURE.trace)
    whole, draw, refused = jsonfile.read(path), random.Random(0), 0
    for _ in range(200):
        path.write_bytes(json.dumps(edited(whole, draw)).encode())
        try:
            captured = Capture.read(folder / "profiles/one.json")
            analyse(captured, read(folder / captured.trace))
        except (ProfileError, ValueError):  # a TraceError is the latter
            refused += 1
    assert 50 < refused < 200  # most entries matter; the words of some do not


def test_any_entry_of_a_benchmark_file_may_be_anything(tmp_path: Path) -> None:
    path, draw, refused = tmp_path / "x.json", random.Random(0), 0
    for _ in range(500):
        path.write_bytes(json.dumps(edited(BENCHMARKS, draw)).encode())
        try:
            run = stored.read(path)
            stored.compare(run, run)
        except stored.StoredRunError as error:
            refused += str(error).startswith(f"{path} is not a run of pytest-benchmark: it ")
    assert 50 < refused < 500


def test_two_rounds_are_too_few_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    each = {"stats": {"data": [1.0, 1.1]}}
    told = [{**each, "fullname": "still", "extra_info": {"reference": True}}, {**each, "fullname": "work"}]
    Path("few.json").write_text(json.dumps({"benchmarks": told}))
    result = call("bench", "compare", "few.json", "few.json")
    assert result.exit_code == 4, result.output
    assert "too few rounds for an interval" in result.stdout
    assert "Too few rounds of the references, so that nothing can be concluded" in result.stdout
    assert json.loads(call("bench", "compare", "few.json", "few.json", "--json").stdout)["resolution"] is None
