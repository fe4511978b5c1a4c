"""A network without activation: is it still linear, has it the rank of a linear one, and does it end like one?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch

from depthgauge import data, models, replicas, stats, theory, training
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, verdict_on
from depthgauge.studies.activation.extremes import highest
from depthgauge.studies.activation.functions import label, make, phi
from depthgauge.studies.activation.trained import at_gain, tuned_runs
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status, Verdict

MARGIN = 0.02  # test accuracy
AFFINE = 1e-9  # share of the outputs' norm that no affine map of the inputs explains; rounding of float64 is 1e-13
FIGURES = ("rank", "input_rank", "residual")


def run_linear(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Training, and then, in float64, what the trained network does to the training examples.

    `rank`: of its last hidden layer's centred activations (of its outputs where there is no hidden layer);
    `input_rank`: of the centred inputs; `residual`: what the best affine map of the inputs leaves of its outputs.
    """
    shared = cases[0]
    spec = shared.text("activation")
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        "mlp", depth=shared.integer("depth"), width=shared.integer("width"), activation=make(spec),
        input_shape=dataset.input_shape, classes=dataset.classes,
    )  # fmt: skip
    fit, _ = data.hold_out(dataset.train, training.HELD_OUT)
    optimizer = replicas.SGD([case.number("lr") for case in cases], momentum=shared.number("momentum"))
    recipe = training.Recipe(optimizer, shared.integer("steps"), shared.integer("batch"), shared.number("target"))
    draw = training.Draw([case.random_seed("seed") for case in cases], at_gain(theory.gain(phi(spec)).forward))
    yield from training.outcomes(cases, template, dataset, recipe, draw, inspect=lambda stack: inspect(stack, fit.x))


@torch.no_grad()
def inspect(stack: replicas.Stack, inputs: torch.Tensor) -> dict[str, list[float]]:
    """Rank of the last hidden layer, and distance of the whole from an affine map."""
    x = inputs.flatten(1).double().cpu()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    basis, singular, _ = torch.linalg.svd(design, full_matrices=False)
    basis = basis[:, singular > singular[0] * len(x) * torch.finfo(x.dtype).eps]
    input_rank = _rank(x)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for i in range(len(stack)):
        module = stack.module(i).double().eval()
        hidden = module.get_submodule("hidden")(x)
        outputs = module(x)
        left = outputs - basis @ (basis.mT @ outputs)
        found["rank"].append(_rank(hidden if hidden is not x else outputs))
        found["input_rank"].append(input_rank)
        found["residual"].append(float(left.norm() / outputs.norm()))
    return found


def _rank(features: torch.Tensor) -> float:
    """Singular values of the centred features above rounding: shape (N, d)."""
    centred = features - features.mean(0)
    if not torch.isfinite(centred).all():
        return float("nan")
    singular = torch.linalg.svdvals(centred)
    # rounding of a few dozen layers, as a share of the largest singular value
    return float((singular > singular[0] * max(features.shape) * 1e2 * torch.finfo(features.dtype).eps).sum())


def analyse_linear(rows: pd.DataFrame) -> Answer:
    """N13: rank, affinity and accuracy of deep networks without activation, and of the same with one."""
    keys = ["activation", "depth"]
    runs = training.table(rows, *keys, "lr", "seed", "width", metrics=(*training.METRICS, *FIGURES))
    runs = runs.assign(activation=runs["activation"].map(label)).astype({"depth": int, "seed": int, "width": int})
    tuned = tuned_runs(runs, keys)
    shallow = tuned[tuned["depth"] == 0].set_index("seed")["test_accuracy"]
    found: dict[tuple[str, int], stats.Comparison] = {}
    for (activation, depth), own in groups(tuned[tuned["depth"] > 0], keys):
        accuracy = own.set_index("seed")["test_accuracy"]
        both = accuracy.index.intersection(shallow.index)
        found[activation, depth] = stats.paired(
            accuracy[both], shallow[both], margin=MARGIN, test="t", unit="test accuracy"
        )
    family = dict(zip(found, stats.together(found.values()), strict=True))
    table = pd.DataFrame(
        {
            "activation": activation, "depth": depth, "seeds": c.effect.n, "accuracy_gain": c.effect.value,
            "low": c.effect.low, "high": c.effect.high, "answer": str(c.answer),
            **_worst(tuned[(tuned["activation"] == activation) & (tuned["depth"] == depth)]),
        }
        for (activation, depth), c in family.items()
    )  # fmt: skip
    if table.empty:
        return Answer({})
    return Answer({"linear": table}, (_verdict(table, family),), tuple(_sentences(table, shallow)))


def _worst(own: pd.DataFrame) -> dict[str, float]:
    return {
        "accuracy": own["test_accuracy"].mean(), "width": own["width"].max(), "rank": own["rank"].max(),
        "input_rank": own["input_rank"].max(), "residual": own["residual"].max(),
    }  # fmt: skip


def _verdict(table: pd.DataFrame, family: Mapping[tuple[str, int], stats.Comparison]) -> Verdict:
    """True at a depth: affine, of no higher rank than the inputs, and as accurate as a linear model."""
    conditions: list[bool | None] = []
    told = []
    for row in records(table[table["activation"] == "identity"]):
        comparison = family[row.activation, row.depth]
        affine = row.residual <= AFFINE and row.rank <= row.input_rank
        accuracy = True if comparison.inside else False if comparison.differs else None
        conditions.append(affine if not affine else accuracy)
        told.append(
            f"depth {row.depth}: rank {row.rank:.0f} of {row.width:.0f} units on inputs of rank {row.input_rank:.0f}, "
            f"{row.residual:.0e} of the output not affine, accuracy {row.accuracy_gain:+.1%} against a linear model"
        )
    others = [
        f"{row.activation} at depth {row.depth}: rank {row.rank:.0f}, {row.residual:.0%} not affine, "
        f"{row.accuracy_gain:+.1%}"
        for row in records(table[table["activation"] != "identity"])
    ]
    own = table[table["activation"] == "identity"]
    worst = highest((own if len(own) else table).assign(size=lambda rows: rows["accuracy_gain"].abs()), "size")
    return verdict_on(
        "N13",
        Status(stats.combine(conditions)),
        "without activation, " + "; ".join(told) + (". With one, " + "; ".join(others) if others else ""),
        observed=float(worst["accuracy_gain"]), low=float(worst["low"]), high=float(worst["high"]), predicted=0.0,
        unit="test accuracy against a linear model", n=int(worst["seeds"]),
        method="after training, in float64: numerical rank over the training examples, residual of the best affine "
        f"map (at most {AFFINE:g}); accuracy by paired t, margin {MARGIN:g}, Holm over {len(family)}; the figure is "
        f"{worst['activation']} at depth {worst['depth']}",
    )  # fmt: skip


def _sentences(table: pd.DataFrame, shallow: pd.Series[float]) -> Iterator[str]:
    own = table[table["activation"] == "identity"]
    rest = table[table["activation"] != "identity"]
    if own.empty or rest.empty:
        return
    deep, other = highest(own, "depth"), highest(rest, "accuracy")
    yield (
        f"Without activation {deep['depth']} layers of {deep['width']:.0f} units have rank {deep['rank']:.0f}, that of "
        f"the inputs, and end at {deep['accuracy']:.1%} where a linear model ends at {shallow.mean():.1%}; with "
        f"{other['activation']} the rank is {other['rank']:.0f} and the accuracy {other['accuracy']:.1%}."
    )
