"""Networks trained on real digits from every scheme: how far they come, how fast, and whether at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from depthgauge import data, models, replicas, stats, training
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, Tables, verdict_on
from depthgauge.studies.initialization.reached import nothing, reached
from depthgauge.studies.initialization.schemes import MARKERS, colour, draw
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

BATCH = 32
SEEN = 64  # digits that LSUV looks at
TARGET = 0.9  # moving mean of mini-batch accuracy
TRAINED = 0.5  # test accuracy from which a run counts as trained; chance is 0.1
MARGIN = 0.01  # test accuracy: a percentage point, the last digit of most tables of results, does not matter
REFERENCE = "he"
# What no one would call an unusual choice. Those scaled to the activation are what N09 calls sensible.
SENSIBLE = ("he", "orthogonal", "delta_orthogonal", "lsuv", "preserving", "depth_scaled", "fixup", "gpt2")
NORMAL = (*SENSIBLE, "default", "xavier", "xavier_uniform", "lecun", "he_fan_out")
SHAPE = ("depth", "norm", "order", "stem")  # what a model is built with, where it takes it; an MLP has `units` besides
PARAMETERS = ("model", *SHAPE, "scheme", "lr", "seed", "steps")
EACH = ("condition", "scheme")


def run_training(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD with momentum on the digits; replicas differ in scheme, learning rate and seed."""
    shared = cases[0]
    digits = data.load("digits").to(context.device)
    shape: dict[str, Any] = shared.given(*(name for name in SHAPE if name in shared))
    if shared["model"] == "mlp":
        shape["width"] = shared.integer("units")
    template = models.build(
        shared.text("model"), preset="small", input_shape=tuple(digits.train.x.shape[1:]), classes=10,
        **shape,
    )  # fmt: skip
    told = reached(cases, template)
    yield from told
    if nothing(told):
        return
    yield from training.outcomes(
        cases, template, digits,
        seeds=[case.random_seed("seed") for case in cases],  # common to schemes and rates: paired
        optimizer=replicas.SGD([case.number("lr") for case in cases], momentum=0.9),
        steps=shared.integer("steps"), batch=BATCH, target=TARGET, initialize=draw, strategy=_strategy(shared),
        columns={
            "scheme": [case.text("scheme") for case in cases],
            "activation": ["gelu" if shared.text("model") == "transformer" else "relu"] * len(cases),
            "batch": [digits.train.x[:SEEN].cpu()] * len(cases),
        },
    )  # fmt: skip


def smallest(case: Case) -> Case:
    """One step from He's weights, without what tells sweeps apart; a signal is one pass as it is."""
    return case.but(scheme=REFERENCE, lr=0.01, steps=1, seed=0, sweep="")


def _strategy(case: Case) -> Literal["vmap"] | None:
    """Tiny convolutions are bound by their dispatch: as grouped ones, many together, they train twice as fast."""
    stateless = case.get("norm") == "none" and case["model"] in ("plain_cnn", "resnet18")
    return "vmap" if stateless else None


def analyse_training(rows: pd.DataFrame) -> Answer:
    """Every scheme at its own learning rate, by architecture and depth; what follows for the claims."""
    runs = _labelled(training.table(rows, *PARAMETERS))
    best = training.tuned(runs, by=list(EACH))
    outcomes = pd.DataFrame(list(_outcomes(runs, best)))
    same, families = _equivalences(best)
    return Answer(
        {
            "outcomes": outcomes,
            "equivalence": same,
            "steps": best[
                ["condition", "scheme", "seed", "lr", "steps_to_target", "reached", "steps", "test_accuracy"]
            ],
            "rates": _by_rate(runs),
        },
        (*_verdict_n10(same, families), _verdict_n09(outcomes), *_crossover(outcomes), *_without_norm(best)),
        tuple(_sentences(outcomes)),
    )


def _labelled(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the name of their condition, `10-layer MLP (batch norm)`; what was asked for twice, once."""
    named = runs.assign(condition=[_condition(run) for run in runs.to_dict("records")])
    return named.drop_duplicates([*EACH, "lr", "seed"])


def _condition(run: Mapping[Any, Any]) -> str:
    """An architecture, and what it is normalized by."""
    own = {"mlp": "MLP", "plain_cnn": "plain CNN", "resnet18": "ResNet-18", "transformer": "transformer"}
    model, norm, order = (str(run[name]) if isinstance(run[name], str) else "" for name in ("model", "norm", "order"))
    deep = f"{int(run['depth'])}-layer " if model in own and pd.notna(run["depth"]) else ""
    words = [f"{order}-LN" if order else "no norm" if norm == "none" else f"{norm} norm"] if order or norm else []
    if model not in own:  # what it stands in the place of may have had another budget
        words.append(f"{int(run['steps'])} steps")
    return f"{deep}{own.get(model, model)} ({', '.join(words)})" if words else f"{deep}{own[model]}"


def _outcomes(runs: pd.DataFrame, best: pd.DataFrame) -> Iterator[dict[str, object]]:
    """One row a condition and scheme, each seed at the learning rate that the others chose."""
    everything = dict(groups(runs, list(EACH)))
    for key, own in groups(best, list(EACH)):
        tried = everything[key]
        accuracy = stats.mean(own["test_accuracy"].to_numpy())
        trained = stats.rate(int((own["test_accuracy"] >= TRAINED).sum()), len(own))
        curve = stats.survival(own["steps_to_target"].to_numpy(), own["reached"].to_numpy(bool))
        paced = curve.restricted_mean(min(float(own["steps"].max()), curve.last))
        tolerance = training.tolerance(tried, 2 * MARGIN).factor if trained.value > 0 else math.nan
        yield {
            **dict(zip(EACH, key, strict=True)), "model": own["model"].iloc[0], "depth": own["depth"].iloc[0],
            "norm": own["norm"].iloc[0], "n": accuracy.n,
            "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
            "trained": trained.value, "trained_low": trained.low, "trained_high": trained.high,
            "reached": int(own["reached"].sum()), "steps": paced.value, "steps_low": paced.low,
            "steps_high": paced.high, "budget": int(own["steps"].max()), "lr": float(own["lr"].median()),
            "rate_at_edge": float(own["at_edge"].mean()), "rates_that_do": tolerance,
            "diverged_at_some_rate": float(tried["diverged"].mean()),
        }  # fmt: skip


def _by_rate(runs: pd.DataFrame) -> pd.DataFrame:
    by = ["condition", "scheme", "lr"]
    return runs.groupby(by, sort=False)["test_accuracy"].agg(["mean", "min", "max", "size"]).reset_index()


def _equivalences(best: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, tuple[stats.Comparison, ...]]]:
    """Final test accuracy of every normal scheme against He's, in pairs of one seed; one family a condition."""
    found, families = [], {}
    for condition, own in groups(best, "condition"):
        accuracy = own.pivot_table(index="seed", columns="scheme", values="test_accuracy", sort=False)
        if REFERENCE not in accuracy:
            continue
        others = [scheme for scheme in accuracy if scheme in NORMAL and scheme != REFERENCE]
        pairs = [accuracy[[scheme, REFERENCE]].dropna() for scheme in others]
        family = stats.together(
            stats.paired(pair[scheme], pair[REFERENCE], margin=MARGIN)
            for scheme, pair in zip(others, pairs, strict=True)
        )
        families[condition] = family
        for scheme, member in zip(others, family, strict=True):
            found.append(
                {
                    "condition": condition, "scheme": scheme, "n": member.effect.n, "difference": member.effect.value,
                    "low": member.effect.low, "high": member.effect.high, "p": member.p_adjusted,
                    "p_equivalent": member.p_equivalent_adjusted, "answer": str(member.answer), "family": len(family),
                }
            )  # fmt: skip
    return pd.DataFrame(found), families


def _verdict_n10(same: pd.DataFrame, families: Mapping[str, Sequence[stats.Comparison]]) -> Iterator[Verdict]:
    """Where all normal initializations end within the margin of He's, and where one does not."""
    if same.empty:
        return
    answers: dict[str, bool | None] = {}
    for condition, family in families.items():
        kinds = {str(member.answer) for member in family}
        answers[condition] = False if "different" in kinds else (True if kinds == {"equivalent"} else None)
    told = {value: [name for name, answer in answers.items() if answer is value] for value in (True, False, None)}
    worst = same.iloc[int(same["difference"].abs().to_numpy().argmax())]
    yield verdict_on(
        "N10", Status(stats.combine(answers.values())),
        f"the same within {100 * MARGIN:g} percentage point: {_listed(told[True])}; not the same: "
        f"{_listed(told[False])}; undecided: {_listed(told[None])}",
        observed=float(worst["difference"]), low=float(worst["low"]), high=float(worst["high"]), predicted=0.0,
        unit="test accuracy", n=int(worst["n"]),
        method=f"test accuracy minus that of He's, pairs of one seed, each scheme at the learning rate that the other "
        f"seeds chose; exact sign flips, equivalence margin {MARGIN:g}, Holm by condition; the figure is the largest "
        f"difference: {worst['scheme']}, {worst['condition']}",
    )  # fmt: skip


def _verdict_n09(outcomes: pd.DataFrame) -> Verdict:
    """Do the schemes that are scaled to the activation train, wherever they are used?"""
    sensible = outcomes[outcomes["scheme"].isin(SENSIBLE)]
    answers = [_trains(row) for row in records(sensible)]
    lost = sensible[[answer is False for answer in answers]]
    where = sorted({f"{row.scheme} in a {row.condition}" for row in records(lost)})
    other = outcomes[~outcomes["scheme"].isin(SENSIBLE)]
    runs, trained = int(sensible["n"].sum()), round((sensible["trained"] * sensible["n"]).sum())
    others = float((other["trained"] * other["n"]).sum() / other["n"].sum()) if len(other) else float("nan")
    share = stats.rate(trained, runs)
    return verdict_on(
        "N09", Status(stats.combine(answers)),
        f"of the runs whose weights are scaled to the activation {share.value:.0%} train, of the others {others:.0%}"
        + (f"; not so {_listed(where)}" if where else ""),
        observed=share.value, low=share.low, high=share.high, unit="share of runs that train", n=runs,
        method=f"test accuracy of at least {TRAINED:g} at a tuned learning rate; by scheme and condition Wilson's 95 % "
        "interval above or below one half; the figure is pooled over all, and its interval takes runs as independent",
    )  # fmt: skip


def _trains(row: Any) -> bool | None:
    """Whether most runs of a scheme train: the interval of their share lies above, or below, one half."""
    low, high = float(row.trained_low), float(row.trained_high)
    return True if low > 0.5 else False if high < 0.5 else None


def _crossover(outcomes: pd.DataFrame) -> Iterator[Verdict]:
    """He et al. 2015, figures 2 and 3: 22 layers train from both, 30 from He's alone."""
    plain = outcomes[(outcomes["model"] == "plain_cnn") & outcomes["scheme"].isin(["he", "xavier"])]
    if plain.empty:
        return
    trains = {(row.scheme, int(row.depth)): _trains(row) for row in records(plain)}
    wanted = {("xavier", 22): True, ("he", 22): True, ("xavier", 30): False, ("he", 30): True}
    if not set(wanted) <= set(trains):
        return
    agrees = [None if trains[key] is None else trains[key] is value for key, value in wanted.items()]
    status = Status.HOLDS if all(agrees) else Status.FAILS if False in agrees else Status.INCONCLUSIVE
    told = "; ".join(
        f"{row.scheme} at {int(row.depth)} layers {row.trained:.0%} of {row.n} runs" for row in records(plain)
    )
    half = plain[plain["trained"] >= 0.5].groupby("scheme")["depth"].max()
    deepest = " and ".join(
        f"{half[scheme]:.0f} layers from {scheme}" if scheme in half else f"none from {scheme}"
        for scheme in ("xavier", "he")
    )
    last = plain[(plain["scheme"] == "xavier") & (plain["depth"] == 22)].iloc[0]
    yield verdict_on(
        "initialization/crossover", status,
        f"trained: {told}; the deepest that at least half of the runs train: {deepest}. Xavier's weights have half of "
        "the variance that ReLU needs, so that signal and gradient "
        f"each shrink by 2^(-(L-1)/2): {2 ** (-21 / 2):.1g} at 22 layers, {2 ** (-29 / 2):.1g} at 30; how small a "
        f"gradient can be overcome depends on the budget, here {last['budget']} steps",
        observed=float(last["trained"]), low=float(last["trained_low"]), high=float(last["trained_high"]),
        predicted=1.0, unit="share of runs that train (Xavier, 22 layers)", n=int(last["n"]),
        method=f"test accuracy of at least {TRAINED:g} at a tuned learning rate; Wilson's interval above or below one "
        "half",
    )  # fmt: skip


def _without_norm(best: pd.DataFrame) -> Iterator[Verdict]:
    """Fixup without normalization against He's with batch norm, on the same residual network."""
    residual = best[best["model"] == "resnet18"]
    fixup = residual[(residual["norm"] == "none") & (residual["scheme"] == "fixup")].set_index("seed")["test_accuracy"]
    batch = residual[(residual["norm"] == "batch") & (residual["scheme"] == "he")].set_index("seed")["test_accuracy"]
    plain = residual[(residual["norm"] == "none") & (residual["scheme"] == "he")].set_index("seed")["test_accuracy"]
    pairs = pd.concat({"fixup": fixup, "batch": batch}, axis=1).dropna()
    if pairs.empty:
        return
    found = stats.paired(pairs["fixup"], pairs["batch"], margin=2 * MARGIN)
    # Better than with normalization is as good.
    good = found.answer is stats.Answer.EQUIVALENT or found.above
    status = Status.HOLDS if good else Status.FAILS if found.below else Status.INCONCLUSIVE
    yield verdict_on(
        "initialization/fixup", status,
        f"Fixup's weights without normalization end at {fixup.mean():.1%}, He's with batch norm at {batch.mean():.1%}, "
        f"He's without at {plain.mean():.1%}",
        observed=found.effect.value, low=found.effect.low, high=found.effect.high, predicted=0.0,
        unit="test accuracy", n=found.effect.n,
        method=f"pairs of one seed, {found.effect.method}, equivalence margin {2 * MARGIN:g}",
    )  # fmt: skip


def _listed(names: Sequence[str], nothing: str = "nowhere") -> str:
    return ", ".join(names) or nothing


def _sentences(outcomes: pd.DataFrame) -> Iterator[str]:
    """Depth by depth, which schemes train and which do not; then what the best is worth."""
    for _, family in groups(outcomes.fillna({"norm": ""}), ["model", "norm"]):
        told = []
        for condition, own in groups(family, "condition"):
            yes = [row.scheme for row in records(own) if _trains(row)]
            no = [row.scheme for row in records(own) if _trains(row) is False]
            partly = [f"{row.scheme} in {row.trained:.0%} of runs" for row in records(own) if _trains(row) is None]
            words = [f"{_listed(yes, 'none')} train", *partly, *([f"{_listed(no)} never"] if no else [])]
            told.append(f"{condition}: {'; '.join(words)}")
        yield f"{'. '.join(told)}."
    plain = outcomes[(outcomes["model"] == "mlp") & (outcomes["norm"] == "none")]
    if len(set(plain["depth"])) > 1:
        he = plain[plain["scheme"] == REFERENCE].sort_values("depth")
        yield (
            f"From He's weights the best learning rate falls from {he['lr'].iloc[0]:g} at {he['depth'].iloc[0]:.0f} "
            f"layers to {he['lr'].iloc[-1]:g} at {he['depth'].iloc[-1]:.0f}, and test accuracy from "
            f"{he['accuracy'].iloc[0]:.1%} to {he['accuracy'].iloc[-1]:.1%} in {he['budget'].iloc[-1]} steps."
        )


def most_replicas(case: Case) -> int:
    """Replicas a chunk: bounded by memory where they are trained together, small where one follows another."""
    if case["model"] != "mlp" or case.get("norm") == "batch":
        return 36
    width, depth = case.integer("units"), case.integer("depth")
    return min(96, replicas.most_members(64 * width + depth * width**2, 2**27))


# -- figures -----------------------------------------------------------------------------------------------------------


def _panels(conditions: Sequence[str], across: str, up: str = "") -> tuple[Canvas, list[Axes]]:
    """One panel a condition, the axes at the edges named."""
    columns = 3 if len(conditions) > 4 else min(2, len(conditions))
    rows = -(-len(conditions) // columns)
    canvas, axes = plt.subplots(rows, columns, figsize=(3.6 * columns + 0.6, 3.2 * rows + 0.7), squeeze=False)
    every = list(axes.flat)
    for spare in every[len(conditions) :]:
        spare.set_visible(False)
    used = every[: len(conditions)]
    for axis in used[-columns:]:
        axis.set_xlabel(across)
    for axis in used[::columns]:
        axis.set_ylabel(up)
    return canvas, used


def plot_ladder(tables: Tables) -> Iterator[Figure]:
    """Steps to the target, a row a scheme, a point a seed; who never arrived stands at the right edge."""
    if "steps" not in tables:
        return
    steps, outcomes = tables["steps"], tables["outcomes"]
    conditions = list(dict.fromkeys(steps["condition"]))
    canvas, axes = _panels(conditions, f"steps to {TARGET:.0%} accuracy")
    for axis, condition in zip(axes, conditions, strict=True):
        own = steps[steps["condition"] == condition]
        order = outcomes[outcomes["condition"] == condition].sort_values(["steps", "accuracy"], ascending=[False, True])
        schemes, budget = list(order["scheme"]), int(own["steps"].max())
        for height, scheme in enumerate(schemes):
            line = own[own["scheme"] == scheme].sort_values("steps_to_target")
            jitter = height + np.linspace(-0.28, 0.28, len(line)) if len(line) > 1 else np.array([height])
            arrived = line["reached"].to_numpy(bool)
            taken = line["steps_to_target"].to_numpy()
            axis.plot(taken[arrived], jitter[arrived], "o", color=colour(scheme), ms=4.5, alpha=0.85)
            axis.plot(taken[~arrived], jitter[~arrived], ">", mfc="white", mec=colour(scheme), ms=4.5)
        axis.axvline(budget, color="0.6", lw=0.8, ls="--")
        axis.set_yticks(range(len(schemes)), schemes)
        axis.set(xlim=(0, budget * 1.06), title=condition)
        axis.grid(visible=False, axis="y")
    handles = [
        Line2D([], [], color="0.3", marker="o", lw=0, label="arrived"),
        Line2D([], [], color="0.3", marker=">", mfc="white", lw=0, label="not within the budget (censored)"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=2)
    yield Figure(
        "steps_ladder", canvas,
        "How long each scheme takes to learn, and which runs never got there",
        f"One point a seed, at the learning rate that the other seeds chose: first step after which the last "
        f"{training.WINDOW} mini-batches have a mean accuracy of {TARGET:.0%}. Open triangles at the budget (dashed): "
        "never reached.",
    )  # fmt: skip


def plot_rates(tables: Tables) -> Iterator[Figure]:
    """Test accuracy over the learning rate, a line a scheme, a panel a condition."""
    if "rates" not in tables:
        return
    rates = tables["rates"]
    conditions = list(dict.fromkeys(rates["condition"]))
    canvas, axes = _panels(conditions, "learning rate", "test accuracy")
    schemes = list(dict.fromkeys(rates["scheme"]))
    for axis, condition in zip(axes, conditions, strict=True):
        for scheme in schemes:
            own = rates[(rates["condition"] == condition) & (rates["scheme"] == scheme)].sort_values("lr")
            marker = MARKERS.get(scheme, "o")
            axis.plot(own["lr"], own["mean"], color=colour(scheme), marker=marker, ms=4.5, lw=1.4)
        tried = np.sort(rates.loc[rates["condition"] == condition, "lr"].unique())
        axis.set(xscale="log", ylim=(0, 1.02), title=condition)
        axis.set_xticks(tried, [f"{rate:g}" for rate in tried])
        axis.minorticks_off()
    handles = [
        Line2D([], [], color=colour(scheme), marker=MARKERS.get(scheme, "o"), ms=5, label=scheme) for scheme in schemes
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=4)
    yield Figure(
        "learning_rates", canvas,
        "How much each scheme forgives a learning rate that misses its best",
        f"Mean test accuracy over {rates['size'].min()} seeds at every learning rate that was tried; chance is 0.1.",
    )  # fmt: skip
