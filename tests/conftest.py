"""How tests share cores under `pytest -n 2 --dist loadgroup --no-loadscope-reorder`."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from depthgauge.study import Study
from depthgauge.verdict import Figure, Findings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many threads as processes, not their product


def pytest_collection_finish() -> None:
    """Takes what is there when all tests are known out of each later garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # an eighth of the time of tests that hold many rows


class Groups:
    """Ends a run of pytest-xdist whose pytest does not show it the groups of tests, which would all be split."""

    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        lost = [name for name in ids if "@" not in name.rpartition("]")[2]]
        if lost:
            pytest.exit(f"pytest {pytest.__version__} is newer than constraints.txt allows: no group of {lost[0]}", 2)


def pytest_configure(config: pytest.Config) -> None:
    """Has groups looked at where they are asked for."""
    if config.getoption("dist", "no") == "loadgroup":
        config.pluginmanager.register(Groups())


@pytest.fixture(autouse=True)
def _draws_are_the_same_every_time(request: pytest.FixtureRequest) -> None:
    """Seeds the global generators by the test's name: what fails here fails wherever it is run again.

    Beside other processes, too, where pytest-xdist puts a group behind the name.
    """
    group = request.node.get_closest_marker("xdist_group")
    name = request.node.nodeid.removesuffix(f"@{group.args[0]}") if group is not None else request.node.nodeid
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Lets torch use one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    """Closes what a test has drawn: the next one's axes are its own."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups tests by file, so that fixtures are made once, and all that are `alone` in one group, which begins.

    Those that are `alone`, those that take `forks`, and those of studies are `slow`, too: processes start, clocks are
    waited for, and studies run.
    """
    for item in items:
        studies = item.path.is_relative_to(Path(__file__).parent / "studies")
        if studies or item.get_closest_marker("alone") or "forks" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    if not config.pluginmanager.has_plugin("xdist"):
        return
    for item in items:
        alone = item.get_closest_marker("alone") is not None
        item.add_marker(pytest.mark.xdist_group("alone" if alone else item.path.stem))
    # The longest first: what remains is short, and fills the other process's time.
    slow = Counter(item.path.stem for item in items if item.get_closest_marker("slow"))

    def order(item: pytest.Item) -> tuple[bool, bool, int]:
        stem = item.path.stem
        return item.get_closest_marker("alone") is None, stem != "test_types", -slow[stem]  # types take a minute

    items.sort(key=order)


class Forked:
    """A running `depthgauge ...`, see `Forks`."""

    def __init__(self, ask: Callable[..., Any], words: Sequence[str], folder: Path, said: Path) -> None:
        self._ask, self._said = ask, [said / "stdout", said / "stderr"]
        self.args = [*words]
        self._pid = ask(start={"words": self.args, "folder": str(folder), "said": [*map(str, self._said)]})
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self._code is None:
            self._code = self._ask(end=self._pid)
        return self._code

    def wait(self, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """What came of it, once it has ended."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, seconds)
            time.sleep(0.005)
        return subprocess.CompletedProcess(self.args, code, *(path.read_text() for path in self._said))


class Forks:
    """Starts `depthgauge ...` as processes that share the imports of one: a quarter of what each would take alone."""

    def __init__(self, folders: Callable[[], Path]) -> None:
        self._folders = folders
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTEST_XDIST_WORKER", None)  # all of it counts for coverage, see tests/covering
        program = [sys.executable, str(Path(__file__).with_name("forking.py"))]
        self._server = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def _ask(self, **what: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(what), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def start(self, folder: Path, *words: str) -> Forked:
        """In that folder."""
        return Forked(self._ask, words, folder, self._folders())

    def run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """In that folder, to its end."""
        return self.start(folder, *words).wait()

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """`depthgauge ...` as a process of its own, quickly; not for what depends on how a process starts."""
    made = Forks(lambda: tmp_path_factory.mktemp("said"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def _ranks() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("ranks.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    made = module.Ranks()
    yield made
    made.close()


@pytest.fixture(scope="module")
def warm_ranks(_ranks: Any) -> Iterator[None]:
    """Ranks are forked, not started by torchrun, within a module of tests; those with planted faults excepted."""
    from depthgauge.parallel import launching

    torchrun = launching._run

    def run(words: Sequence[str], root: Path, *limits: Any) -> tuple[int, bool]:
        planted = ".planted:" in json.loads((root / "asked.json").read_text())["function"]
        return (torchrun if planted else _ranks.run)(words, root, *limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "_run", run)
        yield


@dataclass(frozen=True)
class Ran:
    """A study whose every part ran once at its size for tests, what its analysis said, and its closed figures."""

    study: Study
    frame: pd.DataFrame
    findings: Findings
    figures: tuple[Figure, ...]


@pytest.fixture(scope="session")
def ran_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Study], Ran]:
    """Runs all parts of a study at `tiny`, analyses and draws them: once, however many tests ask."""
    known: dict[str, Ran] = {}

    def ran(study: Study) -> Ran:
        if study.name not in known:
            known[study.name] = run_tiny(study, tmp_path_factory.mktemp(study.name))
        return known[study.name]

    return ran


def run_tiny(study: Study, folder: Path) -> Ran:
    from matplotlib import pyplot as plt

    from depthgauge import running
    from depthgauge.parts import TINY

    second = study.second
    tiny = replace(
        study,
        presets={"quick": tuple(grid for part in study.parts for grid in part.at(TINY))},
        second=second and (lambda _, frame: second(TINY, frame)),
    )
    frame = running.run(tiny, out=folder / "run", workers=0).stored.frame(study.name)
    findings = tiny.analyse(frame)
    figures = tuple(tiny.plot(findings))
    plt.close("all")
    return Ran(tiny, frame, findings, figures)
