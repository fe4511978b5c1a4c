"""Weights that are independent draws: what steps leave in them, they do not have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEWEST = 128  # numbers of a matrix that can tell
SIDE = 4  # rows and columns, at least
ERRORS = 4.5  # standard errors that a moment of independent draws may lie off
EDGE = 1.15  # times the largest singular value of independent draws that is expected
MOST = 1 << 20  # numbers that are looked at: the first rows of larger matrices
UNIFORM, NORMAL = 1.6, 3.0  # fourth moments over the square of the second; a uniform one's is 1.8, less chance
ROUNDED = 1e-5  # relative difference of the rows of an orthogonal matrix from orthogonal ones


def can_tell(weight: Tensor) -> bool:
    """Tell whether it has numbers enough, in rows and columns enough, and is not all zero."""
    return (
        weight.dim() > 1
        and weight.numel() >= FEWEST
        and min(len(weight), weight[0].numel()) >= SIDE
        and weight.is_floating_point()
        and bool(weight.any())
    )


@torch.no_grad()
def is_drawn(weight: Tensor) -> bool:
    """Tell whether a matrix's numbers are independent draws of one distribution, or its rows are orthogonal.

    Rows and columns of independent draws differ in size by chance alone, and no singular value stands out (Marchenko
    and Pastur 1967). Steps add a few outer products, which do. A matrix that cannot tell is none.
    """
    if not can_tell(weight):
        return False
    matrix = weight.detach().flatten(1)
    matrix = matrix[: max(SIDE, MOST // matrix.shape[1])].double()
    matrix = matrix[matrix.any(1)]  # without the row of padding
    if min(matrix.shape) < SIDE or not bool(matrix.isfinite().all()):
        return False
    return _is_orthogonal(matrix) or _is_independent(matrix)


def _is_independent(matrix: Tensor) -> bool:
    count, (rows, columns) = matrix.numel(), matrix.shape
    scaled = matrix / matrix.square().mean().sqrt()
    fourth = scaled.pow(4).mean().item()
    if abs(scaled.mean().item()) * math.sqrt(count) > ERRORS:
        return False
    if not UNIFORM < fourth < NORMAL + ERRORS * math.sqrt(24 / count):
        return False
    for across, length, sums in ((1, columns, rows), (0, rows, columns)):
        sizes = scaled.square().mean(across).var().item() * length / (fourth - 1)
        means = scaled.mean(across).square().mean().item() * length
        if max(sizes, means) > 1 + ERRORS * math.sqrt(2 / sums):
            return False
    largest: float = torch.linalg.matrix_norm(scaled, 2).item()
    return largest < EDGE * (math.sqrt(rows) + math.sqrt(columns))


def _is_orthogonal(matrix: Tensor) -> bool:
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    product = short @ short.T
    scale = product.diagonal().mean()
    off = product - scale * torch.eye(len(product), dtype=product.dtype, device=product.device)
    return bool(off.abs().max() < ROUNDED * scale)
