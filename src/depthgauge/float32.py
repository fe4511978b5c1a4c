"""The multiplication of float32: in full, or rounded to TF32, as CUDA's convolutions are unless told otherwise.

    with multiplied(tf32=False):     # products, convolutions and recurrent layers
        ...
    formats()                        # ("float32", "tf32"): of products and of convolutions, as they are now

torch has two sets of switches (its notes on numerical accuracy and on TF32): `set_float32_matmul_precision` and
`cudnn.allow_tf32`, and `fp32_precision` of all, of a backend, of its operators. The former raise an error when they are
read while one of the latter says something else; and the first of them leaves convolutions as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

# ruff: noqa: PLC0415 - what was measured before is read without torch

T = TypeVar("T")
_INHERITED = "none"  # what stands above counts


@dataclass(frozen=True)
class Switches:
    """All switches of float32's multiplication.

    Attributes:
        products: `torch.get_float32_matmul_precision()`.
        convolutions: `torch.backends.cudnn.allow_tf32`.
        own: `fp32_precision` of everything and of CUDA; of CUDA's products, convolutions and recurrent layers; of
            oneDNN's; as it was set there, not as it is inherited.
    """

    products: str
    convolutions: bool
    own: tuple[str, ...]


FULL = Switches("highest", convolutions=False, own=(_INHERITED, _INHERITED, *["ieee"] * 6))
TF32 = Switches("high", convolutions=True, own=(_INHERITED, _INHERITED, *["tf32"] * 4, *["ieee"] * 2))


def formats() -> tuple[str, str]:
    """Formats in which CUDA multiplies float32 now, `float32` or `tf32`: of matrix products, and of convolutions."""
    products, convolutions = _places()[2:4]
    return _format(products), _format(convolutions)


@contextmanager
def multiplied(*, tf32: bool) -> Iterator[None]:
    """Multiply float32 in full within the block, or rounded to TF32 where the device has it."""
    before = read()
    write(TF32 if tf32 else FULL)
    try:
        yield
    finally:
        write(before)


def read() -> Switches:
    """All switches as they are, whichever were set last."""
    import torch

    products = _legacy(torch.get_float32_matmul_precision, {2: "ieee", 5: "ieee"})
    try:
        convolutions = _legacy(_allowed, {3: "tf32", 4: "tf32"})
    except RuntimeError:  # it does not agree with TF32, so it is off
        convolutions = False
    return Switches(products, convolutions, _own())


def write(switches: Switches) -> None:
    """Set all switches: the newer ones last, which the older ones set, too."""
    import torch

    torch.set_float32_matmul_precision(switches.products)
    torch.backends.cudnn.allow_tf32 = switches.convolutions
    for place, precision in zip(_places(), switches.own, strict=True):
        place.fp32_precision = precision


def _places() -> tuple[Any, ...]:
    from torch import backends

    every: Any = backends
    cudnn, onednn = every.cudnn, every.mkldnn
    return every, cudnn, every.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn


def _format(place: Any) -> str:
    return "tf32" if place.fp32_precision == "tf32" else "float32"


def _allowed() -> bool:
    import torch

    return bool(torch.backends.cudnn.allow_tf32)


def _own() -> tuple[str, ...]:
    """What was set at each place: read while nothing is inherited."""
    every, cuda, *operators = places = _places()
    if every.fp32_precision == cuda.fp32_precision == _INHERITED:
        return tuple(place.fp32_precision for place in places)
    of_all = every.fp32_precision
    every.fp32_precision = _INHERITED
    of_cuda = cuda.fp32_precision
    cuda.fp32_precision = _INHERITED
    own = of_all, of_cuda, *(place.fp32_precision for place in operators)
    every.fp32_precision, cuda.fp32_precision = of_all, of_cuda
    return own


def _legacy(switch: Callable[[], T], agreeing: dict[int, str]) -> T:
    """An older switch, read while the newer ones at those places agree with it."""
    try:
        return switch()
    except RuntimeError:
        own, places = _own(), _places()
    try:
        for place, precision in agreeing.items():
            places[place].fp32_precision = precision
        return switch()
    finally:
        for place in agreeing:
            places[place].fp32_precision = own[place]
