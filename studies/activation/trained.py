"""Steps to a target and final accuracy by depth, each activation with its own gain and its own tuned learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from depthgauge import data, models, replicas, stats, theory, training
from depthgauge.frames import groups, params_of, records
from depthgauge.initialization import gaussian
from depthgauge.initialization.maps import weighted
from depthgauge.parts import Answer, verdict_on
from depthgauge.studies.activation.extremes import highest
from depthgauge.studies.activation.functions import handed, label, phi
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

TRAINED = 0.5  # test accuracy from which a network counts as trained; chance is 0.1
MARGIN = 0.02  # test accuracy: activations closer than this are called the same
DEAD = 0.01  # share of units: a change of up to this is none
SATURATED = 0.1  # a unit whose root-mean-square slope is below this share of what it is at unit variance is saturated
WATCHED = 200  # examples on which a unit's slopes are taken
CHECKPOINTS = (0.0, 1 / 32, 1 / 8)  # shares of the steps at which units are looked at, besides the end
KEYS = ["activation", "init", "depth"]
MEMORY = 2**28  # bytes of parameters, gradients and momentum a chunk


def run_training(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD with momentum on real digits; replicas differ in learning rate and seed.

    Seeds are common to all activations and learning rates: the same draws of the weights, times the gain, and the same
    mini-batches.
    """
    shared = cases[0]
    spec, steps = shared.text("activation"), shared.integer("steps")
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        shared.text("model"), preset="small", activation=handed(spec), input_shape=dataset.input_shape,
        classes=dataset.classes, **shared.given("depth", "width"),
    )  # fmt: skip
    seeds = [case.random_seed("seed", "width", "depth") for case in cases]
    initialize = None if shared.text("init") == "default" else at_gain(theory.gain(phi(spec)).forward)
    draw = training.Draw(seeds, initialize)
    recipe = training.Recipe(
        replicas.SGD([case.number("lr") for case in cases], momentum=shared.number("momentum")),
        steps=steps, batch=shared.integer("batch"), target=shared.number("target"),
    )  # fmt: skip
    fit, _ = data.hold_out(dataset.train, training.HELD_OUT)

    def look(stack: replicas.Stack) -> Mapping[str, Sequence[float]]:
        return units(stack, spec, fit.x[:WATCHED])

    yield from training.outcomes(cases, template, dataset, recipe, draw, inspect=look)
    if not units(replicas.stack(template, seeds[:1]), spec, fit.x[:1]):
        return  # not the layers of a multilayer perceptron
    for share in CHECKPOINTS:
        # the first steps of the training above, once more: the order of the data does not depend on their number
        early = round(share * steps)
        run = replace(recipe, steps=early).train(draw.replicas(template, context.device), fit)
        for metric, values in look(run.stack).items():
            for case, value in zip(cases, values, strict=True):
                yield case.rows(metric, float(value), step=early)


def smallest(case: Case) -> Case:
    """One step of training; of the part that reads the clock, one block."""
    return case.but(steps=1, blocks=1, seed=0)


def at_gain(gain: float) -> Callable[[nn.Module, torch.Generator], None]:
    """Weights that keep the second moment at 1 from standardized inputs on: gain 1 first, the activation's after it."""

    def draw(module: nn.Module, generator: torch.Generator) -> None:
        gaussian(gain)(module, generator)
        first = next(weighted(module))
        for weight in first.maps:
            weight.div_(gain)
        first.bring()

    return draw


@torch.no_grad()
def units(stack: replicas.Stack, spec: str, inputs: Tensor) -> dict[str, Sequence[float]]:
    """Share of hidden units that are dead, and that are saturated, on some examples: (R,) each.

    Dead: a slope of exactly zero on every example. Saturated: a root-mean-square slope over the examples below
    SATURATED of what it is at pre-activations of unit variance; dead units are among them.
    """
    usual = 1 / theory.gain(phi(spec)).backward
    h = inputs.flatten(1).expand(len(stack), -1, -1)
    dead, saturated = [], []
    blocks = [name.removesuffix(".linear.weight") for name in stack.parameters if name.endswith(".linear.weight")]
    for block in blocks:
        weight, bias = (stack.parameters[f"{block}.linear.{name}"] for name in ("weight", "bias"))
        z = torch.baddbmm(bias[:, None], h, weight.mT)
        own = f"{block}.activation."
        parameters = {n.removeprefix(own): p for n, p in stack.parameters.items() if n.startswith(own)}
        h, slope = _value_and_slope(stack.template.get_submodule(f"{block}.activation"), parameters, z)
        dead.append((slope == 0).all(1))
        saturated.append(slope.square().mean(1).sqrt() < SATURATED * usual)
    if not blocks:
        return {}
    return {
        "dead": torch.stack(dead, 1).double().mean((1, 2)).tolist(),
        "saturated": torch.stack(saturated, 1).double().mean((1, 2)).tolist(),
    }


def _value_and_slope(module: nn.Module, parameters: Mapping[str, Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Of an activation whose parameters, if it has any (PReLU), are those of each replica."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        if parameters:
            value = vmap(lambda own, at: functional_call(module, own, (at,)))(dict(parameters), z)
        else:
            value = module(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def most_replicas(case: Case) -> int:
    """Replicas a chunk: what parameters, gradients and momentum of MEMORY bytes hold."""
    width, depth = case["width"], case["depth"]
    if not isinstance(width, int) or not isinstance(depth, int):
        return 16  # a model that has its own
    return max(1, MEMORY // (12 * (784 * width + depth * width**2 + 10 * width)))


def analyse_training(rows: pd.DataFrame) -> Answer:
    """Tuned runs, who is as good as the best at each depth, and what became of the units."""
    runs = training.table(rows, *KEYS, "lr", "seed", "steps", "width", "data", "target")
    runs = _typed(runs).astype({"steps": int})
    tuned = tuned_runs(runs, KEYS)
    if tuned.empty:
        return Answer({})
    cells = pd.DataFrame(_cell(dict(zip(KEYS, key, strict=True)), own) for key, own in groups(tuned, KEYS))
    own_gain = tuned[tuned["init"] == "gain"]
    own_gain = own_gain[own_gain.groupby("depth")["seed"].transform("nunique") > 1]  # one seed has no others to pick by
    shares = _unit_shares(rows, tuned)
    tables = {"training": cells, "tuned_runs": tuned, "units": _unit_table(shares)}
    verdicts: list[Verdict] = []
    sentences: list[str] = []
    if len(own_gain):
        answers = pd.concat([_against_best(own) for _, own in groups(own_gain, "depth")], ignore_index=True)
        tables = {"answers": answers, **tables}
        verdicts += [_stable_verdict(cells), _same_verdict(answers)]
        sentences += [*_answer_sentences(answers), *_stable_sentences(cells)]
    if len(shares):
        verdicts.append(_dying_verdict(shares))
    return Answer(tables, tuple(verdicts), (*sentences, *_edge_sentence(cells)))


def tuned_runs(runs: pd.DataFrame, by: Sequence[str], score: str = "validation_accuracy") -> pd.DataFrame:
    """`training.tuned` over what can be tuned, which in an unfinished run may not be all."""
    return training.tuned(training.tunable(runs, by), by, score=score)


def at(depth: int) -> str:
    """`at depth 10`."""
    return f"at depth {depth}" if depth else "at the model's own depth"


def _typed(params: pd.DataFrame) -> pd.DataFrame:
    """Activations by their labels, whole numbers as such; depth 0 where a model has one of its own."""
    depth = pd.to_numeric(params["depth"]).fillna(0)
    return params.assign(activation=params["activation"].map(label), depth=depth).astype({"depth": int, "seed": int})


def _cell(key: Mapping[str, object], own: pd.DataFrame) -> dict[str, object]:
    accuracy = stats.mean(own["test_accuracy"].to_numpy())
    steps = stats.median(own["steps_to_target"].where(own["reached"] > 0, math.inf).to_numpy(), unit="steps")
    trained = stats.rate(int(((own["test_accuracy"] >= TRAINED) & (own["diverged"] == 0)).sum()), len(own))
    return {
        **key, "seeds": len(own), "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
        "trained": round(trained.value * len(own)), "trained_low": trained.low, "trained_high": trained.high,
        "reached": int(own["reached"].sum()),
        "median_steps": steps.value, "steps_low": steps.low, "steps_high": steps.high,
        "diverged": int(own["diverged"].sum()), "lr": own["lr"].median(), "at_edge": own["at_edge"].mean(),
    }  # fmt: skip


def _against_best(own: pd.DataFrame) -> pd.DataFrame:
    """Each activation against the best, at one depth.

    The best of a seed is the activation of the highest mean validation accuracy over the other seeds: no seed has a say
    in what it is compared with, so that the best is not flattered by having been chosen.
    """
    test, validation = (own.pivot_table(index="seed", columns="activation", values=f"{part}_accuracy", sort=False)
                        for part in ("test", "validation"))  # fmt: skip
    # an activation with a seed missing (an unfinished run) has no place in pairs
    test, validation = test.dropna(axis=1), validation.dropna(axis=1)
    winners = pd.Series({seed: str(validation.drop(index=seed).mean().idxmax()) for seed in test.index})
    reference = np.array([test[winner][seed] for seed, winner in winners.items()])
    best = winners.mode()[0]
    family = stats.together(
        stats.paired(reference, test[name].to_numpy(), margin=MARGIN, test="t", unit="test accuracy") for name in test
    )
    words = {stats.Answer.EQUIVALENT: "as good", stats.Answer.DIFFERENT: "out", stats.Answer.INCONCLUSIVE: "open"}
    return pd.DataFrame(
        {
            "depth": int(own["depth"].iloc[0]), "activation": name, "accuracy": test[name].mean(),
            "behind": member.effect.value, "low": member.effect.low, "high": member.effect.high,
            "answer": "picked" if name == best else words[member.answer], "seeds": member.effect.n,
            "p_different": member.p_adjusted, "p_equivalent": member.p_equivalent_adjusted, "family": member.family,
        }
        for name, member in zip(test, family, strict=True)
    ).sort_values("behind", kind="stable")  # fmt: skip


def _unit_shares(rows: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Dead and saturated shares of the runs at their tuned rates: one row a run and step."""
    own = rows[rows["metric"].isin(["dead", "saturated"])]
    if own.empty:
        return pd.DataFrame()
    wide = own.pivot_table(index=["case", "step"], columns="metric", values="value").reset_index()
    wide = wide.join(_typed(params_of(own, *KEYS, "lr", "seed")), on="case")
    return wide.merge(tuned[[*KEYS, "lr", "seed"]], on=[*KEYS, "lr", "seed"])


def _unit_table(shares: pd.DataFrame) -> pd.DataFrame:
    found = []
    for key, own in groups(shares, [*KEYS, "step"]) if len(shares) else ():
        dead, saturated = stats.mean(own["dead"].to_numpy()), stats.mean(own["saturated"].to_numpy())
        found.append(
            {
                **dict(zip([*KEYS, "step"], key, strict=True)), "seeds": dead.n, "dead": dead.value,
                "dead_low": dead.low, "dead_high": dead.high, "saturated": saturated.value,
                "saturated_low": saturated.low, "saturated_high": saturated.high,
            }
        )  # fmt: skip
    return pd.DataFrame(found)


def _stable_verdict(cells: pd.DataFrame) -> Verdict:
    """N09: at the greatest depth and each activation's own gain, do networks train?"""
    deep = cells[(cells["init"] == "gain") & (cells["depth"] == cells["depth"].max())]
    told: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    conditions: list[bool | None] = []
    for row in records(deep):
        condition = True if row.trained_low > 0.5 else False if row.trained_high < 0.5 else None
        conditions.append(condition)
        told[condition].append(row.activation)
    share = stats.rate(int(deep["trained"].sum()), int(deep["seeds"].sum()))
    default = cells[(cells["init"] == "default") & (cells["depth"] == cells["depth"].max())]
    beside = ", ".join(f"{row.trained} of {row.seeds} with {row.activation}" for row in records(default))
    return verdict_on(
        "N09",
        Status(stats.combine(conditions)),
        f"{at(deep['depth'].max())} and the exact gain networks train with "
        f"{', '.join(told[True]) or 'none'}; not with {', '.join(told[False]) or 'none'}"
        + (f"; undecided: {', '.join(told[None])}" if told[None] else "")
        + (f". At nn.Linear's default train {beside}" if beside else ""),
        observed=share.value, low=share.low, high=share.high, unit="share of runs that train", n=share.n,
        method=f"as it concerns activations: trained is a test accuracy of at least {TRAINED:g} without divergence, at "
        "the rate that the other seeds choose; an activation trains where Wilson's interval of its share of seeds lies "
        "above 1/2, and does not where it lies below; the figure is the share over all of them",
    )  # fmt: skip


def _same_verdict(answers: pd.DataFrame) -> Verdict:
    """Is every activation as good as the best, at every depth?"""
    rest = answers[answers["answer"] != "picked"]
    conditions = [{"as good": True, "out": False}.get(answer) for answer in rest["answer"]]
    counts = "; ".join(
        f"{at(depth)} {(own['answer'].isin(['picked', 'as good'])).sum()} as good as the best, "
        f"{(own['answer'] == 'out').sum()} out, {(own['answer'] == 'open').sum()} open"
        for depth, own in groups(answers, "depth")
    )
    worst = highest(rest if len(rest) else answers, "behind")
    return verdict_on(
        "activation/same",
        Status(stats.combine(conditions)),
        f"{counts}; the figure is {worst['activation']} {at(worst['depth'])}, the furthest behind",
        observed=float(worst["behind"]), low=float(worst["low"]), high=float(worst["high"]),
        unit="test accuracy behind the best", n=int(worst["seeds"]),
        method=f"paired t by seed against the activation that the other seeds find best, margin {MARGIN:g}, Holm over "
        f"the {int(answers['family'].max())} of a depth",
    )  # fmt: skip


def _dying_verdict(shares: pd.DataFrame) -> Verdict:
    """Do more of ReLU's units end dead than began so?"""
    relu = shares[(shares["activation"] == "relu") & (shares["init"] == "gain")]
    found: dict[int, stats.Comparison] = {}
    for depth, own in groups(relu, "depth"):
        by_step = own.pivot_table(index="seed", columns="step", values="dead").dropna()
        if by_step.shape[1] > 1:
            found[depth] = stats.paired(
                by_step.iloc[:, -1], by_step.iloc[:, 0], margin=DEAD, test="t", unit="share of units"
            )
    if not found:
        return verdict_on("activation/dying", Status.INCONCLUSIVE, "ReLU was not among the activations")
    family = dict(zip(found, stats.together(found.values()), strict=True))
    conditions = [True if c.above else False if c.inside or c.below else None for c in family.values()]
    last = shares[shares["step"] == shares["step"].max()]
    others = last[(last["init"] == "gain") & (last["depth"] == last["depth"].max())]
    most = others.groupby("activation")["dead"].mean().sort_values(ascending=False)
    told = ", ".join(f"{name} {value:.1%}" for name, value in most.items() if value > DEAD) or "none above 1 %"
    worst = max(family, key=lambda depth: family[depth].effect.value)
    effect = family[worst].effect
    return verdict_on(
        "activation/dying",
        Status(stats.combine(conditions)),
        "; ".join(f"{at(depth)} {c.effect.value:+.1%}" for depth, c in family.items())
        + f". Dead at the end, {at(others['depth'].max())}: {told}",
        observed=effect.value, low=effect.low, high=effect.high, unit="share of units", n=effect.n,
        method=f"dead on all of {WATCHED} training examples, end minus start, same network; paired t, margin {DEAD:g}, "
        f"Holm over {len(family)} depths; the figure is that {at(worst)}",
    )  # fmt: skip


def _answer_sentences(answers: pd.DataFrame) -> Iterator[str]:
    for depth, own in groups(answers.sort_values("depth", kind="stable"), "depth"):
        if own["activation"].nunique() < 2:
            continue
        named = {word: list(part["activation"]) for word, part in own.groupby("answer", sort=False)}
        picked = own[own["answer"] == "picked"].iloc[0]
        sentence = (
            f"{at(depth).capitalize()} validation picks {picked['activation']} ({picked['accuracy']:.1%} on test)"
        )
        same, out, left = (named.get(word, []) for word in ("as good", "out", "open"))
        sentence += f"; as good within {MARGIN:.0%}: {', '.join(same) or 'none that could be shown'}"
        sentence += f"; out: {', '.join(out) or 'none'}"
        yield sentence + (f"; undecided: {', '.join(left)}." if left else ".")


def _stable_sentences(cells: pd.DataFrame) -> Iterator[str]:
    for depth, own in groups(cells[cells["init"] == "gain"], "depth"):
        rest = own[np.isfinite(own["median_steps"])].sort_values("median_steps")
        if rest.empty:
            yield f"{at(depth).capitalize()} no activation reaches the target in half of its seeds."
            continue
        first, last = rest.iloc[0], rest.iloc[-1]
        never = [row.activation for row in records(own) if row.reached == 0]
        yield (
            f"{at(depth).capitalize()} the target is reached in {first['median_steps']:.0f} steps "
            f"({first['activation']})"
            + (f" to {last['median_steps']:.0f} ({last['activation']})" if len(rest) > 1 else "")
            + ", median over seeds"
            + (f"; never by {', '.join(never)}." if never else ".")
        )


def _edge_sentence(cells: pd.DataFrame) -> Iterator[str]:
    at_edge = cells[(cells["at_edge"] > 0.5) & (cells["reached"] > 0)]
    if len(at_edge):
        told = ", ".join(f"{row.activation} {at(row.depth)}" for row in records(at_edge))
        yield f"The best learning rate lies at an end of the grid, so that a better one may exist, for {told}."


def plot_ladder(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Steps to the target: every run a dot, what never got there a hollow triangle at the budget."""
    if "tuned_runs" not in tables:
        return
    runs = tables["tuned_runs"]
    runs = runs[runs["init"] == "gain"]
    if runs.empty:
        return
    depths = sorted(runs["depth"].unique())
    deep = runs[runs["depth"] == depths[len(depths) // 2]]
    rank = deep.assign(s=deep["steps_to_target"].where(deep["reached"] > 0, math.inf)).groupby("activation")["s"]
    order = list(rank.median().sort_values(kind="stable").index)[::-1]
    order = [name for name in dict.fromkeys(runs["activation"]) if name not in order] + order
    canvas, axes = plt.subplots(
        1, len(depths), figsize=(3.3 * len(depths) + 1.2, 0.27 * len(order) + 1.6), sharey=True, squeeze=False
    )
    for axis, depth in zip(axes[0], depths, strict=True):
        own = runs[runs["depth"] == depth]
        budget = float(own["steps"].max())
        for i, name in enumerate(order):
            line = own[own["activation"] == name]
            there = line[line["reached"] > 0]["steps_to_target"]
            never = int((line["reached"] == 0).sum())
            axis.plot(there, np.full(len(there), i), "o", ms=4, color="C0", alpha=0.55, mew=0)
            if never:
                axis.plot([budget], [i], ">", ms=8, mfc="white", mec="C1", mew=1.4)
                axis.annotate(
                    f"{never}", (budget, i), (7, 0), textcoords="offset points", va="center", fontsize="small"
                )
            if len(there) > never:
                middle = np.sort(line["steps_to_target"].where(line["reached"] > 0, math.inf))[(len(line) - 1) // 2]
                axis.plot([middle, middle], [i - 0.35, i + 0.35], color="black", lw=1.8)
        axis.set(title=at(depth), xlabel="steps to target", xlim=(0, budget * 1.16))
        axis.axvline(budget, color="0.6", lw=0.8, ls=":")
    axes[0, 0].set_yticks(range(len(order)), order)
    target, seeds = float(runs["target"].iloc[0]), int(runs.groupby(["activation", "depth"]).size().min())
    yield Figure(
        "ladder",
        canvas,
        _ladder_title(runs),
        f"Steps until the mean mini-batch accuracy of {training.WINDOW} steps is {target:.0%}; every activation at its "
        f"own gain and tuned rate. Dots: one run each of {seeds}; black: the median. Hollow triangles: runs that had "
        "not got there when the steps (dotted) were spent, with their number; they are censored, not slow.",
    )


def _ladder_title(runs: pd.DataFrame) -> str:
    share = runs.groupby(["depth", "activation"])["reached"].mean()
    shallow, deep = share.loc[runs["depth"].min()], share.loc[runs["depth"].max()]
    if (shallow > 0.5).all() and (deep < 0.5).any():
        return f"Every activation trains when shallow; {int((deep < 0.5).sum())} of {len(deep)} do not when deep"
    return "How many steps each activation takes to the target, by depth"


def plot_answers(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """How far behind the best each activation ends, and what may be said of it."""
    if "answers" not in tables:
        return
    answers = tables["answers"]
    depths = sorted(answers["depth"].unique())
    order = list(answers.groupby("activation")["behind"].mean().sort_values(ascending=False).index)
    places = {name: i for i, name in enumerate(order)}
    canvas, axes = plt.subplots(
        1, len(depths), figsize=(3.3 * len(depths) + 1.2, 0.27 * len(order) + 1.6), sharey=True, squeeze=False
    )
    looks = {"picked": ("C2", "*", 11), "as good": ("C2", "o", 5.5), "open": ("C6", "o", 5.5), "out": ("C1", "s", 5)}
    for axis, depth in zip(axes[0], depths, strict=True):
        axis.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.92", zorder=0)
        axis.axvline(0, color="0.6", lw=0.8)
        for word, (colour, marker, size) in looks.items():
            own = answers[(answers["depth"] == depth) & (answers["answer"] == word)]
            bars = 100 * np.abs(np.stack([own["behind"] - own["low"], own["high"] - own["behind"]]))
            axis.errorbar(
                100 * own["behind"], own["activation"].map(places), xerr=np.nan_to_num(bars, posinf=0.0), fmt=marker,
                ms=size, color=colour, label=word,
            )  # fmt: skip
        axis.set_title(at(depth))
        axis.set_xscale("symlog", linthresh=100 * MARGIN)
        axis.set_xlim(min(-150 * MARGIN, 110 * float(answers["low"].replace(-np.inf, 0).min())), 100)
        axis.set_xticks([-2, 0, 2, 10, 50], ["-2", "0", "2", "10", "50"])
        axis.minorticks_off()
        axis.set_xlabel("behind the pick (% points)")
    axes[0, 0].set_yticks(range(len(order)), order)
    handles, names = axes[0, -1].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=4)
    seeds = int(answers["seeds"].min())
    yield Figure(
        "answers",
        canvas,
        "Which activations end as well as the best, and which do not",
        f"Test accuracy behind the activation that the other seeds' validation picks: mean of paired differences over "
        f"{seeds} seeds with 95 % intervals. Grey: the margin of {MARGIN:.0%} points within which nothing matters; "
        "the axis is linear inside it and logarithmic outside. As good: shown to be inside; out: shown to be behind; "
        "open: neither (all after Holm's correction).",
    )


def plot_units(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Dead and saturated units through training, at the greatest depth."""
    if "units" not in tables or tables["units"].empty:
        return
    table = tables["units"]
    table = table[(table["init"] == "gain") & (table["depth"] == table["depth"].max())]
    most = table.groupby("activation")[["dead", "saturated"]].max().max(axis=1).sort_values(ascending=False)
    chosen = list(most[most > DEAD].index[:7])
    if not chosen:
        return
    canvas, axes = plt.subplots(1, 2, figsize=(9.0, 4.1), sharex=True)
    for axis, what in zip(axes, ("dead", "saturated"), strict=True):
        for i, name in enumerate(chosen):
            line = table[table["activation"] == name].sort_values("step")
            bars = 100 * np.abs(np.stack([line[what] - line[f"{what}_low"], line[f"{what}_high"] - line[what]]))
            axis.errorbar(line["step"], 100 * line[what], yerr=bars, marker="o", color=f"C{i}", label=name)
        axis.set(title=f"{what} units", xlabel="step", ylabel="% of hidden units", ylim=(0, None))
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    yield Figure(
        "units",
        canvas,
        "Units that no example moves, from the first step to the last",
        f"{at(table['depth'].max()).capitalize()}, at the tuned learning rate; mean over {int(table['seeds'].min())} "
        f"seeds with 95 % intervals; the {len(chosen)} activations that lose more than {DEAD:.0%}. Dead: slope "
        f"exactly 0 on all of {WATCHED} training examples. Saturated: root-mean-square slope below {SATURATED:.0%} of "
        "what it is at unit variance.",
    )
