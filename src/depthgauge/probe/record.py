"""What a probe has seen: frames, histograms, and what a number format would have made of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.probe import rows as layout
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


@dataclass(frozen=True)
class Slot:
    """Where a tensor was seen; a row refers to it by number."""

    direction: str
    layer: str
    parameter: str | None = None
    output: str | None = None


class Kernel(Protocol):
    """Reads tensors, appends rows."""

    native: tuple[torch.dtype, ...]

    def observe(self, tensor: torch.Tensor, slot: int, step: int, call: int) -> None:
        """Append a row for a dense tensor of a native dtype."""

    def read(self) -> Rows:
        """All rows since the last `clear`."""

    def clear(self) -> None:
        """Forget all rows."""


@dataclass
class Record:
    """Rows of a probe, one for each tensor seen; it holds numbers only, never a tensor.

    It may be read inside the `with` block (`to_frame`, then `clear`) or after it.
    """

    _slots: list[Slot] = field(default_factory=list, repr=False)
    _layer_index: dict[str, int] = field(default_factory=dict, repr=False)
    _kernels: list[Kernel] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return sum(len(rows.words) for rows in self._parts())

    def clear(self) -> None:
        """Forget all rows; layers keep their indices."""
        for kernel in self._kernels:
            kernel.clear()

    def to_frame(self, long: bool = False) -> pd.DataFrame:
        """One row for each tensor seen, in the order of steps.

        Columns: `step`; `direction` (`activation`, `activation_gradient`, `weight`, `weight_gradient`, `update`);
        `layer` (the module's qualified name, `""` for the module itself); `layer_index` (order of first execution,
        -1 for a module that has not run); `call` (which call of the layer within the step, from 0; always 0 for
        parameters); `parameter` and `output` (name, and place in a structured output; missing where there is none);
        then the metrics: `count`, `zeros`, `nans`, `positive_infinities`, `negative_infinities`; `mean`,
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

    def fractions(self, fmt: str | formats.Format, loss_scale: float = 1.0) -> pd.DataFrame:
        """For each row, what a format would make of the finite, nonzero values times a loss scale.

        Columns: those that say where, as in `to_frame`; then `under`, `subnormal`, `normal`, `over` and `n`, as in
        `depthgauge.formats.Fractions`: exact for a loss scale that is a power of two.

        Raises:
            ValueError: unknown format, or a loss scale that is not a positive finite number.
        """
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        frames = []
        for rows in self._parts():
            exponents, segments = formats.cell_of(rows.keys)
            shares = formats.cell_shares(exponents, segments, fmt, loss_scale)
            n = rows.sums_by_row(rows.counts.astype(np.float64))
            columns: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {}
            with np.errstate(invalid="ignore"):
                for name, share in zip(("under", "subnormal", "over"), shares, strict=True):
                    columns[name] = rows.sums_by_row(share * rows.counts) / n
                columns["normal"] = rows.sums_by_row((1 - shares[0] - shares[1] - shares[2]) * rows.counts) / n
            columns["n"] = n.astype(np.int64)
            ordered = {name: columns[name] for name in ("under", "subnormal", "normal", "over", "n")}
            frames.append(pd.concat([self._coordinates(rows), pd.DataFrame(ordered)], axis=1))
        return pd.concat(frames, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)

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
                chosen &= rows.words[:, layout.STEP] == step
            cells = np.repeat(chosen, rows.words[:, layout.CELLS])
            zeros, nans, positive, negative = (
                int(rows.words[chosen, word].sum())
                for word in (layout.ZEROS, layout.NANS, layout.POSITIVE_INFINITIES, layout.NEGATIVE_INFINITIES)
            )
            histograms.append(
                formats.ExponentHistogram.from_cells(
                    rows.keys[cells],
                    rows.counts[cells],
                    zeros=zeros,
                    nans=nans,
                    positive_infinities=positive,
                    negative_infinities=negative,
                )
            )
        return formats.ExponentHistogram.sum(histograms)

    def _parts(self) -> list[Rows]:
        return [kernel.read() for kernel in self._kernels]

    def _coordinates(self, rows: Rows) -> pd.DataFrame:
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        number = rows.words[:, layout.SLOT]
        index = np.array([self._layer_index.get(slot.layer, -1) for slot in self._slots], np.int64)

        def each(names: list[str | None]) -> pd.Series[str]:
            return pd.Series(np.array(names, object)[number] if len(number) else [], dtype="str")

        return pd.DataFrame(
            {
                "step": rows.words[:, layout.STEP],
                "direction": each([slot.direction for slot in self._slots]),
                "layer": each([slot.layer for slot in self._slots]),
                "layer_index": index[number],
                "call": rows.words[:, layout.CALL],
                "parameter": each([slot.parameter for slot in self._slots]),
                "output": each([slot.output for slot in self._slots]),
            }
        )


def _check(kind: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(f"the record holds no {kind} {name!r}; the nearest is {nearest[0]!r}")


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
