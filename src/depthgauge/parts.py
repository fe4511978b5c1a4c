"""A study of several parts: each a grid whose cases carry `part`, a `run_*`, an `analyse_*` and its `plot_*`.

    PARTS = {
        "spectrum": Part(run_spectrum, analyse_spectrum, (plot_spectrum,)),
        "training": Part(run_training, analyse_training, (plot_ladder,)),
    }

    def run(cases, context):
        return PARTS[cases[0].text("part")].run(cases, context)

    def analyse(frame):
        return findings(CLAIMS, analyse_parts(PARTS, frame), shown=("answers",))

    def plot(findings):
        return plot_parts(PARTS, findings)

A part that was not run, or whose cases all failed, contributes nothing, and its claims are `not_measured`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from depthgauge import stats
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Claim, Figure, Findings, Status, Verdict

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Answer:
    """What one part contributes to the findings.

    Attributes:
        tables: name -> frame; names are unique within the study.
        verdicts: on claims of the study; see `verdict_on`.
        sentences: its findings in words, the most useful first.
    """

    tables: Tables
    verdicts: tuple[Verdict, ...] = ()
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part of a study.

    Attributes:
        run: cases of one chunk in, rows out.
        analyse: the part's measured rows in, its answer out.
        plots: tables of the whole study in, figures out; each draws nothing where its table is missing.
    """

    run: Callable[[Sequence[Case], Context], Iterable[Rows]]
    analyse: Callable[[pd.DataFrame], Answer]
    plots: tuple[Callable[[Tables], Iterable[Figure]], ...] = field(default=())


def verdict_on(claim: str, status: Status, why: str, **figures: Any) -> Verdict:
    """A verdict on the claim of that id; its text is filled in from the study's declaration."""
    return Verdict(claim, "", status, why=why, **figures)


_CONDITION = {stats.Answer.EQUIVALENT: True, stats.Answer.DIFFERENT: False, stats.Answer.INCONCLUSIVE: None}


def agree(comparisons: Iterable[stats.Comparison]) -> tuple[Status, tuple[stats.Comparison, ...]]:
    """Whether measured figures agree with their predictions within the margin, condition by condition, as a family."""
    family = stats.together(comparisons)
    return Status(stats.combine(_CONDITION[member.answer] for member in family)), family


def analyse_parts(parts: Mapping[str, Part], frame: pd.DataFrame) -> list[Answer]:
    """The answers of the parts that were measured, in the order of `parts`."""
    measured = frame[frame["status"] == "ok"]
    own = dict(iter(measured.groupby("part"))) if "part" in measured else {}
    return [part.analyse(own[name]) for name, part in parts.items() if name in own]


def findings(claims: Sequence[Claim], answers: Sequence[Answer], *, shown: tuple[str, ...] = ()) -> Findings:
    """All answers as the study's findings, one verdict a claim, in the order of the claims.

    Args:
        claims: the study's.
        answers: of its parts.
        shown: tables printed in the study's page.
    """
    decided = {verdict.id: verdict for answer in answers for verdict in answer.verdicts}
    return Findings(
        verdicts=tuple(
            replace(decided[claim.id], claim=claim.text)
            if claim.id in decided
            else Verdict(claim.id, claim.text, Status.NOT_MEASURED, why="nothing was measured for it")
            for claim in claims
        ),
        tables={name: table for answer in answers for name, table in answer.tables.items()},
        answers=tuple(sentence for answer in answers for sentence in answer.sentences),
        shown=shown,
    )


def plot_parts(parts: Mapping[str, Part], findings: Findings) -> Iterator[Figure]:
    """The figures of all parts, in the order of `parts`."""
    for part in parts.values():
        for draw in part.plots:
            yield from draw(findings.tables)
