"""The arithmetic that a model runs in: a dtype of the device, or a format emulated in float32."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from depthgauge import formats
from depthgauge.nested import inexact
from depthgauge.precision.emulation import emulated, of_parts, rounding, unrounded

NATIVE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic.

    Attributes:
        dtype: dtype of its tensors.
        emulated: the format that every result is rounded to; None for the device's own arithmetic.
    """

    dtype: torch.dtype
    emulated: formats.Format | None = None

    def cast(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy, strides included, in this arithmetic; plain of integers, and of complex numbers that it has none of.

        Args:
            tensor: any tensor.
            dtype: in place of the arithmetic's own, where a model computes some part in another.
        """
        own = self.complex_dtype if tensor.is_complex() else self.dtype
        if not inexact(tensor) or own is None:
            return tensor.detach().clone()
        if self.emulated is None:
            try:
                return tensor.detach().to(dtype or own, copy=True)
            except (RuntimeError, NotImplementedError):  # a layout that knows one dtype
                return tensor.detach().clone()
        with unrounded():  # the steps of the rounding itself are not to be rounded
            return of_parts(rounding(self.emulated), tensor.detach().to(own))

    @property
    def complex_dtype(self) -> torch.dtype | None:
        """The complex dtype whose parts have this one; None where torch has none."""
        return COMPLEX.get(self.dtype)

    @contextmanager
    def block(self) -> Iterator[None]:
        """Compute within the block, with gradients, without autocast, compiled functions uncompiled."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for device in _devices():  # without a cache, which would keep the weights of another run
                stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
            if "torch._dynamo" in sys.modules:  # which loads for a second, and only who has it has compiled anything
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self.emulated is not None:
                stack.enter_context(emulated(self.emulated))
            yield


FLOAT32 = Arithmetic(torch.float32)


def arithmetic(dtype: torch.dtype | str | formats.Format) -> Arithmetic:
    """The device's own arithmetic where torch has one for the dtype or format, else one that is emulated.

    Raises:
        ValueError: no floating-point format has that name.
    """
    fmt = formats.get(str(dtype) if isinstance(dtype, torch.dtype) else dtype)
    native = NATIVE.get(fmt.name)
    return Arithmetic(torch.float32, fmt) if native is None else Arithmetic(native)


def stand_in(native: Arithmetic) -> Arithmetic:
    """The same format, emulated: for what the device cannot compute in it."""
    return Arithmetic(torch.float32, formats.get(str(native.dtype)))


Autocast = tuple[str, torch.dtype]
"""A device and the dtype that autocast computes in there."""


def autocasts() -> tuple[Autocast, ...]:
    """List the devices on which autocast is on."""
    return tuple((each, torch.get_autocast_dtype(each)) for each in _devices() if torch.is_autocast_enabled(each))


@contextmanager
def in_autocast(autocasts: Iterable[Autocast]) -> Iterator[None]:
    """Have autocast on within the block where it was."""
    with ExitStack() as stack:
        for device, dtype in autocasts:
            stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
        yield


def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
