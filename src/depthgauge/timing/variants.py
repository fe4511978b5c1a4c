"""Variants of code in worker processes: expressions side by side in one, revisions in one each.

    with expressions(["x.tanh()", "x.sigmoid()"], setup="import torch; x = torch.randn(1 << 16)") as sitting:
        done = interleave(sitting)
    done.judgements[0].pace                                     # <Pace.SLOWER: 'slower'>

    with revisions(["main", "."], statement="train()", setup="from mine import train") as sitting:
        done = interleave(sitting, budget=120)

Expressions of one sitting share a process, so that nothing but the code differs. A revision is exported, installed into
a folder of its own, and set up in a fresh process every sitting. What is timed of a slot is the median of several short
rounds: a neighbour that takes the core for a moment spoils one of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from depthgauge.seeding import Purpose, python_generator
from depthgauge.timing.interleaving import Sitting, Slot
from depthgauge.timing.spending import Spent

_ROUND, _SLOT = 1e-3, 0.01  # seconds: of one round, and of one slot
_WARM = 0.02  # seconds for which a variant warms up
_PADDING = 1 << 16  # bytes: data move by up to 16 pages from sitting to sitting
_WORKER = Path(__file__).with_name("subject.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")


class VariantError(RuntimeError):
    """A variant that cannot be timed; the message is one sentence for the user."""


class Worker:
    """A process that times statements."""

    def __init__(self, name: str, *, threads: int, cores: Sequence[int], path: Path | None, folder: Path) -> None:
        environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # every start would compile the sources again
        if path is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
        self.name = name
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, our own file
            [sys.executable, str(_WORKER), ",".join(map(str, cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )

    def send(self, do: str, **request: object) -> None:
        """Asks, without waiting.

        Raises:
            VariantError: the process has ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def receive(self, label: str) -> dict[str, Any]:
        """The answer to the oldest question that is open.

        Raises:
            VariantError: the process has ended, or the variant's code raised.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            where = "the setup" if answer["where"] == "setup" else "the statement"
            raise VariantError(f"{where} of variant {label!r} raised {answer['error']}")
        return answer

    def ask(self, do: str, label: str = "", **request: object) -> dict[str, Any]:
        """Asks and waits.

        Raises:
            VariantError: as in `receive`.
        """
        self.send(do, **request)
        return self.receive(label)

    def _ended(self) -> VariantError:
        code = self.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return VariantError(f"the process of {self.name} ended while it was timed ({how})")

    def close(self) -> None:
        """Ends the process."""
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert stream is not None
                stream.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Variant:
    """A variant that is set up: a slot of a sitting, and what its time is made of.

    Attributes:
        worker: the process that it lives in.
        key: its key there.
        label: its name.
        calls: in a round.
        rounds: in a slot.
    """

    worker: Worker
    key: str
    label: str
    calls: int
    rounds: int

    def __call__(self) -> float:
        """Time one slot and return the seconds of one call.

        Raises:
            VariantError: as `Worker.receive`.
        """
        asked = {"key": self.key, "calls": self.calls, "rounds": self.rounds}
        seconds: list[float] = self.worker.ask("time", self.label, **asked)["seconds"]
        return statistics.median(seconds)

    def why(self, by: str = "operator") -> Spent:
        """Profile one call: the parts of its time.

        Args:
            by: `operator`, of torch, where it runs any; `function`, of Python.

        Raises:
            VariantError: as `Worker.receive`.
        """
        answer = self.worker.ask("why", self.label, key=self.key, by=by)
        return Spent.of(self.label, answer["by"], answer["parts"])


def cores_for(threads: int) -> tuple[int, ...]:
    """The cores that all workers are pinned to, so that they meet the same neighbours: the last of those allowed.

    None where the threads take every core.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[-threads:]) if threads < len(allowed) else ()


@contextlib.contextmanager
def expressions(
    variants: Sequence[str], *, setup: str = "pass", threads: int = 1, device: str = ""
) -> Iterator[Sitting]:
    """Sittings of Python statements in one process, the first of them the baseline.

    Args:
        variants: two or more statements.
        setup: runs in a namespace of its own for each variant and sitting.
        threads: intra-op threads.
        device: torch's default device, and `device` in the namespace; nothing without one.

    Raises:
        VariantError: a statement, or the setup, that raises.
    """
    labels = [variants[0], *variants]
    worker = Worker("the variants", threads=threads, cores=cores_for(threads), path=None, folder=Path.cwd())
    plan: dict[str, tuple[int, int]] = {}

    def prepare(number: int) -> list[tuple[Worker, str, str]]:
        padding = python_generator(number, Purpose.PADDING)
        for place, label in enumerate(labels):
            pad = padding.randrange(_PADDING)
            worker.ask("prepare", label, key=str(place), statement=label, setup=setup, pad=pad, device=device)
        return [(worker, str(place), label) for place, label in enumerate(labels)]

    @contextlib.contextmanager
    def sitting(number: int) -> Iterator[Sequence[Slot]]:
        try:
            yield _slots(prepare(number), plan)
        finally:
            if worker.process.poll() is None:
                worker.ask("forget")

    try:
        prepare(-1)  # imports are paid here, so that the first sitting tells what the others take
        worker.ask("forget")
        yield sitting
    finally:
        worker.close()


@contextlib.contextmanager
def revisions(
    variants: Sequence[str],
    *,
    statement: str,
    setup: str = "pass",
    threads: int = 1,
    device: str = "",
    repository: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Sitting]:
    """Sittings of one statement under several revisions of a git repository, the first of them the baseline.

    Args:
        variants: two or more revisions as git spells them; `.` is the working tree with its changes to tracked files.
        statement: the statement to time.
        setup: runs before it, in every process.
        threads: intra-op threads.
        device: as of `expressions`.
        repository: a folder of it; the current one unless stated.
        progress: told in a few words what is being prepared.

    Raises:
        VariantError: no repository, no such revision, one that cannot be installed, or code that raises.
    """
    root = Path(
        _git(repository or Path.cwd(), "rev-parse", "--show-toplevel", failure="revisions need a git repository")
    )
    with tempfile.TemporaryDirectory(prefix="depthgauge-") as folder:
        places: dict[str, tuple[Path, Path]] = {}
        commits = {name: _commit(root, name) for name in variants}
        for number, (name, commit) in enumerate(commits.items()):
            if progress:
                progress(f"preparing {name}")
            # Names of equal length, so that the paths are: the size of the environment moves the stack.
            places[name] = _export(root, name, commit, Path(folder, f"{number:03}"))
        labels = [variants[0], *variants]
        plan: dict[str, tuple[int, int]] = {}

        def start(label: str) -> Worker:
            source, installed = places[label]
            return Worker(
                f"revision {label!r}", threads=threads, cores=cores_for(threads), path=installed, folder=source
            )

        @contextlib.contextmanager
        def sitting(number: int) -> Iterator[Sequence[Slot]]:
            padding = python_generator(number, Purpose.PADDING)
            with contextlib.ExitStack() as stack:
                prepared = []
                for label in labels:
                    worker = start(label)
                    stack.callback(worker.close)
                    pad = padding.randrange(_PADDING)
                    worker.send("prepare", key="0", statement=statement, setup=setup, pad=pad, device=device)
                    prepared.append((worker, "0", label))
                for worker, _, label in prepared:  # they start at the same time
                    worker.receive(label)
                yield _slots(prepared, plan)

        yield sitting


def _slots(prepared: Sequence[tuple[Worker, str, str]], plan: dict[str, tuple[int, int]]) -> list[Slot]:
    """Slots of variants that are ready, warmed up; how many calls and rounds each takes is settled the first time."""
    for worker, key, label in prepared:
        ask = partial(worker.ask, "time", label, key=key)
        start = time.perf_counter()
        calls, rounds = plan.get(label, (1, 1))
        each = min(ask(calls=calls, rounds=rounds)["seconds"])
        while time.perf_counter() - start < _WARM:
            calls = max(1, math.ceil(_ROUND / max(each, 1e-9)))
            each = min(ask(calls=calls, rounds=5)["seconds"])
        if label not in plan:  # A and A' share theirs
            calls = max(1, math.ceil(_ROUND / max(each, 1e-9)))
            plan[label] = calls, max(1, round(_SLOT / (calls * each)))
    return [Variant(*slot, *plan[slot[2]]) for slot in prepared]


def _git(folder: Path, *arguments: str, failure: str) -> str:
    git = shutil.which("git")
    if git is None:
        raise VariantError(f"{failure}, and there is no git on this machine")
    done = subprocess.run(  # noqa: S603 - git, with the user's own revisions
        [git, "-C", str(folder), *arguments], capture_output=True, check=False
    )
    if done.returncode:
        raise VariantError(f"{failure}: {_last(done.stderr)}")
    return os.fsdecode(done.stdout).strip()


def _commit(root: Path, name: str) -> str:
    """A revision's commit; for the working tree one that no branch holds."""
    failure = f"there is no revision {name!r} here"
    if name == ".":
        return _git(root, "stash", "create", failure="the working tree cannot be read") or "HEAD"
    if name.startswith("-"):
        raise VariantError(failure)
    return _git(root, "rev-parse", "--verify", f"{name}^{{commit}}", failure=failure)


def _export(root: Path, name: str, commit: str, folder: Path) -> tuple[Path, Path]:
    """The sources of a commit, and the folder that its packages are imported from."""
    source, installed, archive = folder / "source", folder / "installed", folder / "archive.tar"
    source.mkdir(parents=True)
    _git(root, "archive", "--format=tar", f"--output={archive}", commit, failure=f"{name!r} cannot be exported")
    try:
        shutil.unpack_archive(archive, source, filter="data")
    except tarfile.TarError as error:  # a link that leads out of it, a device
        raise VariantError(f"{name!r} cannot be exported: {error}") from error
    archive.unlink()
    if not any((source / file).exists() for file in ("pyproject.toml", "setup.py")):
        return source, source
    # By the project's own build, so that packages are found as users find them; dependencies are those of this Python.
    options = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target")
    done = subprocess.run(  # noqa: S603 - this interpreter's pip
        [sys.executable, "-m", "pip", *options, str(installed), str(source)], capture_output=True, check=False
    )
    if done.returncode:
        raise VariantError(f"revision {name!r} cannot be installed: {_last(done.stderr)}")
    return source, installed


def _last(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
