"""A report's copy for a repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from depthgauge.reports import publishing, render


@pytest.fixture
def copied(stored: Any, conftest_parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A report, and its copy."""
    monkeypatch.setattr(publishing, "LONG", 500)
    stored.run["command"] = "depthgauge run gradient_flow --out /home/me/'my runs'/x"
    render(stored, {"gradient_flow": conftest_parts.make_study()})
    place = tmp_path / "published"
    size = publishing.publish(stored.directory / "report", place)
    assert size == sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return stored.directory / "report", place


def test_every_link_of_the_copy_leads_to_a_file_of_it(copied: tuple[Path, Path]) -> None:
    _, place = copied
    links = []
    for page in (*place.glob("*.md"), *place.glob("*.html")):
        links += re.findall(r"(?:\]\(|href=\"|src=\")((?:figures|tables)/[^)\"\s]+)", page.read_text("utf-8"))
    assert any(link.endswith(".csv.gz") for link in links)
    assert any(link.endswith(".png") for link in links)
    assert all((place / link).is_file() for link in links)
    findings = json.loads((place / "findings.json").read_bytes())["studies"]["gradient_flow"]
    assert findings["figures"]
    assert all((place / name).is_file() for name in (*findings["figures"], *findings["tables"].values()))


def test_tables_hold_what_they_held(copied: tuple[Path, Path]) -> None:
    report, place = copied
    for table in (report / "tables").glob("*.csv"):
        (there,) = place.glob(f"tables/{table.stem}.csv*")
        assert (there.suffix == ".gz") == (table.stat().st_size > 500)
        pd.testing.assert_frame_equal(pd.read_csv(there), pd.read_csv(table))


def test_the_place_it_was_made_in_is_not_named(copied: tuple[Path, Path]) -> None:
    report, place = copied
    assert any("/home/me" in page.read_text("utf-8") for page in report.glob("*.md"))
    assert not any("/home/me" in path.read_text("utf-8") for path in place.glob("*.*"))
    assert "depthgauge run gradient_flow" in (place / "report.md").read_text("utf-8")


def test_what_is_no_report_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "kept").touch()
    with pytest.raises(FileNotFoundError, match="is no report: it has no findings"):
        publishing.publish(tmp_path, place)
    assert (place / "kept").exists()
