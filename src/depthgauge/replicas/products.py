"""Products of random Gaussian matrices: their exact growth, and when each number format stops following them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from depthgauge.replicas.signals import Floats
from depthgauge.seeding import Purpose, generator


@dataclass(frozen=True)
class Products:
    """Growth, overflow and underflow of R products W_k ... W_1 x of square Gaussian matrices.

    Attributes:
        log_norm: (R, factors) ln(|W_k ... W_1 x| / |x|), in float64.
        overflowed: format -> (R,) the factor after which an entry was not finite; infinity where none was.
        vanished: format -> (R,) the factor after which every entry was zero; infinity where that never happened.
    """

    log_norm: Floats
    overflowed: dict[str, Floats]
    vanished: dict[str, Floats]


def products(
    size: int, sigmas: Sequence[float], seeds: Sequence[int], *, factors: int, formats: Sequence[str] = ()
) -> Products:
    """Multiply R products of size x size matrices with entries N(0, sigma^2), from x of equal entries.

    Each is also held in every format: summed in float64 and rounded once a factor, as an accumulating matrix unit does.
    Always on the CPU: other devices round sums of half-precision numbers elsewhere.

    Args:
        size: rows and columns of a matrix.
        sigmas: (R,) standard deviations of an entry.
        seeds: (R,) of the draws.
        factors: matrices in a product.
        formats: names of torch's dtypes.
    """
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    generators = [generator(seed, Purpose.WEIGHTS) for seed in seeds]
    start = torch.full((len(seeds), size, 1), 1.0, dtype=torch.float64)
    exact, log_norm = start / math.sqrt(size), np.empty((len(seeds), factors))
    scale = torch.zeros(len(seeds), dtype=torch.float64)
    rounded = {name: start.to(getattr(torch, name)) for name in formats}
    over, zero = ({name: np.zeros((len(seeds), factors), bool) for name in formats} for _ in range(2))
    for k in range(factors):
        matrix = torch.stack([torch.randn(size, size, generator=g) for g in generators]).double()
        matrix *= sigma[:, None, None]
        exact = matrix @ exact
        norm = torch.linalg.vector_norm(exact, dim=(1, 2))
        scale += norm.log()
        exact /= norm[:, None, None]  # the norm is carried in `scale`, so float64 never overflows
        log_norm[:, k] = scale.numpy()
        for name in formats:
            vector = rounded[name] = (matrix @ rounded[name].double()).to(getattr(torch, name))
            over[name][:, k] = (~torch.isfinite(vector)).any(dim=(1, 2)).numpy()
            zero[name][:, k] = (vector == 0).all(dim=(1, 2)).numpy()
    return Products(log_norm, *({name: first_factor(when) for name, when in left.items()} for left in (over, zero)))


def first_factor(conditions: ArrayLike) -> Floats:
    """Factors, counted from 1, after which a condition (..., factors) first holds; infinity where it never does."""
    held = np.asarray(conditions, dtype=bool)
    return np.where(held.any(axis=-1), held.argmax(axis=-1) + 1.0, math.inf)
