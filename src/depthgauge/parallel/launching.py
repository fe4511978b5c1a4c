"""A function on several ranks of one machine: launched by torchrun, ended in time, its end a result.

    outcome = launch("my_project.steps:work", 3, ranks=2)   # work(group, 3) in each of two processes
    outcome.answers                                          # what each rank returned
    outcome.why                                              # or which rank ended it, and how

The function is found by name in every rank, after the process group is up. A rank that raises, dies or hangs ends the
group within the limit, and no process is left behind: ranks end with their agent, the agent with the process that
launched it, however that ends. The rendezvous is on loopback, on a port that is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from depthgauge.foreign import as_line, describe_error
from depthgauge.formats.arguments import real
from depthgauge.parallel import ending
from depthgauge.parallel.ending import End
from depthgauge.parallel.group import PATIENCE
from depthgauge.parallel.naming import ParallelError, check_read, named

AGENT = Path(__file__).with_name("agent.py")  # run as a file: the package's modules would take it half a second more
STARTING = 90.0  # seconds for an agent and its ranks to be up, on top of the limit
FOREVER = 1e7  # seconds that no timer takes any more


@dataclass(frozen=True)
class Outcome:
    """The answers of the ranks, or their ends.

    Attributes:
        answers: by rank; None of a rank that returned nothing, or did not end well.
        ends: by rank.
        seconds: from the launch to the end of the last process.
        words: the last lines that the processes wrote to stderr.
        agent: id of the process that was their agent.
    """

    answers: tuple[Any, ...]
    ends: tuple[End, ...]
    seconds: float
    words: str = ""
    agent: int = 0

    @property
    def processes(self) -> tuple[int, ...]:
        """Ids of the processes that were started, all ended: the agent and the ranks."""
        return (self.agent, *(end.pid for end in self.ends if end.pid is not None))

    @property
    def well(self) -> bool:
        """Tell whether every rank ended well."""
        return all(end.status == "ok" for end in self.ends)

    @property
    def culprit(self) -> End | None:
        """The rank that ended the group; None where all ended well."""
        return ending.culprit(self.ends)

    @property
    def why(self) -> str:
        """The rank that ended the group, how and where, and who waited for it; empty where all ended well."""
        if self.well:
            return ""
        if all(end.status == "never" for end in self.ends):
            return f"the ranks never started: {as_line(self.words) or 'they wrote nothing'}"
        return ending.why(self.ends) or "the ranks were stopped from outside"


def launch(
    function: Callable[..., Any] | str,
    *arguments: Any,
    ranks: int = 2,
    device: str = "cpu",
    limit: float = 60.0,
    patience: float = PATIENCE,
    threads: int = 1,
    folder: Path | None = None,
) -> Outcome:
    """Call a function as `function(group, *arguments)` in each rank of a process group that torchrun starts.

    Args:
        function: an importable function, or "package.module:function"; it gets a `depthgauge.parallel.Group`.
        *arguments: what pickle can carry.
        ranks: number of processes.
        device: `cpu` (gloo), or `cuda`: a device each, by NCCL.
        limit: seconds that the function may take.
        patience: seconds that a collective waits for the other ranks.
        threads: intra-op threads a rank.
        folder: for what processes leave to each other; None: a temporary one.

    Raises:
        ParallelError: the function cannot be found by name in another process, an argument cannot be pickled, or
            this machine has fewer devices than ranks; the message is one sentence.
    """
    check_read()
    place = named(function)
    check(ranks, device)
    if not (folder is None or isinstance(folder, str | Path)):
        raise ParallelError(f"folder is a path, not {folder!r:.60}")
    for name, value in (("limit", limit), ("patience", patience)):
        if not 0 < real(value) < FOREVER:
            raise ParallelError(f"{name} is a number of seconds above 0 and below {FOREVER:g}, not {value!r:.60}")
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise ParallelError(f"threads are a whole number from 1 to 1024, not {threads!r:.60}")
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(_folder(folder))
        prepare(root, place, arguments, device=device, limit=limit, patience=patience, threads=threads)
        started = time.monotonic()
        agent, late = _run(command(root, ranks), root, threads, STARTING + limit)
        seconds = time.monotonic() - started
        ends = ending.read(root, ranks, limit, late=late)
        replies = answers(root, ends)
        words = (root / "words.txt").read_text(errors="replace")[-4000:]
    return Outcome(replies, ends, seconds, words, agent)


@contextlib.contextmanager
def _folder(within: Path | None) -> Iterator[Path]:
    """A folder for what processes leave to each other.

    Raises:
        ParallelError: none can be made, or the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ranks-", dir=within, ignore_cleanup_errors=True) as made:
            yield Path(made).absolute()
    except OSError as error:
        where = within if within is not None else "the folder for temporary files (TMPDIR)"
        raise ParallelError(f"ranks cannot leave anything in {where}: {describe_error(error)}") from error


def prepare(
    folder: Path,
    place: str,
    arguments: tuple[Any, ...],
    *,
    device: str = "cpu",
    limit: float = 60.0,
    patience: float = PATIENCE,
    threads: int = 1,
) -> None:
    """Write into a folder what its ranks shall do; the arguments are those of `launch`.

    Raises:
        ParallelError: an argument cannot be pickled.
    """
    try:
        (folder / "arguments.pickle").write_bytes(pickle.dumps(arguments))
    except Exception as error:
        raise ParallelError(f"an argument of {place} cannot be handed to another process: {as_line(error)}") from error
    asked = {
        "function": place, "device": device, "limit": limit, "patience": patience, "threads": threads,
        "starting": STARTING, "path": list(map(_lasting, sys.path)), "words": sys.argv,
        "main": str(Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()),
    }  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked))


def _lasting(entry: str) -> str:
    """An entry of `sys.path` that is valid in whatever folder a process is."""
    return str(Path(entry).absolute()) if Path(entry).exists() else entry  # hooks of installations are no paths


def check(ranks: int, device: str) -> None:
    """Check that this machine can start as many ranks.

    Raises:
        ParallelError: it has fewer devices, its torch has no process groups, or no such backend.
    """
    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= 512:  # type: ignore[redundant-expr]  # callers are not type-checked
        raise ParallelError(f"ranks are a whole number from 1 to 512, not {ranks!r}")
    if not distributed.is_available():
        raise ParallelError("this torch was built without torch.distributed")
    if device not in ("cpu", "cuda"):
        raise ParallelError(f"ranks run on cpu or cuda, not on {device!r:.60}")
    if device == "cpu" and not distributed.is_gloo_available():
        raise ParallelError("this torch has no gloo, by which ranks on a CPU talk")
    if device == "cuda" and ranks > (there := torch.cuda.device_count()):
        raise ParallelError(f"{ranks} ranks on cuda take a device each, and this machine has {there}")


def command(
    folder: Path, ranks: int, *, nodes: int = 1, node: int = 0, address: str = "127.0.0.1", port: int = 0
) -> list[str]:
    """The words of a command line that start one node's agent and its ranks, with torchrun's own options.

    Args:
        folder: shared by all nodes.
        ranks: processes on this node.
        nodes: number of nodes.
        node: this node's place; node 0 hosts the rendezvous.
        address: of node 0, where all nodes reach it.
        port: of the rendezvous; 0: any that is free, on one node alone.
    """
    # Who hosts the rendezvous is told, not guessed from this machine's name, which may be another network's.
    local = ["--local-addr", address] if node == 0 else []
    return [
        sys.executable, "-P", str(AGENT), str(os.getpid()), str(folder),
        "--nnodes", str(nodes), "--nproc-per-node", str(ranks),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}", "--rdzv-id", folder.name,
        "--rdzv-conf", f"is_host={node == 0:d}", *local,
        "--monitor-interval", "0.1", "--max-restarts", "0", "-m", "depthgauge.parallel.rank", str(folder),
    ]  # fmt: skip


def environment(threads: int, address: str = "127.0.0.1") -> dict[str, str]:
    """The environment of an agent whose ranks talk over the interface that has this address."""
    own = {"OMP_NUM_THREADS": str(threads), "TORCHELASTIC_ERROR_FILE": "", "PYTHONFAULTHANDLER": ""}
    own["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "5"  # seconds from SIGTERM to SIGKILL
    if address == "127.0.0.1" and (loopback := _loopback()):
        own["GLOO_SOCKET_IFNAME"] = loopback
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}  # torchrun's options
    return {**outer, **own}


def _loopback() -> str | None:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)


def _run(words: Sequence[str], root: Path, threads: int, limit: float) -> tuple[int, bool]:
    """Run an agent to its end, or to the limit; its process id, and whether it had to be ended."""
    with (root / "words.txt").open("wb") as file:
        started = subprocess.Popen(  # noqa: S603 - our own words
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment(threads), start_new_session=True
        )
        with _ended(started) as agent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(limit)
            return agent.pid, agent.poll() is None


@contextlib.contextmanager
def _ended(agent: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End an agent when the block ends, and with it its ranks."""
    try:
        yield agent
    finally:
        for sign, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
            if agent.poll() is not None:
                break
            agent.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(patience)


def answers(folder: Path, ends: Sequence[End]) -> tuple[Any, ...]:
    """The answers that ranks left in their folder; None of one that did not end well.

    Raises:
        ParallelError: an answer cannot be read here, such as one of a class that this process does not find.
    """

    def answer(end: End) -> Any:
        content = (folder / f"answer-{end.rank}.pickle").read_bytes()
        try:
            return pickle.loads(content)  # noqa: S301 - written by our own rank
        except Exception as error:
            raise ParallelError(
                f"the answer of rank {end.rank} cannot be read here: {describe_error(error)}"
            ) from error

    return tuple(answer(end) if end.status == "ok" else None for end in ends)
