"""Results of a search for eigenvalues, and what is common to all ways to one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from depthgauge.curvature.lanczos import Pairs, Product
from depthgauge.curvature.products import NoHessianError
from depthgauge.formats.arguments import kind

Columns = Tensor | Iterable[Tensor] | Mapping[str, Tensor]

ASYMMETRY = 0.1  # of the norm: from here on products are not those of a symmetric matrix


@dataclass(frozen=True)
class Sharpness:
    """Largest eigenvalues of a Hessian, algebraically, and their eigenvectors.

    Attributes:
        values: `count` of them, largest first; NaN where a loss or a derivative of it is not finite.
        residuals: |H v - value v| of each: an eigenvalue lies within it.
        vectors: of each, the unit eigenvector as one tensor a parameter that requires a gradient, in their order.
        steps: products with the Hessian until the tolerance was met, those for the residuals apart.
        converged: whether every residual is within the tolerance, or within ten roundings of the products.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    vectors: tuple[list[Tensor], ...] = field(compare=False, repr=False)
    steps: int
    converged: bool

    @property
    def value(self) -> float:
        """The largest eigenvalue."""
        return self.values[0]

    @property
    def residual(self) -> float:
        """Its residual."""
        return self.residuals[0]

    @property
    def vector(self) -> list[Tensor]:
        """Its eigenvector."""
        return self.vectors[0]


def check_symmetry(pairs: Pairs, eps: float) -> None:
    """Raise NoHessianError where what was multiplied by was not symmetric, and so no Hessian."""
    worst = float(pairs.asymmetry.max())
    if worst > max(ASYMMETRY, 20 * eps) and math.isfinite(worst):
        raise NoHessianError(
            f"the derivative of this gradient is not symmetric (by {worst:.0%} of its norm): the backward pass of an "
            "operation hides part of its own derivative, or has a wrong one, as weight_norm of torch 2.13 does"
        )


def inverse_root(preconditioner: Columns, parameters: Sequence[Tensor], rows: int | None = None) -> Tensor:
    """P^-1/2 as (1, P) in float64, or as (R, P).

    Args:
        preconditioner: a tensor a parameter, in a sequence or a mapping, or one flat tensor.
        parameters: those that require a gradient; of one matrix.
        rows: R, where there is a first dimension of so many; None: there is none.

    Raises:
        TypeError: no tensors of real numbers.
        ValueError: other shapes, or a number that is not positive and finite.
    """
    lead = () if rows is None else (rows,)
    if isinstance(preconditioner, Tensor):
        given: list[Any] = [preconditioner]
        shapes: list[tuple[int, ...]] = [(*lead, sum(each.numel() for each in parameters))]
    else:
        values: Any = preconditioner.values() if isinstance(preconditioner, Mapping) else preconditioner
        given = list(values) if hasattr(values, "__iter__") else [values]
        shapes = [(*lead, *each.shape) for each in parameters]
    if bad := [each for each in given if not torch.is_tensor(each) or each.is_complex()]:
        raise TypeError(f"a preconditioner is made of real tensors; got {kind(bad[0])}")
    if (found := [tuple(each.shape) for each in given]) != shapes:
        numbers, wanted = (sum(map(math.prod, each)) for each in (found, shapes))
        got = f"{numbers} numbers for {wanted}" if numbers != wanted else f"shapes {found} for {shapes}"
        raise ValueError(f"a preconditioner of {got} that require a gradient; give as many, in the parameters' shapes")
    flat = torch.cat([each.detach().reshape(rows or 1, -1).double() for each in given], 1)
    if not bool((flat.isfinite() & (flat > 0)).all()):
        raise ValueError("a preconditioner is positive and finite throughout")
    return flat.rsqrt().to(parameters[0].device)


def scaled(product: Product, scale: Tensor | None, sign: float = 1.0) -> Product:
    """The product with a matrix that is scaled from both sides, and by a sign."""

    def times(vectors: Tensor) -> Tensor:
        if scale is None:
            return sign * product(vectors)
        return sign * scale * product(vectors * scale)

    return times


def result(pairs: Pairs, row: int, shapes: Sequence[Tensor], sign: float = 1.0) -> Sharpness:
    """One matrix's pairs, vectors in the shapes and dtypes of the parameters."""
    sizes = [each.numel() for each in shapes]
    vectors = tuple(
        [piece.reshape(each.shape).to(each) for piece, each in zip(vector.split(sizes), shapes, strict=True)]
        for vector in pairs.vectors[row]
    )
    return Sharpness(
        tuple(sign * value for value in pairs.values[row].tolist()),
        tuple(pairs.residuals[row].tolist()),
        vectors,
        int(pairs.steps[row]),
        bool(pairs.converged[row]),
    )
