"""Checks of modules, batches, losses and functions at the entrances, with one wording of the errors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import torch
import torch.utils.data
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.formats.arguments import check_dense, kind
from depthgauge.precision.arguments import Arguments


def check_module(name: str, module: object) -> None:
    """Raise TypeError for what is no module, ValueError for one without numbers: lazy, or on the meta device."""
    if not isinstance(module, nn.Module):
        hint = ": call it first" if isinstance(module, type) and issubclass(module, nn.Module) else ""
        raise TypeError(f"{name} is {kind(module)}, where a torch.nn.Module was expected{hint}")
    for place, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{place!r} of a lazy layer has no values yet: call the module once first")
        if tensor.is_meta:
            raise ValueError(f"{place!r} of the module is on the meta device, without values: load or draw them first")


FORMS = "a tuple (by position) or a mapping (by name)"
NO_BATCH = (str, bytes, Number, set, type, Iterator, torch.utils.data.DataLoader, torch.utils.data.Dataset)


def check_batch(name: str, batch: Any, *, dense: bool = False) -> None:
    """Raise TypeError for what is no batch, ValueError for one without numbers.

    Args:
        name: of the argument.
        batch: a tensor, a tuple, a mapping, or another object that may hold tensors.
        dense: whether no tensor of it may be sparse or nested.
    """
    found = [tensor for _, tensor in nested.tensors(batch)]
    members = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else []
    arrays = [] if found else [each for each in (batch, *members) if hasattr(each, "__array__")]
    if batch is None or isinstance(batch, NO_BATCH):
        raise TypeError(f"{name} is {kind(batch)}, where a tensor, {FORMS} was expected")
    if arrays:
        raise TypeError(f"{name} {'is' if arrays[0] is batch else 'holds'} {kind(arrays[0])} and no tensor")
    check_values(name, batch)
    for tensor in found:
        if dense or (tensor.is_nested and tensor.layout is torch.strided):
            check_dense(f"a part of {name}", tensor)


def check_values(name: str, batch: Any) -> None:
    """Raise ValueError for tensors on the meta device, or where none holds a number."""
    found = [tensor for _, tensor in nested.tensors(batch)]
    if any(tensor.is_meta for tensor in found):
        raise ValueError(f"a tensor of {name} is on the meta device, without values")
    if found and not any(tensor.numel() for tensor in found):
        raise ValueError(f"{name} is empty, of the shape {tuple(found[0].shape)}: there is nothing to compute")


def check_call(module: nn.Module, batch: Any) -> None:
    """Raise TypeError where a module's `forward` does not take a batch's parts as its arguments."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).__call__ is not nn.Module.__call__:
        return  # the one has no signature, the other perhaps no forward
    args, kwargs = Arguments.of(batch)
    kind_of = type(module).__name__
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise TypeError(f"a {kind_of} has no forward of its own, and cannot be called")
    if module._forward_pre_hooks:  # which may exchange the arguments
        return
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        call = f"{kind_of}.forward({', '.join(signature.parameters)})"
        raise TypeError(f"{call} does not take this batch, {FORMS} of its arguments: {error}") from None


def check_labels(labels: Any) -> None:
    """Raise TypeError for the second of a pair that cross-entropy does not take for class numbers."""
    dtype = labels.dtype if isinstance(labels, Tensor) else None
    if dtype not in {torch.int64, torch.uint8}:
        found = kind(labels) if dtype is None else f"of {dtype}"
        expected = "class numbers (int64) were expected: give another loss as loss="
        raise TypeError(f"the second of a pair is {found}, where {expected}") from None


def check_sides(a: Any, b: Any, batch: Any) -> None:
    """Raise TypeError or ValueError where two modules cannot be compared on a batch."""
    check_batch("batch", batch, dense=True)
    for name, module in (("a", a), ("b", b)):
        check_module(name, module)
        _check_arithmetic(name, module)
        _check_plain(name, module)
        check_call(module, batch)


def _check_arithmetic(name: str, module: nn.Module) -> None:
    """Raise ValueError for a module whose own dtype, in which it is given its inputs, torch does not compute in."""
    state = (*module.parameters(), *module.buffers())
    own = next((tensor.dtype for tensor in state if tensor.is_floating_point()), torch.float32)
    if own.itemsize == 1:
        emulation = "precision.cast rounds the weights of one in float32, precision.emulated what it computes"
        raise ValueError(f"{name} is a module in {own}, in which torch computes nothing: {emulation}")


def _check_plain(name: str, module: nn.Module) -> None:
    """Raise TypeError for a module with parts that torch.jit has made, whose inside no hook sees."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise TypeError(f"{name} holds modules of torch.jit, which take no hooks: give the one that was scripted")


def checked_value(value: Any, *, trained: bool) -> Tensor:
    """The value of a loss; TypeError or ValueError where no backward pass can start from it.

    Args:
        value: what a loss has returned.
        trained: whether the module has parameters that ask for a gradient.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"the loss is {kind(value)}, where a tensor of one number was expected")
    if value.numel() != 1:
        raise ValueError(f"the loss has the shape {tuple(value.shape)}, where one number was expected")
    if not value.is_floating_point():
        raise TypeError(f"the loss is of {value.dtype}, where a number of floating point was expected")
    if trained and not value.requires_grad:
        raise ValueError("the loss has no gradient: it is detached, or depends on no parameter that trains")
    return value


def check_loss(loss: Any) -> None:
    """Raise TypeError for what cannot be called as loss(module, batch)."""
    if str(getattr(loss, "__module__", "")).startswith("torch.nn."):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(f"loss is {name}, which takes outputs: give lambda module, batch: {name}(module(...), ...)")
    check_function("loss", loss, "module", "batch")


def check_function(name: str, function: Any, *parameters: str) -> None:
    """Raise TypeError for what cannot be called with so many arguments."""
    call = f"{name}({', '.join(parameters)})"
    if not callable(function):
        raise TypeError(f"{name} is {kind(function)}, where a function was expected, called as {call}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise TypeError(f"{name} is called as {call}, and takes {signature}: {error}") from None
