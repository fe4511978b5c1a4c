"""torchrun, as `depthgauge.parallel.launch` starts it: it ends with the process that started it, and notes exit codes.

python -P agent.py PARENT FOLDER [torchrun's own options] -m depthgauge.parallel.rank FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

AGENT = "DEPTHGAUGE_AGENT"  # the agent's process id, in the environment of its ranks
GRACE = 8.0  # seconds that ranks have to leave when their agent is told to


def end_with(parent: int, grace: float) -> None:
    """End this process soon after its parent has ended, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run torchrun with the options that follow the first two."""
    parent, folder, options = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    end_with(parent, GRACE)
    os.environ[AGENT] = str(os.getpid())
    from torch.distributed import run  # noqa: PLC0415 - loading torch takes seconds, in which the parent may end
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415

    try:
        run.main(options)
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        (folder / f"failures-{os.getpid()}.json").write_text(json.dumps(codes))
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
