"""Noise scale of any module, from the gradient of every example."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from depthgauge import nested
from depthgauge.foreign import by_machine, describe_error
from depthgauge.formats.arguments import kind, whole
from depthgauge.noise.examples import Examples
from depthgauge.noise.ratio import Floats, NoiseError, NoiseScale, checked, checked_population, of_products
from depthgauge.replicas.stack import places
from depthgauge.restoring import buffers_kept, random_states_kept, restored
from depthgauge.stats.location import check_confidence

T = TypeVar("T")
Loss = Callable[[nn.Module, Any, Any], Tensor]
Gradients = Callable[[Sequence[int]], list[Tensor]]
"""Gradients (k, *shape) of k units of examples, a tensor a parameter."""

HELD_BYTES = 1 << 28  # gradients that are held at once; where all do not fit, they are computed a second time
CALL_BYTES = 1 << 25  # gradients of one call for several examples
MOST_TOGETHER = 64  # examples of one call
_TRIED = 8  # examples whose losses together and alone are compared


def scale(
    model: nn.Module,
    loss: Loss,
    inputs: Any,
    targets: Any,
    *,
    confidence: float = 0.95,
    population: int | None = None,
    batch: int = 1,
) -> NoiseScale:
    """Gradient noise scale tr(Sigma) / |G|^2 of a module, from the gradient of every example given.

    The gradients of all examples are had at once where `torch.func.vmap` can do it and gives the same, else one after
    another, and computed twice where they do not fit into memory together. Norms, and sums over blocks, are added in
    float64; sums within a block and products with the sum of all are made in the gradients' own format. The model is
    left as it was: weights, gradients, buffers, modes, hooks and random states.

    Args:
        model: any module; its parameters that take a gradient count, a shared one once.
        loss: `loss(model, inputs, targets)`, a scalar, the mean over examples.
        inputs: a tensor, or tensors in tuples, mappings, ..., whose first dimension is that of the examples; or a list
            of one object an example.
        targets: likewise, or None.
        confidence: of the interval.
        population: number of examples in the finite set that these were drawn from without replacement, where the scale
            of that set is asked for; None: that of the distribution behind them. The interval is shorter for it where
            `batch` is 1.
        batch: examples a gradient. More than 1 where one example alone has no gradient of its own, as with batch
            normalization in train mode: then the gradients of disjoint batches, drawn at random, take the examples'
            place. Examples left over are not used.

    Raises:
        NoiseError: fewer than two gradients, examples that depend on each other, a loss that is no scalar or no mean,
            no parameter that takes a gradient.
    """
    if not all((isinstance(model, nn.Module), callable(loss))):
        raise NoiseError(
            f"a noise scale takes a Module and loss(model, inputs, targets), not {kind(model)} and {kind(loss)}"
        )
    check_confidence(confidence)
    population = checked_population(population)
    examples = Examples.of(inputs, targets, checked(whole, "batch", batch))
    if any(each.is_meta for each in model.parameters()):
        raise NoiseError("the model is on the meta device, where parameters have no values")
    if not any(each.requires_grad for each in model.parameters()):
        raise NoiseError("no parameter of the model takes a gradient")
    modules = [part for part in (model, loss) if isinstance(part, nn.Module)]
    task = _Task(model, loss, examples)
    with torch.inference_mode(False), torch.enable_grad(), random_states_kept(), restored(modules):
        task.materialize()
        task.check()
        squares, along = _products(task, task.together())
    return of_products(squares, along, batch=batch, population=population, confidence=confidence)


def _products(task: _Task, together: int) -> tuple[Floats, Floats]:
    """|g_i|^2 and g_i . sum_j g_j of every unit; norms and sums over blocks and parameters are added in float64."""
    count = len(task.examples)
    blocks = [range(start, min(start + together, count)) for start in range(0, count, together)]
    several = task.vectorized if together > 1 else task.alone

    def gradients(rows: range) -> list[Tensor]:
        return [_flat(each) for each in several(rows)]

    fits = count * task.bytes_each() <= HELD_BYTES
    kept: list[list[Tensor]] = []
    total: list[Tensor] = []
    squares, along = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    with random_states_kept(), buffers_kept([task.model]):
        for rows in blocks:
            found = gradients(rows)
            for each in found:
                squares[list(rows)] += torch.linalg.vector_norm(each, dim=1, dtype=torch.float64).square().cpu()
            sums = [each.sum(0).double() for each in found]
            total = [a.add_(b) for a, b in zip(total, sums, strict=True)] if total else sums
            if fits:
                kept.append(found)
    scales = [power_of_two(each.abs().amax()) if each.numel() else each.new_ones(()) for each in total]
    with random_states_kept(), buffers_kept([task.model]):  # the same random numbers once more
        for place, rows in enumerate(blocks):
            found = kept[place] if fits else gradients(rows)
            for each, whole, size in zip(found, total, scales, strict=True):
                along[list(rows)] += ((each @ (whole / size).to(each.dtype)).double() * size).cpu()
    return squares.numpy(), along.numpy()


def power_of_two(size: Tensor) -> Tensor:
    """The power of two next to sizes, in float64; 1 for 0 and what is not finite.

    Over it tensors are of size 1, without rounding: products of small gradients do not leave their format.
    """
    fine = size.isfinite() & (size > 0)
    return torch.exp2(torch.where(fine, size, 1.0).double().log2().round())


def _flat(gradient: Tensor) -> Tensor:
    """(k, numbers), in 32 bits at least; real and imaginary parts of a complex one side by side."""
    real = nested.real(gradient)
    return real.reshape(len(gradient), -1).to(torch.promote_types(real.dtype, torch.float32))


class _Called(nn.Module):
    """The loss as the output of a module, so that the model's tensors can be replaced whatever the loss calls of it."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = [loss]  # not its submodule, where it is a module: its parameters are not the model's

    def forward(self, inputs: Any, targets: Any) -> Tensor:
        value: object = self._loss[0](self.model, inputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise NoiseError(f"the loss is {_described(value)}, where a scalar was expected: the mean over examples")
        return value.reshape(())


@dataclass(frozen=True)
class _Task:
    """The gradients that are asked for."""

    model: nn.Module
    loss: Loss
    examples: Examples

    def wanted(self) -> list[nn.Parameter]:
        """The parameters that take a gradient."""
        return [each for each in self.model.parameters() if each.requires_grad]

    def bytes_each(self) -> int:
        """Bytes of one unit's gradient, in 32 bits at least."""
        return sum(each.numel() * max(each.element_size(), 4) for each in self.wanted())

    def value(self, rows: Sequence[int]) -> Tensor:
        """Loss of some units, together."""
        called = _Called(self.model, self.loss)
        called.training = self.model.training
        value: Tensor = called(*self.examples.take(rows))
        return value

    def materialize(self) -> None:
        """Let lazy layers get their sizes."""
        if any(nn.parameter.is_lazy(each) for each in self.model.parameters()):
            self._guarded(lambda: self.value([0]))

    def check(self) -> None:
        """Check that the loss is a mean over examples which do not depend on each other.

        Raises:
            NoiseError: it is not.
        """
        batch = self.examples.batch
        if batch == 1:
            self._check_modes()
        with buffers_kept([self.model]):  # with gradients: a model may take one itself
            several = list(range(min(_TRIED, len(self.examples))))
            alone = [float(self._guarded(lambda row=row: self.value([row])).detach().double()) for row in several]  # type: ignore[misc]  # bound now
            if batch > 1:  # doubled examples have the same mean, and the same statistics
                several, alone = [0, 0], alone[:1]
            values = [self._guarded(lambda: self.value(several)) for _ in range(2)]
        first, second = (float(value.detach().double()) for value in values)
        mean = sum(alone) / len(alone)
        eps = torch.finfo(values[0].dtype).eps if values[0].is_floating_point() else 1e-7
        size = max(*map(abs, alone), abs(first))
        if first != second or abs(first - mean) <= eps**0.5 * size or not math.isfinite(first):
            return
        what = f"the loss of {len(several)} examples together is {first:.6g}, and the mean of their own is {mean:.6g}"
        if batch > 1:
            what = f"the loss of a batch is {mean:.6g}, and of the same batch twice over {first:.6g}"
        raise NoiseError(
            f"{what}: it is no mean that weighs every example alike, or they depend on each other", _ADVICE
        )

    def _check_modes(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                module.training or not module.track_running_stats
            ):
                raise NoiseError(
                    f"{name or 'the model'!r} normalizes by the batch's own statistics, so that an example has no"
                    " gradient of its own",
                    _ADVICE,
                )

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except NoiseError:
            raise
        except Exception as error:
            if by_machine(error):
                raise
            raise NoiseError(f"the loss of one example raised {describe_error(error)}", _ADVICE) from error

    def together(self) -> int:
        """Units of one call: 1 where one call for several does not work, or gives something else."""
        most = min(MOST_TOGETHER, CALL_BYTES // max(1, self.bytes_each()), len(self.examples))
        if most < 2 or not self.examples.stackable():
            return 1
        rows = range(2)
        try:
            with buffers_kept([self.model]), random_states_kept():
                agree = all(map(_close, self.vectorized(rows), self.alone(rows)))
        except Exception:  # noqa: BLE001 - a trial of the model's own code, where anything may be raised
            return 1
        return most if agree else 1

    def alone(self, rows: Sequence[int]) -> list[Tensor]:
        """Gradients of units, one after another."""
        wanted = self.wanted()
        columns: list[list[Tensor]] = [[] for _ in wanted]
        for row in rows:
            value = self._guarded(lambda row=row: self.value([row]))  # type: ignore[misc]  # bound now
            if not value.requires_grad:
                raise NoiseError("the loss depends on no parameter that takes a gradient")
            # The stubs do not know that the loss may not depend on a parameter.
            found = cast(
                "tuple[Tensor | None, ...]",
                self._guarded(lambda value=value: torch.autograd.grad(value, wanted, allow_unused=True)),  # type: ignore[misc]  # bound now
            )
            for column, parameter, gradient in zip(columns, wanted, found, strict=True):
                column.append(torch.zeros_like(parameter) if gradient is None else gradient.detach().to_dense())
        return [torch.stack(column).detach() for column in columns]

    def vectorized(self, rows: Sequence[int]) -> list[Tensor]:
        """Gradients of units, in one call."""
        called = _Called(self.model, self.loss)
        called.training = self.model.training
        where = places(called)
        named = dict(called.named_parameters())
        wanted = {name: each.detach() for name, each in named.items() if each.requires_grad}
        rest = {name: each.detach() for name, each in named.items() if not each.requires_grad}
        rest |= dict(called.named_buffers())
        structure, tensors = self.examples.stacked(rows)

        def value(parameters: dict[str, Tensor], each: list[Tensor]) -> Tensor:
            there = {**rest, **parameters}
            placed = {place: there[name] for place, name in where.items()}
            arguments = self.examples.filled(structure, each)
            result: Tensor = functional_call(called, placed, arguments, tie_weights=False)
            return result

        mapped = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))  # draws raise
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # of vmap itself: the user chose nothing
            found: dict[str, Tensor] = self._guarded(lambda: mapped(wanted, tensors))
        return [found[name].detach() for name in wanted]


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return kind(value)
    return str(tuple(value.shape)) if value.numel() != 1 else f"of {str(value.dtype).removeprefix('torch.')}"


def _close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two gradients agree but for rounding."""
    size = max(float(b.abs().max()), 1e-30) if b.numel() else 0.0
    return a.shape == b.shape and bool((a - b).abs().le(torch.finfo(b.dtype).eps ** 0.5 * size).all())


_ADVICE = "put the model into eval mode, or give batch=32: gradients of batches in place of examples"
