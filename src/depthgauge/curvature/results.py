"""Results of a search for eigenvalues, and what is common to all ways to one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthgauge.curvature.lanczos import Pairs, Product
from depthgauge.curvature.products import NoHessianError

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


def inverse_root(preconditioner: Tensor | Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """P^-1/2 as (1, P) in float64."""
    given = [preconditioner] if isinstance(preconditioner, Tensor) else list(preconditioner)
    flat = torch.cat([each.detach().reshape(-1).double() for each in given])
    length = sum(each.numel() for each in parameters)
    if len(flat) != length:
        raise ValueError(f"a preconditioner of {len(flat)} numbers for {length} that require a gradient; give as many")
    if not bool((flat > 0).all()):
        raise ValueError("a preconditioner is positive throughout")
    return flat.rsqrt().to(parameters[0].device)[None]


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
