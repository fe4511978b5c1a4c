"""The one gate before a tensor's memory is read: as it is, after a conversion, or not at all.

An address is taken only of an exact `torch.Tensor` or `nn.Parameter` that owns its numbers. Everything else is brought
into that form here (the local part of a DTensor, the values of a sparse or jagged tensor, a subclass that only adds
methods), or refused by `Unreadable`: tensors without numbers (fake, meta), tensors that stand for others (inside of
torch.func's transformations), and subclasses that compute by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Memory lies above, as a rule; what lies below is looked at more closely. (48-bit addresses: programs end at 2^47.)
SUSPECT = 1 << 44

EXACT = frozenset({torch.Tensor, nn.Parameter})

# Private names of torch, gathered here: each has been there since torch 2.0, and has no public counterpart.
_C: Any = torch._C
tracing = _C._get_tracing_state
in_transform = _C._are_functorch_transforms_active
is_wrapped = _C._functorch.is_functorch_wrapped_tensor
function_modes = _C._len_torch_function_stack
dispatch_modes = _C._len_torch_dispatch_stack
without_torch_function = _C.DisableTorchFunction
without_dispatch = _C._DisableTorchDispatch
_Uninitialized: Any = nn.parameter.UninitializedTensorMixin  # type: ignore[attr-defined] # torch does not export it
_MKLDNN: Any = getattr(torch, "_mkldnn", None)
_DISPATCH = torch.Tensor.__torch_dispatch__


class Unreadable(Exception):  # noqa: N818 # not an error of the program: a reason, which is counted
    """Tensor that cannot be read; the message gives the reason in a few words, to stand in brackets."""


def reason_of(error: Exception) -> str:
    """Why a tensor was not read, in a few words."""
    return str(error) if isinstance(error, Unreadable) else f"refused by torch ({type(error).__name__})"


def is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether the tensor's numbers are exactly those in its memory, in any order and without gaps."""
    return type(tensor) in EXACT and tensor.layout is torch.strided and tensor.is_contiguous() and not tensor.is_neg()


def is_uninitialized(tensor: torch.Tensor) -> bool:
    """Tell whether the tensor is a lazy layer's, which has no shape before the first call."""
    return isinstance(tensor, _Uninitialized)


def address_of(tensor: torch.Tensor) -> int:
    """Return the address of a plain tensor's first number.

    Raises:
        Unreadable: the tensor has no memory.
    """
    if tracing() is not None:
        raise Unreadable("while they were traced")
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        exact(tensor)
        raise Unreadable("without memory") from None
    # None, or an offset into memory that has been freed, which is an address, too.
    if address < SUSPECT and tensor.numel():
        exact(tensor)
        if not address:
            raise Unreadable("without memory")
    return address


class Memory:
    """A copy of a tensor's numbers, whose place does not change.

    Attributes:
        tensor: the copy, exact and without gaps.
        address: address of the first number; 0 on a device.
        numbers: number of values.
        dtype: the values' dtype.
    """

    __slots__ = ("address", "dtype", "numbers", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        tensor = exact(tensor)
        with torch.no_grad(), without_dispatch():
            self.tensor = tensor.detach().clone(memory_format=torch.preserve_format)
        dense = self.tensor.is_cpu and is_plain(self.tensor)
        self.address = address_of(self.tensor) if dense else 0
        self.numbers = self.tensor.numel() if dense else -1
        self.dtype = self.tensor.dtype

    def keep(self, tensor: torch.Tensor) -> None:
        """Copy an exact tensor's numbers."""
        with torch.no_grad(), without_dispatch():
            self.tensor.copy_(tensor.detach())

    def change_to(self, tensor: torch.Tensor) -> torch.Tensor:
        """Subtract the copy from a tensor, in float32 for shorter formats, which would round the difference."""
        with torch.no_grad(), without_dispatch():
            if self.dtype.is_floating_point and self.dtype.itemsize < 4:
                return tensor.detach().float() - self.tensor.float()
            return tensor.detach() - self.tensor


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, or what it holds in this process, as an exact torch.Tensor; nothing is copied.

    Raises:
        Unreadable: there is no such tensor.
    """
    if tracing() is not None:
        raise Unreadable("while they were traced")
    if type(tensor) not in EXACT:
        with without_torch_function(), torch.no_grad():
            tensor = _of_subclass(tensor)
    if is_wrapped(tensor) or torch._is_functional_tensor(tensor):
        raise Unreadable("inside of a torch.func transformation")
    if tensor.is_meta:
        raise Unreadable("on the meta device, without numbers")
    if tensor.layout is torch.strided and _is_freed(tensor):
        raise Unreadable("without memory")
    return tensor


def _is_freed(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's memory is freed, which torch's own operations do not notice."""
    try:
        return not tensor.untyped_storage().nbytes() and tensor.numel() > 0
    except (RuntimeError, NotImplementedError):
        return True


def _of_subclass(tensor: Any) -> torch.Tensor:
    kind = type(tensor)
    if is_uninitialized(tensor):
        raise Unreadable("not initialized yet")
    if kind.__module__.startswith("torch.distributed.tensor") and hasattr(tensor, "to_local"):
        if any(placement.is_partial() for placement in tensor.placements):
            raise Unreadable("DTensors of partial sums")
        return exact(tensor.to_local())
    if tensor.layout is torch.jagged and kind.__module__.startswith("torch.nested"):
        if tensor.lengths() is not None:
            raise Unreadable("nested tensors with holes")
        return exact(tensor.values())
    if kind.__torch_dispatch__ is not _DISPATCH:
        raise Unreadable(f"of type {kind.__name__}")
    return tensor.as_subclass(torch.Tensor)  # type: ignore[no-any-return] # it is of any type here


def numbers_of(tensor: torch.Tensor, native: tuple[torch.dtype, ...]) -> torch.Tensor | None:
    """The same numbers as a dense tensor of a native dtype, copied only where they are not so already.

    Complex numbers become their real and imaginary parts; half, bfloat16 and the eight-bit formats become float32,
    which holds them exactly, where they are not native; of a sparse tensor, the stored values are taken. None for
    integers and truth values, quantized ones among them.

    Raises:
        Unreadable: no such tensor can be had.
    """
    with without_torch_function():
        tensor = exact(tensor)
        if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            return None
        with torch.no_grad(), without_dispatch():
            try:
                return _dense(tensor.detach(), native)
            except (RuntimeError, NotImplementedError) as error:
                raise Unreadable(f"of a kind that torch does not convert ({tensor.dtype}, {tensor.layout})") from error


def _dense(values: torch.Tensor, native: tuple[torch.dtype, ...]) -> torch.Tensor:
    if values.is_nested:
        values = torch.cat([part.reshape(-1) for part in values.unbind()])
    if values.layout is torch.sparse_coo:
        values = values.coalesce().values()
    elif values.layout is _MKLDNN:
        values = values.to_dense()
    elif values.layout is not torch.strided:
        values = values.values()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.dtype not in native:
        values = values.to(torch.float32)
    if is_plain(values):
        return values
    values = values.resolve_neg()
    # Channels-last and transposed tensors have no gaps either: their memory is read in the order in which it lies.
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.permute(order).contiguous()
