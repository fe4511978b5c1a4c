"""Dropout that is no layer of torch's: functions that a module calls, and modules of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthgauge.checking.questions.data.within import Within

_FUNCTIONS = {
    nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d, nn.functional.dropout3d, torch.dropout,
    nn.functional.alpha_dropout, nn.functional.feature_alpha_dropout,
}  # fmt: skip
FEWEST = 32  # numbers that a module gets and does not hand on as they are
SCALED = 5.0  # times, at least, by which what is kept is multiplied: 1 / (1 - 0.8)
ALIKE = 1e-3  # relative difference of these factors


class Dropped(TorchFunctionMode):
    """Notes the share that is dropped, by the module in which it happens.

    Attributes:
        rates: of each module that calls a dropout function in training mode, the largest.
        shares: of each module of the user's own that has no weights, the share of the numbers it gets that it sets to
            0, where it multiplies all others by one factor.
    """

    def __init__(self, model: nn.Module, within: Within, known: tuple[type, ...]) -> None:
        super().__init__()
        self.rates: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self._known = known
        self._within, self._root = within, model
        self._hooks = ExitStack()
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule) and self._is_own(module):
                self._hooks.callback(module.register_forward_hook(self._share(name)).remove)

    def __exit__(self, *error: Any) -> None:
        """Take the hooks away."""
        self._hooks.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and note its rate where it drops."""
        given = dict(zip(("input", "p", "training"), args, strict=False)) | (kwargs or {})
        name, module = self._within.innermost or ("model", self._root)
        if function in _FUNCTIONS and given.get("training", given.get("train", True)) and not self._knows(module):
            rate = given.get("p", 0.5)
            self.rates[name] = max(self.rates.get(name, 0.0), float(rate)) if isinstance(rate, int | float) else 0.0
        return function(*args, **(kwargs or {}))

    def _knows(self, module: nn.Module) -> bool:
        return isinstance(module, self._known)

    def _is_own(self, module: nn.Module) -> bool:
        return not type(module).__module__.startswith("torch.") and not self._knows(module)

    def _share(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            given = inputs[0] if isinstance(inputs, tuple) and inputs else None
            if module.training and not any(True for _ in module.parameters()):
                share = _share(given, output)
                if share is not None:
                    self.shares[name] = min(share, self.shares.get(name, 1.0))

        return hook


@torch.no_grad()
def _share(given: Any, made: Any) -> float | None:
    """The share of numbers that become 0, where all others are multiplied by one factor; None where they are not."""
    if not isinstance(given, Tensor) or not isinstance(made, Tensor) or given.shape != made.shape:
        return None
    some = given != 0
    before, after = given[some].double(), made[some].double()
    kept = after != 0
    if before.numel() < FEWEST or not bool(kept.any()) or not given.is_floating_point():
        return None
    factors = after[kept] / before[kept]
    factor = float(factors.median())
    if factor < SCALED or float((factors / factor - 1).abs().max()) > max(ALIKE, 8 * torch.finfo(given.dtype).eps):
        return None
    return 1 - float(kept.double().mean())
