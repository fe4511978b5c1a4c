"""The last results, kept beside the tests, and the page that is made of them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.catalog import CORE, ENTRIES, PUBLIC, version
from zoo.entry import KINDS, Entry

RESULTS = Path(__file__).parent.parent / "results.json"
PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"
HEADINGS = {
    "module": "Modules of PyTorch",
    "loop": "Ways to train with PyTorch",
    "wrapper": "Wrappers and transformations",
}
HEAD = "| what | result | weight layers seen | initialization reaches | remarks |\n| --- | --- | ---: | ---: | --- |"

Results = Mapping[str, Mapping[str, Any]]


def read() -> dict[str, dict[str, Any]]:
    """What came of each entry, by its key."""
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def keep(outcomes: Results) -> None:
    """Write these outcomes over the earlier ones, with today's versions, and the page anew."""
    earlier = read() if RESULTS.exists() else {}
    versions, stored = {"python": platform.python_version(), "torch": version("torch")}, {}
    for entry in ENTRIES:
        if entry.key in outcomes:
            stored[entry.key] = {**outcomes[entry.key], "version": version(entry.package), **versions}
        elif entry.key in earlier:
            stored[entry.key] = earlier[entry.key]
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(stored), encoding="utf-8")


def page(results: Results) -> str:
    """docs/compatibility.md."""
    parts = [_opening(results)]
    for kind in KINDS:
        parts += [f"## {HEADINGS[kind]}", _table([entry for entry in CORE if entry.kind == kind], results)]
    parts.append("## Public packages")
    for package in dict.fromkeys(entry.package for entry in PUBLIC):
        entries = [entry for entry in PUBLIC if entry.package == package]
        tried = next((results[e.key]["version"] for e in entries if e.key in results), None)
        parts += [f"### {package} {tried}" if tried else f"### {package}", _table(entries, results)]
    return "\n\n".join(parts) + "\n"


def _opening(results: Results) -> str:
    told = [results[entry.key]["result"] for entry in ENTRIES if entry.key in results]
    counts = ", ".join(f"{told.count(result)} {words}" for result, words in COUNTED.items() if told.count(result))
    versions = sorted({f"PyTorch {each['torch']}" for each in results.values()})
    packages = len({entry.package for entry in PUBLIC})
    return OPENING.format(entries=len(told), packages=packages, counts=counts, versions=", ".join(versions))


COUNTED = {"pass": "pass", "partly": "are seen in part", "fails": "fail", "not run": "could not be run here"}
OPENING = """# What was tried

The probe (`probe.track`) on modules, loops and wrappers that people have, of PyTorch itself and of {packages} public
packages, each small, with random weights, on a processor, with {versions}.

Of {entries} entries, {counts}.

This page is written by its tests: `tests/compatibility/zoo` declares each line, `pytest tests/compatibility` holds
PyTorch's own to their results, and `tox run -e public` those of the packages that it can install.

**pass** means: three steps (or more, as the loop has it) of training inside of `probe.track(model, optimizer=...)` give
the losses, weights and random numbers that the same steps give without it, to the bit; no hook, attribute or method of
a module, parameter or optimizer is left behind or lost; nothing is raised; copies by `deepcopy`, `pickle` and
`torch.save` that are made inside of the block run as they do without it, and never add a row; each row has a key of its
own, its numbers are those of a tensor that a plain hook sees, and its fractions sum to one; and of nine in ten weight
layers both the weights and what the layer made of its input were seen.

**partly** is all of this but for the last: fewer weight layers were seen, the remark says why, and the probe itself
told of each layer that it did not see (`Record.unread`).

**not run** is what cannot be imported here; some packages import torchvision, whose published builds need another
PyTorch than the one without CUDA.

A weight layer is a module with a floating-point parameter of two or more dimensions of its own. *Initialization
reaches* counts those, without embeddings, of which `initialization.apply(model, "he")` draws the weights. A step within
`Training.untouched()` left weights, gradients, modes, hooks, random states and optimizer as they were, and
`depthgauge profile` measured a step of each module, wherever the remarks do not say otherwise."""


def _table(entries: Iterable[Entry], results: Results) -> str:
    return "\n".join([HEAD, *(_row(entry, results.get(entry.key)) for entry in entries)])


def _row(entry: Entry, outcome: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return f"| {entry.name} | not run | | | |"
    remarks = "; ".join(filter(None, [entry.why, *outcome["why"], *_beside(outcome)]))
    ran = outcome.get("layers")
    seen = f"{outcome['seen']} of {outcome['layers']}" if ran else ""
    reached = f"{outcome['reached']} of {outcome['reachable']}" if ran else ""
    return f"| {entry.name} | {outcome['result']} | {seen} | {reached} | {remarks.replace('|', chr(92) + '|')} |"


def _beside(outcome: Mapping[str, Any]) -> Iterator[str]:
    """What the other parts of depthgauge cannot do with it."""
    for what, field in (("`Training.untouched()`", "training"), ("`depthgauge profile`", "profile")):
        if outcome.get(field):
            yield f"{what}: {outcome[field]}"
