"""One rank: joins the process group, calls the function, leaves its answer or its end in the folder.

torchrun --nproc-per-node 2 -m depthgauge.parallel.rank FOLDER
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

from depthgauge.foreign import describe_error
from depthgauge.parallel.agent import end_with

_LOST = ("Timed out", "timed out", "Connection closed", "Connection reset", "Broken pipe", "Connection refused")


def main() -> None:
    """Do what `depthgauge.parallel.launch` asked for in the folder named."""
    end_with(os.getppid(), 0.0)
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    number = int(os.environ["RANK"])
    started = time.monotonic()

    def end(status: str, message: str = "") -> None:
        left = json.dumps({"status": status, "message": message, "seconds": time.monotonic() - started})
        path = folder / f"end-{number}.json"
        path.with_suffix(".tmp").write_text(left)
        path.with_suffix(".tmp").rename(path)

    with (folder / f"trace-{number}.txt").open("w") as trace:
        faulthandler.enable(trace)
        try:
            sys.path[:] = asked["path"]
            answer = _called(asked, trace, folder)
            (folder / f"answer-{number}.pickle").write_bytes(pickle.dumps(answer))
            end("ok")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the function may raise anything
            text = str(error)
            end("waited" if any(word in text for word in _LOST) else "raised", describe_error(error))
            _leave(1)
    _leave(0)


def _called(asked: dict[str, Any], trace: Any, folder: Path) -> Any:
    import torch  # noqa: PLC0415 - threads are set before
    from torch import distributed  # noqa: PLC0415

    from depthgauge.parallel.group import Group, backend_of  # noqa: PLC0415
    from depthgauge.parallel.naming import found  # noqa: PLC0415

    torch.set_num_threads(asked["threads"])
    function = found(asked["function"])
    arguments = pickle.loads((folder / "arguments.pickle").read_bytes())  # noqa: S301 - written by our own process
    patience = datetime.timedelta(seconds=asked["patience"])
    group = Group.here(asked["device"])
    distributed.init_process_group(backend_of(asked["device"]), timeout=patience)
    faulthandler.dump_traceback_later(asked["limit"], exit=True, file=trace)
    answer = function(group, *arguments)
    distributed.barrier()
    faulthandler.cancel_dump_traceback_later()
    distributed.destroy_process_group()
    return answer


def _leave(code: int) -> None:
    """Leave at once: threads of a broken process group may never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os._exit(code)


if __name__ == "__main__":
    main()
