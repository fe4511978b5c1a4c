"""Several run directories read as one, for a report on studies that were measured apart.

    runs = join([read("runs/cpu"), read("runs/gpu")], Path("runs/both"))
    render(runs, studies)                     # runs/both/report

What the runs' environments have in common is said once, and what differs is said of the studies that it is true of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from depthgauge.reading import StudyRows
from depthgauge.runfile import NAME, StoreError
from depthgauge.store import Stored


@dataclass(frozen=True)
class Joined(Stored):
    """Stored runs as one.

    Attributes:
        directory: where their report belongs.
        run: as in `run.json`, of all of them: of the fingerprint an entry that differs is a text that says which
            studies have which value; `common` is what all have, `apart` maps a study to the rest of its own.
        owners: study -> the run that holds it.
    """

    owners: Mapping[str, Stored]

    def missing(self, study: str) -> int:
        """Count the requested chunks that are not finished."""
        return self.owners[study].missing(study)

    def frame(self, study: str, chunks: Iterable[str] | None = None) -> pd.DataFrame:
        """The study's rows, as in `Stored`."""
        return self.owners[study].frame(study, chunks)

    def rows(self, study: str, chunks: Iterable[str] | None = None) -> StudyRows:
        """The study's rows, part by part, as in `Stored`."""
        return self.owners[study].rows(study, chunks)


def join(runs: Sequence[Stored], out: Path) -> Joined:
    """Join runs, each study of which one of them holds.

    Args:
        runs: one or more; one without a request yet adds nothing.
        out: where the report belongs; no run directory itself, and its `report/` is a report if it is there.

    Raises:
        StoreError: two runs hold one study, none holds any, or something else is in the report's place.
    """
    _check_place(out)
    runs = asked(runs)
    owners: dict[str, Stored] = {}
    for run in runs:
        for study in run.studies:
            if study in owners and owners[study].directory.resolve() == run.directory.resolve():
                raise StoreError(f"{run.directory} is named twice; name each run once")
            if study in owners:
                raise StoreError(
                    f"{owners[study].directory} and {run.directory} both hold {study}; a report has each study once"
                )
            owners[study] = run
    fingerprints = {study: run.run.get("fingerprint", {}) for study, run in owners.items()}
    names = dict.fromkeys(name for run in runs for name in run.run.get("fingerprint", {}))
    common = {name: next(iter(fingerprints.values()))[name] for name in names if _agree(name, fingerprints)}
    apart = {
        study: {name: value for name, value in marks.items() if name not in common}
        for study, marks in fingerprints.items()
    }
    joined: dict[str, Any] = {
        "request": {study: run.run["request"][study] for study, run in owners.items()},
        "chunks": {study: list(run.chunks(study)) for study, run in owners.items()},
        "command": "\n".join(command for run in runs if (command := run.run.get("command"))),
        "started": _period([str(run.run.get("started") or "") for run in runs]),
        "fingerprint": {
            name: common[name] if name in common else _by_value({s: marks.get(name) for s, marks in apart.items()})
            for name in names
        },
        "common": common,
        "apart": apart,
        "lost": any(run.lost for run in runs),
    }
    return Joined(out, joined, owners)


def asked(runs: Sequence[Stored]) -> list[Stored]:
    """Return the runs that were asked for a study.

    Raises:
        StoreError: none was.
    """
    if found := [run for run in runs if run.studies]:
        return found
    raise StoreError(f"no study has been asked for in {' or '.join(str(run.directory) for run in runs)}")


def _check_place(out: Path) -> None:
    report = out / "report"
    if (out / NAME).exists():
        raise StoreError(f"{out} is a run directory, whose own report would be lost; name another place by --out")
    if report.is_symlink() or (report.exists() and not (report / "findings.json").is_file()):
        raise StoreError(f"{report} is there, and no report; name another place by --out")


def _agree(name: str, fingerprints: Mapping[str, Mapping[str, object]]) -> bool:
    first, *others = (marks.get(name, _agree) for marks in fingerprints.values())  # a function is no value of any
    return first is not _agree and all(other == first for other in others)


def _by_value(values: Mapping[str, object]) -> str:
    """`cpu (precision), cuda (activation, gradient_flow)`; a study without a value is left out."""
    groups: dict[str, list[str]] = {}
    for study, value in values.items():
        if value is not None:
            groups.setdefault(str(value), []).append(study)
    return ", ".join(f"{value} ({', '.join(sorted(studies))})" for value, studies in sorted(groups.items()))


def _period(stamps: Sequence[str]) -> str:
    """From the first to the last of time stamps; empty where one is not known."""
    if len(set(stamps)) < 2 or not all(stamps):
        return stamps[0] if len(set(stamps)) == 1 else ""
    first, last = (stamp[:16].replace("T", " ") for stamp in (min(stamps), max(stamps)))
    return f"{first} to {last}" + (" UTC" if all(stamp.endswith("+00:00") for stamp in stamps) else "")
