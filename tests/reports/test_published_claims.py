"""The statuses that the package knows of published claims are those of the reports that are published."""

from __future__ import annotations

import json
from pathlib import Path

import depthgauge.reports
from depthgauge.reports.published_claims import gathered

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"


def test_they_are_those_of_the_published_reports() -> None:
    known = json.loads((Path(depthgauge.reports.__file__).parent / "published_claims.json").read_bytes())
    again = "python -m depthgauge.reports.published_claims reports/published reports/published_claims.json"
    assert known == {"schema": 1, "claims": gathered(PUBLISHED)}, f"make them anew: {again}"


def test_a_claim_of_two_reports_has_both_answers(tmp_path: Path) -> None:
    for machine, status in (("a", "holds"), ("b", "fails")):
        folder = tmp_path / machine / "one"
        folder.mkdir(parents=True)
        verdict = {"id": "N01", "status": status, "says": f"says {status}", "n": 5}
        study = {"preset": "full", "verdicts": [verdict]}
        (folder / "findings.json").write_text(json.dumps({"studies": {"flow": study}}))
    (tmp_path / "a" / "profiles").mkdir()
    (tmp_path / "a" / "profiles" / "findings.json").write_text("{}")
    assert gathered(tmp_path) == {"N01": [
        {"study": "flow", "machine": "a", "preset": "full", "status": "holds", "says": "says holds"},
        {"study": "flow", "machine": "b", "preset": "full", "status": "fails", "says": "says fails"},
    ]}  # fmt: skip
