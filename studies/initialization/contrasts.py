"""Where the choice of a scheme decides whether a network trains, and where it does not, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge.frames import groups
from depthgauge.studies.initialization.outcomes import EACH, NORMAL, TRAINED
from depthgauge.verdict import Sentence

NAMES = {
    "he": "He's weights", "default": "PyTorch's default", "xavier": "Xavier's weights", "lsuv": "LSUV",
    "orthogonal": "orthogonal weights", "delta_orthogonal": "delta-orthogonal weights", "fixup": "Fixup's weights",
}  # fmt: skip
LEAST = 0.5  # of all runs: a scheme that trains so many more than another is told
TOLD = 2  # contrasts, each of another model


def sentences(best: pd.DataFrame, figure: str, claims: Sequence[str]) -> Iterator[Sentence]:
    """The clearest contrasts between usual schemes, the deepest network of a model first; how often there is none.

    Args:
        best: reported runs at tuned rates: model, depth, condition, scheme, test_accuracy, open_ended.
        figure: name of the figure that shows them.
        claims: ids of the claims that they bear on.
    """
    own = best[best["scheme"].isin(NORMAL)]
    cells = pd.DataFrame(sorted((_cell(runs) for _, runs in groups(own, EACH)), key=lambda cell: cell["rank"]))
    contrasts, alike, every = [], 0, 0
    for _, cell in groups(cells, "condition") if len(cells) else ():
        if len(cell) < 2:
            continue
        every, alike = every + 1, alike + int((cell["share"] > 0.5).all())
        settled = cell[~cell["open_ended"]]  # a better rate might save the others
        top, low = cell.iloc[cell["share"].argmax()], settled.iloc[settled["share"].argmin()] if len(settled) else None
        if low is not None and top["share"] - low["share"] >= LEAST:
            contrasts.append((top["share"] - low["share"], top["depth"], top, low))
    told: dict[str, Sentence] = {}
    for _, _, top, low in sorted(contrasts, key=lambda each: each[:2], reverse=True):
        text = (
            f"{top['count']} runs of a {top['condition']} train from {_name(top)}, {low['count']} from {_name(low)}, "
            "each at its own learning rate."
        )
        told.setdefault(top["model"], Sentence(text, figure, tuple(claims)))
    yield from list(told.values())[:TOLD]
    if every > 1:
        yield Sentence(
            f"In {alike} of {every} architectures most runs train from each usual initialization that was tried.",
            figure,
            tuple(claims),
        )


def _cell(runs: pd.DataFrame) -> dict[str, Any]:
    """What one scheme came to in one condition; names that the notes know go first among equals."""
    first, trained = runs.iloc[0], int((runs["test_accuracy"] >= TRAINED).sum())
    return {
        "condition": first["condition"], "scheme": first["scheme"], "model": first["model"],
        "depth": float(first["depth"]) if "depth" in runs and pd.notna(first["depth"]) else 0.0,
        "share": trained / len(runs), "count": f"{trained} of {len(runs)}", "open_ended": bool(first["open_ended"]),
        "rank": list(NAMES).index(first["scheme"]) if first["scheme"] in NAMES else len(NAMES),
    }  # fmt: skip


def _name(cell: pd.Series[Any]) -> str:
    return NAMES.get(str(cell["scheme"]), str(cell["scheme"]))
