"""Masks that the user's own code draws: the share that they set to 0, and what they multiply the rest by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthgauge.checking.questions.data.within import Within

_DRAW = {"rand", "rand_like", "bernoulli", "bernoulli_", "uniform_", "dropout", "random_", "randint", "randint_like"}
_TIMES = {"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"}
_OVER = {"div", "div_", "divide", "divide_", "true_divide", "__truediv__", "__itruediv__", "__div__"}
_FILL = {"masked_fill", "masked_fill_", "where", "__setitem__"}
ONE_FACTOR = 1e-3  # relative difference of what is kept from one number


@dataclass(eq=False)
class Mask:
    """A drawn mask at one place of a pass, over several passes.

    Attributes:
        place: name of the innermost module that was called; `model` is the root.
        zeros: numbers of the mask that are 0.
        total: numbers of the mask.
        factor: by which what is kept is multiplied; NaN where nothing was.
        of_rows: whether it has one number for an example, or for all.
    """

    place: str
    zeros: int = 0
    total: int = 0
    factor: float = math.nan
    of_rows: bool = True

    @property
    def share(self) -> float:
        """The share that is dropped."""
        return self.zeros / max(1, self.total)


class Drawn(TorchFunctionMode):
    """Follows random numbers to the tensors that they are multiplied with, in modules of the model.

    Attributes:
        masks: by module and the number of the mask within it in a pass.
    """

    def __init__(self, within: Within) -> None:
        super().__init__()
        self.masks: dict[tuple[str, int], Mask] = {}
        self._within = within
        self._random: dict[int, Tensor] = {}
        self._scaled: dict[int, tuple[Tensor, float, Mask | None]] = {}
        self._count: Counter[str] = Counter()

    def begin(self) -> None:
        """Begin another pass."""
        self._random.clear()
        self._scaled.clear()
        self._count.clear()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and follow what is random."""
        name = getattr(function, "__name__", "")
        used = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
        lots = [each for each in used if id(each) in self._random]
        found = self._mask(name, args, kwargs, lots) if lots else None
        made = function(*args, **(kwargs or {}))
        if not isinstance(made, Tensor):
            if name == "__setitem__" and found is not None:
                self._scaled[id(args[0])] = (args[0], *found)
            return made
        if found is not None:
            self._scaled[id(made)] = (made, *found)
        elif (name in _DRAW or lots) and not made.requires_grad:
            self._random[id(made)] = made
        elif name in _TIMES | _OVER and len(args) == 2:
            self._scale(name, args, made)
        return made

    # -- one call ------------------------------------------------------------------------------------------------------

    def _mask(self, name: str, args: Any, kwargs: Any, lots: list[Tensor]) -> tuple[float, Mask] | None:
        """The factor and the mask that this call lays over a tensor that is not random; None where it does not."""
        if self._within.innermost is None:
            return None
        given = [*args, *(kwargs or {}).values()]
        if name in _FILL:
            return self._filled(name, given, lots)
        if name not in _TIMES or len(given) != 2 or len(lots) != 1:
            return None
        other = next((each for each in given if each is not lots[0]), None)
        if not isinstance(other, Tensor) or not other.is_floating_point() or other.numel() < max(2, lots[0].numel()):
            return None
        factor = _factor(lots[0])
        if factor is None:
            return None
        return self._noted(lots[0], int((lots[0] == 0).sum()), factor * self._before(other))

    def _filled(self, name: str, given: list[Any], lots: list[Tensor]) -> tuple[float, Mask] | None:
        """The same of a call that sets to 0 where a mask says so."""
        mask = next((each for each in lots if each.dtype is torch.bool), None)
        if mask is None or len(given) != 3:
            return None
        if name == "where":
            _, one, other = given
            zero = [_is_zero(each) for each in (one, other)]
            if sum(zero) != 1:
                return None
            kept, ones = (other, mask) if zero[0] else (one, ~mask)
        elif name == "__setitem__":
            if given[1] is not mask or not _is_zero(given[2]):
                return None
            kept, ones = given[0], mask
        else:
            if not _is_zero(given[2]):
                return None
            kept, ones = given[0], mask
        return self._noted(mask, int(ones.sum()), self._before(kept)) if isinstance(kept, Tensor) else None

    def _noted(self, mask: Tensor, zeros: int, factor: float) -> tuple[float, Mask]:
        place = self._within.place("model")
        key = (place, self._count[place])
        self._count[place] += 1
        noted = self.masks.setdefault(key, Mask(place))
        noted.zeros += zeros
        noted.total += mask.numel()
        noted.of_rows &= mask.numel() == 1 or (mask.dim() > 0 and mask.numel() == len(mask))
        if math.isfinite(factor):
            noted.factor = factor
        return factor, noted

    def _before(self, tensor: Any) -> float:
        """The number by which it was multiplied before."""
        known = self._scaled.get(id(tensor))
        return known[1] if known is not None and known[2] is None else 1.0

    def _scale(self, name: str, args: Any, made: Tensor) -> None:
        """Note that a tensor was multiplied by one number, or divided by it."""
        number = next((each for each in args if _is_number(each)), None)
        of = next((each for each in args if isinstance(each, Tensor) and each is not number), None)
        if number is None or of is None or (name in _OVER and number is args[0]) or not float(number):
            return
        factor = float(number) if name in _TIMES else 1 / float(number)
        _, before, mask = self._scaled.get(id(of), (of, 1.0, None))
        if mask is not None and math.isfinite(before):
            mask.factor = before * factor
        self._scaled[id(made)] = (made, before * factor, mask)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.requires_grad and not value.is_complex()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.requires_grad and bool((value == 0).all())
    return isinstance(value, int | float) and value == 0


def _factor(mask: Tensor) -> float | None:
    """The one number besides 0 of a mask, NaN where it is all 0; None of a tensor that has others."""
    if mask.is_complex() or not mask.numel():
        return None
    values = mask.detach().double()
    kept = values[values != 0]
    if not len(kept):
        return math.nan
    factor = kept.max().item()
    return factor if factor > 0 and kept.min().item() > factor * (1 - ONE_FACTOR) else None


# -- calls that chance leaves out --------------------------------------------------------------------------------------


class Calls:
    """Modules that are called in each of several passes.

    Attributes:
        passes: names of the modules that were called, pass by pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.passes: list[set[str]] = []
        self._model = model
        self._hooks = ExitStack()

    def __enter__(self) -> Calls:
        """Put a hook on each module."""
        for name, module in self._model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                self._hooks.callback(module.register_forward_pre_hook(self._called(name)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        """Take them off."""
        self._hooks.close()

    def _called(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            if self.passes:
                self.passes[-1].add(name)

        return hook


def left_out(evaluated: set[str], trained: list[set[str]], most: float, empty: float) -> Iterator[tuple[str, float]]:
    """Yield modules that evaluation calls, and training hardly ever, by chance, together with all beside them.

    Args:
        evaluated: names that a pass in evaluation mode calls.
        trained: the same, of each of several passes in training mode.
        most: share of the passes in which they are called, at most.
        empty: share of the passes, at least, in which none beside them is called: no one of several is drawn.
    """
    share = {name: sum(name in each for each in trained) / len(trained) for name in sorted(evaluated)}
    beside: dict[str, list[str]] = {}
    for name in (name for name, each in share.items() if each < 1):
        beside.setdefault(name.rpartition(".")[0], []).append(name)
    found: list[str] = []
    for names in beside.values():
        calls = [sum(name in each for name in names) for each in trained]
        if any(calls) and sum(not each for each in calls) >= empty * len(calls):
            found += [name for name in names if share[name] <= most]
    for name in found:
        if not any(name.startswith(f"{other}.") for other in found):
            yield name, 1 - share[name]
