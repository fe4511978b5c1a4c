"""One rank: joins the process group, calls the function, leaves its answer or its end in the folder.

torchrun --nproc-per-node 2 -m depthgauge.parallel.rank FOLDER
"""

from __future__ import annotations

import atexit
import datetime
import faulthandler
import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from depthgauge.foreign import describe_error
from depthgauge.parallel import stacks
from depthgauge.parallel.agent import AGENT, end_with
from depthgauge.parallel.group import Group, backend_of
from depthgauge.parallel.naming import AGAIN, found

_TIME_OUT = ("Timed out", "timed out", "timeout")
_CLOSED = ("Connection closed", "Connection reset", "Broken pipe", "Connection refused")


class Missing(Exception):  # noqa: N818 - it says of the others what happened
    """Other ranks did not come in time."""


def main() -> None:
    """Do what `depthgauge.parallel.launch` asked for in the folder named."""
    end_with(int(os.environ.get(AGENT, os.getppid())), 0.0)
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    number = int(os.environ["RANK"])
    started = time.monotonic()
    with (folder / f"trace-{number}.txt").open("w") as trace:
        _note(trace, f"pid {os.getpid()} thread 0x{threading.get_ident():016x}")
        faulthandler.enable(trace)
        faulthandler.register(signal.SIGTERM, trace, all_threads=True, chain=True)
        try:
            sys.path[:], sys.argv[:] = asked["path"], asked["words"]
            answer = _called(asked, trace, folder)
            (folder / f"answer-{number}.pickle").write_bytes(pickle.dumps(answer))
            end: dict[str, Any] = {"status": "ok"}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the function may raise anything
            _ignore_stops()
            end = _described(error, asked["patience"])
        end["seconds"] = time.monotonic() - started
        path = folder / f"end-{number}.json"
        path.with_suffix(".tmp").write_text(json.dumps(end))
        path.with_suffix(".tmp").rename(path)
    _leave(0 if end["status"] == "ok" else 1)


def _called(asked: dict[str, Any], trace: IO[str], folder: Path) -> Any:
    torch.set_num_threads(asked["threads"])
    function = found(asked["function"])
    if asked["function"].startswith(f"{asked['main']}:"):
        sys.modules["__main__"] = sys.modules[AGAIN]  # arguments of the script's own classes say that they are of it
    arguments = pickle.loads((folder / "arguments.pickle").read_bytes())  # noqa: S301 - written by our own process
    group = Group.here(asked["device"], asked["patience"])
    starting = datetime.timedelta(seconds=asked["starting"])
    store, *_ = next(rendezvous("env://", timeout=starting))
    # Ranks import at different speeds, which is no matter of how long a collective may wait.
    _meet(store, "up", group, asked["starting"])
    patience = datetime.timedelta(seconds=asked["patience"])
    distributed.init_process_group(
        backend_of(asked["device"]), store=store, rank=group.rank, world_size=group.ranks, timeout=patience
    )
    faulthandler.dump_traceback_later(asked["limit"], exit=True, file=trace)
    _note(trace, "called")
    (folder / f"called-{group.rank}").touch()  # its time is that of the call, by the clock of the trace's own file
    answer = function(group, *arguments)
    _note(trace, "returned")
    _meet(store, "returned", group, asked["limit"])
    faulthandler.cancel_dump_traceback_later()
    distributed.destroy_process_group()
    return answer


def _meet(store: Any, place: str, group: Any, seconds: float) -> None:
    """Wait for the others, by no collective: one that comes here early is not mistaken for one in a collective.

    Raises:
        Missing: they did not come in time.
    """
    store.set(f"depthgauge/{place}/{group.rank}", "")
    try:
        store.wait([f"depthgauge/{place}/{rank}" for rank in range(group.ranks)], datetime.timedelta(seconds=seconds))
    except RuntimeError as error:
        raise Missing(f"for the others to be {place}, for {seconds:g} s") from error


def _described(error: BaseException, patience: float) -> dict[str, Any]:
    """The end of a rank whose function raised: its own error, or that of a collective to which others did not come."""
    calls, text = stacks.raised(error), str(error)
    if isinstance(error, Missing):
        return {"status": "waited", "message": text}
    place = {"where": stacks.where(calls), "waits": True}
    if stacks.waits(calls) and any(word in text for word in _CLOSED):
        return {"status": "waited", "message": "until the connection to another was closed", **place}
    if stacks.waits(calls) and any(word in text for word in _TIME_OUT):
        return {"status": "waited", "message": f"for {patience:g} s", **place}
    return {"status": "raised", "message": describe_error(error), "where": stacks.where(calls)}


def _note(trace: IO[str], line: str) -> None:
    """Write a line among those of faulthandler, which writes at once."""
    print(line, file=trace, flush=True)


def _ignore_stops() -> None:
    """Let nobody stop this process any more: it is about to leave, and says first why."""
    faulthandler.unregister(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(code: int) -> None:
    """Leave at once: threads of a broken process group may never end."""
    _ignore_stops()
    if code == 0:  # what is to be done at the exit of a process, which none of those threads can hold up then
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
