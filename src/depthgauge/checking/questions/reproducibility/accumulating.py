"""Gradients of parts of a batch: whether they make up the whole batch's, and with which weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.checking.attributes import attributes_kept, reseed
from depthgauge.checking.graphs import nodes
from depthgauge.foreign import describe_error
from depthgauge.workload import Training

VALUES = 50_000  # of a gradient that are looked at: parts of a gradient are told apart by far fewer
COARSE = 1e-3  # share of a gradient that parts may leave in float32, as of `parallel.same`
BANDS = 8.0  # spacings of a coarser format that they may leave
ALIKE = 0.02  # weights that differ by less are alike: those of 50 tokens and of 51
EXAMPLES = 64  # whose own weights are found, at most
CONDITION = 1e-4  # of the examples' gradients: below it float32 does not tell their weights to 1 %

NORMALIZING = nn.modules.batchnorm._BatchNorm

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Accumulated:
    """A batch's gradient, as those of its parts make it up.

    Attributes:
        cause: `mean`, `sum`, `weights`, `uneven`, `broadcast`, `batch norm`, `random`, `tied`; empty where not tried.
        misfit: share of the gradient that no weights of the parts explain.
        apart: share by which the plain mean of its two parts misses the whole.
        weights: of the two parts of the cut whose plain mean is the furthest from the whole.
        spread: largest over smallest of the examples' weights, where they were found.
        why: why it was not tried.
        table: a row a cut.
    """

    cause: str = ""
    misfit: float = math.nan
    apart: float = math.nan
    weights: tuple[float, ...] = ()
    spread: float = math.nan
    why: str = ""
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Held:
    """Modules that are held still while parts are compared: dropout, all but batch normalization, or that too."""

    all: bool = False
    norm: bool = False

    def hold(self, part: nn.Module) -> None:
        """Hold one module still; a recurrent one of cuDNN has no backward pass in eval mode."""
        if isinstance(part, nn.RNNBase):
            part.dropout = 0.0
        elif isinstance(part, NORMALIZING):
            part.training = part.training and not self.norm
        elif self.all or isinstance(part, nn.modules.dropout._DropoutNd):
            part.training = False


class Gradients:
    """Gradients of a training's batches at the weights as they are, with what draws or normalizes held as told."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._named = [each for each in training.model.parameters() if each.requires_grad]
        self._stride = max(1, math.ceil(sum(each.numel() for each in self._named) / VALUES))

    def of(self, batch: Any, held: Held, seed: int | None = None) -> Floats:
        """(values,) float64."""
        with attributes_kept(self._training) as generators, self._training.untouched():
            if seed is not None:
                reseed(generators, seed)
            for part in self._training.model.modules():
                held.hold(part)
            for each in self._named:
                each.grad = None
            self._training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            found = [self._read(each).cpu() for each in self._named]
        return torch.cat(found).numpy()

    @property
    def normalizes(self) -> bool:
        """Tell whether batch normalization takes its statistics from the batch."""
        return any(isinstance(each, NORMALIZING) and each.training for each in self._training.model.modules())

    def _read(self, parameter: Tensor) -> Tensor:
        if parameter.grad is None:  # what only other examples use
            gradient = torch.zeros_like(parameter)
        else:
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        return nested.real(gradient).reshape(-1)[:: self._stride].double()


def accumulated(training: Training, batch: Any, epsilon: float, going: Callable[[], bool]) -> Accumulated:
    """Cut a batch in ways, and find the weights of the parts' gradients in the whole's.

    Args:
        training: the user's.
        batch: whose first dimension is the examples'.
        epsilon: spacing at 1 of the coarsest format that its tensors have.
        going: whether there is time left for another pass.
    """
    count = nested.rows(batch)
    if count is None or count < 4:
        few = f"a batch of {count} is not cut"
        return Accumulated(
            why=few if count else "the batch's tensors share no first dimension, that would be the examples'"
        )
    if pairs(training, batch, count):
        return Accumulated("broadcast")
    gradients = Gradients(training)
    return _explained(gradients, nested.first(batch, count - count % 4), max(COARSE, BANDS * epsilon), going)


def _explained(gradients: Gradients, batch: Any, tolerance: float, going: Callable[[], bool]) -> Accumulated:
    """What makes the whole of the parts."""
    held = _still(gradients, batch, tolerance)
    if isinstance(held, str):
        return Accumulated("random" if "draws" in held else "", why=held)
    try:
        rows = list(_cuts(gradients, batch, gradients.of(batch, held), held))
    except Exception as error:  # noqa: BLE001 - it may ask for as many examples as there are
        return Accumulated(why=f"a part of the batch raises {describe_error(error)}")
    misfit, apart = (max(row[name] for row in rows) for name in ("misfit", "apart"))
    worst = max(rows, key=lambda row: float(row["apart"]))
    first, spread = (worst["first"], worst["second"]), math.nan
    if misfit <= tolerance:
        cause = _linear(rows, apart, tolerance)
    elif gradients.normalizes:
        still = replace(held, norm=True)
        rest = max(row["misfit"] for row in _cuts(gradients, batch, gradients.of(batch, still), still))
        cause = "batch norm" if rest <= tolerance else "tied"
    else:
        spread = Examples(gradients, batch, held, tolerance).spread(going)
        cause = "tied" if math.isnan(spread) else "uneven"
    return Accumulated(cause, misfit, apart, first, spread, table=pd.DataFrame(rows))


def _still(gradients: Gradients, batch: Any, tolerance: float) -> Held | str:
    """What has to be held for a gradient that does not depend on the seed; or why there is none."""
    for held in (Held(), Held(all=True)):
        one, other = (gradients.of(batch, held, seed=seed) for seed in (1, 2))
        if not np.isfinite(one).all() or not one.any():
            return "the gradient is not finite, or zero"
        if _apart(one, other, one) <= tolerance:
            return held
    return "it draws random numbers, of which parts of a batch get others"


def _linear(rows: Sequence[dict[str, Any]], apart: float, tolerance: float) -> str:
    """The name of weights that explain all cuts."""
    if apart <= tolerance:
        return "mean"
    if all(abs(row[name] - 1) <= ALIKE for row in rows for name in ("first", "second")):
        return "sum"
    return "weights"


def _cuts(gradients: Gradients, batch: Any, whole: Floats, held: Held) -> Iterator[dict[str, Any]]:
    """A row a cut: the parts' weights, what they leave of the whole, and how far the plain mean is from it."""
    count = nested.rows(batch) or 0
    places = torch.arange(count)
    ways = {"halves": places < count // 2, "every other example": places % 2 == 0}
    for name, mask in ways.items():
        parts = [gradients.of(taken(batch, kept), held) for kept in (mask, ~mask)]
        weights, misfit = fitted(parts, whole)
        apart = _apart((parts[0] + parts[1]) / 2, whole, whole)
        yield {"cut": name, "first": weights[0], "second": weights[1], "misfit": misfit, "apart": apart}


def taken(batch: Any, mask: Tensor) -> Any:
    """The examples of a mask."""
    return nested.mapped(batch, lambda tensor: tensor[mask.to(tensor.device)])


def fitted(parts: Sequence[Floats], whole: Floats) -> tuple[Floats, float]:
    """Least-squares weights of parts in a whole, and what they leave, over the mean size of whole and parts."""
    matrix = np.stack(parts, axis=1)
    weights: Floats = np.linalg.lstsq(matrix, whole, rcond=None)[0].astype(np.float64)
    return weights, _apart(matrix @ weights, whole, np.concatenate([whole, *parts]) / math.sqrt(1 + len(parts)))


def _apart(a: Floats, b: Floats, scale: Floats) -> float:
    if a.shape != b.shape:
        return math.inf
    return float(np.linalg.norm(a - b) / (np.linalg.norm(scale) or 1.0))


class Examples:
    """The weights that a batch's examples have in its gradient.

    Args:
        gradients: of the training.
        batch: the whole.
        held: what is held still.
        tolerance: share of a gradient that weights may leave.
    """

    def __init__(self, gradients: Gradients, batch: Any, held: Held, tolerance: float) -> None:
        self._gradients, self._held, self._tolerance = gradients, held, tolerance
        whole = gradients.of(batch, held)
        self._count = min(nested.rows(batch) or 0, EXAMPLES, len(whole) // 4)
        self._batch = nested.first(batch, self._count)

    def spread(self, going: Callable[[], bool]) -> float:
        """Largest over smallest weight, where they contradict those in pairs; NaN where not, or where none are told."""
        single: list[Floats] = []
        with contextlib.suppress(Exception):  # a loss may refuse a single example: then it ties several together
            while len(single) < self._count and going():
                single.append(self._of([len(single)]))
        sizes = np.array([np.linalg.norm(each) for each in single])
        places = np.flatnonzero(sizes).tolist()  # an example of which all is masked weighs nothing
        if len(single) < self._count or len(places) < 4 or not np.isfinite(sizes).all():
            return math.nan
        told = [single[place] for place in places]
        if np.linalg.cond(np.stack(told, axis=1) / sizes[places]) > 1 / CONDITION:
            return math.nan
        weights = self._means(told, self._gradients.of(self._batch, self._held))
        if weights is None or not self._contradicted(told, weights, places):
            return math.nan
        return float(weights.max() / weights.min())

    def _of(self, places: Sequence[int]) -> Floats:
        mask = torch.zeros(self._count, dtype=torch.bool)
        mask[list(places)] = True
        return self._gradients.of(taken(self._batch, mask), self._held)

    def _means(self, parts: Sequence[Floats], whole: Floats) -> Floats | None:
        """The weights where they are those of means: positive, and together 1, or as many as parts are averaged."""
        weights, misfit = fitted(parts, whole)
        if misfit > self._tolerance or (weights <= 0).any():
            return None
        total = float(weights.sum())
        return weights if round(total) >= 1 and abs(total - round(total)) <= ALIKE else None

    def _contradicted(self, single: Sequence[Floats], weights: Floats, places: Sequence[int]) -> bool:
        """Tell whether two examples by themselves have other weights, relative to each other, than in the whole."""
        half, contradicted = len(single) // 2, False
        for one in range(0, half, max(1, half // 4)):
            found = self._means([single[one], single[one + half]], self._of([places[one], places[one + half]]))
            if found is None:
                return False
            contradicted |= abs(math.log(weights[one] / weights[one + half] * found[1] / found[0])) > 2 * ALIKE
        return contradicted


def pairs(training: Training, batch: Any, count: int) -> bool:
    """Tell whether every output is held against every target: (N, 1) less (N,) is (N, N)."""
    if not any(tensor.shape == (count,) for _, tensor in nested.tensors(batch)):
        return False
    with attributes_kept(training), training.untouched():
        return any(_broadcasts(node, count) for node in nodes(training.value(batch)))


def _broadcasts(node: Any, count: int) -> bool:
    """Tell whether a difference of (N, N) comes of a gradient's side of (N, 1) and of another without a gradient."""
    edges = [each for each, _ in node.next_functions if each is not None]
    name = node.name()
    if len(edges) != 1 or name not in {"SubBackward0", "RsubBackward0", "ExpandBackward0"}:
        return False
    try:
        made, given = (tuple(each._input_metadata[0].shape) for each in (node, edges[0]))
    except (AttributeError, IndexError):
        return False
    return made == (count, count) and given == (count, 1)
