"""Results of the operators of a pass: their formats, where numbers leave a format, guards that are lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge.checking.parameters import spelled

HALVES = (torch.float16, torch.bfloat16)
LOSS = "loss"  # where no module is being called

_UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided")  # whose values mean nothing yet
_ON_PURPOSE = ("masked_fill", "fill", "full", "full_like", "where", "scalar_tensor", "log")  # of infinity
_ADDED = ("add", "clamp", "clamp_min", "clamp_")
_CARRYING = ("_to_copy", "clone", "neg", "abs", "view", "_unsafe_view", "squeeze", "unsqueeze", "sum")  # a guard on
_GUARDED = ("sqrt", "rsqrt", "log", "log2", "log10", "reciprocal", "pow")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mv", "dot", "_scaled_dot_product_flash_attention_for_cpu")

Guard = tuple[float, int, str]
"""A number that is added, how many zeros it should have kept from 0, and the format in which it is 0 itself."""


@dataclass(frozen=True)
class Origin:
    """The first operator whose result is not finite, of inputs that all are.

    Attributes:
        layer: the module in whose call it ran, as `named_modules` has it; `loss` outside of all.
        operator: torch's name: `bmm`.
        format: of its result: `float16`.
    """

    layer: str
    operator: str
    format: str


@dataclass(frozen=True)
class Lost:
    """A small number that guards a division, a root or a logarithm, and is 0 in the format it is added in.

    Attributes:
        layer: as of `Origin`.
        operator: what it guards: `div`.
        format: in which it is 0.
        guard: the number.
        zeros: how many numbers it should have kept from 0.
    """

    layer: str
    operator: str
    format: str
    guard: float
    zeros: int


@dataclass(eq=False)
class Seen:
    """Results of the operators of a pass.

    Attributes:
        products: by format, in how many matrix products and convolutions it was computed.
        made: formats of the floating-point results of all operators.
        origin: where infinity or NaN began in the forward pass; None where it did not.
        infinite: the first infinity that may be there on purpose: a mask's, a logarithm's.
        backward: where infinity or NaN began in the backward pass, without a layer.
        lost: guards that are 0, by layer.
        largest: by layer, the largest of its float16 numbers, by magnitude those of products.
    """

    products: dict[str, int] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    origin: Origin | None = None
    infinite: Origin | None = None
    backward: Origin | None = None
    lost: dict[str, Lost] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that products are computed in, the most used first; of all operators where there are no products."""
        return tuple(sorted(self.products, key=lambda name: -self.products[name])) or tuple(sorted(self.made))

    @property
    def narrow(self) -> tuple[str, ...]:
        """The 16-bit formats among all that was made."""
        return tuple(name for name in ("float16", "bfloat16") if name in self.made)


@contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """Look at every operator's result within the block; hooks that tell the layers are taken off by `untouched`."""
    seen, calls = Seen(), [LOSS]
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # whose calls cannot be hooked; they belong to the one around
            continue
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name or "model"), prepend=True)
        module.register_forward_hook(lambda *_: calls.pop() and None, always_call=True)
    with _Watch(seen, calls):
        yield seen


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    def __init__(self, seen: Seen, calls: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._seen = seen
        self._calls = calls
        # the tensor, so that it stays
        self._guards: dict[tuple[int, torch.dtype], tuple[Tensor, float, int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        plain = name.rstrip("_")
        before = self._unguarded(plain, args, kwargs or {}) or self._carried(plain, args)
        self._find_lost(plain, args)
        result = func(*args, **(kwargs or {}))
        if plain in _UNWRITTEN:
            return result
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and each.is_floating_point() and not each.is_meta and each.numel():
                self._note(plain, each, args)
                if before is not None:
                    self._guards[_key(each)] = (each, *before)
        return result

    def _note(self, name: str, result: Tensor, args: Any) -> None:
        seen, fmt = self._seen, spelled(result.dtype)
        seen.made.add(fmt)
        if name in _PRODUCTS:
            seen.products[fmt] = seen.products.get(fmt, 0) + 1
        if result.layout is not torch.strided:
            return
        layer, half = self._calls[-1], result.dtype is torch.float16
        forward = torch._C._current_autograd_node() is None
        if not half and (seen.origin or (seen.backward and not forward)):
            return
        top = result.detach().abs().amax().item()
        if math.isfinite(top):
            if half and forward:
                reached = top if name in _PRODUCTS else result.detach().amax().item()  # a mask is far below 0
                seen.largest[layer] = max(reached, seen.largest.get(layer, 0.0))
        elif seen.origin is None and all(_finite(each) for each in _tensors(args)):
            self._begins(result, Origin(layer, name, fmt), forward)

    def _begins(self, result: Tensor, origin: Origin, forward: bool) -> None:
        seen, name = self._seen, origin.operator
        only_below = not (result.isnan() | result.isposinf()).any()  # -inf alone is a mask's, but of a product
        if not forward:
            seen.backward = seen.backward or origin
        elif name in _ON_PURPOSE or (only_below and name not in _PRODUCTS):
            seen.infinite = seen.infinite or origin
        else:
            seen.origin = origin

    def _unguarded(self, name: str, args: Any, kwargs: Any) -> Guard | None:
        """The guard that this operator adds and loses, and the zeros that it leaves."""
        if name not in _ADDED or not (args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
            return None
        guard = args[1] if len(args) > 1 else kwargs.get("min")
        if isinstance(guard, bool) or not isinstance(guard, int | float) or not 0 < guard < 1:
            return None
        if torch.tensor(guard, dtype=args[0].dtype).item() != 0:
            return None
        return float(guard), int((args[0] == 0).sum().item()), spelled(args[0].dtype)

    def _carried(self, name: str, args: Any) -> Guard | None:
        """The lost guard of what this operator only copies, widens or adds up."""
        if name not in _CARRYING or not (args and isinstance(args[0], Tensor)):
            return None
        held = self._guards.get(_key(args[0]))
        return None if held is None else held[1:]

    def _find_lost(self, name: str, args: Any) -> None:
        at = 1 if name == "div" else 0
        if name not in (*_GUARDED, "div") or len(args) <= at or not isinstance(args[at], Tensor):
            return
        if (found := self._guards.get(_key(args[at]))) is not None:
            _, guard, zeros, form = found
            layer = self._calls[-1]
            self._seen.lost.setdefault(layer, Lost(layer, name, form, guard, zeros))


def _key(tensor: Tensor) -> tuple[int, torch.dtype]:
    """What views of a tensor share with it."""
    return tensor.data_ptr(), tensor.dtype


def _tensors(args: Any) -> Iterator[Tensor]:
    for each in args:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.layout is not torch.strided or bool(tensor.isfinite().all())
