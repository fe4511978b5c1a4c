"""Answers of trained networks to each claim: the reported runs, every scheme at the rate that its other seeds chose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from depthgauge import stats
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.questions import Question, above, agrees, below, enumerated, every, listed
from depthgauge.verdict import FEWEST, Claim

TRAINED = 0.5  # test accuracy from which a run counts as trained; chance is 0.1
MARGIN = 0.01  # test accuracy: a percentage point, the last digit of most tables of results, does not matter
REFERENCE = "he"
# What no one would call an unusual choice. Those scaled to the activation are what N09 calls sensible.
SENSIBLE = ("he", "orthogonal", "delta_orthogonal", "lsuv", "preserving", "depth_scaled", "fixup", "gpt2")
NORMAL = (*SENSIBLE, "default", "xavier", "xavier_uniform", "lecun", "he_fan_out")
EACH = ["condition", "scheme"]
OUTSIDE = "a_better_rate_may_lie_outside"  # of the grid: a column


def share(runs: pd.DataFrame) -> stats.Comparison:
    """The share of runs that trained, against one half."""
    return stats.coverage(int((runs["test_accuracy"] >= TRAINED).sum()), len(runs), 0.5)


def count(share: stats.Comparison) -> str:
    """The share as `6 of 8`."""
    return f"{round(share.effect.value * share.effect.n)} of {share.effect.n}"


def _mostly(share: stats.Comparison, open_ended: pd.Series) -> bool | None:
    """Whether more than half train; that they do not is undecided where a better rate may lie outside the grid."""
    return None if share.below and open_ended.any() else above(share)


def same(best: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    """N10: final test accuracy of every normal scheme against He's, in pairs of one seed."""
    asked: dict[tuple[Any, ...], stats.Comparison] = {}
    edges: dict[tuple[Any, ...], bool] = {}
    for condition, ends in groups(best[best["scheme"].isin(NORMAL)], "condition"):
        accuracy = ends.pivot_table(index="seed", columns="scheme", values="test_accuracy", sort=False)
        open_ended = ends.groupby("scheme")["open_ended"].any()
        for scheme in accuracy.columns.drop(REFERENCE) if REFERENCE in accuracy else ():
            pairs = accuracy[[scheme, REFERENCE]].dropna()
            asked[condition, scheme] = stats.paired(pairs[scheme], pairs[REFERENCE], margin=MARGIN, test="t")
            edges[condition, scheme] = bool(open_ended[[scheme, REFERENCE]].any())
    if not asked:
        return
    question = Question.of("equivalence", EACH, asked, label="{scheme} in a {condition}", reference="no difference")
    yield question.table({key: {OUTSIDE: edges[key]} for key in asked})
    answers = {key: None if edges[key] else agrees(c) for key, c in question.members.items()}
    named = {question.words(key): answer for key, answer in answers.items()}
    undecided = f"undecided are {sum(answer is None for answer in answers.values())} of {len(answers)}"
    sides = listed(named, {True: f"within {MARGIN:.0%} of He's weights end", False: "further from them end"}, most=6)
    yield question.verdict(
        claim, answers, unit="test accuracy", why="; ".join(filter(None, (sides, undecided))),
        method=f"test accuracy minus that of He's weights, pairs of one seed, tuned rates; paired t, margin {MARGIN:g}",
    )  # fmt: skip


def stable(best: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    """N09: in how many architectures do most runs of a scheme that is scaled to the activation train?

    Fewer than 5 architectures are too few to count: there the runs of each carry the answer.
    """
    sensible = best[best["scheme"].isin(SENSIBLE)]
    few = sensible["condition"].nunique() < FEWEST
    yield from (_stable_runs if few else _stable_architectures)(sensible, claim)


def _stable_runs(sensible: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    cells = dict(groups(sensible, EACH))
    if not cells:
        return
    question = Question.of(
        "stability", EACH, {key: share(ends) for key, ends in cells.items()}, label="{scheme} in a {condition}",
        reference="half of them", counted="runs",
    )  # fmt: skip
    yield question.table()
    yield question.verdict(
        claim, {key: _mostly(c, cells[key]["open_ended"]) for key, c in question.members.items()},
        unit="share of runs that train",
        why="; ".join(f"{question.words(key)} {count(c)} runs train" for key, c in question.members.items()),
        method=f"test accuracy of at least {TRAINED:g} at a tuned learning rate; share of runs against one half, exact",
    )  # fmt: skip


def _stable_architectures(sensible: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    asked: dict[tuple[Any, ...], stats.Comparison] = {}
    failing: dict[tuple[Any, ...], pd.DataFrame] = {}
    for scheme, ends in groups(sensible, "scheme"):
        cells = ends.assign(share=ends["test_accuracy"] >= TRAINED).groupby("condition", sort=False)
        means = cells[["share", "open_ended"]].mean()
        failing[scheme,] = means[means["share"] <= 0.5]
        asked[scheme,] = stats.coverage(len(means) - len(failing[scheme,]), len(means), 0.5)
    enough = {key: c for key, c in asked.items() if c.effect.n >= stats.seeds_needed(len(asked))}
    question = Question.of(
        "stability", ("scheme",), enough or asked, label="{scheme}", reference="half of them", counted="architectures"
    )
    missed = {key: enumerated(failing[key].index) for key in question.members}
    counts = {key: f"{key[0]} trains in {count(c)} architectures" for key, c in question.members.items()}
    yield question.table({key: {"not_in": architectures} for key, architectures in missed.items()})
    yield question.verdict(
        claim,
        {key: _mostly(c, failing[key]["open_ended"]) for key, c in question.members.items()},
        unit="share of architectures in which most runs train",
        why="; ".join(text + (f" (not in a {missed[key]})" if missed[key] else "") for key, text in counts.items()),
        method=f"most runs of an architecture have a test accuracy of at least {TRAINED:g} at a tuned learning rate; "
        "share of architectures against one half, exact binomial; schemes tried in too few architectures are left out",
    )  # fmt: skip


def crossover(best: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    """He et al. 2015, figures 2 and 3: 22 layers train from both, 30 from He's alone."""
    wanted = {("xavier", 22): True, ("he", 22): True, ("xavier", 30): False, ("he", 30): True}
    plain = dict(groups(best[best["model"] == "plain_cnn"], ["scheme", "depth"]))
    if not set(wanted) <= set(plain):
        return
    question = Question.of(
        "crossover", ("scheme", "depth"), {key: share(plain[key]) for key in wanted},
        label="{scheme} at {depth} layers", reference="half of them", counted="runs",
    )  # fmt: skip
    yield question.table()
    most = {key: _mostly(c, plain[key]["open_ended"]) for key, c in question.members.items()}
    counts = (f"{question.words(key)} {count(share)}" for key, share in question.members.items())
    yield question.verdict(
        claim, {"all four": every(None if most[key] is None else most[key] == wanted[key] for key in wanted)},
        why=f"runs that trained in {int(plain['he', 30]['steps'].iloc[0])} steps: {', '.join(counts)}; of a gradient "
        f"Xavier's weights leave {2 ** (-21 / 2):.1g} through 22 layers, {2 ** (-29 / 2):.1g} through 30",
        method=f"test accuracy of at least {TRAINED:g} at a tuned learning rate; share of runs against one half, exact",
        shown=("xavier", 22), unit="share of runs that train",
        says=f"Xavier's weights train {count(question.members['xavier', 22])} runs at 22 layers, He's "
        f"{count(question.members['he', 30])} at 30",
    )  # fmt: skip


def without_norm(best: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    """Fixup without normalization against He's with batch norm, on the same residual network."""
    residual = best[best["model"] == "resnet18"]
    both = [("none", "fixup"), ("batch", "he")]
    ends = residual.pivot_table(index="seed", columns=["norm", "scheme"], values="test_accuracy")
    if not set(both) <= set(ends):
        return
    fixup, norm = ends[both].dropna().to_numpy().T
    open_ended = residual.groupby(["norm", "scheme"])["open_ended"].any()[both].any()
    question = Question.of(
        "fixup", ("against",), {("he with batch norm",): stats.paired(fixup, norm, margin=2 * MARGIN)},
        label="Fixup without normalization against {against}", reference="no difference",
    )  # fmt: skip
    yield question.table()
    ((key, comparison),) = question.members.items()
    worse = None if open_ended else below(comparison)
    plain = f", He's without at {ends['none', 'he'].mean():.1%}" if ("none", "he") in ends else ""
    yield question.verdict(
        claim, {key: None if worse is None else not worse}, unit="test accuracy",  # better than with it is as good
        why=f"Fixup's weights without normalization end at {fixup.mean():.1%}, He's with batch norm at "
        f"{norm.mean():.1%}{plain}" + ("; a better learning rate may lie outside the grid" if open_ended else ""),
        method=f"pairs of one seed, exact sign flips, equivalence margin {2 * MARGIN:g}",
    )  # fmt: skip
