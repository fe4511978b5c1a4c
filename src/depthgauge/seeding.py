"""Every generator of depthgauge: seeded by a seed and a purpose, so that one seed serves many draws.

    from depthgauge.seeding import Purpose, generator

    x = torch.randn(64, 784, generator=generator(seed, Purpose.INPUTS))
    w = torch.randn(784, 10, generator=generator(seed, Purpose.WEIGHTS))     # independent of x

`torch.Generator().manual_seed(seed)` in both places would give weights that are their own inputs. It would also give a
few of many thousand replicas the same weights: of a seed, PyTorch's CPU generator keeps 32 bits. Here the whole state
of the generator, 19,968 bits, is drawn from SHAKE-256 of purpose, seed and keys. Such a stream is none that a seed
alone gives, in PyTorch or in NumPy, and any integer is a seed of its own.
"""

from __future__ import annotations

import hashlib
import json
import operator
import random
import struct
from enum import StrEnum
from typing import TYPE_CHECKING, SupportsIndex

# ruff: noqa: PLC0415 - this stands at the bottom of what must not import torch
if TYPE_CHECKING:
    import numpy as np
    import torch

_STATE_WORDS = 624  # of a Mersenne Twister, 32 bits each


class Purpose(StrEnum):
    """The purpose of a draw. Draws that shall be the same numbers share purpose, seed and keys."""

    WEIGHTS = "weights"
    """What an initialization draws; `models.build`, `initialization.apply` and `replicas.stack` share it."""
    MODULES = "modules"
    """What PyTorch's own modules draw from its global generator when they are built or reset."""
    DROPOUT = "dropout"
    """What a model draws from the global generators while it is trained."""
    ORDER = "order"
    """The order in which examples are seen."""
    SAMPLE = "sample"
    """Which examples of a data set are taken."""
    DATA = "data"
    """Synthetic data; the key is the name of the data set."""
    INPUTS = "inputs"
    """Random inputs of a model or a layer."""
    LABELS = "labels"
    """Random targets for outputs of a model."""
    COTANGENT = "cotangent"
    """The gradient with respect to the outputs that a backward pass starts from."""
    RESAMPLES = "resamples"
    """Which values a bootstrap draws again."""
    DIRECTIONS = "directions"
    """Directions in the space of a model's parameters."""
    OPERANDS = "operands"
    """Numbers to compute with where only the time matters."""
    PADDING = "padding"
    """Where in memory lies what is timed."""
    ROUNDING = "rounding"
    """Which way a number is rounded stochastically."""
    UNGUARDED = "unguarded"
    """Global generators, for code that draws from them without having seeded them; the key is the chunk that runs."""


def generator(
    seed: SupportsIndex, purpose: Purpose, *keys: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator of PyTorch's.

    Args:
        seed: any integer.
        purpose: the purpose of the draw.
        *keys: keys that tell draws of one purpose and one seed apart, such as a name.
        device: where it draws; the same seed gives other numbers on another kind of device.

    Raises:
        TypeError: the seed is no integer.
        ValueError: there is no such purpose.
    """
    import torch

    if torch.device(device).type != "cpu":
        return torch.Generator(device).manual_seed(number(seed, purpose, *keys))
    words = struct.unpack(f"={_STATE_WORDS}I", _digest(seed, purpose, keys, 4 * _STATE_WORDS))
    # As PyTorch lays it out: the seed, how many words are left (none: the next draw makes new ones), whether it was
    # seeded, the place of the next word, the words at 64 bits each, and no half of a pair of normal draws.
    state = struct.pack(f"=QiiQ{_STATE_WORDS}Q40x", number(seed, purpose, *keys), 1, 1, 0, *words)
    return torch.Generator().set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def numpy_generator(seed: SupportsIndex, purpose: Purpose, *keys: str | int) -> np.random.Generator:
    """A generator of NumPy's; arguments and errors as in `generator`."""
    import numpy as np

    return np.random.default_rng(int.from_bytes(_digest(seed, purpose, keys, 32), "big"))


def python_generator(seed: SupportsIndex, purpose: Purpose, *keys: str | int) -> random.Random:
    """A generator of Python's own; arguments and errors as in `generator`."""
    return random.Random(number(seed, purpose, *keys))  # noqa: S311 - nothing drawn here is a secret


def number(seed: SupportsIndex, purpose: Purpose, *keys: str | int) -> int:
    """A seed of 63 bits, for functions that take an integer; arguments and errors as in `generator`."""
    return int.from_bytes(_digest(seed, purpose, keys, 8), "big") >> 1


def seed_torch(seed: SupportsIndex, purpose: Purpose, *keys: str | int, device: str | torch.device = "cpu") -> None:
    """Seed PyTorch's global generators of the CPU and of one device, for draws that take no generator.

    Inside `torch.random.fork_rng` the caller's are put back. Arguments and errors as in `generator`.
    """
    import torch

    torch.default_generator.set_state(generator(seed, purpose, *keys).get_state())
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number(seed, purpose, *keys))  # it keeps all bits of a seed


def seed_globals(seed: SupportsIndex, purpose: Purpose, *keys: str | int, device: str | torch.device = "cpu") -> None:
    """Seed the global generators of Python, NumPy and PyTorch, each with a stream of its own.

    Arguments and errors as in `generator`.
    """
    import numpy as np

    random.seed(number(seed, purpose, *keys, "python"))
    words = struct.unpack("=8I", _digest(seed, purpose, (*keys, "numpy"), 32))
    np.random.seed(words)  # noqa: NPY002 - the global state is what is seeded
    seed_torch(seed, purpose, *keys, device=device)


def _digest(seed: SupportsIndex, purpose: Purpose, keys: tuple[str | int, ...], size: int) -> bytes:
    try:
        whole = operator.index(seed)
    except TypeError as error:
        raise TypeError(f"a seed is an integer, not {seed!r}") from error
    if purpose not in list(Purpose):
        raise ValueError(f"no purpose {purpose!r}; there is {', '.join(Purpose)}")
    return hashlib.shake_256(json.dumps([purpose, hex(whole), *keys]).encode()).digest(size)
