"""One training run in a recipe, and what is measured on its way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from depthgauge import data, probe, replicas, training
from depthgauge.probe import Record
from depthgauge.studies.precision.nets import build
from depthgauge.studies.precision.recipes import RECIPES, REFERENCE, Trainer
from depthgauge.study import Case, Context, Rows

METRICS = ("test_accuracy", "train_loss", "steps_to_target", "reached", "diverged", "skipped", "loss_scale")
CHAIN = ("weight", "activation", "activation_gradient", "weight_gradient")  # as they come, layer by layer


def prepared(case: Case, recipe: str, context: Context) -> tuple[Trainer, data.Dataset]:
    """A network ready to be trained, and its data; weights are those of the seed, whatever the recipe."""
    dataset = data.load(case.text("data")).to(context.device)
    seed = case.random_seed("net", "seed") if "seed" in dict(case.params) else 0
    model = build(case, dataset.input_shape, seed, context.device)
    return Trainer(model, RECIPES[recipe], case.text("optimizer"), case.number("lr"), seed), dataset


def forward_backward(trainer: Trainer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and scores of a batch; gradients are left in the weights."""
    scores: list[Tensor] = []

    def loss(model: nn.Module) -> Tensor:
        scores.append(model(x.to(trainer.recipe.weights)))
        return nn.functional.cross_entropy(scores[0], y)

    return trainer.backward(loss), scores[0].detach()


def train(case: Case, context: Context) -> Iterator[Rows]:
    """Train one network to its end, or until nothing is a number any more.

    Rows: `METRICS`, one of each; what `seen` gives of the first overflow, and of float32 before and after training.
    """
    trainer, digits = prepared(case, case.text("recipe"), context)
    steps, seed, reference = case.integer("steps"), case.random_seed("net", "seed"), case.text("recipe") == REFERENCE
    loss, accuracy = np.full(steps, np.nan), np.full((steps, 1), np.nan)
    overflows: list[int] = []
    for step, index in enumerate(replicas.order(seed, len(digits.train), case.integer("batch"), steps)):
        x, y = digits.train[index]
        value, scores = forward_backward(trainer, x, y)
        loss[step], accuracy[step] = float(value), float((scores.argmax(1) == y).float().mean())
        if trainer.overflowed:
            overflows.append(step)
        first = overflows == [step]
        if first or (reference and step in {0, steps - 1}):
            yield from seen(case, watch(trainer, x, y), step, first=first)
        trainer.update()
        if overflows and not trainer.recipe.scaled:
            break
    finite = math.isfinite(loss[-1]) and all(bool(weight.isfinite().all()) for weight in trainer.weights)
    taken, reached = training.steps_to(accuracy, case.number("target"))
    ends = (
        test_accuracy(trainer, digits.test), loss[-training.WINDOW :].mean(), taken[0], reached[0], not finite,
        len(overflows), trainer.scaler.get_scale(),
    )  # fmt: skip
    for metric, end in zip(METRICS, ends, strict=True):
        yield case.rows(metric, float(end))


def test_accuracy(trainer: Trainer, test: data.Examples) -> float:
    """Share of the test examples that are classified right; of a network of NaN it is chance."""
    scores = trainer.value(lambda model: model(test.x.to(trainer.recipe.weights)))
    return float((scores.argmax(1) == test.y).float().mean())


def watch(trainer: Trainer, x: Tensor, y: Tensor) -> Record:
    """The same forward and backward pass once more, under the probe."""
    leaves = [
        name for name, module in trainer.model.named_modules()
        if not list(module.children()) and not isinstance(module, nn.Identity | nn.Dropout)
    ]  # fmt: skip
    with probe.track(trainer.model, layers=leaves) as record:
        forward_backward(trainer, x, y)
    return record


def seen(case: Case, record: Record, step: int, *, first: bool) -> Iterator[Rows]:
    """The largest magnitude of each tensor in the order of execution, infinite where one is not finite.

    `layer_index` is the place in that order. `nonfinite`, at a run's `first` overflow: where it is, by layer and
    direction. Of float32 also `least` and `greatest`: the loss scales, as powers of two, that keep every gradient
    inside float16.
    """
    frame = record.to_frame()
    frame["largest"] = np.maximum(frame["min"].abs(), frame["max"].abs())
    broken = frame[["nans", "positive_infinities", "negative_infinities"]].sum(axis=1) > 0
    frame["largest"] = frame["largest"].where(~broken, np.inf)
    backward = frame["direction"].str.endswith("gradient")
    frame["rank"] = frame["layer_index"].where(~backward, -frame["layer_index"])
    frame["kind"] = frame["direction"].map(CHAIN.index).where(~frame["direction"].eq("weight_gradient"), 2)
    chain = frame.sort_values(["kind", "rank", "direction"], kind="stable")
    at: dict[str, Any] = {
        "layer": list(chain["layer"]),
        "direction": list(chain["direction"]),
        "layer_index": np.arange(len(chain)),
    }
    yield case.rows("largest", chain["largest"].to_numpy(float), **at, step=step)
    if first and (found := record.first_nonfinite()) is not None:
        place, direction = (found.weights[0], "weight") if found.weights else (found.layer, found.direction)
        yield case.rows("nonfinite", 1.0, layer=place, direction=direction, step=step)
    if case.text("recipe") == REFERENCE:
        scale = record.loss_scale("float16")
        for name, value in (("least", scale.least), ("greatest", scale.greatest)):
            yield case.rows(name, math.log2(value), step=step)
