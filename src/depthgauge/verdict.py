"""Claims, their verdicts, and the findings of an analysis.

A study's `analyse` maps a tidy frame to `Findings`: verdicts, and the tables that figures and readers draw on.

    Verdict("N02", "a factor of 0.8 a layer over 100 layers gives about 2e-10", Status.HOLDS,
            observed=2.04e-10, predicted=2e-10, unit="", n=1, method="exact arithmetic", why="...")
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class Status(StrEnum):
    """The status of a claim, given the data."""

    HOLDS = "holds"
    FAILS = "fails"
    DEPENDS = "depends"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"
    NOT_MEASURED = "not_measured"  # every case that could have told failed, or none was asked for


FEWEST = 5  # repetitions behind an interval, as in `stats`: fewer give points
DECIDED = frozenset({Status.HOLDS, Status.FAILS, Status.DEPENDS})


@dataclass(frozen=True)
class Claim:
    """A statement that measurement could refute.

    Attributes:
        id: stays for good; those of the course notes are `N01` to `N49`, a study's own are `<study>/<words>`.
        text: the statement, in words that could turn out false.
        topic: the question of a report that it belongs to (`depthgauge.topics`); that of its part or study where empty.
    """

    id: str
    text: str
    topic: str = ""


def unknown_claim(name: str, claims: Iterable[Claim]) -> str:
    """Say in a sentence that no claim has this id, and which is meant; empty where one has it."""
    ids = [claim.id for claim in claims]
    if name in ids:
        return ""
    near = difflib.get_close_matches(str(name), ids, n=1)
    listed = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(ids) or 'none'}"
    return f"{name!r} is none of the study's claims; {listed}"


@dataclass(frozen=True)
class Verdict:
    """A claim's status, with the numbers that carry it.

    Its interval has to carry the status: with an end that is NaN, or fewer than 5 repetitions, it is inconclusive
    whatever was given, and `why` says so.

    Attributes:
        id: the claim's id.
        claim: the claim's text.
        status: the answer.
        observed: the effect, in `unit`; `None` where there is nothing to measure.
        low: lower end of the effect's interval; `None` where the claim is settled without sampling.
        high: upper end of the effect's interval.
        predicted: what the effect is held against: theory's value, or another reference, which `reference` names.
        unit: unit of the five figures beside it; empty for a pure number.
        n: independent repetitions behind `observed`.
        counted: the things that `n` counts: seeds, networks, architectures ...
        table: name of the table in which the figure stands, with the same interval and answer.
        condition: under which condition it was measured, in words; empty where there is one alone.
        answer: the comparison's own answer, such as `equivalent`.
        reference: what `predicted` is: `predicted`, where theory says so; `half`, `threshold`, ... where it does not.
        margin: the largest deviation from `predicted` that does not matter; a factor where `log`; None without one.
        log: whether effect, reference and margin are factors.
        says: the status in words that say under which conditions: `true up to sigma_w 1.4, false from 1.5`.
        needed: where undecided, about as many repetitions as would decide it, if the effect stays; 0 if unknown.
        at_edge: the conditions that no number of repetitions decides, because a learning rate (or another setting that
            was tuned) lies at the end of its grid; empty where there are none.
        method: how the interval was made and the question decided, in one line.
        why: the reason for the status, in a sentence that a reader of the notes understands.
    """

    id: str
    claim: str
    status: Status
    observed: float | None = None
    low: float | None = None
    high: float | None = None
    predicted: float | None = None
    unit: str = ""
    n: int = 0
    counted: str = "seeds"
    table: str = ""
    condition: str = ""
    answer: str = ""
    reference: str = "predicted"
    margin: float | None = None
    log: bool = False
    says: str = ""
    needed: int = 0
    at_edge: str = ""
    method: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.status not in DECIDED or not (reason := self._uncarried()):
            return
        object.__setattr__(self, "status", Status.INCONCLUSIVE)
        object.__setattr__(self, "says", "")
        object.__setattr__(self, "why", "; ".join(filter(None, (self.why, f"undecided, for {reason}"))))

    def _uncarried(self) -> str:
        """Why the interval cannot carry a decision; empty where it can, or the claim is settled without sampling."""
        ends = [end for end in (self.low, self.high) if end is not None]
        if ends and self.n < FEWEST:
            return f"{self.n} {self.counted} are fewer than {FEWEST}"
        return "there is no interval" if any(map(math.isnan, ends)) else ""


@dataclass(frozen=True)
class Sentence:
    """A finding in one plain sentence, and where it can be seen.

    Attributes:
        text: the sentence; a reader who sees it alone understands it.
        figure: name of the study's figure that shows it; empty where there is none. Figures that are named so stand
            open in the page; the others are folded.
        claims: ids of the claims that carry it.
    """

    text: str
    figure: str = ""
    claims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: object = self.claims  # a study is not type-checked
        claims = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
        object.__setattr__(self, "claims", claims)


@dataclass(frozen=True)
class Findings:
    """The findings of an analysis.

    Attributes:
        verdicts: one for each claim, in the study's order.
        tables: name -> frame; each becomes `tables/<study>.<name>.csv`, and figures draw on nothing else.
        answers: the study's findings in plain sentences, the most useful first; the first of them open the report. A
            text stands for one without figure and claims.
        shown: names of the tables printed in the study's page; the others are only linked.
        errors: what parts of the analysis raised; the answers are those of the others.
        whole: whether every case was measured and every part analysed, so that no table has a reason to be missing.
    """

    verdicts: tuple[Verdict, ...]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    answers: tuple[Sentence | str, ...] = ()
    shown: tuple[str, ...] = ()
    errors: tuple[Exception, ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class Figure:
    """A drawn figure and what it says.

    Attributes:
        name: file name without suffix; unique within a study.
        canvas: a `matplotlib.figure.Figure`; None where it cannot be drawn.
        title: the figure's message, one sentence; it stands above the panels. Without a canvas, why there is none.
        caption: how to read it: what points, bands and lines are, with n.
        alt: what is seen, one sentence for who cannot see it; where empty, a report makes it of title, axes and panels.
        steps: (label, canvas) pairs, one for each value of a further axis, such as depth, that a reader can step
            through; all of one size and with common axes. `canvas` stands for them on paper.
    """

    name: str
    canvas: object
    title: str
    caption: str = ""
    alt: str = ""
    steps: tuple[tuple[str, object], ...] = ()
