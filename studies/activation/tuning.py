"""How the study's networks are drawn and trained, and how each finds its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from depthgauge import replicas, stats, training
from depthgauge.frames import only, params_of
from depthgauge.initialization import gaussian
from depthgauge.initialization.maps import weighted
from depthgauge.questions import Key, Question, Reading
from depthgauge.studies.activation.functions import once
from depthgauge.study import Case, Grid, Value
from depthgauge.verdict import Claim, Status, Verdict

SELECTION = 3  # seeds that choose a learning rate, and are not reported
TOGETHER = ("lr", "seed")
METHOD = "learning rates chosen by other runs; at a rate that ends its grid a refutation concludes nothing"


def sgd(data: str, steps: int) -> dict[str, Value]:
    """Parameters that every trained network shares."""
    return {"data": data, "batch": 32, "momentum": 0.9, "steps": steps, "target": 0.9}


def at_gain(gain: float) -> Callable[[nn.Module, torch.Generator], None]:
    """Weights that keep the second moment at 1 from standardized inputs on: gain 1 first, the activation's after it."""

    def draw(module: nn.Module, generator: torch.Generator) -> None:
        gaussian(gain)(module, generator)
        first = next(weighted(module))
        for weight in first.maps:
            weight.div_(gain)
        first.bring()

    return draw


def recipe(cases: Sequence[Case]) -> training.Recipe:
    """SGD with momentum, one replica a case; they differ in learning rate and seed."""
    shared = cases[0]
    rates = [case.number("lr") for case in cases]
    return training.Recipe(
        replicas.SGD(rates, momentum=shared.number("momentum")), shared.integer("steps"), shared.integer("batch"),
        shared.number("target"),
    )  # fmt: skip


def most_replicas(case: Case) -> int:
    """Replicas a chunk, bounded by memory."""
    width, depth = case.get("width"), case.get("depth")
    if not isinstance(width, int) or not isinstance(depth, int):
        return 16  # a model that has its own
    return replicas.most_members(784 * width + depth * width**2 + 10 * width)


def runs(rows: pd.DataFrame, *params: str, metrics: Sequence[str] = training.METRICS) -> pd.DataFrame:
    """One row a run, each function once: `activation`, `spec`, `run` (its case), parameters and metrics.

    Whole numbers are such; a depth that is the model's own is 0.
    """
    rows = once(rows)
    table = training.table(
        rows.assign(run=rows["case"]), "run", "activation", "spec", *params, *TOGETHER, metrics=metrics
    )  # fmt: skip
    whole = [name for name in ("depth", "width", "steps", "seed") if name in table]
    return table.assign(**{name: pd.to_numeric(table[name]).fillna(0).astype(int) for name in whole})


def tuned(every: pd.DataFrame, by: Sequence[str], score: str = "validation_accuracy") -> pd.DataFrame:
    """The reported runs at the rates that the others chose, of those groups that can be tuned."""
    return training.tuned(training.tunable(every, by), by, score=score)


def further_rates(*by: str, score: str = "validation_accuracy") -> Callable[..., Iterator[Grid]]:
    """A part's second stage: one learning rate more for each group whose choice is the end of its grid."""

    def second(rows: pd.DataFrame, **_: Any) -> Iterator[Grid]:
        first = params_of(rows, *by, *TOGETHER).join(only(rows, score).rename(score)).reset_index()
        first = first.assign(**{name: first[name].astype(str) for name in by})  # None is a depth, too
        seeds = pd.to_numeric(first["seed"])
        cases = dict(zip(zip(*(first[name] for name in by), strict=True), first["case"], strict=True))
        for group, rates in training.extended(training.tunable(first, by), by, score=score).items():
            fixed = {name: value for name, value in Case.read(cases[group]).params if name not in TOGETHER}
            yield Grid(
                {"lr": rates}, fixed, int(seeds.max()) + 1, TOGETHER, most_replicas,
                architecture=("activation", "depth", "width") if "model" in fixed else (),
                selection=max(0, -int(seeds.min())),
            )  # fmt: skip

    return second


def at_edge(reported: pd.DataFrame, by: Sequence[str]) -> set[Key]:
    """The groups whose chosen rate still ends its grid."""
    return set(reported.loc[reported["at_edge"], list(by)].itertuples(index=False, name=None))


def answers(question: Question, reading: Reading, edges: Collection[Key]) -> dict[Key, bool | None]:
    """What each condition says; nothing where a condition of `edges` refutes: a better rate may lie outside the grid."""
    return {key: None if key in edges and not reading(c) else reading(c) for key, c in question.members.items()}


def verdict(
    question: Question, claim: Claim, reading: Reading, edges: Collection[Key], **words: Any
) -> Verdict:  # fmt: skip
    """The question's verdict on the claim, from `answers`; `words` are those of `Question.verdict`."""
    status = Status(stats.combine(answers(question, reading, edges).values()))
    words["method"] = f"{words['method']}; {METHOD}"
    return replace(question.verdict(claim, reading, **words), status=status)
