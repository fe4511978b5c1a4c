"""Many copies of one small model, trained at once.

    stack = replicas.stack(model, seeds=range(64), initialize=draw, sigma_w=[1.0, 1.5] * 32)
    run = replicas.train(stack, images, labels, replicas.SGD(lr=0.1, momentum=0.9), batch=32, steps=300)
    run.loss[-1], run.accuracy[-1], run.diverged_at         # one entry a replica
    replicas.evaluate(run.stack, images, labels).accuracy
    replicas.signals(run.stack, images[:2], cotangent).forward

Replicas are copies of one architecture that differ in what does not change shapes: seed, gain, learning rate, weight
decay, clipping, order of the data. Each ends as the same model trained alone would, up to rounding, and what it draws
depends on its own seed alone.

A chain of linear layers and elementwise activations is run by hand (`chain`), other models in one call for all replicas
where that is faster (`vmap`), and everything else, dropout, control flow that depends on data, one replica after
another (`loop`). `strategy` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthgauge.replicas import engine, plain
from depthgauge.replicas.affine import Affinity, affinity
from depthgauge.replicas.engine import Strategy
from depthgauge.replicas.memory import most_members, replica_bytes
from depthgauge.replicas.objective import Loss, Objective
from depthgauge.replicas.optimizers import SGD, Adam, AdamW, Optimizer, PerReplica, wide
from depthgauge.replicas.order import order, orders
from depthgauge.replicas.products import Products, first_factor, products
from depthgauge.replicas.signals import Floats, Signals, join, measure
from depthgauge.replicas.stack import Stack, stack
from depthgauge.replicas.units import Units, first_layer_moments, units
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose, seed_globals

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Affinity",
    "Evaluation",
    "Loop",
    "Products",
    "Run",
    "Signals",
    "Stack",
    "Units",
    "affinity",
    "evaluate",
    "first_factor",
    "first_layer_moments",
    "most",
    "most_members",
    "order",
    "plain",
    "products",
    "signals",
    "stack",
    "strategy",
    "train",
    "units",
]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The training loop of replicas, the optimizer apart.

    Attributes:
        batch: examples a step.
        steps: number of steps.
        loss: `cross_entropy`, `mse`, or a function (outputs, targets) -> scalar of one model's batch.
        clip: largest global 2-norm of a replica's gradient; one for all, or one a replica (infinity for none).
        schedule: step -> factor of the learning rate.
        order_seeds: seeds of the order of the data, where it shall not follow the stack's seeds.
        watch: steps at which to measure the signals of the mini-batch, at the price of one more pass each.
        checkpoints: numbers of updates done at which `inspect` is called; `steps` is after the last.
        inspect: `f(updates, rows, stack)` gets replicas as they are then, and their places in the whole stack; where it
            returns True, the training of these replicas ends. It may not change them.
        strategy: `chain`, `vmap` or `loop`; None chooses.
    """

    batch: int
    steps: int
    loss: Loss = "cross_entropy"
    clip: PerReplica | None = None
    schedule: Callable[[int], float] | None = None
    order_seeds: Sequence[int] | None = None
    watch: Collection[int] = ()
    checkpoints: Collection[int] = ()
    inspect: Callable[[int, slice, Stack], object] | None = None
    strategy: Strategy | None = None


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        stack: the replicas as they ended.
        loss: (steps, R) mini-batch loss before each update; NaN and infinity are results. NaN, too, from `taken` on.
        accuracy: (steps, R) mini-batch accuracy likewise; NaN throughout where outputs are no scores of classes.
        diverged_at: (R,) first step whose loss is not finite; `steps` where only the final weights are not; -1 where
            all is finite.
        taken: (R,) updates done: `steps`, or fewer where `inspect` ended it.
        strategy: the strategy that ran the replicas.
        signals: watched step -> signals of that step's mini-batches before its update, without overlaps; the steps that
            no replica ended before.
    """

    stack: Stack
    loss: Floats
    accuracy: Floats
    diverged_at: NDArray[np.int64]
    taken: NDArray[np.int64]
    strategy: Strategy
    signals: Mapping[int, Signals]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over a set of examples, (R,) each."""

    loss: Floats
    accuracy: Floats


def strategy(stack: Stack, inputs: Tensor, *, batch: int) -> Strategy:
    """Choose the strategy by which `train` runs these replicas, by structure and sizes: the same on every run.

    Args:
        stack: the replicas.
        inputs: (N, ...) examples.
        batch: examples a step.
    """
    return engine.choose(stack, inputs[:batch]).strategy


def _column(value: PerReplica, stack: Stack, what: str) -> Tensor:
    column = torch.as_tensor(value, dtype=torch.float64)
    if column.dim() and column.shape != (len(stack),):
        raise ValueError(f"{what} has {column.numel()} values for {len(stack)} replicas; give one, or one a replica")
    return column.expand(len(stack)).contiguous()


def _floating(stack: Stack) -> Tensor:
    for tensor in stack.parameters.values():
        if tensor.is_floating_point():
            return tensor
    raise ValueError("a model without parameters cannot be trained")


def _recorder(losses: Tensor, accuracies: Tensor) -> engine.Record:
    def record(step: int, rows: slice, loss: Tensor, accuracy: Tensor | None) -> None:
        losses[step, rows] = loss
        if accuracy is not None:
            accuracies[step, rows] = accuracy

    return record


def _looker(loop: Loop, first: int, taken: NDArray[np.int64]) -> engine.Look:
    """What a block that begins at replica `first` shows `inspect`, and where that ends it."""

    def look(step: int, rows: slice, part: Stack) -> bool:
        places = slice(first + rows.start, first + rows.stop)
        if loop.inspect is None or loop.inspect(step, places, part) is not True:
            return False
        taken[places] = step
        return True

    return look


@torch.no_grad()
def train(
    stack: Stack, inputs: Tensor, targets: Tensor, optimizer: Optimizer, loop: Loop | None = None, **settings: Any
) -> Run:
    """Train every replica for a number of steps; the stack handed in stays as it is.

    Args:
        stack: the replicas.
        inputs: (N, ...) examples, shared by all; moved to the stack's device.
        targets: (N,) int64 classes, or (N, ...) values.
        optimizer: `SGD`, `Adam` or `AdamW`.
        loop: batch, steps, clipping, ...
        **settings: fields of `Loop` by name, in place of a `loop`'s or of a whole one: `batch=32, steps=300`.

    Raises:
        ValueError: lengths do not agree, or the model cannot be run by the strategy asked for.
        TypeError: `Loop` has no such field, or lacks its `batch` or `steps`.
    """
    loop = Loop(**settings) if loop is None else replace(loop, **settings)
    like = _floating(stack)
    task = _task(stack, inputs.to(like.device), targets.to(like.device), optimizer, loop)
    seeds = stack.seeds if loop.order_seeds is None else tuple(loop.order_seeds)
    if len(seeds) != len(stack):
        raise ValueError(f"order_seeds has {len(seeds)} seeds for {len(stack)} replicas; give one a replica")
    choice = engine.choose(stack, task.inputs[: loop.batch], loop.strategy)
    trained = stack.clone()
    dtype = wide(stack.parameters.values())
    losses = torch.full((loop.steps, len(stack)), float("nan"), dtype=dtype, device=like.device)
    accuracies = torch.full_like(losses, float("nan"))
    taken = np.full(len(stack), loop.steps)
    watched: list[dict[int, Signals]] = []
    for rows in engine.blocks(trained, choice, moments=optimizer.moments):
        indices = orders(seeds[rows], len(inputs), loop.batch, loop.steps).to(like.device)
        part, record = trained.part(rows), _recorder(losses[:, rows], accuracies[:, rows])
        look = _looker(loop, rows.start, taken)
        if choice.strategy == "loop":
            watched.append(engine.train_alone(part, task.part(rows), indices, record, look=look))
        else:
            watched.append(engine.train_together(part, choice.chain, task.part(rows), indices, record, look=look))
    loss = losses.double().cpu().numpy()
    seen = {step: join([part[step] for part in watched]) for step in sorted(set.intersection(*map(set, watched)))}
    diverged = _diverged_at(loss, taken, trained)
    return Run(trained, loss, accuracies.double().cpu().numpy(), diverged, taken, choice.strategy, seen)


def _task(stack: Stack, inputs: Tensor, targets: Tensor, optimizer: Optimizer, loop: Loop) -> engine.Task:
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets; give one target an input")
    return engine.Task(
        inputs,
        targets,
        Objective.of(loop.loss, targets),
        optimizer,
        _column(optimizer.lr, stack, "lr"),
        _column(optimizer.weight_decay, stack, "weight_decay"),
        None if loop.clip is None else _column(loop.clip, stack, "clip"),
        None if loop.schedule is None else tuple(loop.schedule(step) for step in range(loop.steps)),
        frozenset(loop.watch),
        frozenset() if loop.inspect is None else frozenset(loop.checkpoints),
    )


def _diverged_at(loss: Floats, taken: NDArray[np.int64], trained: Stack) -> NDArray[np.int64]:
    """First step (R,) of a loss that is not finite; the number of steps where only a weight is not; else -1."""
    finite = torch.ones(len(trained), dtype=torch.bool, device=_floating(trained).device)
    for tensor in filter(Tensor.numel, trained.parameters.values()):
        largest = tensor.reshape(len(trained), -1).abs().amax(1)  # ten times as fast as torch's infinity norm
        finite &= largest.isfinite()
    late = np.where(finite.cpu().numpy(), -1, taken)
    bad = ~np.isfinite(loss) & (np.arange(len(loss))[:, None] < taken)
    return (np.where(bad.any(0), bad.argmax(0), late) if len(loss) else late).astype(np.int64)


@torch.no_grad()
def evaluate(
    stack: Stack,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = "cross_entropy",
    batch: int = 500,
    strategy: Strategy | None = None,
) -> Evaluation:
    """Mean loss and accuracy of every replica over all examples, in the template's own train or eval mode.

    What it draws (dropout in training mode) comes from each replica's own seed; the global generators stay as they are.

    Args:
        stack: the replicas.
        inputs: (N, ...).
        targets: (N, ...).
        loss: as in `Loop`; the mean is over examples, batches weighted by their size.
        batch: examples a pass.
        strategy: as in `Loop`.
    """
    like = _floating(stack)
    inputs, targets = inputs.to(like.device), targets.to(like.device)
    choice = engine.choose(stack, inputs[:batch], strategy, backward=False)
    objective = Objective.of(loss, targets)
    total = torch.zeros(len(stack), dtype=torch.float64, device=like.device)
    right = torch.zeros_like(total)
    one_by_one = choice.strategy == "loop"
    with random_states_kept():
        for rows in engine.singles(stack) if one_by_one else engine.blocks(stack, choice, moments=0):
            part = stack.part(rows)
            forward = engine.forward(part, choice, like.device)
            for start in range(0, len(inputs), batch):
                x, y = inputs[start : start + batch], targets[start : start + batch]
                outputs = forward(x, start)
                everywhere = y.expand(len(part), *y.shape)
                value, _ = objective.stacked(outputs, everywhere)
                correct = objective.correct(outputs, everywhere)
                total[rows] += value.double() * len(x)
                right[rows] += float("nan") if correct is None else correct.double() * len(x)
    return Evaluation((total / len(inputs)).cpu().numpy(), (right / len(inputs)).cpu().numpy())


@torch.no_grad()
def signals(
    stack: Stack,
    inputs: Tensor,
    cotangent: Tensor | None = None,
    *,
    overlap: bool = True,
    strategy: Strategy | None = None,
) -> Signals:
    """Second moments, means and overlaps of every weight layer's output, and of the gradients with respect to it.

    What a model draws (dropout in training mode) comes from each replica's own seed; a layer that a replica does not
    call has NaN there.

    Args:
        stack: the replicas; nothing of them changes.
        inputs: (B, ...), the same for all.
        cotangent: gradient with respect to the outputs, (B, ...) for all or (R, B, ...); None measures forward only.
        overlap: whether to measure the overlaps of every two inputs.
        strategy: as in `Loop`.

    Raises:
        ValueError: the cotangent's shape is neither.
    """
    like = _floating(stack)
    inputs = inputs.to(like.device)
    choice = engine.choose(stack, inputs, strategy)
    given = None if cotangent is None else cotangent.to(like)
    parts = []
    each = choice.strategy == "loop"  # whose layers may differ
    for rows in engine.singles(stack) if each else engine.blocks(stack, choice, moments=None):

        def back(outputs: Tensor, rows: slice = rows) -> Tensor:
            assert given is not None
            if given.shape == outputs.shape[1:]:
                return given.expand_as(outputs)
            if given.shape == (len(stack), *outputs.shape[1:]):
                return given[rows]
            single = tuple(outputs.shape[1:])
            raise ValueError(
                f"a cotangent for these outputs is {single} or {(len(stack), *single)}, not {tuple(given.shape)}"
            )

        part = stack.part(rows)
        everywhere = inputs.expand(len(part), *inputs.shape)
        wanted = None if given is None else back
        with random_states_kept():
            if each:
                seed_globals(part.seeds[0], Purpose.DROPOUT, "signals", device=like.device)
            parts.append(measure(part, choice.chain, everywhere, wanted, together=not each, overlap=overlap))
    return join(parts)


def most(
    model: nn.Module,
    budget: int,
    *,
    shape: Sequence[int],
    batch: int,
    optimizer: Optimizer | None = None,
    dtype: torch.dtype | None = None,
) -> int:
    """Count the replicas that may train together in a memory budget, their activations included; at least one.

    A function of sizes alone. `most_members` is the same from a number of parameters, without a model.

    Args:
        model: the template; on the meta device it costs nothing.
        budget: bytes.
        shape: shape of one example.
        batch: examples a step.
        optimizer: their optimizer; None: SGD with momentum.
        dtype: dtype of the inputs; None: that of the parameters.
    """
    moments = 1 if optimizer is None else optimizer.moments
    return most_members(1, budget, each=replica_bytes(model, shape, batch, moments=moments, dtype=dtype))
