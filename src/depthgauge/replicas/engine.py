"""Strategies to run a stack: by hand, in one call, or one replica after another; and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from depthgauge.copies import copied
from depthgauge.nested import scores
from depthgauge.replicas import mapped
from depthgauge.replicas.chain import Chain, chain
from depthgauge.replicas.memory import Sizes, parameter_bytes
from depthgauge.replicas.objective import Objective
from depthgauge.replicas.optimizers import Optimizer, clip, wide
from depthgauge.replicas.signals import Signals, join, measure
from depthgauge.replicas.stack import Stack, load, store
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose, seed_globals

Strategy = Literal["chain", "vmap", "loop"]
STRATEGIES: tuple[Strategy, ...] = ("chain", "vmap", "loop")

# Receives a step, some of a block's replicas and their figures before its update: loss, and accuracy if there is one.
Record = Callable[[int, slice, Tensor, Tensor | None], None]
# Receives a number of updates done, some of a block's replicas, and them; True ends their training.
Look = Callable[[int, slice, Stack], bool]
# Receives a batch (B, ...), and the place of its first example; gives outputs (R, B, ...).
Forward = Callable[[Tensor, int], Tensor]

# A block of replicas trains to its end before the next begins. Its parameters and optimizer state stay in the
# last-level cache between steps; below that a step of many small operations is bound by their dispatch. A chain's
# activations are in the same budget. Those of other models pass through memory anyway, and may be as large as the C
# library keeps of freed memory (`_keep_memory`).
BLOCK_BYTES = 12 << 20
FOLDED_BYTES = 48 << 20
# With fewer replicas a call than this, the batched calls cost more detours through memory than they save of dispatch;
# grouped convolution pays from two on.
FOLDED_REPLICAS = 4
# Multiply-adds of a convolution from which on separate ones are as fast as grouped ones.
CONVOLUTION_WORK = 32 << 20

# Replicas whose order of the data is held at a time, and whose results are joined, where one is run after another.
LOOP_REPLICAS = 16


@dataclass(frozen=True)
class Choice:
    """The way to run a stack.

    Attributes:
        strategy: the strategy.
        chain: the model as a chain, where that is the strategy.
        sizes: the sizes of one batch of one replica.
    """

    strategy: Strategy
    chain: Chain | None
    sizes: Sizes


def choose(stack: Stack, inputs: Tensor, wanted: Strategy | None = None, *, backward: bool = True) -> Choice:
    """The strategy wanted; None: the fastest that gives the same result, by a rule of structure and sizes alone.

    Args:
        stack: the replicas.
        inputs: one batch (B, ...).
        wanted: as in `Loop`.
        backward: whether gradients are to be the same, too.

    Raises:
        ValueError: there is no such strategy, or the model cannot be run by it.
    """
    if wanted is not None and wanted not in STRATEGIES:
        raise ValueError(f"no strategy {wanted!r}; there is {', '.join(STRATEGIES)}, or None to choose")
    sizes = Sizes(stack.template, inputs.shape[1:], inputs.dtype, len(inputs))
    if wanted in {None, "chain"} and (as_chain := chained(stack.template, inputs)):
        return Choice("chain", as_chain, sizes)
    if wanted == "chain":
        raise ValueError("this model is not a chain of linear layers and elementwise activations; use 'vmap' or 'loop'")
    if wanted == "vmap" and not _batchable(stack, inputs, slow=True, backward=backward):
        raise ValueError("this model gives something else, or nothing, in one call for all replicas; use 'loop'")
    if wanted is None:
        pays = _pays(stack, inputs, sizes) and _batchable(stack, inputs, slow=False, backward=backward)
        wanted = "vmap" if pays else "loop"
    return Choice(wanted, None, sizes)


def _batchable(stack: Stack, inputs: Tensor, **asked: bool) -> bool:
    few = stack.part(slice(0, 2))
    return mapped.batchable(few, torch.stack([inputs[:2]] * len(few)), **asked)


def _pays(stack: Stack, inputs: Tensor, sizes: Sizes) -> bool:
    """Tell whether one call for all replicas is faster than a call for each, by structure and sizes."""
    if inputs.is_cuda:
        return len(stack) >= FOLDED_REPLICAS
    together = min(len(stack), _block(sizes, moments=1, folded=True))
    convolutions = [module for module in stack.template.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    if not convolutions:
        return together >= FOLDED_REPLICAS
    if not all(isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" for module in convolutions):
        return False
    return together > 1 and sizes.convolution_work <= CONVOLUTION_WORK


def chained(model: nn.Module, inputs: Tensor) -> Chain | None:
    """The model as a chain, where it is one for these inputs (B, ...)."""
    if not inputs.is_floating_point():
        return None
    with random_states_kept():
        as_chain = chain(model)
    return as_chain if as_chain is not None and (as_chain.flatten or inputs.dim() == 2) else None


def _block(sizes: Sizes, *, moments: int | None, folded: bool) -> int:
    """Replicas whose parameters, optimizer state and activations fit into `BLOCK_BYTES`.

    Where they are `folded`, parameters and state fit into that, and activations into `FOLDED_BYTES`.
    """
    activations = sizes.activation_bytes
    state = 0 if moments is None else (1 + moments) * parameter_bytes(sizes.model)
    if folded:
        return max(1, min(BLOCK_BYTES // max(state, 1), FOLDED_BYTES // max(activations, 1)))
    return max(1, BLOCK_BYTES // max(state + activations, 1))


def blocks(stack: Stack, choice: Choice, *, moments: int | None) -> list[slice]:
    """The stack cut into neighbouring replicas that are run together.

    Args:
        stack: the replicas.
        choice: the way that it is run.
        moments: tensors of optimizer state for each parameter; None: parameters are read once, and need no cache.
    """
    size = len(stack)
    if choice.strategy == "loop":
        size = min(size, LOOP_REPLICAS)
    elif not any(tensor.is_cuda for tensor in stack.parameters.values()):  # which is filled by as many as there are
        size = min(size, _block(choice.sizes, moments=moments, folded=choice.strategy == "vmap"))
    even = -(-len(stack) // -(-len(stack) // size))
    return [slice(start, min(start + even, len(stack))) for start in range(0, len(stack), even)]


def singles(stack: Stack) -> list[slice]:
    """The stack cut into single replicas."""
    return [slice(row, row + 1) for row in range(len(stack))]


@dataclass(frozen=True)
class Task:
    """The task that replicas are trained on: data, loss and order.

    Attributes:
        inputs: (N, ...), all examples.
        targets: (N, ...).
        objective: the loss.
        optimizer: the optimizer of the parameters.
        lr: (R,) float64 on the CPU, in place of the optimizer's own.
        weight_decay: (R,) likewise.
        largest: (R,) bound of the gradient's global norm likewise, None without clipping.
        schedule: a factor of the learning rate for every step, None where it is constant.
        watch: steps at which signals are measured.
        checkpoints: numbers of updates after which replicas are looked at.
    """

    inputs: Tensor
    targets: Tensor
    objective: Objective
    optimizer: Optimizer
    lr: Tensor
    weight_decay: Tensor
    largest: Tensor | None
    schedule: tuple[float, ...] | None
    watch: frozenset[int]
    checkpoints: frozenset[int]

    def part(self, rows: slice) -> Task:
        """The task of some of the replicas."""
        largest = None if self.largest is None else self.largest[rows]
        return replace(self, lr=self.lr[rows], weight_decay=self.weight_decay[rows], largest=largest)


def train_together(
    stack: Stack, as_chain: Chain | None, task: Task, order: Tensor, record: Record, *, look: Look
) -> dict[int, Signals]:
    """Train a block of replicas in place as one computation.

    Args:
        stack: the block.
        as_chain: the model as a chain; None to call it with folded tensors.
        task: the block's task.
        order: (steps, R, B) indices of examples, on the device.
        record: receives the figures.
        look: receives the block at its checkpoints.

    Returns:
        watched step -> signals.
    """
    if as_chain is not None:
        return _train_together(stack, as_chain, task, order, record, look=look)
    _keep_memory()
    inner = mapped.channels_last(stack)
    seen = _train_together(inner, None, task, order, record, look=look)
    mapped.give_back(inner, stack)
    return seen


def _train_together(
    stack: Stack, as_chain: Chain | None, task: Task, order: Tensor, record: Record, *, look: Look
) -> dict[int, Signals]:
    parameters = list(stack.parameters.values())
    leaves = mapped.leaves(stack)
    together = mapped.Together(stack.fresh(), leaves, stack.buffers)
    dtype, device = wide(parameters), parameters[0].device
    lr = task.lr.to(device, dtype, copy=True)
    rates = None if task.schedule is None else lr.new_tensor(task.schedule)[:, None] * lr
    decay = task.weight_decay.to(device, dtype) if bool(task.weight_decay.any()) else None
    largest = None if task.largest is None else task.largest.to(device, dtype)
    optimizer = task.optimizer.stacked(parameters, lr, decay)
    everyone = slice(0, len(stack))
    seen: dict[int, Signals] = {}

    for step, indices in enumerate(order):
        if step in task.checkpoints and look(step, everyone, stack):
            return seen
        x, y = _pick(task.inputs, indices), _pick(task.targets, indices)
        if rates is not None:
            lr.copy_(rates[step])
        if step in task.watch:
            seen[step] = _watch(stack, as_chain, task.objective, x, y, together=True)
        optimizer.begin()
        gradients: dict[int, Tensor] = {}
        if as_chain is not None:
            done = as_chain.forward(parameters, x, keep=True)
            outputs = done.outputs
            loss, cotangent = task.objective.stacked(outputs, y)
            if largest is None:
                as_chain.backward(parameters, done, cotangent, weight=optimizer.update_product, bias=optimizer.update)
            else:  # every gradient is needed before the first parameter may move
                gradients = as_chain.gradients(parameters, done, cotangent)
        else:
            with torch.enable_grad():
                outputs = together(x)
            loss, cotangent = task.objective.stacked(outputs, y)
            gradients = mapped.gradients(leaves, outputs, cotangent)
            together.settle()
        if largest is not None and gradients:
            clip(list(gradients.values()), largest)
        if gradients:
            optimizer.update_all(gradients)
        record(step, everyone, loss, task.objective.correct(outputs, y))
    if len(order) in task.checkpoints:
        look(len(order), everyone, stack)
    return seen


def _keep_memory() -> None:
    """Have the C library keep freed memory, so that a step's large tensors do not fault in all their pages anew.

    Freeing what was mapped by itself raises glibc's dynamic thresholds, to the size of it and to twice that, up to
    32 MiB (mallopt(3), M_MMAP_THRESHOLD). No page of this tensor is touched; elsewhere it does nothing.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def _watch(
    stack: Stack, as_chain: Chain | None, objective: Objective, x: Tensor, y: Tensor, *, together: bool
) -> Signals:
    def cotangent(outputs: Tensor) -> Tensor:
        return objective.stacked(outputs, y)[1]

    return measure(stack, as_chain, x, cotangent, together=together, overlap=False)


def _pick(examples: Tensor, indices: Tensor) -> Tensor:
    return examples.index_select(0, indices.flatten()).view(*indices.shape, *examples.shape[1:])


def train_alone(stack: Stack, task: Task, order: Tensor, record: Record, *, look: Look) -> dict[int, Signals]:
    """Train a block of replicas in place, one after another, with autograd and `torch.optim`.

    Arguments and result are those of `train_together`. What a model draws in training (dropout) comes from the global
    generators, seeded by the replica's own seed and put back afterwards.
    """
    device = task.inputs.device
    seen: list[dict[int, Signals]] = []
    with random_states_kept(), torch.enable_grad():
        for row, seed in enumerate(stack.seeds):
            module = _alone(stack, row, device)
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
            seed_globals(seed, Purpose.DROPOUT, device=device)
            rows = slice(row, row + 1)
            seen.append({})
            rate = float(task.lr[row])
            optimizer = task.optimizer.single(parameters, rate, float(task.weight_decay[row]))
            for step, indices in enumerate(order[:, row]):
                if step in task.checkpoints | task.watch:
                    store(module, stack, row)
                if step in task.checkpoints and look(step, rows, stack.part(rows)):
                    break
                x, y = task.inputs[indices], task.targets[indices]
                if step in task.watch:
                    part = stack.part(rows)
                    seen[row][step] = _watch(part, None, task.objective, x[None], y[None], together=False)
                if task.schedule is not None:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * task.schedule[step]
                optimizer.zero_grad()
                outputs = scores(module(x))
                loss = task.objective.single(outputs, y)
                torch.autograd.backward(loss)
                if task.largest is not None:
                    nn.utils.clip_grad_norm_(parameters, float(task.largest[row]))
                optimizer.step()
                record(step, rows, loss.detach(), task.objective.correct(outputs.detach()[None], y[None]))
            else:
                store(module, stack, row)
                if len(order) in task.checkpoints:
                    look(len(order), rows, stack.part(rows))
    return {step: join([part[step] for part in seen]) for step in sorted(set.intersection(*map(set, seen)))}


def _alone(stack: Stack, row: int, device: torch.device) -> nn.Module:
    """One replica: what its code keeps while it runs is its own. On a processor channels are last, which is faster."""
    module = copied(stack.template).to(device)
    load(module, stack, row)
    for part in module.modules() if device.type == "cpu" else ():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # which the stubs leave out
    return module


def forward(stack: Stack, choice: Choice, device: torch.device) -> Forward:
    """Make the function that puts a batch (B, ...) through a stack: outputs (R, B, ...).

    Each batch meets the stack's own parameters and buffers. What a model draws comes from the replica's own seed and
    the place of the batch's first example; the global generators are the caller's to put back.
    """
    if choice.strategy == "loop":
        return partial(_each, stack, [_alone(stack, row, device) for row in range(len(stack))])
    parameters, as_chain, own = list(stack.parameters.values()), choice.chain, stack.fresh()

    def together(inputs: Tensor, _: int) -> Tensor:
        everywhere = inputs.expand(len(stack), *inputs.shape)
        if as_chain is not None:
            return as_chain.forward(parameters, everywhere).outputs
        return mapped.outputs(own, parameters, everywhere)

    return together


def _each(stack: Stack, modules: Sequence[nn.Module], inputs: Tensor, start: int) -> Tensor:
    outputs = []
    for row, (module, seed) in enumerate(zip(modules, stack.seeds, strict=True)):
        load(module, stack, row)
        seed_globals(seed, Purpose.DROPOUT, "evaluate", start, device=inputs.device)
        outputs.append(scores(module(inputs)))
    return torch.stack(outputs)
