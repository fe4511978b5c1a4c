"""A report's copy for a repository: smaller, and without a word of the place that it was made in.

    python -m depthgauge.reports.publishing runs/all/report reports/published/cpu-2core/studies

Figures are PNG alone, long tables are compressed (`pandas.read_csv` reads them as they are), and commands lose their
`--out`. Links follow. Nothing that was measured is changed, and `index.html` stays one file with everything in it.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

from depthgauge.reports.rendering import FINDINGS
from depthgauge.reports.replacing import replacing

LONG = 20_000  # bytes of a table that is compressed: shorter ones are read in place

_OUT = re.compile(r""" --out (?:'[^'\n]*'|&#39;[^\n]*?&#39;|[^\s<]+)""")
_LABELS = (
    re.compile(r" ?\(\[SVG\]\(figures/[^)]+\.svg\)\)"),
    re.compile(r'<a class="file" href="figures/[^"]+\.svg">SVG</a>'),
)
_TABLE = re.compile(r"\btables/([^\s\"'()<>]+?)\.csv\b")


def publish(report: Path, place: Path) -> int:
    """Copy a report to `place`, which it replaces, and return how many bytes it is long there.

    Args:
        report: the folder `report` of a run, or of several.
        place: the folder in the repository; its parent must exist.

    Raises:
        FileNotFoundError: `report` is none, or the parent of `place` is missing.
        OSError: it could not be written; what was at `place` is still there.
    """
    if not (report / FINDINGS).is_file():
        raise FileNotFoundError(f"{report} is no report: it has no findings.json")
    packed = {path.stem for path in (report / "tables").glob("*.csv") if path.stat().st_size > LONG}
    with replacing(place, FINDINGS) as folder:
        for kind in ("figures", "tables"):
            (folder / kind).mkdir()
        for path in sorted((report / "figures").glob("*.png")):
            shutil.copyfile(path, folder / "figures" / path.name)
        for path in sorted((report / "tables").glob("*.csv")):
            name, content = path.name, path.read_bytes()
            if path.stem in packed:
                name, content = f"{name}.gz", gzip.compress(content, mtime=0)
            (folder / "tables" / name).write_bytes(content)
        for path in sorted((*report.glob("*.md"), *report.glob("*.html"), report / FINDINGS)):
            text = path.read_text(encoding="utf-8")
            shorter = _findings(text, packed) if path.suffix == ".json" else _page(text, packed)
            (folder / path.name).write_text(shorter, encoding="utf-8")
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _page(text: str, packed: set[str]) -> str:
    """A page whose links lead to what is published."""
    for label in _LABELS:
        text = label.sub("", text)
    text = re.sub(r"(\bfigures/[^\s\"'()<>]+)\.svg\b", r"\1.png", text)
    return _OUT.sub("", _tables(text, packed))


def _findings(text: str, packed: set[str]) -> str:
    """The machine's view, without the files that are not published."""
    whole = json.loads(text)
    for study in whole["studies"].values():
        study["figures"] = [name for name in study["figures"] if name.endswith(".png")]
        study["tables"] = {name: _tables(path, packed) for name, path in study["tables"].items()}
    return json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _tables(text: str, packed: set[str]) -> str:
    return _TABLE.sub(lambda found: found[0] + (".gz" if found[1] in packed else ""), text)


if __name__ == "__main__":
    sys.stdout.write(f"{publish(Path(sys.argv[1]), Path(sys.argv[2])) / 1e6:.1f} MB\n")
