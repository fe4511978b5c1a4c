"""How a stack is run: by hand, by vmap, or one replica after another; and which of them suits a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from depthgauge.replicas import mapped
from depthgauge.replicas.chain import Chain, chain
from depthgauge.replicas.objective import Objective
from depthgauge.replicas.optimizers import Optimizer, clip
from depthgauge.replicas.stack import Stack, load

Strategy = Literal["chain", "vmap", "loop"]
STRATEGIES: tuple[Strategy, ...] = ("chain", "vmap", "loop")

# A block of replicas trains to its end before the next begins, so that parameters and optimizer state stay in the
# last-level cache between steps; below it a step of many small operations is bound by their dispatch.
BLOCK_BYTES = 12 << 20
# Multiply-adds of one weight layer for one batch, from which on one replica keeps the processor busy by itself and
# vmap's detours through memory cost more than the calls it saves.
VMAP_WORK = 1 << 20


def choose(model: nn.Module, inputs: Tensor, stack: Stack | None) -> Strategy:
    """The fastest strategy that gives the same result: a rule of structure and sizes, never of the clock.

    Args:
        model: the template.
        inputs: one batch (B, ...).
        stack: replicas to try vmap on.
    """
    if chained(model, inputs) is not None:
        return "chain"
    if stack is None or len(stack) < 4 or not _small(model, inputs):
        return "loop"
    few = stack.part(slice(0, 2))
    return "vmap" if mapped.batchable(few, torch.stack([inputs[:2]] * 2)) else "loop"


def chained(model: nn.Module, inputs: Tensor) -> Chain | None:
    """The model as a chain, where it is one for these inputs (B, ...)."""
    if not inputs.is_floating_point():
        return None
    found = chain(model)
    return found if found is not None and (found.flatten or inputs.dim() == 2) else None


def _small(model: nn.Module, inputs: Tensor) -> bool:
    for module in mapped.weight_layers(model).values():
        # Grouped convolution, which vmap makes of convolution, is slower than the separate ones on a processor.
        if isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase):
            return False
        if inputs.shape[0] * max(parameter.numel() for parameter in module.parameters(recurse=False)) > VMAP_WORK:
            return False
    return True


@dataclass(frozen=True)
class Task:
    """What a stack is trained on, and how.

    Attributes:
        inputs: (N, ...), all examples.
        targets: (N, ...).
        objective: the loss.
        optimizer: what moves the parameters.
        largest: (R,) bound of the gradient's global norm, None without clipping.
        schedule: (steps,) factors of the learning rate, None where it is constant.
    """

    inputs: Tensor
    targets: Tensor
    objective: Objective
    optimizer: Optimizer
    lr: Tensor
    weight_decay: Tensor
    largest: Tensor | None
    schedule: Tensor | None

    def part(self, rows: slice) -> Task:
        """The task of some of the replicas."""
        largest = None if self.largest is None else self.largest[rows]
        return Task(
            self.inputs,
            self.targets,
            self.objective,
            self.optimizer,
            self.lr[rows],
            self.weight_decay[rows],
            largest,
            self.schedule,
        )


class Recorder(Protocol):
    """Receives every step's figures of some replicas; keeps them on the device."""

    def __call__(self, step: int, rows: slice, loss: Tensor, correct: Tensor | None) -> None:
        """Figures (R,) before the step's update."""


def train_together(stack: Stack, found: Chain | None, task: Task, order: Tensor, rows: slice, record: Recorder) -> None:
    """Train a block of replicas in place as one computation.

    Args:
        stack: the block.
        found: the model as a chain; None to call it by vmap.
        task: the block's task.
        order: (steps, R, B) indices of examples, on the device.
        rows: where the block stands in the whole stack.
        record: receives the figures.
    """
    parameters = list(stack.parameters.values())
    trained = [i for i, p in enumerate(stack.template.parameters()) if p.requires_grad]
    lr = task.lr.clone()
    decays = bool(task.weight_decay.any())
    step_of = task.optimizer.stacked(parameters, lr, task.weight_decay if decays else None)
    sizes = {parameters[i].shape: parameters[i] for i in trained}
    scratch = {shape: torch.empty_like(p) for shape, p in sizes.items()}
    for step, indices in enumerate(order):
        x, y = _pick(task.inputs, indices), _pick(task.targets, indices)
        if task.schedule is not None:
            torch.mul(task.lr, task.schedule[step], out=lr)
        step_of.begin()
        if found is not None:
            gradients: dict[int, Tensor] = {}
            update = step_of.update if task.largest is None else gradients.__setitem__
            buffer = (lambda i: scratch[parameters[i].shape]) if task.largest is None else (lambda _: None)
            done = found.forward(parameters, x, keep=True)
            outputs = done.outputs
            loss, cotangent = task.objective.stacked(outputs, y)
            found.backward(parameters, done, cotangent, emit=update, buffer=buffer)
        else:
            leaves = [parameters[i].detach().requires_grad_() for i in trained]
            own = list(parameters)
            for i, leaf in zip(trained, leaves, strict=True):
                own[i] = leaf
            with torch.enable_grad():
                outputs = mapped.outputs(stack, own, x)
            loss, cotangent = task.objective.stacked(outputs, y)
            found_gradients = torch.autograd.grad(outputs, leaves, cotangent, allow_unused=True)
            pairs = zip(trained, found_gradients, strict=True)
            gradients = {i: gradient for i, gradient in pairs if gradient is not None}
        if gradients:
            if task.largest is not None:
                clip(list(gradients.values()), task.largest)
            for i, gradient in gradients.items():
                step_of.update(i, gradient)
        record(step, rows, loss, task.objective.correct(outputs, y))


def _pick(examples: Tensor, indices: Tensor) -> Tensor:
    return examples.index_select(0, indices.flatten()).view(*indices.shape, *examples.shape[1:])


def train_alone(stack: Stack, task: Task, order: Tensor, rows: slice, record: Recorder) -> None:
    """Train a block of replicas in place, one after another, with autograd and `torch.optim`.

    Arguments are those of `train_together`. What a model draws in training (dropout) comes from the global generators,
    seeded by the replica's own seed and put back afterwards.
    """
    device = task.inputs.device
    module = copy.deepcopy(stack.template).to(device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for row, seed in enumerate(stack.seeds):
            load(module, stack, row)
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            largest = None if task.largest is None else float(task.largest[row])
            rate = float(task.lr[row])
            optimizer = task.optimizer.single(trained, rate, float(task.weight_decay[row]))
            here = slice(rows.start + row, rows.start + row + 1)
            for step, indices in enumerate(order[:, row]):
                x, y = task.inputs[indices], task.targets[indices]
                if task.schedule is not None:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * float(task.schedule[step])
                optimizer.zero_grad()
                outputs = module(x)
                loss = task.objective.one(outputs, y)
                loss.backward()
                if largest is not None:
                    nn.utils.clip_grad_norm_(trained, largest)
                optimizer.step()
                correct = task.objective.correct(outputs.detach()[None], y[None])
                record(step, here, loss.detach(), correct)
            with torch.no_grad():
                for own, stacked in (
                    (module.named_parameters(), stack.parameters),
                    (module.named_buffers(), stack.buffers),
                ):
                    for name, tensor in own:
                        stacked[name][row].copy_(tensor)


def blocks(stack: Stack, moments: int, device: torch.device) -> Iterable[slice]:
    """The stack cut into neighbouring replicas that are trained together."""
    each = sum(tensor[0].numel() * tensor.element_size() for tensor in stack.parameters.values()) * (1 + moments)
    size = len(stack) if device.type != "cpu" else max(1, min(len(stack), BLOCK_BYTES // max(each, 1)))
    count = -(-len(stack) // size)
    even = -(-len(stack) // count)
    return [slice(start, min(start + even, len(stack))) for start in range(0, len(stack), even)]


def evaluate_outputs(stack: Stack, strategy: Strategy, found: Chain | None, inputs: Tensor) -> Tensor:
    """Outputs (R, B, ...) of a stack for one batch of inputs (B, ...), without gradients."""
    with torch.no_grad():
        everywhere = inputs.expand(len(stack), *inputs.shape)
        parameters = list(stack.parameters.values())
        if found is not None:
            return found.forward(parameters, everywhere).outputs
        if strategy == "vmap":
            return mapped.outputs(stack, parameters, everywhere)
        module = copy.deepcopy(stack.template).to(inputs.device)
        rows = []
        for row in range(len(stack)):
            load(module, stack, row)
            rows.append(module(inputs))
        return torch.stack(rows)


Columns = Sequence[float] | float
Draw = Callable[..., object]
