"""Lanczos' iteration with full reorthogonalization, on several symmetric matrices at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from depthgauge.formats.arguments import real, whole
from depthgauge.seeding import Purpose, generator

Product = Callable[[Tensor], Tensor]
"""(R, P) vectors to (R, P): each times its own symmetric matrix."""

BASIS_BYTES = 1 << 30  # of one matrix's basis; where it is full, the iteration begins again from the best of it
DOUBLE = 1 << 22  # parameters of one matrix up to which the basis is kept in float64


@dataclass(frozen=True, kw_only=True)
class Lanczos:
    """Settings of a search for eigenvalues.

    Attributes:
        count: how many of the largest, largest first. Of an eigenvalue of multiplicity m fewer than m may be found.
        tolerance: largest residual |H v - value v| of a unit vector, relative to |value|, at which the iteration ends.
        most_steps: most products; what is found then is returned, with its residual.
        seed: of the first vector, and of what a model draws.

    Raises:
        ValueError: a setting is out of its range.
    """

    count: int = 1
    tolerance: float = 1e-4
    most_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        whole("count", self.count)
        whole("most_steps", self.most_steps)
        if not 0 < real(self.tolerance) < math.inf:
            raise ValueError(f"tolerance is {self.tolerance!r}, where a finite number > 0 was expected")


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues and eigenvectors of R matrices.

    Attributes:
        values: (R, count), largest first; NaN where a product was not finite.
        residuals: (R, count), |H v - value v|: an eigenvalue lies within it.
        vectors: (R, count, P), of norm 1.
        steps: (R,) products until the tolerance was met, those for the residuals apart.
        converged: (R,) whether every residual is within the tolerance.
        asymmetry: (R,) largest |u.H v - v.H u| of the basis, relative to the norm of H.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    steps: Tensor
    converged: Tensor
    asymmetry: Tensor


def largest(product: Product, like: Tensor, settings: Lanczos, eps: float) -> Pairs:
    """The largest eigenvalues of R symmetric matrices of size P; what one yields does not depend on the others.

    Args:
        product: multiplies.
        like: (R, P); its device and shape are the vectors'.
        settings: count, tolerance, ...
        eps: relative spacing of the numbers that the products are computed in.

    Raises:
        ValueError: more eigenvalues are wanted than there are.
    """
    if settings.count > like.shape[1]:
        raise ValueError(f"{settings.count} eigenvalues of a Hessian of {like.shape[1]} parameters; ask for fewer")
    basis = _Basis(like, settings, eps)
    while not basis.done():
        basis.extend(product(basis.last()))
        if basis.due():
            basis.judge()
    return _measured(product, basis, settings, eps)


class _Basis:
    """An orthonormal basis of each matrix's Krylov space, and the matrix projected on it.

    Attributes:
        rows: (R, room, P), of which the first `size` are the basis.
        projected: (R, room, room).
        steps: products so far.
    """

    def __init__(self, like: Tensor, settings: Lanczos, eps: float) -> None:
        replicas, self.length = like.shape
        small = self.length <= DOUBLE and like.device.type != "mps"
        self.dtype = torch.float64 if small else torch.promote_types(like.dtype, torch.float32)
        fit = BASIS_BYTES // (max(self.length, 1) * self.dtype.itemsize)
        self.room = min(max(fit, 2 * settings.count + 10), settings.most_steps, self.length)
        self.room = max(self.room, min(settings.count, self.length))
        self.settings, self.eps = settings, eps
        self.rows = torch.empty((replicas, self.room, self.length), dtype=self.dtype, device=like.device)
        self.projected = torch.zeros((replicas, self.room, self.room), dtype=torch.float64)
        self.norm, self.coupling, self.asymmetry = torch.zeros((3, replicas), dtype=torch.float64)
        self.coupled = False  # whether the last two vectors follow each other
        self.finite = torch.ones(replicas, dtype=torch.bool)
        self.ended = torch.full((replicas,), -1)
        self.values = torch.full((replicas, settings.count), torch.nan, dtype=torch.float64)
        self.vectors = torch.zeros((replicas, settings.count, self.length), dtype=self.dtype, device=like.device)
        self.size = self.steps = 0
        self.following = self._drawn()

    def done(self) -> bool:
        return self.steps > 0 and bool((self.ended >= 0).all())

    def last(self) -> Tensor:
        """The vectors (R, P) that are to be multiplied next, as part of the basis."""
        if self.size == self.room:
            self._begin_again()
        self.rows[:, self.size] = self.following
        return self.following

    def extend(self, image: Tensor) -> None:
        """Take the products of the last vectors."""
        image = image.to(self.dtype)
        fine = image.isfinite().all(1)
        self.finite &= fine.cpu()
        image = torch.where(fine[:, None], image, 0.0)
        here = self.size
        self.size, self.steps = here + 1, self.steps + 1
        coefficients, rest = self._apart(image)
        column = coefficients.double().cpu()
        self.norm = torch.maximum(self.norm, _norms(image)[:, 0].double().cpu())
        if self.coupled:
            self.asymmetry = torch.maximum(self.asymmetry, (column[:, here - 1] - self.coupling).abs())
        self.projected[:, here, : self.size] = self.projected[:, : self.size, here] = column
        size = _norms(rest)
        self.coupling, self.coupled = size[:, 0].double().cpu(), True
        lost = self.coupling <= 10 * self.eps * self.norm  # the basis spans an invariant space
        self.coupling = self.coupling.masked_fill(lost, 0.0)
        unit = rest / size.clamp(min=torch.finfo(self.dtype).tiny)
        if bool(lost.any()) and self.size < self.length:
            _, other = self._apart(self._drawn())
            unit = torch.where(lost.to(unit.device)[:, None], other / _norms(other), unit)
        self.following = unit

    def due(self) -> bool:
        """Whether to look for eigenvalues: at every step, later at every tenth part of the steps."""
        full = self.size >= min(self.room, self.length) or self.steps >= self.settings.most_steps
        return full or (self.size >= self.settings.count and self.steps % max(1, self.steps // 10) == 0)

    def judge(self) -> None:
        """Keep what each matrix yields where it meets the tolerance, or where its steps are spent."""
        wanted = min(self.settings.count, self.size)
        values, inside = self._ritz()
        top = values[:, -wanted:].flip(1)
        estimate = self.coupling[:, None] * inside[:, -1, -wanted:].flip(1).abs()
        good = (estimate <= 0.5 * allowed(top, self.norm[:, None], self.settings, self.eps)).all(1)
        good &= self.size >= self.settings.count
        spent = self.steps >= self.settings.most_steps or self.size >= self.length
        now = (good | ~self.finite | spent) & (self.ended < 0)
        if bool(now.any()):
            chosen = inside[:, :, -wanted:].flip(2).transpose(1, 2).to(self.rows)
            vectors = torch.bmm(chosen, self.rows[:, : self.size])
            where = now.to(vectors.device)
            self.vectors[where, :wanted] = vectors[where]
            self.values[now, :wanted] = top[now].masked_fill(~self.finite[now, None], torch.nan)
            self.ended[now] = self.steps

    def _ritz(self) -> tuple[Tensor, Tensor]:
        values, inside = torch.linalg.eigh(self.projected[:, : self.size, : self.size])
        return values, inside

    def _begin_again(self) -> None:
        """Make room: keep the best third of the space, and the direction that leads on from it (thick restart)."""
        keep = max(self.settings.count, min(self.room - 2, self.settings.count + self.room // 3))
        values, inside = self._ritz()
        chosen = inside[:, :, -keep:].transpose(1, 2).to(self.rows)
        self.rows[:, :keep] = torch.bmm(chosen, self.rows[:, : self.size])
        self.projected.zero_()
        self.projected[:, range(keep), range(keep)] = values[:, -keep:]
        self.size, self.coupled = keep, False

    def _apart(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (R, size) of vectors in the basis, and what it leaves of them, by two passes."""
        rows = self.rows[:, : self.size]
        total = torch.zeros(rows.shape[:2], dtype=self.dtype, device=rows.device)
        for _ in range(2):
            coefficients = torch.bmm(rows, vectors[:, :, None])
            vectors = vectors - torch.bmm(rows.transpose(1, 2), coefficients)[:, :, 0]
            total += coefficients[:, :, 0]
        return total, vectors

    def _drawn(self) -> Tensor:
        """One random unit vector, the same for every matrix, of the seed and the step."""
        random = generator(self.settings.seed, Purpose.DIRECTIONS, self.steps)
        vector = torch.randn(self.length, generator=random, dtype=torch.float64)
        vector /= torch.linalg.vector_norm(vector)
        return vector.to(self.rows).expand(len(self.rows), -1)


def _norms(rows: Tensor) -> Tensor:
    """2-norms (R, 1) of rows, whose squares may be too large or too small for their format."""
    largest = rows.abs().amax(1, keepdim=True)
    scale = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    norms: Tensor = torch.linalg.vector_norm(rows / scale, dim=1, keepdim=True)
    return scale * norms


def allowed(values: Tensor, norm: Tensor, settings: Lanczos, eps: float) -> Tensor:
    """The largest residuals within the tolerance; rounding of the products alone is always within it."""
    return torch.maximum(settings.tolerance * values.abs(), 10 * eps * norm)


def _measured(product: Product, basis: _Basis, settings: Lanczos, eps: float) -> Pairs:
    """What was found, each vector multiplied once more: Rayleigh quotients and their residuals."""
    values, residuals = torch.full_like(basis.values, torch.nan), torch.full_like(basis.values, torch.nan)
    for place in range(settings.count):
        vectors = basis.vectors[:, place]
        images = product(vectors).to(vectors.dtype)
        quotients = (vectors * images).sum(1)
        values[:, place] = quotients.cpu()
        residuals[:, place] = _norms(images - quotients[:, None] * vectors)[:, 0].cpu()
    wrong = ~(basis.finite[:, None] & basis.values.isfinite() & values.isfinite())
    values, residuals = values.masked_fill(wrong, torch.nan), residuals.masked_fill(wrong, torch.nan)
    order = values.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)
    vectors = basis.vectors.gather(1, order[:, :, None].to(basis.vectors.device).expand_as(basis.vectors))
    values, residuals = values.gather(1, order), residuals.gather(1, order)
    converged = (residuals <= allowed(values, basis.norm[:, None], settings, eps)).all(1)
    asymmetry = basis.asymmetry / basis.norm.clamp(min=torch.finfo(torch.float64).tiny)
    return Pairs(values, residuals, vectors, basis.ended, converged, asymmetry)
