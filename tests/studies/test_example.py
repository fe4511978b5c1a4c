"""docs/examples/dead_units.py, word for word as docs/adding-a-study.md shows it, run where the repository is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from depthgauge import discovery, running, store
from depthgauge.parts import Part
from depthgauge.study import Grid

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE, PAGE = DOCS / "examples" / "dead_units.py", DOCS / "adding-a-study.md"
PARTS = DOCS / "examples" / "rectified"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the page's own command, in a folder of a stranger's."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(EXAMPLE, folder)
    (command,) = re.findall(r"^ +depthgauge (run dead_units .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    words = command.replace("docs/examples/dead_units.py", "dead_units.py").split()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "depthgauge", *words, "--workers", "1"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / Path(done.stdout.splitlines()[-1]).parents[1]


def test_it_is_a_study_of_eighty_lines_that_needs_nothing_of_ours() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    assert not re.search(r"depthgauge\.(reports|studies|store|running|cli)|import depthgauge\.", source)


def test_the_page_shows_the_file_itself() -> None:
    """What the page quotes stands in the file, line by line."""
    page = PAGE.read_text(encoding="utf-8")
    assert "examples/dead_units.py" in page
    files = [path.read_text(encoding="utf-8") for path in (EXAMPLE, PARTS / "signal.py", PARTS / "__init__.py")]
    quoted = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert quoted
    for block in quoted:
        assert any(block in file for file in files), block


def test_the_pages_second_stage_of_a_part_is_called_as_it_says() -> None:
    (text,) = re.findall(r"( +def second\(rows, width.*?)\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    told: dict[str, Any] = {"Grid": Grid}
    exec(textwrap.dedent(text), told)  # the page's own code
    (part,) = discovery.find("rectified", [str(PARTS)]).load().parts
    assert isinstance(part, Part)
    rows = pd.DataFrame({"metric": "rate", "depth": [2, 2], "value": [-0.7, -0.6]})
    (grid,) = replace(part, second=told["second"]).after("tiny", rows)
    assert [case.id for case in grid.cases()][:1] == ["depth=4,part=signal,seed=0,stage=second,width=8"]


def test_it_runs_and_reports_outside_the_repository(ran: Path) -> None:
    assert (ran / "report" / "report.md").exists()
    assert (ran / "report" / "index.html").exists()
    assert "How many ReLU units are dead" in (ran / "report" / "dead_units.md").read_text(encoding="utf-8")
    assert (ran / "report" / "figures" / "dead_units.dead.png").exists()


def test_its_verdict_carries_its_statistics(ran: Path) -> None:
    told = json.loads((ran / "report" / "findings.json").read_bytes())["studies"]["dead_units"]
    assert (told["cases"], told["failed"]) == (60, 0)
    (verdict,) = told["verdicts"]
    assert verdict["id"] == "dead_units/bias"
    # The weights are the same with and without the bias and the seeds are fixed: this is one number, not luck.
    assert verdict["status"] == "fails"
    assert verdict["low"] <= verdict["observed"] <= verdict["high"] < 0
    assert verdict["n"] == 10
    assert "for all 3 at once" in verdict["method"]


def test_the_study_of_parts_runs_and_its_verdict_stands_in_its_table(tmp_path: Path) -> None:
    found = discovery.find("rectified", [str(PARTS)])
    assert (found.presets, [claim.id for claim in found.claims]) == (("quick", "standard"), ["rectified/rate"])
    running.run("rectified", out=tmp_path, workers=0, sources=[str(PARTS)])
    findings = found.load().analyse(store.read(tmp_path).frame("rectified"))
    (verdict,) = findings.verdicts
    assert verdict.status == "holds"
    table = findings.tables[verdict.table]
    assert verdict.observed in set(table["value"])
    assert len((PARTS / "signal.py").read_text(encoding="utf-8").splitlines()) <= 80
