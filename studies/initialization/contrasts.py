"""Sentences on where the choice of a scheme decides whether a network trains, and where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

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


@dataclass(frozen=True)
class Cell:
    """The outcome of one scheme in one condition.

    Attributes:
        condition: an architecture and its norm.
        scheme: whose weights it starts from.
        model: the architecture's kind.
        depth: in layers; 0 where the model has its own.
        trained: runs that trained.
        runs: all of them.
        open_ended: whether a better learning rate may lie outside the grid.
    """

    condition: str
    scheme: str
    model: str
    depth: float
    trained: int
    runs: int
    open_ended: bool

    @property
    def share(self) -> float:
        """The share of runs that trained."""
        return self.trained / self.runs

    @property
    def words(self) -> str:
        """The scheme as a sentence has it."""
        return NAMES.get(self.scheme, self.scheme)


def sentences(best: pd.DataFrame, figure: str, claims: Sequence[str]) -> Iterator[Sentence]:
    """The clearest contrasts between usual schemes, the deepest network of a model first; how often there is none.

    Args:
        best: reported runs at tuned rates: model, depth, condition, scheme, test_accuracy, open_ended.
        figure: name of the figure that shows them.
        claims: ids of the claims that they bear on.
    """
    cells = _cells(best[best["scheme"].isin(NORMAL)])
    contrasts: list[tuple[float, Cell, Cell]] = []
    alike: list[bool] = []
    for _, cell in groupby(cells, key=lambda each: each.condition):
        schemes = list(cell)
        settled = [each for each in schemes if not each.open_ended]  # a better rate might save the others
        if len(schemes) < 2 or not settled:
            continue
        alike.append(all(each.share > 0.5 for each in schemes))
        top, low = max(schemes, key=lambda each: each.share), min(settled, key=lambda each: each.share)
        contrasts += [(top.share - low.share, top, low)] if top.share - low.share >= LEAST else []
    told: dict[str, Sentence] = {}
    for _, top, low in sorted(contrasts, key=lambda each: (-each[0], -each[1].depth)):
        text = (
            f"{top.trained} of {top.runs} runs of a {top.condition} train from {top.words}, {low.trained} of "
            f"{low.runs} from {low.words}, each at its own learning rate."
        )
        told.setdefault(top.model, Sentence(text, figure, tuple(claims)))
    yield from list(told.values())[:TOLD]
    if len(alike) > 1:
        yield Sentence(
            f"In {sum(alike)} of {len(alike)} architectures most runs train from each usual initialization tried.",
            figure,
            tuple(claims),
        )


def _cells(runs: pd.DataFrame) -> list[Cell]:
    """One a condition and scheme; among equals those come first that `NAMES` has first."""
    cells = []
    for _, own in groups(runs, EACH):
        first = own.iloc[0]
        depth = float(first["depth"]) if "depth" in own and pd.notna(first["depth"]) else 0.0
        trained = int((own["test_accuracy"] >= TRAINED).sum())
        condition, scheme, model = (str(first[name]) for name in ("condition", "scheme", "model"))
        cells.append(Cell(condition, scheme, model, depth, trained, len(own), bool(first["open_ended"])))
    known = list(NAMES)
    return sorted(cells, key=lambda c: (c.condition, known.index(c.scheme) if c.scheme in known else len(known)))
