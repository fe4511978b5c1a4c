"""`python -m depthgauge`."""

import contextlib
import sys
from pathlib import Path

import depthgauge
from depthgauge.cli import main


def _leave_the_current_folder() -> None:
    """Drop the current folder, which `python -m` puts first on the path: it may be anybody's.

    What of it is wanted is named: `--studies` and `--model` put it last.
    """
    with contextlib.suppress(OSError, IndexError):
        here = Path(sys.path[0]).resolve()
        if here == Path.cwd() and here not in Path(depthgauge.__file__).resolve().parents:
            del sys.path[0]


if __name__ == "__main__":  # a spawned worker imports this module again
    _leave_the_current_folder()
    main(prog_name="depthgauge")
