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
from typing import Any, Literal

from depthgauge.foreign import as_line
from depthgauge.parallel import ending
from depthgauge.parallel.ending import End
from depthgauge.parallel.naming import ParallelError, named

STARTING = 90.0  # seconds for an agent and its ranks to be up, on top of the limit
PATIENCE = 20.0  # seconds that a collective waits for the others


@dataclass(frozen=True)
class Outcome:
    """What the ranks returned, or how they ended.

    Attributes:
        answers: by rank; None of a rank that returned nothing, or did not end well.
        ends: by rank.
        seconds: from the launch to the end of the last process.
        words: the last lines that the processes wrote to stderr.
    """

    answers: tuple[Any, ...]
    ends: tuple[End, ...]
    seconds: float
    words: str = ""

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
        """Which rank ended the group, and how, in a sentence; empty where all ended well."""
        if self.well:
            return ""
        culprit = self.culprit
        return str(culprit) if culprit else f"the ranks never started: {as_line(self.words) or 'they wrote nothing'}"


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
    place = named(function)
    check(ranks, device)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ranks-", dir=folder)))
        try:
            (root / "arguments.pickle").write_bytes(pickle.dumps(arguments))
        except Exception as error:
            raise ParallelError(f"an argument of {place} cannot be handed to another process: {error}") from error
        (root / "asked.json").write_text(
            json.dumps(
                {"function": place, "device": device, "limit": limit, "patience": patience, "threads": threads,
                 "path": [entry or str(Path.cwd()) for entry in sys.path], "ranks": ranks}
            )
        )  # fmt: skip
        started = time.monotonic()
        words = _run(command(root, ranks), root, threads, STARTING + limit)
        seconds = time.monotonic() - started
        ends = tuple(ending.read(root, rank, limit) for rank in range(ranks))
        answers = tuple(_answer(root, end) for end in ends)
    return Outcome(answers, ends, seconds, words)


def check(ranks: int, device: str) -> None:
    """Check that this machine can start as many ranks.

    Raises:
        ParallelError: it has fewer devices, its torch has no process groups, or no such backend.
    """
    import torch  # noqa: PLC0415 - the command line names this module without torch
    from torch import distributed  # noqa: PLC0415

    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= 512:
        raise ParallelError(f"ranks are a whole number from 1 to 512, not {ranks!r}")
    if not distributed.is_available():
        raise ParallelError("this torch was built without torch.distributed")
    if device == "cpu" and not distributed.is_gloo_available():
        raise ParallelError("this torch has no gloo, by which ranks on a CPU talk")
    if device != "cpu" and not device.startswith("cuda"):
        raise ParallelError(f"ranks run on cpu or cuda, not on {device!r}")
    if device.startswith("cuda") and ranks > (there := torch.cuda.device_count()):
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
    local = ["--local-addr", address] if node == 0 else []
    return [
        sys.executable, "-m", "depthgauge.parallel.agent", str(os.getpid()), str(folder),
        "--nnodes", str(nodes), "--nproc-per-node", str(ranks), "--node-rank", str(node),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}", "--rdzv-id", folder.name, *local,
        "--monitor-interval", "0.1", "--max-restarts", "0", "-m", "depthgauge.parallel.rank", str(folder),
    ]  # fmt: skip


def environment(threads: int, address: str = "127.0.0.1") -> dict[str, str]:
    """The environment of an agent whose ranks talk over the interface that has this address."""
    own = {"OMP_NUM_THREADS": str(threads), "TORCHELASTIC_ERROR_FILE": "", "PYTHONFAULTHANDLER": ""}
    if address == "127.0.0.1" and (loopback := _loopback()):
        own["GLOO_SOCKET_IFNAME"] = loopback
    return {**os.environ, **own}


def _loopback() -> str | None:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)


def _run(words: Sequence[str], root: Path, threads: int, limit: float) -> str:
    """Run an agent to its end; what it wrote last."""
    path = root / "words.txt"
    with (
        path.open("wb") as file,
        _ended(
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment(threads),
                start_new_session=True,
            )
        ) as agent,
    ):
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(limit)
    return path.read_text(errors="replace")[-4000:]


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


def _answer(root: Path, end: End) -> Any:
    if end.status != "ok":
        return None
    return pickle.loads((root / f"answer-{end.rank}.pickle").read_bytes())  # noqa: S301 - written by our own rank
