"""The status of each claim in the published reports, as `depthgauge list --claims` shows it.

    python -m depthgauge.reports.published_claims reports/published reports/published_claims.json

makes the second anew from the findings under the first: `<machine>/<report>/findings.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEPT = ("status", "says")


def gathered(published: Path) -> dict[str, list[dict[str, str]]]:
    """Claim -> what each published report says of it: study, machine, status, and the status in words.

    Args:
        published: the folder with one folder a machine.
    """
    claims: dict[str, list[dict[str, str]]] = {}
    for path in sorted(published.glob("*/*/findings.json")):
        studies: dict[str, Any] = json.loads(path.read_bytes()).get("studies", {})
        for study, entry in sorted(studies.items()):
            for verdict in entry["verdicts"]:
                said = {name: verdict.get(name, "") for name in KEPT}
                origin = {"study": study, "machine": path.parent.parent.name, "preset": entry["preset"]}
                claims.setdefault(verdict["id"], []).append(origin | said)
    return dict(sorted(claims.items()))


def written(published: Path) -> str:
    """The content of `published_claims.json`."""
    return json.dumps({"schema": 1, "claims": gathered(published)}, indent=1) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(written(Path(sys.argv[1])), encoding="utf-8")
