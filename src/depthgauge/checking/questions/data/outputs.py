"""The loss as a function of what the model says: its outputs are caught, and others are put in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.checking.terms import short
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

_SHAPING = frozenset(
    {"View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Alias"}
)
MOST = 64  # calls within one loss: more are a loop over time, whose outputs feed each other


@dataclass(eq=False)
class Call:
    """A call of a module by the loss itself.

    Attributes:
        module: that was called.
        given: floating-point tensors that it got, detached.
        output: what it returned, detached.
        makers: of its floating-point tensors, the function of the graph that made each.
    """

    module: nn.Module
    given: tuple[Tensor, ...]
    output: Any
    makers: tuple[str, ...]


@dataclass(eq=False)
class Outputs:
    """The outputs that a loss gets of the model, for one batch.

    Attributes:
        training: the user's.
        batch: whose loss it is.
        calls: in their order.
        free: tensors among the outputs that a gradient can reach, in the order of the calls; detached.
        makers: of each, the function of the graph that made it: `Sigmoid`; empty where it has none.
    """

    training: Training
    batch: Any
    calls: tuple[Call, ...]
    free: tuple[Tensor, ...] = field(init=False)
    makers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        every = (each for call in self.calls for _, each in nested.tensors(call.output))
        self.free = tuple(each for each in every if _is_free(each))
        self.makers = tuple(maker for call in self.calls for maker in call.makers)

    def loss(self, values: Sequence[Tensor], batch: Any = None) -> float:
        """The loss with these outputs; NaN where it raises."""
        return self.gradient(values, batch)[0]

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The loss with these outputs, with its graph."""
        leaves = [each.detach().clone().requires_grad_() for each in values]
        with random_states_kept(), self._put(leaves), torch.enable_grad():
            return self.training.value(self.batch)

    def gradient(self, values: Sequence[Tensor], batch: Any = None) -> tuple[float, tuple[Tensor, ...]]:
        """The loss with these outputs, and its gradient by each of them; zeros where it does not depend on one.

        Args:
            values: as `free`.
            batch: in place of its own, of the same form.
        """
        leaves = [each.detach().clone().requires_grad_() for each in values]
        try:
            with random_states_kept(), self._put(leaves), torch.enable_grad():
                value = self.training.value(self.batch if batch is None else batch)
                given: tuple[Tensor | None, ...] = torch.autograd.grad(value, leaves, allow_unused=True)
        except Exception:  # noqa: BLE001 - the user's loss may refuse outputs that the model never gives
            return float("nan"), tuple(torch.zeros_like(each) for each in leaves)
        pairs = zip(given, leaves, strict=True)
        return value.item(), tuple(torch.zeros_like(leaf) if each is None else each for each, leaf in pairs)

    @contextmanager
    def _put(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Let the modules return these in place of their outputs, in the order in which they were called."""
        following, calls = iter(leaves), iter(self.calls)

        def returned(*_: Any, **__: Any) -> Any:
            return nested.mapped(
                next(calls).output,
                lambda each: next(following) if _is_free(each) else each,
            )

        modules = {id(call.module): call.module for call in self.calls}
        with ExitStack() as stack:
            for module in modules.values():
                own = vars(module).get("forward")
                vars(module)["forward"] = returned
                stack.callback(_put_back, module, own)
            yield


def _is_free(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def maker(tensor: Tensor) -> str:
    """The function that made a tensor, without those that only change a shape."""
    node = tensor.grad_fn
    while node is not None and short(node) in _SHAPING and node.next_functions:
        node = node.next_functions[0][0]
    return "" if node is None else short(node)


def _put_back(module: nn.Module, own: Any) -> None:
    if own is None:
        del vars(module)["forward"]
    else:
        vars(module)["forward"] = own


def caught(training: Training, batch: Any) -> Outputs | None:
    """Catch the outputs; None where they are not seen, or where the loss is not the same with them put in place.

    It is called within `untouched()`.
    """
    if any(_closed(each) for each in training.model.modules()):
        return None
    for transparent in (False, True):
        calls, loss = _called(training, batch, transparent=transparent)
        whole = any(_is(each, loss) for call in calls for _, each in nested.tensors(call.output))
        if whole and not transparent:  # the model's own loss is among its outputs
            continue
        if not calls or len(calls) > MOST or whole:
            return None
        found = Outputs(training, batch, calls)
        again = found.loss(found.free)
        return found if found.free and abs(again - loss.item()) <= 1e-4 * abs(loss.item()) + 1e-7 else None
    return None


def _closed(module: nn.Module) -> bool:
    scripted = isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule"
    return scripted or getattr(module, "_compiled_call_impl", None) is not None


def _is(tensor: Tensor, loss: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.dim() == 0 and bool(tensor == loss)


def _called(training: Training, batch: Any, *, transparent: bool) -> tuple[tuple[Call, ...], Tensor]:
    """The calls that the loss makes; of a transparent model those that it makes itself."""
    calls: list[Call] = []
    depth = [0]

    def entered(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        depth[0] += 1

    def left(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        depth[0] -= 1
        if not depth[0]:
            given = tuple(each.detach() for _, each in nested.tensors((args, kwargs)) if each.is_floating_point())
            makers = tuple(maker(each) for _, each in nested.tensors(output) if _is_free(each))
            calls.append(Call(module, given, nested.mapped(output, lambda each: each.detach()), makers))

    with ExitStack() as hooks, random_states_kept():
        for module in training.model.modules():
            if transparent and module is training.model:
                continue
            for handle in (
                module.register_forward_pre_hook(entered, with_kwargs=True),
                module.register_forward_hook(left, with_kwargs=True),
            ):
                hooks.callback(handle.remove)
        loss = training.value(batch).detach()
    return tuple(calls), loss


def normal_like(tensor: Tensor, draws: torch.Generator) -> Tensor:
    """N(0, 1) of its shape, format and device."""
    return torch.randn(tensor.shape, generator=draws).to(tensor)


def scored(training: Training, batch: Any) -> tuple[Tensor, Tensor] | None:
    """Outputs of the module, and the loss's gradient of them; None where it is called twice, or they have none."""
    seen: list[Tensor] = []

    def keep(_: object, __: object, output: object) -> None:
        scores = nested.scores(output)
        if torch.is_grad_enabled() and scores.requires_grad:
            scores.retain_grad()
            seen.append(scores)

    handle = training.model.register_forward_hook(keep)
    try:
        with random_states_kept():
            training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].grad is None:
        return None
    return seen[0].detach(), seen[0].grad
