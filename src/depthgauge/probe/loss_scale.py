"""Loss scales at which gradients stay inside a number format: all powers of two at once, from exponent histograms.

A power of two moves a value to another binade and leaves its significand as it is. So each cell of a histogram passes
each limit of a format at one power of two, and the cells' counts, ordered by these powers, are the whole map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.formats.arguments import real
from depthgauge.probe.rows import CELLS, Rows

if TYPE_CHECKING:
    import pandas as pd

SMALLEST, LARGEST = -1022, 1023  # powers of two that a float holds with full precision
ZERO, FULL, OVER = range(3)  # edges: above zero; above the subnormal values; above the largest value
FORMATS = ("float16", "bfloat16", "float32", "float64")
ANSWERS = ("fits float16", "needs scaling", "needs bfloat16", "needs float32", "needs float64")


class Gradient(NamedTuple):
    """A gradient tensor of a record; fields as in `Record.to_frame`."""

    layer: str
    direction: str
    parameter: str | None
    output: str | None
    step: int

    def __str__(self) -> str:
        """The tensor in words, `weight gradient of stem.bias in step 4`."""
        place = ".".join(part for part in (self.layer or "(module)", self.parameter, self.output) if part)
        return f"{self.direction.replace('_', ' ')} of {place} in step {self.step}"


class Limits(NamedTuple):
    """The gradients that limit a loss scale: from below (the first to be lost), and from above (to overflow)."""

    least: Gradient | None
    greatest: Gradient | None


class Tensors:
    """Tensors and a number format, into which they are rounded times any power of two.

    Args:
        rows: of a record; n tensors.
        where: (n,) their coordinates, as in `Record.to_frame`.
        factors: (n,) what each is multiplied by beforehand; positive and finite.
        fmt: the format.
    """

    def __init__(self, rows: Rows, where: pd.DataFrame, factors: NDArray[np.float64], fmt: formats.Format) -> None:
        self.rows, self.where, self.fmt = rows, where, fmt
        self.n = rows.sums_by_row(rows.counts.astype(np.float64))
        self._row_of_cell = np.repeat(np.arange(len(self.n)), rows.words[:, CELLS])
        mantissas, shifts = np.frexp(factors)
        self._shift = shifts.astype(np.int64) - 1
        distinct, kind = np.unique(np.append(2 * mantissas, 1.0), return_inverse=True)
        self._kind = kind[:-1]
        tables = [_passages(fmt, float(mantissa)) for mantissa in distinct]
        self._places = np.array([places for places, _ in tables])
        self._weights = np.array([weights for _, weights in tables])

    def _powers(self, edge: int, jump: int, cells: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.int64]:
        """The power of two from which cells pass an edge: the first (`jump` 0) or all (1) of their values."""
        exponents, segments = formats.cell_of(self.rows.keys[cells])
        places: NDArray[np.int64] = self._places[self._kind[row], edge, jump, segments]
        return places - exponents - self._shift[row]

    def bounds(self, lost: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n,) the least and the greatest safe power of two of each tensor; infinite where nothing limits it.

        A cell that an edge cuts, which takes a factor that is no power of two, counts on the unsafe side.
        """
        least, greatest = np.full(len(self.n), -np.inf), np.full(len(self.n), np.inf)
        rows, filled = self.rows, np.flatnonzero(self.n)
        row = self._row_of_cell
        up_to = np.cumsum(rows.counts)  # a row's cells ascend
        before = np.append(0, up_to)[rows.starts]
        allowed = rows.sums_by_row(((up_to - before[row]) / self.n[row] <= lost).astype(np.float64)).astype(np.intp)
        least[filled] = self._powers(ZERO, 1, (rows.starts + allowed)[filled], filled)
        last = rows.starts + rows.words[:, CELLS] - 1
        greatest[filled] = self._powers(OVER, 0, last[filled], filled) - 1
        return least, greatest

    def shares(self, first: int, powers: int) -> dict[str, NDArray[np.float64]]:
        """(n, powers) shares of nonzero values that are lost at 2^first, 2^(first + 1), ...; NaN of none."""
        passed = []
        row = self._row_of_cell
        cells, segments = np.arange(len(row)), self.rows.keys & 15
        for edge in (ZERO, FULL, OVER):
            total = np.zeros(len(self.n) * (powers + 1))
            for jump in (0, 1):
                weights = self.rows.counts * self._weights[self._kind[row], edge, jump, segments]
                if not weights.any():
                    continue
                place = np.clip(self._powers(edge, jump, cells, row) - first, 0, powers)
                total += np.bincount(row * (powers + 1) + place, weights, len(total))
            passed.append(total.reshape(-1, powers + 1).cumsum(axis=1)[:, :powers])
        n = self.n[:, None]
        with np.errstate(invalid="ignore"):
            return {
                "under": (n - passed[ZERO]) / n,
                "subnormal": (passed[ZERO] - passed[FULL]) / n,
                "over": passed[OVER] / n,
            }


def _passages(fmt: formats.Format, mantissa: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(edge, jump, segment): the exponent at which values times `mantissa` pass an edge, first and all, and the shares.

    All values of a segment pass at one exponent, or, where the edge cuts the segment, a share at the one before.
    """
    lowest, top = (math.frexp(limit)[1] - 1 for limit in (fmt.smallest_subnormal, fmt.max))
    exponents = np.arange(lowest - 3, top + 4)
    at, segments = np.meshgrid(exponents, np.arange(formats.SEGMENTS), indexing="ij")
    under, subnormal, over = formats.cell_shares(at.ravel(), segments.ravel(), fmt, mantissa)
    passed = np.reshape([1 - under, 1 - under - subnormal, over], (3, len(exponents), formats.SEGMENTS))
    places = np.stack([(passed > 0).argmax(axis=1), (passed >= 1).argmax(axis=1)], axis=1)
    first = np.take_along_axis(passed, places[:, :1], axis=1)[:, 0]
    return exponents[places], np.stack([first, 1 - first], axis=1)


@dataclass(frozen=True, eq=False)
class LossScale:
    """The loss scales, powers of two, at which all gradients of a record stay inside a number format.

    Attributes:
        format: the format's name.
        lost: largest share of a tensor's nonzero values that may be rounded to zero.
        least: the least safe scale, itself safe; NaN where no scale is.
        greatest: the greatest safe scale, itself safe; NaN where no scale is.
        limits: the gradients that set them, `limits.least` and `limits.greatest`: of several, the one that loses most a
            power of two beyond. They are named where no scale is safe, too: these two want different scales, or both
            are the first gradient that was not finite. None where nothing sets a limit.
    """

    format: str
    lost: float
    least: float
    greatest: float
    limits: Limits
    _tensors: Tensors = field(repr=False)
    _bounds: tuple[NDArray[np.float64], NDArray[np.float64]] = field(repr=False)

    @classmethod
    def of(cls, tensors: Tensors, broken: NDArray[np.bool_], lost: float) -> LossScale:
        """The loss scale of gradient tensors, of which those that are `broken` are safe at no scale.

        Raises:
            ValueError: `lost` is no share below 1.
        """
        bounds = least, greatest = _bounds_of(tensors, broken, lost)
        low, high = _safe(least.max(), greatest.min())
        limits = Limits(
            _limit(tensors, np.where(least < SMALLEST, -np.inf, least), "under"),
            _limit(tensors, np.where(greatest > LARGEST, -np.inf, -greatest), "over"),
        )
        return cls(tensors.fmt.name, real(lost), float(low), float(high), limits, tensors, bounds)

    def __str__(self) -> str:
        """The safe scales and the gradients that set them, in a sentence."""
        named = {end: f"the {limit}" for end, limit in self.limits._asdict().items() if limit}
        if math.isnan(self.least):
            among = f"; at fault: {' and '.join(dict.fromkeys(named.values()))}" if named else ""
            return f"{self.format}: no loss scale keeps every gradient{among}"
        between = f"from 2^{math.log2(self.least):g} to 2^{math.log2(self.greatest):g}"
        ends = "".join(f"; the {end} is set by {limit}" for end, limit in named.items())
        return f"{self.format}: loss scales {between} keep every gradient{ends}"

    def to_frame(self) -> pd.DataFrame:
        """The loss-scale map: a row for each power of two and gradient tensor, from the smallest scale up.

        The scales go from one power of two below the first limit of any tensor to one beyond the last, 1 included.
        Columns: `loss_scale`; those that say where, as in `Record.to_frame`; `under`, `subnormal` and `over`, shares of
        the `n` finite, nonzero values that are rounded to zero, held as subnormal values, or overflow (NaN of none);
        `safe`, whether this tensor is inside the format at that scale.
        """
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        first, powers = self._range()
        shares = self._tensors.shares(first, powers)
        tensors = len(self._tensors.n)
        where = self._tensors.where.iloc[np.tile(np.arange(tensors), powers)].reset_index(drop=True)
        where.insert(0, "loss_scale", np.repeat(2.0 ** np.arange(first, first + powers), tensors))
        columns = {name: share.T.ravel() for name, share in shares.items()}
        columns["n"] = np.tile(self._tensors.n.astype(np.int64), powers)
        columns["safe"] = ~np.logical_or(*self._unsafe(first, powers)).T.ravel()
        return pd.concat([where, pd.DataFrame(columns)], axis=1)

    def by_scale(self) -> pd.DataFrame:
        """A row for each loss scale of the map, which tells what one power of two more or less costs.

        Columns: `loss_scale`; `safe`; `losing` and `overflowing`, numbers of tensors that lose more than the share
        `lost`, and that overflow (those that were not finite are both); `under` and `over`, shares of the nonzero
        values of all tensors together; `worst_under`, the largest share of one tensor.
        """
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        first, powers = self._range()
        shares = self._tensors.shares(first, powers)
        losing, overflowing = (unsafe.sum(axis=0) for unsafe in self._unsafe(first, powers))
        counts = {name: np.nansum(shares[name] * self._tensors.n[:, None], axis=0) for name in ("under", "over")}
        total = self._tensors.n.sum() or math.nan
        return pd.DataFrame(
            {
                "loss_scale": 2.0 ** np.arange(first, first + powers),
                "safe": losing + overflowing == 0,
                "losing": losing,
                "overflowing": overflowing,
                **{name: count / total for name, count in counts.items()},
                "worst_under": np.nan_to_num(shares["under"]).max(axis=0),
            }
        )

    def _range(self) -> tuple[int, int]:
        """The first power of two of the map, and their number."""
        limits = np.concatenate([*self._bounds, [0.0]])
        limits = limits[np.isfinite(limits)].clip(SMALLEST + 1, LARGEST - 1)
        return int(limits.min()) - 1, int(limits.max() - limits.min()) + 3

    def _unsafe(self, first: int, powers: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(n, powers) whether a tensor loses too much, and whether it overflows."""
        scales = np.arange(first, first + powers)
        return scales < self._bounds[0][:, None], scales > self._bounds[1][:, None]


def _bounds_of(
    tensors: Tensors, broken: NDArray[np.bool_], lost: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    share = real(lost)
    if not 0 <= share < 1:
        raise ValueError(f"lost={lost!r} is no share that may be lost; it takes a number from 0, below 1")
    least, greatest = tensors.bounds(share)
    return np.where(broken, np.inf, least), np.where(broken, -np.inf, greatest)


def _safe(least: float, greatest: float) -> tuple[float, float]:
    """The scales of these powers of two, within the range of floats; NaN where none lies between them."""
    least, greatest = max(least, SMALLEST), min(greatest, LARGEST)
    return (2.0**least, 2.0**greatest) if least <= greatest else (math.nan, math.nan)


def _limit(tensors: Tensors, bounds: NDArray[np.float64], share: str) -> Gradient | None:
    """The tensor with the largest bound; of several, the one with the largest share beyond it."""
    bound = bounds.max()
    if bound == -np.inf:
        return None
    candidates = bounds == bound
    if bound < np.inf:
        beyond = tensors.shares(int(bound) - 1 if share == "under" else 1 - int(bound), 1)[share][:, 0]
        candidates = candidates & (beyond == beyond[candidates].max())
    row = tensors.where.iloc[int(np.argmax(candidates))]
    parameter, output = (name if isinstance(name, str) else None for name in (row["parameter"], row["output"]))
    return Gradient(row["layer"], row["direction"], parameter, output, int(row["step"]))


def fits(rows: Rows, where: pd.DataFrame, factors: NDArray[np.float64], lost: float) -> pd.DataFrame:
    """The table of `Record.fits`.

    Args:
        rows: of a record.
        where: their coordinates, as in `Record.to_frame`; `scaled`, whether a loss scale multiplies the row, and
            `broken`, whether no format keeps it.
        factors: as in `Tensors`.
        lost: largest share of a tensor's nonzero values that may be rounded to zero.
    """
    table = where.copy()
    for fmt in FORMATS:
        least, greatest = _bounds_of(Tensors(rows, where, factors, formats.get(fmt)), where["broken"].to_numpy(), lost)
        table[fmt] = (least <= 0) & (greatest >= 0)
        if fmt == "float16":
            table["least"], table["greatest"] = least, greatest
    ways = {**dict.fromkeys(("scaled", *FORMATS), "all"), "broken": "any", "least": "max", "greatest": "min"}
    keys = ["layer", "layer_index", "direction"]
    table = table.groupby(keys, sort=False).agg(ways).reset_index()
    scalable = table["scaled"] & (table["least"] <= table["greatest"])
    answers = [table["broken"], table["float16"], scalable, table["bfloat16"], table["float32"]]
    table["answer"] = np.select(answers, ["not finite", *ANSWERS[:4]], ANSWERS[4])
    table["least"], table["greatest"] = (
        (2.0 ** table[name].clip(SMALLEST, LARGEST)).where(scalable) for name in ("least", "greatest")
    )
    return table[[*keys, "answer", "least", "greatest"]]
