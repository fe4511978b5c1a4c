"""The module in whose call something happens."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn


class Within:
    """A block in which the model's modules are followed as they are called.

    Args:
        model: the root.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack: list[tuple[str, nn.Module]] = []
        self._hooks = ExitStack()

    @property
    def innermost(self) -> tuple[str, nn.Module] | None:
        """Name and module of the innermost call that goes on; None outside of all."""
        return self._stack[-1] if self._stack else None

    @property
    def depth(self) -> int:
        """Number of calls that go on, each within the one before."""
        return len(self._stack)

    def place(self, otherwise: str) -> str:
        """Name of the innermost module that is being called; `otherwise` where none is."""
        return self._stack[-1][0] if self._stack else otherwise

    def __enter__(self) -> Within:
        """Put hooks on all modules but compiled and scripted ones."""
        for name, module in self._model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule) and getattr(module, "_compiled_call_impl", None) is None:
                self._hooks.callback(module.register_forward_pre_hook(self._entered(name or "model")).remove)
                self._hooks.callback(module.register_forward_hook(self._left, always_call=True).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take them off."""
        self._hooks.close()

    def _entered(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any) -> None:
            self._stack.append((name, module))

        return hook

    def _left(self, _: nn.Module, __: Any, ___: Any) -> None:
        if self._stack:
            self._stack.pop()
