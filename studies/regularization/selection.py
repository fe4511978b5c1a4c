"""Model selection: k-fold cross-validation's interval, and a validation set that is used many times, against truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, not_below
from depthgauge.seeding import Purpose, generator
from depthgauge.stats import laws
from depthgauge.studies.regularization import linear
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

K_FOLD = Claim(
    "regularization/k_fold", "the mean over k folds, plus and minus Student's t times its standard error over folds, "
    "covers the error on new data in 95 % of data sets",
)  # fmt: skip
BIAS = Claim(
    "regularization/k_fold_bias", "k-fold cross-validation estimates the error of a fit to n (1 - 1/k) examples"
)
REUSE = Claim(
    "regularization/reuse", "the best of m models on one validation set is overrated by as much as the best of m "
    "independent models would be",
)  # fmt: skip
ONCE = Claim("regularization/test_once", "a test set that is used once rates the chosen model without bias")
LEVEL = 0.95
SHORT = 0.01  # of coverage: an interval of 94 % serves for one of 95 %
BIASED = 0.02  # relative: less than a tenth of the standard error of one cross-validation here
OPTIMISM = 0.1  # relative
EXACT = 0.005  # of accuracy
INPUTS = {"folds": 10, "reuse": 40}  # of the linear problem
ERRORS = {"covers_expected": "expected error", "covers_conditional": "error of the fit at hand"}
KINDS = {"guesses": "unrelated guesses", "subsets": "subsets of the inputs", "penalties": "ridge penalties"}
SIZES = sizes(
    "examples folds validation models sets seeds",
    quick=((40,), (2, 5, 10, 20), (50,), (2, 32), 200, 10),
    standard=((40, 160), (2, 5, 10, 20), (50, 200), (2, 8, 32), 250, 60),
    full=((40, 160, 640), (2, 5, 10, 20), (50, 200, 800), (2, 8, 32), 250, 80),
    tiny=((40,), (2, 5), (10,), (2,), 8, 5),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    examples: tuple[int, ...], folds: tuple[int, ...], validation: tuple[int, ...], models: tuple[int, ...],
    sets: int, seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """Numbers of folds on the same data sets; and choices among models of several kinds."""
    yield Grid(
        {"examples": examples, "folds": folds}, {"asked": "folds", "sets": sets}, seeds, ("seed",), 20,
        claims=(K_FOLD.id, BIAS.id),
    )  # fmt: skip
    yield Grid(
        {"kind": tuple(KINDS), "validation": validation, "models": models}, {"asked": "reuse", "sets": sets}, seeds,
        ("seed",), 20, claims=(REUSE.id, ONCE.id),
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Means over a seed's data sets: of estimates, of what intervals cover, of optimism and its prediction."""
    for case in cases:
        found = _folds(case, context.device) if case.text("asked") == "folds" else _reuse(case, context.device)
        yield from (case.rows(metric, value) for metric, value in found.items())


def _folds(case: Case, device: str) -> dict[str, float]:
    """Cross-validation of least squares on each data set; folds are runs of the examples, which have no order."""
    sets, n, k = case.integer("sets"), case.integer("examples"), case.integer("folds")
    draws = generator(case.random_seed("seed", "examples", "sets"), Purpose.DATA, "folds")  # of all k: paired
    x, y, weights = (each.to(device) for each in linear.problem(sets, n, INPUTS["folds"], draws))
    means = x.new_empty(sets, k)
    for fold, held in enumerate(torch.arange(n).chunk(k)):
        rest = torch.ones(n, dtype=torch.bool)
        rest[held] = False
        fitted = linear.fit(x[:, rest], y[:, rest])
        means[:, fold] = ((x[:, held] @ fitted[:, :, None])[:, :, 0] - y[:, held]).square().mean(1)
    estimate, error = means.mean(1), means.std(1) / math.sqrt(k)
    reach = laws.student_quantile((1 + LEVEL) / 2, k - 1) * error
    conditional = linear.NOISE + (linear.fit(x, y) - weights).square().sum(1)
    expected = theory.least_squares_error(n, INPUTS["folds"], linear.NOISE)
    return {
        "estimate": float(estimate.mean()),
        "claimed_variance": float(error.square().mean()),
        "variance": float(estimate.var()),
        "covers_expected": float(((estimate - expected).abs() <= reach).sum()),
        "covers_conditional": float(((estimate - conditional).abs() <= reach).sum()),
    }


def _reuse(case: Case, device: str) -> dict[str, float]:
    """Accuracy of the chosen model on the validation set, on a fresh test set, and truly."""
    sets, n, d = case.integer("sets"), case.integer("validation"), INPUTS["reuse"]
    seed = case.random_seed("seed", "validation", "kind", "models", "sets")
    train, valid, test = (generator(seed, Purpose.DATA, name) for name in ("train", "validation", "test"))
    x, y, weights = (each.to(device) for each in linear.problem(sets, linear.TRAINED, d, train))
    fitted = linear.models(x, y, case.text("kind"), case.integer("models"), train)  # (S, d, m)
    accuracies = linear.accuracies(fitted, weights).cpu().numpy()
    validated, fresh = (linear.right(fitted, n, d, draws) for draws in (valid, test))
    best = validated.argmax(1)  # the first of equals
    at = np.arange(sets), best
    return {
        "optimism": float((validated[at] - accuracies[at]).mean()),
        "fresh": float((fresh[at] - accuracies[at]).mean()),
        "predicted": float(np.mean(theory.selection_optimism(accuracies, n))),
        "gain": float((accuracies[at] - accuracies.mean(1)).mean()),
    }


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Coverage, bias and optimism, each against what it should be."""
    names = ("asked", "seed", "sets", "examples", "folds", "kind", "validation", "models")
    wide = rows.pivot_table(index="case", columns="metric", values="value")
    runs = params_of(rows, *(name for name in names if name in rows)).join(wide)
    if (folds := runs[runs["asked"] == "folds"]).size:
        yield from _covered(folds.astype({"examples": int, "folds": int}))
    if (reuse := runs[runs["asked"] == "reuse"]).size:
        yield from _overrated(reuse.astype({"validation": int, "models": int}))


def _covered(runs: pd.DataFrame) -> Iterator[Answer]:
    covered, biases, further = {}, {}, {}
    for (n, k), own in groups(runs, ["examples", "folds"]):
        total = int(own["sets"].sum())
        understated = math.sqrt(own["claimed_variance"].mean() / own["variance"].mean())
        for column, error in ERRORS.items():
            covered[error, n, k] = stats.coverage(int(own[column].sum()), total, LEVEL, margin=SHORT)
            further[error, n, k] = {"claimed_over_true_standard_error": understated}
        reached = theory.least_squares_error(n - n // k, INPUTS["folds"], linear.NOISE)
        biases[n, k] = stats.against((own["estimate"] / reached).to_numpy(), 1.0, margin=BIASED)
    question = Question.of(
        "k_fold", ("error", "examples", "folds"), covered, label="the {error}, {folds} folds of {examples}",
        reference="nominal", counted="data sets",
    )  # fmt: skip
    bias = Question.of("k_fold_bias", ("examples", "folds"), biases, label="{folds} folds of {examples} examples")
    yield question.table(further)
    yield bias.table()
    yield bias.prediction(BIAS, "estimates", within=f"{BIASED:.0%}", unit="estimate over the expected error")
    yield question.verdict(
        K_FOLD, not_below, unit="share of data sets that the interval covers",
        why=question.listed(not_below, {True: "covers", False: "falls short of 95 % for", None: "undecided:"}, 4),
        method=f"least squares with {INPUTS['folds']} normal inputs, whose true errors are known; coverage at least "
        f"{LEVEL - SHORT:.0%} holds, less fails",
    )  # fmt: skip
    (error, n, k), worst = min(question.members.items(), key=lambda item: item[1].effect.value)
    if worst.below:
        yield Sentence(
            f"An interval of 95 % from the scatter of {k} folds covers the {error} in only {worst.effect.value:.1%} of "
            f"data sets ({n} examples, {INPUTS['folds']} inputs, least squares).",
            figure="k_fold", claims=(K_FOLD.id,),
        )  # fmt: skip


def _overrated(runs: pd.DataFrame) -> Iterator[Answer]:
    ratios, once, lines = {}, {}, []
    for (kind, n, m), own in groups(runs, ["kind", "validation", "models"]):
        key, value = (KINDS[kind], n, m), stats.mean(own["optimism"].to_numpy())
        predicted = own["predicted"].mean()
        over = stats.pseudo_values(lambda is_, law: float(is_.mean() / law.mean()), own["optimism"], own["predicted"])
        ratios[key] = stats.against(over, 1.0, margin=OPTIMISM)
        once[key] = stats.against(own["fresh"].to_numpy(), 0.0, margin=EXACT)
        lines.append({
            "choice_among": key[0], "validation": n, "models": m, "n": len(own), "points": 100 * value.value,
            "points_low_95": 100 * value.low, "points_high_95": 100 * value.high, "predicted": 100 * predicted,
            "gain": 100 * own["gain"].mean(),
        })  # fmt: skip
    yield "optimism", pd.DataFrame(lines)
    by, label = ("choice_among", "validation", "models"), "{models} {choice_among}, {validation} examples"
    question = Question.of("reuse", by, ratios, label=label, reference="independent models")
    test = Question.of("test_once", by, once, label=label, reference="no bias")
    yield question.table()
    yield test.table()
    yield question.verdict(
        REUSE, agrees, unit="excess over that of independent models",
        why=question.listed(agrees, {True: "as much for", False: "not for", None: "undecided:"}, 4),
        method="validation accuracy of the best less its true accuracy, over the exact expectation for independent "
        f"models of the same true accuracies, within {OPTIMISM:.0%}",
    )  # fmt: skip
    yield test.verdict(
        ONCE, agrees, unit="test accuracy less the true one",
        why=test.listed(agrees, {True: "no bias for", False: "biased for", None: "undecided:"}, 4),
        method=f"fresh test set as large as the validation set; within {EXACT:g} of 0",
    )  # fmt: skip
    most = max(lines, key=lambda line: line["points"])
    yield Sentence(
        f"The best of {most['models']} {most['choice_among']} by {most['validation']} validation examples is overrated "
        f"by {most['points']:.1f} points of accuracy; a fresh test set of that size, used once, is "
        f"{100 * test.members[most['choice_among'], most['validation'], most['models']].effect.value:+.1f} points off.",
        figure="optimism", claims=(REUSE.id, ONCE.id),
    )  # fmt: skip


@drawing.figure(
    "k_fold", "How often an interval of 95 % from the scatter of k folds holds the error on new data",
    lambda k_fold: f"Share of at least {k_fold['n'].min():,} data sets whose interval holds the error, exact intervals "
    "at once; dashed: 95 %.",
)  # fmt: skip
def draw_folds(k_fold: pd.DataFrame) -> Any:
    """Coverage over the number of folds, a panel a size."""
    shown = k_fold.rename(columns={"nominal": "predicted"})
    axes = {"xscale": "log", "xlabel": "folds", "ylabel": "share covered"}
    return drawing.panels(shown, "examples", drawing.estimates, at="folds", by="error", axes=axes)


@drawing.figure(
    "optimism", "The best of many models on one validation set is overrated",
    lambda optimism: f"Validation accuracy of the best less its true accuracy; mean of {optimism['n'].min()} seeds of "
    "many data sets each, 95 % intervals. Dashed: independent models of the same accuracies, exactly.",
)  # fmt: skip
def draw_optimism(optimism: pd.DataFrame) -> Any:
    """Optimism over the number of models, a panel a validation set."""
    axes = {"xscale": "log", "xlabel": "models", "ylabel": "overrated by, points"}
    return drawing.panels(
        optimism, "validation", drawing.estimates, axes=axes, at="models", by="choice_among", value="points"
    )


METHOD = f"""**Model selection.** Linear problems with independent normal inputs, whose true errors are known. Folds:
least squares with {INPUTS["folds"]} inputs and noise of variance {linear.NOISE:g}; Bengio and Grandvalet 2004 show that
no unbiased estimator of the variance of cross-validation exists, Bates, Hastie and Tibshirani 2021 that it estimates
the expected error. Reuse: signs of a linear function of {INPUTS["reuse"]} inputs with noise, models fitted to
{linear.TRAINED} examples (least squares on half of the inputs, ridge penalties from 0.01 to 10,000) or guesses at
random; theory: `theory.selection_optimism`."""
PART = Part(
    "selection", (K_FOLD, BIAS, REUSE, ONCE), SIZES, grids, run, analyse, (draw_folds, draw_optimism), METHOD
)  # fmt: skip
