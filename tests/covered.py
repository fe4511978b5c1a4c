"""Runs Python and reports which lines and branches of depthgauge that executed, in all processes that it started.

python tests/covered.py -m pytest -n 2    # exits with pytest's code, or 2 below the floor in pyproject.toml
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

COVERING = Path(__file__).parent / "covering"


def covered(words: list[str]) -> int:
    """The exit code of `python WORDS`, or that of the report if it is 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(COVERING), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_COVERED": name}
        ended = subprocess.run([sys.executable, *words], env=environment, check=False).returncode
        return report(folder) or ended


def report(folder: Path) -> int:
    """Prints what no process executed; 2 below the floor."""
    notes = sorted(folder.glob("*.json"))
    command = [sys.executable, "-m", "slipcover", "--merge", *map(str, notes), "--out", str(folder / "all")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(covered(sys.argv[1:]))
