"""Runs the ranks of process groups in processes forked from one that has imported all they need.

What torchrun does takes an agent and each rank five seconds of imports. Tests that are about what ranks compute take
this, by the fixture `warm_ranks`; those about how ranks start and end take torchrun (tests/parallel/test_launching.py).

python tests/ranks.py    # a line of JSON in: folder, ranks, port, limit, environment; a line out: whether it was late
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NEEDED = ("depthgauge.parallel.rank", "depthgauge.studies.data_parallel", "torch.distributed.pipelining",
          "torch.distributed.fsdp", "torch.distributed.tensor.parallel")  # fmt: skip


class Ranks:
    """The process that forks, as it is asked; started when it is first needed."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, words: Sequence[str], root: Path, threads: int, limit: float) -> tuple[int, bool]:
        """In place of `launching._run`: the forking process's id, and whether the ranks had to be ended."""
        from depthgauge.parallel import launching

        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        asked = {
            "folder": str(root), "ranks": int(words[words.index("--nproc-per-node") + 1]), "port": port, "limit": limit,
            "environment": launching.environment(threads), "place": str(Path.cwd()),
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return self._server.pid, json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        if self._server is not None:
            self._server.communicate()


def serve() -> None:
    """Answers until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        ranks = {become(rank, asked): rank for rank in range(asked["ranks"])}
        print(json.dumps(waited(ranks, Path(asked["folder"]), asked["limit"])), flush=True)  # noqa: T201 - the protocol


def become(rank: int, asked: dict[str, Any]) -> int:
    """Forks a rank; returns its process id here, and never there."""
    if pid := os.fork():
        return pid
    os.chdir(asked["place"])
    os.environ.update(asked["environment"])
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": asked["ranks"], "LOCAL_WORLD_SIZE": asked["ranks"],
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": asked["port"]}  # fmt: skip
    os.environ.update({name: str(value) for name, value in place.items()})
    said = os.open(Path(asked["folder"]) / "words.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, to in enumerate((os.open(os.devnull, os.O_RDONLY), said, said)):
        os.dup2(to, descriptor)
    sys.argv = ["rank", asked["folder"]]
    importlib.import_module("depthgauge.parallel.rank").main()
    os._exit(1)  # main never returns


def waited(ranks: dict[int, int], folder: Path, limit: float) -> bool:
    """Waits for all ranks, ends them after the first that fails, as torchrun does; tells whether they were late."""
    deadline, failed, late = time.monotonic() + limit, dict[str, int](), False
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.005)
            if time.monotonic() > deadline:
                _end(ranks, signal.SIGKILL if late else signal.SIGTERM)
                late, deadline = True, time.monotonic() + 5
            continue
        rank = ranks.pop(pid)
        if code := os.waitstatus_to_exitcode(status):
            failed[str(rank)] = code
            _end(ranks, signal.SIGTERM)
    if failed:
        (folder / f"failures-{os.getpid()}.json").write_text(json.dumps(failed))
    (folder / "words.txt").touch()
    return late


def _end(ranks: dict[int, int], sign: signal.Signals) -> None:
    for pid in ranks:
        os.kill(pid, sign)


if __name__ == "__main__":
    for module in NEEDED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy every page otherwise
    serve()
