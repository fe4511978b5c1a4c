"""Arithmetic of a number format that the device lacks: every floating-point result of an operator is rounded to it.

    precision.cast(model, "float8_e5m2")                # weights too are numbers of the format
    with precision.emulated("float8_e5m2"):
        loss(model(x), y).backward()
        optimizer.step()

Operators are those below autograd, so that a backward pass is rounded as a forward pass is. Each computes in the
dtype of its tensors, float32 as a rule, and its result is rounded once. Elementwise operators and casts then agree bit
for bit with a device that has the format and computes them so; sums, products of matrices, convolutions, softmax and
norms are those of a device that accumulates in float32 and rounds when it stores. torch's own kernels for float16 and
bfloat16 on a CPU do the same but for a few that round on the way (erf, GELU and the slope of the sigmoid in float16),
and for a Python number that is added, which they round to the format first. Counters of steps and running factors that
torch's optimizers keep beside a parameter's state stay as they are, as torch keeps them in float32 in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from depthgauge import formats
from depthgauge.formats import Format
from depthgauge.formats.arguments import kind
from depthgauge.nested import inexact
from depthgauge.precision.checks import check_module

Round = Callable[[Tensor], Tensor]


@contextmanager
def emulated(fmt: str | Format, *, stochastic: torch.Generator | None = None) -> Iterator[None]:
    """Round every floating-point result of an operator within the block to a format, in both directions.

    Views, and what an operator is given, are left alone: weights and inputs that are not yet numbers of the format
    enter as they are (`cast` rounds a module's). Complex numbers are rounded by their parts. What an operator changes
    in place is rounded where it lies, but for optimizers' counters of steps. The random bits of a dropout mask are
    those of the unrounded run.

    Args:
        fmt: a format, or its name; block formats are rounded along a result's last dimension.
        stochastic: rounds up or down with the probability that keeps the mean, by this generator's numbers; to
            nearest, ties to even, where it is left out.

    Raises:
        ValueError: there is no such format.
        TypeError: `stochastic` is no torch.Generator.
    """
    mode = Rounding(rounding(fmt, stochastic))
    handle = register_optimizer_step_pre_hook(mode.counters.note)
    try:
        with mode:
            yield
    finally:
        handle.remove()


def cast(module: nn.Module, fmt: str | Format) -> nn.Module:
    """Round a module's floating-point weights and buffers to a format, in place; their dtype stays.

    Returns:
        The same module.

    Raises:
        ValueError: there is no such format, or the weights have no values (lazy, or on the meta device).
        TypeError: what is no module.
    """
    check_module("module", module)
    to_format = rounding(fmt)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if inexact(tensor):
                tensor.copy_(of_parts(to_format, tensor))
    return module


def rounding(fmt: str | Format, stochastic: torch.Generator | None = None) -> Round:
    """A function that rounds a floating-point tensor's numbers to a format, and keeps dtype and strides.

    Raises:
        ValueError: there is no such format.
        TypeError: `stochastic` is no torch.Generator.
    """
    known = formats.get(fmt)
    if not isinstance(stochastic, torch.Generator | None):
        raise TypeError(f"stochastic is {kind(stochastic)}, where a torch.Generator was expected")
    return lambda tensor: formats.round(tensor, known, stochastic=stochastic)


def of_parts(to_format: Round, tensor: Tensor) -> Tensor:
    """A function of a tensor's numbers; of a complex one's parts."""
    if not tensor.is_complex():
        return to_format(tensor)
    return torch.view_as_complex(to_format(torch.view_as_real(tensor.resolve_conj())))


def unrounded() -> AbstractContextManager[object]:
    """Compute within the block as if nothing were emulated."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


@dataclass(frozen=True)
class _Effect:
    """What an operator does to memory.

    Attributes:
        fresh: places of the results that it allocates.
        several: whether it returns a tuple.
        written: places and names of the arguments that it changes.
    """

    fresh: tuple[int, ...]
    several: bool
    written: tuple[tuple[int, str], ...]


# Without numbers of their own: fresh memory, and what torch does not call a view.
_NOTHING_COMPUTED = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
)


@cache
def _effect(operator: torch._ops.OpOverload) -> _Effect:
    schema = operator._schema
    idle = operator.overloadpacket.__name__ in _NOTHING_COMPUTED
    fresh = tuple(place for place, each in enumerate(schema.returns) if each.alias_info is None and not idle)
    turned = torch.Tag.inplace_view in operator.tags  # `x.t_()`, `x.set_(y)`: another view, and no number changes
    written = tuple(
        (place, each.name)
        for place, each in enumerate(schema.arguments)
        if each.alias_info is not None and each.alias_info.is_write and not turned
    )
    return _Effect(fresh, len(schema.returns) > 1, written)


class Counters:
    """Numbers that optimizers keep of their steps: the state of those that have stepped."""

    _NAMES = (
        "step",
        "mu_product",
        "mu",
        "eta",
    )  # that torch's optimizers make in float32, whatever the parameter's dtype

    def __init__(self) -> None:
        self._optimizers: dict[int, torch.optim.Optimizer] = {}
        self._known: dict[int, Tensor] = {}

    def note(self, optimizer: torch.optim.Optimizer, _arguments: Any, _keywords: Any) -> None:
        """Take an optimizer that begins a step."""
        self._optimizers[id(optimizer)] = optimizer

    def has(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is one of these numbers."""
        if tensor.numel() != 1 or not self._optimizers:
            return False
        if id(tensor) not in self._known:  # the state is made within the first step, and anew by load_state_dict
            states = (state for each in self._optimizers.values() for state in each.state.values())
            found = (state.get(name) for state in states if isinstance(state, dict) for name in self._NAMES)
            self._known = {id(each): each for each in found if isinstance(each, Tensor)}
        return id(tensor) in self._known


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not typed __init_subclass__
    """Puts a function of every floating-point result of an operator in its place."""

    def __init__(self, to_format: Round) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor __init__
        self._to_format = to_format
        self.counters = Counters()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call: Callable[..., Any] = func
        kwargs = kwargs or {}
        self.before(func, args, kwargs)
        return self.replaced(func, args, kwargs, call(*args, **kwargs))

    def before(self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note what must be known before an operator runs: for a mode that derives from this one."""

    def replaced(self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Any:
        """Replace the result `out` of an operator; what it has changed in place is changed again there."""
        effect = _effect(func)
        for place, name in effect.written:
            self._in_place(args[place] if place < len(args) else kwargs.get(name))
        if not effect.fresh:
            return out
        if not effect.several:
            return self._rounded(out)
        return tuple(self._rounded(each) if place in effect.fresh else each for place, each in enumerate(out))

    def _in_place(self, written: Any) -> None:
        if isinstance(written, list | tuple):
            for each in written:
                self._in_place(each)
        elif has_numbers(written) and not self.counters.has(written):
            with unrounded():  # an outer block's rounding is for what is computed, not for the steps of this one
                written.copy_(self._changed(written))

    def _changed(self, tensor: Tensor) -> Tensor:
        return of_parts(self._to_format, tensor)

    def _rounded(self, result: Any) -> Any:
        if isinstance(result, list | tuple):
            return [self._rounded(each) for each in result]
        if not has_numbers(result):
            return result
        with unrounded():  # as above
            rounded = self._changed(result)
        return rounded if rounded.stride() == result.stride() else result.copy_(rounded)


def has_numbers(value: Any) -> bool:
    """Tell whether a value is a tensor that holds rounded numbers in the plain layout.

    The zeros that torch makes for tangents (`torch.func.jvp`) have no memory: an operator that reads it would crash.
    """
    plain = isinstance(value, Tensor) and inexact(value) and value.layout is torch.strided
    return plain and not torch._is_zerotensor(value)
