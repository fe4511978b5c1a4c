"""`depthgauge profile` and `run --profile`, and that TensorBoard's plugin and a browser see what they leave."""

from __future__ import annotations

import errno
import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from depthgauge import roofline
from depthgauge.cli import main

pytestmark = pytest.mark.slow

STUDIES = Path(__file__).parent / "engine_studies"
WALK = str(STUDIES / "walk.py")
BROWSER = shutil.which("chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

Call = Callable[..., Result]


@pytest.fixture(autouse=True, scope="module")
def roof() -> Iterator[None]:
    """A roofline that is not measured: it takes seconds, and has tests of its own."""
    made_up = roofline.Ceilings("cpu", 1, {"float32": 1e11, "float64": 5e10}, 1e10, 1e11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "ceilings", lambda _device: made_up)
        yield


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """`depthgauge ...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = torch.get_num_threads()
    yield lambda *words: CliRunner().invoke(main, words, prog_name="depthgauge")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two profiles, made from the command line."""
    folder = tmp_path_factory.mktemp("profiles")
    words = ["profile", "softmax_regression", "mlp", "--seconds", "0.1", "--batch", "8", "--out", str(folder)]
    before = torch.get_num_threads()
    result = CliRunner().invoke(main, words, prog_name="depthgauge")
    torch.set_num_threads(before)
    assert result.exit_code == 0, result.output
    *found, page, report = result.stdout.splitlines()
    assert (page, report) == (f"{folder}/report/index.html", f"{folder}/report/report.md")
    assert [re.sub(r"[\d.]+", "1", line.partition("; ")[0]) for line in found] == [
        f"{model}-batch1: 1 {unit} a step, forward 1%, backward 1%, optimizer 1%"
        for model, unit in zip(("mlp", "softmax_regression"), (line.split()[2] for line in found), strict=True)
    ]
    assert all("; could save most: " in line for line in found)
    return folder


def sentence(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("depthgauge: ")
    return line.removeprefix("depthgauge: ")


def test_traces_lie_where_tensorboard_and_perfetto_look(profiled: Path) -> None:
    for name in ("softmax_regression-batch8", "mlp-batch8"):
        (trace,) = (profiled / "traces" / name).iterdir()
        assert re.fullmatch(rf"{name}\.\d+\.pt\.trace\.json\.gz", trace.name)
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        named = {event["name"] for event in events}
        assert {"depthgauge: forward", "depthgauge: backward", "depthgauge: optimizer", "aten::addmm"} <= named


def test_the_report_is_made_again_without_measuring(profiled: Path, call: Call) -> None:
    report = profiled / "report"
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    for words in (["profile", "--out", str(profiled)], ["report", str(profiled)]):
        result = call(*words)
        assert result.exit_code == 0, result.output
        assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before


def test_a_model_of_ones_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\ndef make(classes=3): return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))\n"
    )
    words = ["nets_of_mine:make", "--input-shape", "3,4", "--dtype", "fp64", "--seconds", "0.05", "--out", "mine"]
    result = call("profile", *words)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "mine/report/report.md").read_text()
    assert "depthgauge profile nets_of_mine:make --input-shape 3,4 --dtype float64 --out mine" in page


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["resnet19"], 2, "there is no model 'resnet19'; did you mean 'resnet18'?"),
        (["mlp", "--preset", "huge"], 2, "model 'mlp' has no preset 'huge'; it has published, small"),
        (["mlp", "--device", "tpu"], 2, "there is no device 'tpu'"),
        (["mlp", "--dtype", "tf32"], 2, "tf32 is a format of CUDA's tensor cores"),
        (["mlp", "--dtype", "int8"], 2, "'int8' is not one of"),
        (["mlp", "--input-shape", "1,x"], 2, "'1,x' is not a shape such as 3,224,224"),
        (
            ["nets:make", "--preset", "published"],
            2,
            "'nets:make' has no presets: --preset is a size of depthgauge's own",
        ),
        ([], 2, "there are no profiles in runs/profile; depthgauge profile MODEL --out runs/profile makes one"),
        (["--open", "nowhere"], 2, "there are no traces in nowhere; depthgauge profile MODEL --out nowhere makes one"),
        (["--open", "a", "b"], 2, "--open takes one directory"),
        (
            ["diff", "mlp", "mpl"],
            2,
            "there is no profile 'mlp', neither as a file or directory nor as a label; there are no",
        ),
        (["diff", "mlp"], 2, "Missing argument 'B'"),
        (["trace", "nowhere"], 2, "there is no file or directory nowhere"),
        (["trace", "."], 2, "there are no traces in ."),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(call: Call, words: list[str], code: int, told: str) -> None:
    assert told in sentence(call("profile", *words), code)


def test_a_step_that_fails_after_many_is_no_failure_to_write(call: Call, tmp_path: Path) -> None:
    (tmp_path / "tiring.py").write_text(
        "import itertools, torch\n"
        "from depthgauge import Training\n"
        "steps = itertools.count()\n"
        "def loss(model, batch):\n"
        "    if next(steps) > 8: raise OSError('the data are gone')\n"
        "    return model(batch).sum()\n"
        "def make(): return Training(torch.nn.Linear(4, 3), [torch.ones(2, 4)], loss)\n"
    )
    told = sentence(call("profile", "tiring:make", "--seconds", "0.2"), 1)
    assert "cannot run a training step" in told
    assert "OSError: the data are gone" in told


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("tempfile.TemporaryFile", OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (
            "shutil.copy2",
            OSError(errno.ENOSPC, "No space left on device"),
            "the disk is full; what is finished is kept",
        ),
    ],
)
def test_a_folder_that_takes_no_profile_is_one_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch, where: str, error: OSError, told: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(where, refuse)
    words = ["mlp", "--batch", "8", "--seconds", "0.05", "--out", "there"]
    assert f"the profile cannot be written to there: {told}" in sentence(call("profile", *words), 1)


def test_no_report_takes_the_place_of_somebody_s(call: Call, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.tex").write_text("precious")
    told = sentence(call("profile", "mlp", "--out", "."), 1)
    assert "report is there and is no report of this kind: it has no profiles.json" in told
    assert [path.name for path in tmp_path.iterdir()] == ["report"]  # nothing was measured
    assert (tmp_path / "report" / "thesis.tex").read_text() == "precious"


def test_a_model_in_which_nothing_trains_is_one_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "weightless.py").write_text("from torch import nn\ndef make(): return nn.Flatten()\n")
    told = "weightless:make has no parameter that trains, so that there is no training step to profile"
    assert sentence(call("profile", "weightless:make", "--seconds", "0.05"), 1) == told


def test_a_step_that_cannot_be_compiled_is_one_sentence(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Callable[..., Any]:
        def run(_batch: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nwas found")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    told = sentence(call("profile", "softmax_regression", "--seconds", "0.05", "--compile"), 1)
    fed = "fed float32 64 x 1 x 28 x 28"
    assert told == f"softmax_regression in float32 cannot be compiled on cpu, {fed}: no C++ compiler was found"


def test_without_tensorboard_open_says_what_to_install(
    call: Call, profiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["depthgauge.cli.profile"]  # its package has the command under that name
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    told = sentence(call("profile", "--open", str(profiled)), 1)
    assert told.endswith("pip install 'depthgauge[profile]'")


def test_rows_are_the_same_with_and_without_profile(call: Call, tmp_path: Path) -> None:
    for words in (["plain"], ["traced", "--profile"]):
        result = call("run", "walk", "--workers", "0", "--studies", WALK, "--out", *words)
        assert result.exit_code == 0, result.output
    plain, traced = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "chunks").rglob("*.parquet")}
        for name in ("plain", "traced")
    )
    assert plain
    assert plain == traced
    (trace,) = (tmp_path / "traced/traces/walk").iterdir()
    assert trace.name.endswith(".pt.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(event["name"] == "aten::cumsum" for event in events)
    assert not (tmp_path / "plain/traces").exists()
    again = call("run", "walk", "--workers", "0", "--studies", WALK, "--out", "traced", "--fresh")
    assert again.exit_code == 0, again.output
    assert not (tmp_path / "traced/traces").exists()  # a fresh start keeps no trace of the old one


# -- pages of stored profiles and traces -------------------------------------------------------------------------------


def test_the_difference_of_two_profiles(call: Call, profiled: Path, tmp_path: Path) -> None:
    labels = ("softmax_regression-batch8", "mlp-batch8")
    result = call("profile", "diff", *labels, "--from", str(profiled), "--html", "pages/d.html")
    assert result.exit_code == 0, result.output
    first, *_, last = result.stdout.splitlines()
    assert first.startswith("A step of mlp-batch8 takes ")
    assert last == "pages/d.html"
    assert "aten::relu" in result.stdout  # the regression has none
    assert "aten::relu" in (tmp_path / last).read_text()
    files = (str(profiled / "profiles" / f"{label}.json") for label in labels)
    told = json.loads(call("profile", "diff", *files, "--json").stdout)
    assert told["ratio"]["value"] == pytest.approx(told["seconds"][1] / told["seconds"][0])
    assert sum(row["difference"] for row in told["operators"]) == pytest.approx(told["seconds"][1] - told["seconds"][0])


def test_traces_as_pages(call: Call, profiled: Path, tmp_path: Path) -> None:
    shutil.copytree(profiled / "traces", tmp_path / "traces")
    result = call("profile", "trace", "traces")
    assert result.exit_code == 0, result.output
    pages = [tmp_path / line for line in result.stdout.splitlines()]
    assert len(pages) == 2
    assert all("aten::addmm" in page.read_text() for page in pages)
    (one,) = (tmp_path / "traces/mlp-batch8").glob("*.gz")
    assert call("profile", "trace", str(one), "--html", "one.html").stdout == "one.html\n"
    assert "there are 2 traces" in sentence(call("profile", "trace", "traces", "--html", "one.html"), 2)
    shutil.copy(one, twin := one.with_name("twin.pt.trace.json.gz"))
    twin.with_suffix("").write_bytes(gzip.decompress(one.read_bytes()))
    names = {Path(line).name for line in call("profile", "trace", str(one.parent)).stdout.splitlines()}
    assert {"twin.html", "twin.gz.html"} < names
    for each in (twin, twin.with_suffix("")):
        each.unlink()
    (tmp_path / "traces/broken.pt.trace.json").write_text("[1]")
    broken = call("profile", "trace", "traces")
    assert "traces/broken.pt.trace.json is not a trace of torch.profiler" in sentence(broken, 1)
    assert len(broken.stdout.splitlines()) == 2  # the others have their pages


def test_help_is_that_of_the_command_that_is_named(call: Call) -> None:
    assert "depthgauge profile diff [OPTIONS] A B" in call("profile", "diff", "--help").stdout
    assert "depthgauge profile trace [OPTIONS] TRACE..." in call("profile", "trace", "--help").stdout
    assert "depthgauge profile diff A B" in call("profile", "--help").stdout


def test_open_says_what_needs_the_network(call: Call, profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = pytest.importorskip("tensorboard.program")
    pytest.importorskip("torch_tb_profiler")
    monkeypatch.setattr(program.TensorBoard, "launch", lambda _board: "http://127.0.0.1:1/")
    monkeypatch.setattr(threading.Event, "wait", lambda *_: True)  # it would serve until Ctrl-C
    told = call("profile", "--open", str(profiled)).stderr
    hosts = re.findall(r"[\w.]+\.com", told)
    (static,) = (Path(place) / "static" for place in find_spec("torch_tb_profiler").submodule_search_locations or ())  # type: ignore[union-attr] # it was imported
    pages = "".join((static / name).read_text(encoding="utf-8") for name in ("index.html", "trace_embedding.html"))
    assert sorted(hosts[:2]) == ["cdnjs.cloudflare.com", "www.gstatic.com"]
    assert all(f"https://{host}/" in pages for host in hosts[:2])


# -- TensorBoard -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board(profiled: Path) -> Iterator[str]:
    """TensorBoard on loopback, its address; ended with the tests."""
    for name in ("tensorboard", "torch_tb_profiler"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-m", "depthgauge", "profile", "--open", str(profiled), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#pytorch_profiler", address)
            yield address.partition("#")[0]
        finally:
            server.terminate()
            assert server.wait(30) == 143  # it ends when it is told to


def loaded(board: str, number: int) -> list[str]:
    """The plugin's runs, once it has read `number` of them; it is idle, too, between one run and the next."""
    read: list[str] = []
    for _ in range(120):
        with urllib.request.urlopen(f"{board}data/plugin/pytorch_profiler/runs", timeout=10) as answer:
            told = json.load(answer)
        read = list(told["runs"])
        if len(read) >= number and not told["loading"]:
            return read
        time.sleep(0.5)
    pytest.fail(f"the plugin read {read} within a minute, not {number} runs")


def test_the_plugin_lists_our_runs(board: str) -> None:
    assert loaded(board, 2) == ["mlp-batch8", "softmax_regression-batch8"]


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_a_browser_sees_the_plugin_show_our_run(board: str) -> None:
    loaded(board, 2)
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:  # the browser may still be leaving
        command = [
            BROWSER, *QUIET, f"--user-data-dir={empty}", "--virtual-time-budget=15000", "--dump-dom",
            f"{board}data/plugin/pytorch_profiler/index.html",  # what TensorBoard frames
        ]  # fmt: skip
        seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    shown = seen[seen.index("<body") :]
    assert "mlp-batch8" in shown
    assert "Overview" in shown  # the plugin's view of it, not an error
