"""Types: mypy, strict, on the package as it is installed; a test, so that it has one core and other tests the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGURATION = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.slow
def test_every_name_has_the_type_that_it_says() -> None:
    pytest.importorskip("mypy", reason="mypy is in the extra `type`")
    words = ["-p", "depthgauge", "--config-file", str(CONFIGURATION), "--cache-dir", os.devnull]  # nobody reads it
    done = subprocess.run([sys.executable, "-m", "mypy", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
