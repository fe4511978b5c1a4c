"""`run.json`: the request and its environment, checked when read, and restored from the chunks when lost.

    run = load(folder)            # None where there is none
    run = load(folder) or recovered(folder)

A run directory may have been edited, or come from a stranger: what is read here has the names and types that
depthgauge writes, or is refused in one sentence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthgauge import costs, identity, jsonfile
from depthgauge.folder import Folder, OddFileError
from depthgauge.study import Case, is_name
from depthgauge.version import SCHEMA

NAME = "run.json"
LOST = "lost"  # the entry of a `run.json` that was made again from the chunks
TWICE = "twice"  # such a one's: study -> chunks that are left out of it, as others hold cases of theirs
_NEIGHBOURS = 20  # run directories that are asked what studies cost
_MOST = 2**26  # bytes: ids of half a million chunks
_CHUNK = re.compile(r"[A-Za-z0-9][A-Za-z0-9.=,_+-]{0,199}")


class StoreError(RuntimeError):
    """A directory that cannot be used; the message is one sentence for the user."""


class LostError(StoreError):
    """A `run.json` that cannot be used; `--fresh` starts over."""


# -- what may stand in it ----------------------------------------------------------------------------------------------


def _text(value: object) -> bool:
    return isinstance(value, str)


def _none_or(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _listed(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _mapped(key: Callable[[object], bool], check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(key(k) and check(v) for k, v in value.items())


def is_chunk(name: object) -> bool:
    """Tell whether a chunk may have that id."""
    return isinstance(name, str) and _CHUNK.fullmatch(name) is not None


_ASKED: Mapping[str, Callable[[object], bool]] = {
    "preset": _text,
    "seeds": _none_or(_whole),
    "origin": _none_or(_text),
    "root": _text,
    "threads": _whole,
    "not_applicable": _mapped(_text, _text),
    "left_out": _listed(_text),
    "stopped": _listed(_text),
    "second_waits": _flag,
    "tried": _mapped(_text, _text),
    "model": _text,
    "model_source": _none_or(_text),
    "model_input": _text,
    "source": _text,
}


def _request(value: object) -> bool:
    return isinstance(value, dict) and all(name not in _ASKED or _ASKED[name](entry) for name, entry in value.items())


_COSTS = _mapped(is_name, _mapped(_text, _mapped(_text, _mapped(_text, _seconds))))
_ENTRIES: Mapping[str, Callable[[object], bool]] = {
    "schema": _whole,
    "request": _mapped(is_name, _request),
    "command": _text,
    "started": _text,
    "fingerprint": _mapped(_text, _plain),
    "chunks": _mapped(is_name, _listed(is_chunk)),
    "models": _mapped(_text, _none_or(_text)),
    "costs": _COSTS,
    "spent": _COSTS,
}
_NEEDED = ("request", "fingerprint", "chunks")


# -- reading -----------------------------------------------------------------------------------------------------------


def load(folder: Folder) -> dict[str, Any] | None:
    """Load `run.json`; None where there is none.

    Raises:
        LostError: it is damaged, edited, no plain file, or of another version.
        StoreError: it cannot be read.
    """
    path = folder.path / NAME
    try:
        run = jsonfile.parse(folder.read((NAME,), most=_MOST))
    except FileNotFoundError:
        return None
    except OddFileError as error:
        raise _lost(path, f"cannot be used ({error.strerror})") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except jsonfile.JsonError as error:
        raise _lost(path, f"is damaged (it {error})") from error
    if not isinstance(run, dict) or run.get("schema") != SCHEMA or not all(name in run for name in _NEEDED):
        raise _lost(path, "is not of this version of depthgauge")
    run = {"command": "", "started": "", "models": {}, **run}
    for name, check in _ENTRIES.items():
        if name in run and not check(run[name]):
            raise _lost(path, f"is damaged ({name!r} is not what depthgauge writes there)")
    return {name: run[name] for name in _ENTRIES if name in run}


def _lost(path: Path, what: str) -> LostError:
    return LostError(
        f"{path} {what}; remove it to recover the request from the chunks, use another directory,"
        " or --fresh to start over"
    )


def stored_chunks(folder: Folder) -> Iterator[tuple[str, str]]:
    """(study, chunk) of every file of rows in the directory, asked for or not."""
    for study in folder.names(("chunks",)):
        for name in folder.names(("chunks", study)) if is_name(study) else ():
            chunk = name.removesuffix(".parquet")
            if name.endswith(".parquet") and is_chunk(chunk):
                yield study, chunk


def recovered(folder: Folder) -> dict[str, Any] | None:
    """Reconstruct a lost `run.json` from the chunks' own metadata; None where there are no chunks.

    The preset, the number of seeds and the order of the chunks are lost with it: chunks come by name. Where several
    requests have left chunks that share cases, each case is in one chunk of those that are kept (`left_out`).

    Raises:
        StoreError: the chunks were not made by one and the same code.
    """
    # here, for the first line of a run to be said before pandas is loaded
    from depthgauge.encoding import LARGEST, DamagedError, decode  # noqa: PLC0415

    run: dict[str, Any] = {"schema": SCHEMA, "request": {}, "fingerprint": {}, "chunks": {}, "models": {}, LOST: True}
    held: dict[str, dict[str, _Held]] = {}
    for study, chunk in stored_chunks(folder):
        try:
            _, metadata = decode(folder.read(("chunks", study, f"{chunk}.parquet"), most=LARGEST), study, chunk)
        except (DamagedError, OSError):
            continue
        made, marks = identity.split(metadata["fingerprint"])
        run["fingerprint"] = run["fingerprint"] or made
        entry = {"preset": "", "seeds": None, "origin": None, "source": marks.get("study_source")}
        entry |= {name: mark for name, mark in marks.items() if name != "study_source"}
        entry = {name: value for name, value in entry.items() if name != "source" or value}
        changed = list(identity.of_directory(run["fingerprint"], made))
        if run["request"].setdefault(study, entry) != entry:
            changed.append(f"code of {study} or its model")
        if changed:
            raise StoreError(f"{folder.path} has no run.json, and its rows differ in: {', '.join(changed)}")
        cases = frozenset(Case.of(case).id for case in metadata["cases"])
        held.setdefault(study, {})[chunk] = _Held(cases, len(cases) - sum(metadata["failed"].values()))
        if "model" in marks:
            run["models"][marks["model"]] = marks.get("model_source")
    run["chunks"] = {study: _apart(chunks) for study, chunks in held.items()}
    run[TWICE] = {study: more for study, chunks in held.items() if (more := len(chunks) - len(run["chunks"][study]))}
    return {"command": "", "started": "", **run} if run["chunks"] else None


@dataclass(frozen=True)
class _Held:
    """What a chunk holds: ids of its cases, and how many of them have a result."""

    cases: frozenset[str]
    results: int


def _apart(chunks: Mapping[str, _Held]) -> list[str]:
    """Chunks of which no two share a case, by name: those with most results are taken first."""
    taken: set[str] = set()
    kept = []
    for chunk, held in sorted(chunks.items(), key=lambda pair: (-pair[1].results, -len(pair[1].cases), pair[0])):
        if taken.isdisjoint(held.cases):
            taken |= held.cases
            kept.append(chunk)
    return sorted(kept)


def left_out(run: Mapping[str, Any]) -> str:
    """The end of a sentence on a reconstructed `run.json`: which chunks it leaves out; empty where there are none."""
    counts = [f"{count} {'chunk' if count == 1 else 'chunks'} of {study}" for study, count in run[TWICE].items()]
    return f"; left out, as others hold the same cases: {', '.join(counts)}" if counts else ""


def known_costs(out: Path, device: str) -> costs.Table:
    """The costs of studies on a device, by the run in `out`, those beside it, latest first, and the published ones."""
    tables = [table for folder in (out, *_beside(out)) if (table := _costs(folder, device))]
    return costs.joined(*tables, *([costs.published()] if device == "cpu" else []))


def begun(out: Path, studies: Iterable[str]) -> bool:
    """Tell whether one of these studies was asked for in a run directory before, so that some of it may be finished."""
    try:
        with Folder.open(out) as folder:
            run = load(folder) or {}
    except (OSError, StoreError):
        return False
    return not run.get("request", {}).keys().isdisjoint(studies)


def _beside(out: Path) -> list[Path]:
    """The run directories beside one, the latest first."""
    dated: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for folder in out.parent.iterdir():
            with contextlib.suppress(OSError):
                dated.append(((folder / NAME).stat().st_mtime, folder))
    return [folder for _, folder in sorted(dated, reverse=True)[:_NEIGHBOURS] if folder != out]


def _costs(directory: Path, device: str) -> costs.Table:
    """What the runs of a directory have cost; nothing where it cannot be read, or was made on another device."""
    try:
        with Folder.open(directory) as folder:
            run = load(folder) or {}
    except (OSError, StoreError):
        return {}
    return costs.read(run.get("costs", {})) if run.get("fingerprint", {}).get("device") == device else {}
