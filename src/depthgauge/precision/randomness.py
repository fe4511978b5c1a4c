"""States of the global random generators, from which a module may draw: read, set and kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose, seed_globals

RandomState = tuple[Any, Any, Tensor, list[Tensor]]


def random_state() -> RandomState:
    """States of the global generators: Python's, NumPy's, torch's, and those of CUDA devices that are in use."""
    legacy = np.random.get_state()  # noqa: NPY002 - what a module may draw from
    return random.getstate(), legacy, torch.get_rng_state(), torch.cuda.get_rng_state_all() if _cuda() else []


def set_random_state(state: RandomState) -> None:
    """Set what `random_state` has read."""
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002 - as above
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators within the block."""
    with random_states_kept():
        seed_globals(seed, Purpose.DROPOUT)
        yield


def _cuda() -> bool:
    in_use: Any = torch.cuda.is_initialized
    return bool(in_use())
