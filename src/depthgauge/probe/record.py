"""The record of a probe: frames, histograms, and the errors of a number format on the same tensors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.probe import rows as layout
from depthgauge.probe.loss_scale import LossScale, Tensors, fits
from depthgauge.probe.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

ACTIVATION, ACTIVATION_GRADIENT = "activation", "activation_gradient"
WEIGHT, WEIGHT_GRADIENT, UPDATE = "weight", "weight_gradient", "update"
DIRECTIONS = (ACTIVATION, ACTIVATION_GRADIENT, WEIGHT, WEIGHT_GRADIENT, UPDATE)

METRICS = (
    "count",
    "zeros",
    "nans",
    "positive_infinities",
    "negative_infinities",
    "mean",
    "second_moment",
    "min",
    "max",
    "log2_mean",
)


GRADIENTS = (ACTIVATION_GRADIENT, WEIGHT_GRADIENT)
NEVER_RAN = "holds weights and never ran as a module"


@dataclass(frozen=True)
class Unread:
    """A tensor or layer that a probe did not see.

    Attributes:
        layer: the module's qualified name.
        reason: why, in a few words; or `NEVER_RAN`.
        tensors: number of such tensors; 0 for a layer that never ran.
    """

    layer: str
    reason: str
    tensors: int


@dataclass(frozen=True)
class Slot:
    """The place where a tensor was seen; a row refers to it by number."""

    direction: str
    layer: str
    parameter: str | None = None
    output: str | None = None


class Kernel(Protocol):
    """Reads tensors, appends rows."""

    native: tuple[torch.dtype, ...]

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row for a tensor; raises `tensors.Unreadable` where its numbers cannot be had."""

    def read(self) -> Rows:
        """All rows since the last `clear`."""

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep`."""


@dataclass
class Record:
    """Rows of a probe, one for each tensor seen; it holds numbers only, never a tensor.

    It may be read inside the `with` block (`to_frame`, then `clear`) or after it.
    """

    _slots: list[Slot] = field(default_factory=list, repr=False)
    _layer_index: dict[str, int] = field(default_factory=dict, repr=False)
    _kernels: list[Kernel] = field(default_factory=list, repr=False)
    _skipped: set[int] = field(default_factory=set, repr=False)
    # Forward passes that turned out to belong to the step after the one that their rows name.
    _late: set[int] = field(default_factory=set, repr=False)
    # Loss scales of gradients that were seen scaled: by STEP word, backward pass, and whether they are a weight's.
    _scales: dict[tuple[int, int, bool], float] = field(default_factory=dict, repr=False)
    _missed: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    _unfinished: int | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return sum(len(rows.words) for rows in self._parts())

    def clear(self) -> None:
        """Forget all rows; layers keep their indices."""
        for kernel in self._kernels:
            kernel.clear(self._unfinished)
        last = max((at for at, _, _ in self._scales), default=0)
        self._scales = {key: scale for key, scale in self._scales.items() if key[0] == last}

    @property
    def unread(self) -> tuple[Unread, ...]:
        """List the tensors without numbers of their own and the layers that never ran as modules."""
        return tuple(Unread(layer, reason, tensors) for (layer, reason), tensors in self._missed.items())

    def to_frame(self, long: bool = False) -> pd.DataFrame:
        """One row for each tensor seen, in the order of steps.

        Columns: `step`; `skipped` (whether the step ended without the optimizer's own, see docs/probe.md);
        `direction` (`activation`, `activation_gradient`, `weight`, `weight_gradient`, `update`); `layer` (the module's
        qualified name, `""` for the module itself); `layer_index` (order of first execution, -1 for a module that has
        not run); `call` (which call of the layer within the step, from 0, counted for each mode; for a parameter,
        which time in the step it was read); `pass` (of a gradient, which backward pass within the step, from 0;
        otherwise 0); `training` (whether the layer was in training mode); `parameter` and `output` (name, and place in
        a structured output; missing where there is none). No two rows agree in all of these.

        Then the metrics: `count`, `zeros`, `nans`, `positive_infinities`, `negative_infinities`; `mean`,
        `second_moment`, `min` and `max` over the finite values (NaN where there are none); `log2_mean`, the mean of
        log2|x| over the finite, nonzero values, to 1e-6.

        Args:
            long: one row for each metric instead, in columns `metric` and `value`.
        """
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        frames = [pd.concat([self._coordinates(rows), pd.DataFrame(_metrics(rows))], axis=1) for rows in self._parts()]
        frame = pd.concat(frames, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)
        if not long:
            return frame
        coordinates = [name for name in frame.columns if name not in METRICS]
        return frame.astype(dict.fromkeys(METRICS, float)).melt(coordinates, METRICS, "metric", "value")

    def fractions(self, fmt: str | formats.Format, loss_scale: float | None = None) -> pd.DataFrame:
        """For each row, what a format would make of the finite, nonzero values, gradients at a given loss scale.

        A loss scale multiplies gradients, and neither activations nor weights nor updates. A gradient that was seen at
        a loss scale already (`scaler=` of `track`) is brought from that scale to this one.

        Columns: those that say where, as in `to_frame`; `loss_scale`, at which the row was looked at (1 for all but
        gradients); then `under`, `subnormal`, `normal`, `over` and `n`, as in `depthgauge.formats.Fractions`: exact
        where the ratio of the loss scales is a power of two.

        Args:
            fmt: a format, or its name.
            loss_scale: the loss scale; by default, each gradient is taken as it was seen.

        Raises:
            ValueError: unknown format, or a loss scale that is not a positive finite number.
        """
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        nothing = np.zeros(0, np.int64)
        formats.cell_shares(nothing, nothing, fmt, 1.0 if loss_scale is None else loss_scale)
        frames = []
        for rows in self._parts():
            seen = self._seen_scales(rows)
            used = seen.copy()
            if loss_scale is not None:
                used[self._are_gradients(rows)] = loss_scale
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                shares = _shares(rows, fmt, used / seen)
            columns = {"loss_scale": used, **shares}
            frames.append(pd.concat([self._coordinates(rows), pd.DataFrame(columns)], axis=1))
        return pd.concat(frames, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)

    def loss_scale(self, fmt: str | formats.Format, *, lost: float = 0.01) -> LossScale:
        """The loss scales, powers of two, that keep every gradient tensor of this record inside a format.

        A tensor, a row of the record, is inside where none of its values overflows, and at most a share `lost` of its
        nonzero values is rounded to zero; subnormal values are kept. One that holds nothing but zeros has nothing to
        lose. One that was not finite when it was seen is inside at no scale. Scales below 1 count.

        Args:
            fmt: a format, or its name.
            lost: the largest share of a tensor's nonzero values that may be rounded to zero.

        Raises:
            ValueError: unknown format, `lost` that is no share below 1, or a record without gradients.
        """
        fmt = formats.get(fmt)
        rows = layout.joined(self._parts())
        rows = rows.chosen(self._are_gradients(rows))
        if not len(rows.words):
            raise ValueError("the record holds no gradients that a loss scale could save")
        factors = 1 / self._seen_scales(rows)
        tensors = Tensors(rows, self._coordinates(rows), factors, fmt)
        return LossScale.of(tensors, rows.nonfinite, lost)

    def fits(self, *, lost: float = 0.01) -> pd.DataFrame:
        """For each layer and direction, the narrowest format that keeps all its tensors; its range decides, not precision.

        A format keeps a tensor that does not overflow in it and loses at most a share `lost` of its nonzero values to
        zero. Column `answer`, the first of these that is true: `not finite` (a gradient that was not finite, or a NaN;
        infinite activations and weights, as of masks, are left out, as each of these formats has infinity); `fits
        float16`; `needs scaling` (a gradient that float16 keeps at some loss scale); `needs bfloat16`; `needs float32`;
        `needs float64`. Gradients are taken unscaled otherwise.

        Columns: `layer`, `layer_index`, `direction`, `answer`; `least` and `greatest`, the loss scales for float16 of a
        gradient by itself, NaN where there is none. One scale serves all layers, if any: `loss_scale("float16")`.

        Raises:
            ValueError: `lost` is no share below 1.
        """
        rows = layout.joined(self._parts())
        gradients = self._are_gradients(rows)
        broken = np.where(gradients, rows.nonfinite, rows.words[:, layout.NANS] > 0)
        return fits(rows, self._coordinates(rows), 1 / self._seen_scales(rows), broken, gradients, lost)

    def histogram(
        self, direction: str | None = None, layer: str | None = None, step: int | None = None
    ) -> formats.ExponentHistogram:
        """The exponent histogram of all rows with that direction, layer and step; `None` takes them all.

        A record without rows gives the empty histogram.

        Raises:
            ValueError: no such direction, or a record with rows of which none was ever of that layer.
        """
        parts = self._parts()
        if direction is not None:
            _check("direction", direction, DIRECTIONS)
        if layer is not None and any(len(rows.words) for rows in parts):
            _check("layer", layer, dict.fromkeys(slot.layer for slot in self._slots))
        histograms = []
        for rows in parts:
            slots = [
                (direction is None or slot.direction == direction) and (layer is None or slot.layer == layer)
                for slot in self._slots
            ]
            chosen = np.array([*slots, False])[rows.words[:, layout.SLOT]]
            if step is not None:
                chosen &= self._steps(rows) == step
            rows = rows.chosen(chosen)  # noqa: PLW2901 # the rest is not looked at
            zeros, nans, positive, negative = (
                int(rows.words[:, word].sum())
                for word in (layout.ZEROS, layout.NANS, layout.POSITIVE_INFINITIES, layout.NEGATIVE_INFINITIES)
            )
            histograms.append(
                formats.ExponentHistogram.from_cells(
                    rows.keys,
                    rows.counts,
                    zeros=zeros,
                    nans=nans,
                    positive_infinities=positive,
                    negative_infinities=negative,
                )
            )
        return formats.ExponentHistogram.sum(histograms)

    def _parts(self) -> list[Rows]:
        return [kernel.read() for kernel in self._kernels]

    def _miss(self, layer: str, reason: str, tensors: int = 1) -> None:
        key = layer, reason
        self._missed[key] = self._missed.get(key, 0) + tensors

    def _steps(self, rows: Rows) -> NDArray[np.int64]:
        if not self._late:
            return rows.steps
        return rows.steps + np.isin(rows.attempts, list(self._late))

    def _of_slots(self, rows: Rows, wanted: Iterable[str]) -> NDArray[np.bool_]:
        """Mask the rows whose slots have one of these directions."""
        wanted = set(wanted)
        return np.array([*(slot.direction in wanted for slot in self._slots), False])[rows.words[:, layout.SLOT]]

    def _are_gradients(self, rows: Rows) -> NDArray[np.bool_]:
        return self._of_slots(rows, GRADIENTS)

    def _seen_scales(self, rows: Rows) -> NDArray[np.float64]:
        """The loss scale of each row as it was seen."""
        scales = np.ones(len(rows.words))
        if self._scales:
            of_weights = self._of_slots(rows, [WEIGHT_GRADIENT])
            passes, words = rows.passes, rows.words[:, layout.STEP]
            for row in np.flatnonzero(self._are_gradients(rows)):
                scales[row] = self._scales.get((int(words[row]), int(passes[row]), bool(of_weights[row])), 1.0)
        return scales

    def _coordinates(self, rows: Rows) -> pd.DataFrame:
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        number = rows.words[:, layout.SLOT]
        index = np.array([self._layer_index.get(slot.layer, -1) for slot in self._slots], np.int64)

        def each(names: list[str | None]) -> pd.Series[str]:
            return pd.Series(np.array(names, object)[number] if len(number) else [], dtype="str")

        steps = self._steps(rows)
        return pd.DataFrame(
            {
                "step": steps,
                "skipped": np.isin(steps, list(self._skipped)),
                "direction": each([slot.direction for slot in self._slots]),
                "layer": each([slot.layer for slot in self._slots]),
                "layer_index": index[number],
                "call": rows.calls,
                "pass": rows.passes,
                "training": rows.training,
                "parameter": each([slot.parameter for slot in self._slots]),
                "output": each([slot.output for slot in self._slots]),
            }
        )


def _check(kind: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(f"the record holds no {kind} {name!r}; the nearest is {nearest[0]!r}")


def _shares(rows: Rows, fmt: str | formats.Format, factors: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """The columns of `fractions`; factors, one a row, are what values are multiplied by. NaN where one is no number."""
    n = rows.sums_by_row(rows.counts.astype(np.float64))
    columns = {name: np.full(len(factors), np.nan) for name in ("under", "subnormal", "normal", "over")}
    for factor in np.unique(factors[np.isfinite(factors) & (factors > 0)]):
        chosen = factors == factor
        part = rows.chosen(chosen)
        under, subnormal, over = formats.cell_shares(*formats.cell_of(part.keys), fmt, float(factor))
        shares = {"under": under, "subnormal": subnormal, "normal": 1 - under - subnormal - over, "over": over}
        for name, share in shares.items():
            columns[name][chosen] = part.sums_by_row(share * part.counts) / n[chosen]
    return {**columns, "n": n.astype(np.int64)}


def _metrics(rows: Rows) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
    count, zeros, nans, positive, negative = (
        rows.words[:, word]
        for word in (
            layout.COUNT,
            layout.ZEROS,
            layout.NANS,
            layout.POSITIVE_INFINITIES,
            layout.NEGATIVE_INFINITIES,
        )
    )
    finite = count - nans - positive - negative
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {
            "count": count,
            "zeros": zeros,
            "nans": nans,
            "positive_infinities": positive,
            "negative_infinities": negative,
            "mean": np.clip(  # a sum's rounding takes no mean beyond its values, nor the largest to infinity
                np.ldexp(rows.number(layout.SUM) / finite, rows.words[:, layout.SUM_SHRUNK]),
                rows.number(layout.MIN),
                rows.number(layout.MAX),
            ),
            "second_moment": np.ldexp(
                rows.number(layout.SUM_OF_SQUARES) / finite, rows.words[:, layout.SQUARES_SHRUNK]
            ),
            "min": rows.number(layout.MIN),
            "max": rows.number(layout.MAX),
            "log2_mean": rows.number(layout.SUM_OF_LOG2) / (finite - zeros),
        }
