"""Products of a loss's Hessian with vectors, of any module, by differentiating twice."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from depthgauge import nested
from depthgauge.foreign import as_line, by_machine, describe_error
from depthgauge.formats.arguments import kind, whole
from depthgauge.restoring import buffers_kept, random_states_kept, restored
from depthgauge.seeding import Purpose, seed_globals

Loss = Callable[[nn.Module, Any, Any], Tensor]
"""`loss(model, inputs, targets)`: the scalar mean over the examples."""

REPEATED = 1e-3  # relative difference of two evaluations of one loss from which on it is random


_ONCE = "the {} of this loss cannot be had, as an operation in it cannot be differentiated twice: "

_PASSED_OVER = {
    "torch::autograd::Error": "it is marked once_differentiable",
    "CheckpointFunctionBackward": "checkpointing of the reentrant kind; pass use_reentrant=False",
}


_MARKED = once_differentiable(print).__code__
"""Code of every backward pass that is marked so."""


class NoHessianError(ValueError):
    """The loss of a model has no Hessian that can be had by differentiating twice; the message says why."""


class Hessian:
    """The Hessian of a mean loss with respect to the parameters that require a gradient.

    Attributes:
        parameters: shared ones once.
        eps: relative spacing of the numbers that products are computed in.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, inputs: Any, targets: Any, *, batch: int | None, seed: int
    ) -> None:
        if not all((isinstance(model, nn.Module), callable(loss))):
            raise TypeError(
                f"sharpness takes a Module and loss(model, inputs, targets), not {kind(model)} and {kind(loss)}"
            )
        self.model, self.loss, self.seed = model, loss, seed
        self.modules = [part for part in (model, loss) if isinstance(part, nn.Module)]
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        check_parameters(self.parameters)
        self.eps = max(torch.finfo(each.dtype).eps for each in self.parameters)
        self.parts = list(_cut(inputs, targets, batch))
        self.length = sum(each.numel() for each in self.parameters)
        # Entries of a unit vector are of size 1 / sqrt(length): too small for what 16 bits hold.
        self.scale = 2.0 ** round(0.5 * np.log2(self.length)) if self.eps > 1e-4 else 1.0
        self.kept: list[Tensor] | None = None
        self.finite = True  # so far, the loss of every batch

    def like(self) -> Tensor:
        """A vector (1, P) on the parameters' device."""
        first = self.parameters[0]
        dtype = torch.float64 if any(each.dtype is torch.float64 for each in self.parameters) else torch.float32
        return torch.empty((1, self.length), dtype=dtype, device=first.device)

    def __call__(self, vector: Tensor) -> Tensor:
        """(1, P) times the Hessian, in the vector's dtype."""
        directions = self.split(vector[0] * self.scale)
        total = torch.zeros_like(vector[0])
        for place, (share, inputs, targets) in enumerate(self.parts):
            with untouched(self.modules, self.seed, place) if self.kept is None else contextlib.nullcontext():
                gradients = self.gradients(inputs, targets) if self.kept is None else self.kept
                images = directional(gradients, self.parameters, directions, keep=self.kept is not None)
                total += share * torch.cat([each.reshape(-1).to(total) for each in images])
        if not self.finite:  # a mean over no example is NaN, and its gradient 0
            total.fill_(torch.nan)
        return (total / self.scale)[None]

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Check the loss, and keep the graph of its gradient within the block where there is one batch."""
        with random_states_kept(), restored(self.modules), differentiable(self.model):
            self._check()
            if len(self.parts) > 1:
                yield
                return
            with untouched(self.modules, self.seed, 0):
                self.kept = self.gradients(*self.parts[0][1:])
                try:
                    yield
                finally:
                    self.kept = None

    def gradients(self, inputs: Any, targets: Any) -> list[Tensor]:
        """The gradient of one batch, with its graph."""
        value = self.value(inputs, targets)
        self.finite &= bool(value.isfinite())
        return gradients(value, self.parameters)

    def value(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of one batch."""
        try:
            value: object = self.loss(self.model, nested.copied(inputs), nested.copied(targets))
        except Exception as error:
            if by_machine(error):
                raise
            raise NoHessianError(f"the loss raised {describe_error(error)}") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got: object = kind(value)
            if isinstance(value, Tensor):
                got = tuple(value.shape) if value.numel() != 1 else value.dtype
            raise TypeError(f"the loss is a real scalar tensor, the mean over the examples; got {got}")
        return value.reshape(())

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector (P,) in the parameters' shapes, dtypes and devices."""
        pieces = torch.split(vector, [each.numel() for each in self.parameters])
        return [piece.view(each.shape).to(each) for piece, each in zip(pieces, self.parameters, strict=True)]

    def _check(self) -> None:
        values = []
        for _ in range(2):
            with untouched(self.modules, self.seed, 0), torch.enable_grad():
                values.append(float(self.value(*self.parts[0][1:]).detach()))
        if abs(values[0] - values[1]) > max(REPEATED, 10 * self.eps) * max(map(abs, values)):
            raise NoHessianError(
                f"the loss is random and has no Hessian: it is {values[0]:.6g} and then {values[1]:.6g} of the same "
                "weights and random state; call model.eval(), or make what is drawn the same on every call"
            )


def check_parameters(parameters: Sequence[Tensor]) -> None:
    """Raise ValueError where there is nothing to differentiate by, or it has no values."""
    if any(nn.parameter.is_lazy(each) or each.is_meta for each in parameters):
        raise ValueError("the model has parameters without values (lazy, or on the meta device): set them first")
    if not sum(each.numel() for each in parameters):
        raise ValueError("no parameter of the model requires a gradient: there is nothing to differentiate by")
    if any(each.is_complex() for each in parameters):
        raise ValueError("a Hessian of complex parameters is not what is measured here: use real ones")


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a scalar, with its graph."""
    if not loss.requires_grad:
        raise NoHessianError("the loss does not depend on any parameter that requires a gradient")
    _check_graph([loss.grad_fn])
    with _explained("gradient"):
        found = _dense(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))
    _check_graph([each.grad_fn for each in found])
    return found


def _check_graph(nodes: list[Node | None]) -> None:
    """Raise NoHessianError where the graph has an operation that `torch.autograd.grad` silently passes over."""
    seen: set[Node | None] = {None}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        why = _PASSED_OVER.get(node.name())
        # Where the incoming gradient is a constant, torch itself does not notice.
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is _MARKED:
            why = _PASSED_OVER["torch::autograd::Error"]
        if why is not None:
            raise NoHessianError(_ONCE.format("second derivative") + why)
        seen.add(node)
        nodes.extend(each for each, _ in node.next_functions)


def directional(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], directions: Sequence[Tensor], *, keep: bool
) -> list[Tensor]:
    """The derivative of the gradient along directions; zero where it does not depend on the parameters."""
    live = [(each, along) for each, along in zip(gradients, directions, strict=True) if each.requires_grad]
    if not live:
        return [torch.zeros_like(each) for each in parameters]
    outputs, along = zip(*live, strict=True)
    with _explained("second derivative"):
        return _dense(torch.autograd.grad(outputs, parameters, along, retain_graph=keep, materialize_grads=True))


def _dense(found: Sequence[Tensor]) -> list[Tensor]:
    return [each if each.layout is torch.strided else each.to_dense() for each in found]


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if by_machine(error):
            raise
        raise NoHessianError(_ONCE.format(what) + as_line(error)) from error
    except Exception as error:  # of a hook
        if by_machine(error):
            raise
        raise NoHessianError(f"the {what} of this loss raised {describe_error(error)}") from error


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Choose kernels that can be differentiated twice, and record a graph, within the block."""
    recurrent = any(isinstance(each, nn.RNNBase) for each in model.modules())
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # compiled code has no second derivative
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def untouched(modules: Sequence[nn.Module], seed: int, place: int) -> Iterator[None]:
    """Seed the global generators within the block; put them and the buffers of modules back after it."""
    with random_states_kept(), buffers_kept(modules):
        for device in {each.device for each in modules[0].parameters()}:
            seed_globals(seed, Purpose.DROPOUT, place, device=device)
        yield


def _cut(inputs: Any, targets: Any, batch: int | None) -> Iterator[tuple[float, Any, Any]]:
    """Batches, each with its share of the examples."""
    if batch is None:
        yield 1.0, inputs, targets
        return
    batch = whole("batch", batch)
    examples = nested.rows((inputs, targets))
    if examples is None:
        raise ValueError("inputs and targets do not share their first dimension, and cannot be cut into batches")
    if not examples:
        raise ValueError("there are no examples")
    for start in range(0, examples, batch):
        part = slice(start, min(start + batch, examples))
        rows = partial(_rows, part=part)
        yield (part.stop - part.start) / examples, nested.mapped(inputs, rows), nested.mapped(targets, rows)


def _rows(tensor: Tensor, part: slice) -> Tensor:
    return tensor[part]
