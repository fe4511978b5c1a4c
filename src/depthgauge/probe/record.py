"""The record of a probe: frames, histograms, and the errors of a number format on the same tensors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.probe import columns, picture
from depthgauge.probe import rows as layout
from depthgauge.probe.kernel import Kernel
from depthgauge.probe.loss_scale import LossScale, Tensors, fits
from depthgauge.probe.nonfinite import NonFinite
from depthgauge.probe.rows import Rows
from depthgauge.probe.summary import by_layer, told
from depthgauge.probe.unread import Unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from matplotlib.figure import Figure

ACTIVATION, ACTIVATION_GRADIENT = "activation", "activation_gradient"
WEIGHT, WEIGHT_GRADIENT, UPDATE = "weight", "weight_gradient", "update"
DIRECTIONS = (ACTIVATION, ACTIVATION_GRADIENT, WEIGHT, WEIGHT_GRADIENT, UPDATE)
GRADIENTS = (ACTIVATION_GRADIENT, WEIGHT_GRADIENT)
CHAIN = 21  # rows that lead to a value that is not finite, where all are kept
NOTES = 4096  # on steps: so many are kept before those of steps without rows are looked for


@dataclass(frozen=True)
class Slot:
    """The place where a tensor was seen; a row refers to it by number."""

    direction: str
    layer: str
    parameter: str | None = None
    output: str | None = None
    may_mask: bool = False  # whether -inf may be there on purpose


@dataclass(repr=False)
class Record:
    """Rows of a probe, one for each tensor seen; it holds numbers only, never a tensor.

    It may be read inside the `with` block (`to_frame`, then `clear`) or after it.
    """

    _slots: list[Slot] = field(default_factory=list)
    _layer_index: dict[str, int] = field(default_factory=dict)
    _kernels: list[Kernel] = field(default_factory=list)
    _skipped: set[int] = field(default_factory=set)
    # Forward passes that turned out to belong to the step after the one that their rows name.
    _late: set[int] = field(default_factory=set)
    # Loss scales of gradients that were seen scaled: by STEP word, backward pass, and whether they are a weight's.
    _scales: dict[tuple[int, int, bool], float] = field(default_factory=dict)
    _missed: dict[tuple[str, str], int] = field(default_factory=dict)
    _unfinished: int | None = field(default=None)  # the first STEP word of a step that goes on, while one is told of
    _ended: float = field(default=0, repr=False)  # steps before this one have ended
    _last: int | None = field(default=None, repr=False)  # the number of rows that are kept; None keeps all
    _first: NonFinite | None = field(default=None)

    def __len__(self) -> int:
        return sum(len(rows.words) for rows in self._parts())

    def __repr__(self) -> str:
        rows = layout.joined(self._parts())
        return told(self._coordinates(rows), self.first_nonfinite(), self.unread)

    def clear(self) -> None:
        """Forget all rows; layers keep their indices."""
        for kernel in self._kernels:
            kernel.clear(self._unfinished)
        last = max((at for at, _, _ in self._scales), default=0)
        first = last if self._unfinished is None else min(last, self._unfinished)
        self._scales = {key: scale for key, scale in self._scales.items() if key[0] >= first}

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

        frame = pd.concat([self._described(rows) for rows in self._parts()], ignore_index=True)
        frame = frame.sort_values("step", kind="stable", ignore_index=True)
        if not long:
            return frame
        coordinates = [name for name in frame.columns if name not in columns.METRICS]
        return frame.astype(dict.fromkeys(columns.METRICS, float)).melt(coordinates, columns.METRICS, "metric", "value")

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
                shares = columns.shares(rows, fmt, used / seen)
            at = pd.DataFrame({"loss_scale": used, **shares})
            frames.append(pd.concat([self._coordinates(rows), at], axis=1))
        return pd.concat(frames, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)

    def summary(self, fmt: str | formats.Format = "float16", loss_scale: float | None = None) -> pd.DataFrame:
        """One row a layer, the worst first: what a format would lose of it, gradients at a given loss scale.

        Of all tensors of a layer the worst counts: one that is not finite (as `first_nonfinite` counts), else the one
        that overflows most, that loses most to zero, that has most subnormal values. Columns: `layer`, `layer_index`;
        `says`, that tensor's fate in words; `direction`, `parameter`, `output` and `step`, which tensor it is; `over`,
        `under` and `subnormal`, its shares as in `fractions`; `not_finite`, how many tensors of the layer are not;
        `largest`, the greatest finite absolute value of any; `tensors`, their number. Updates, which no format has to
        hold by themselves, count only where the record holds nothing else.

        Args:
            fmt: a format, or its name.
            loss_scale: as in `fractions`.

        Raises:
            ValueError: as `fractions`.
        """
        rows = layout.joined(self._parts())
        order = np.argsort(self._steps(rows), kind="stable")  # that of the two frames
        frame = self.to_frame().assign(fault=self._faults(rows)[order])
        return by_layer(frame, self.fractions(fmt, loss_scale), formats.get(fmt))

    def plot(self, fmt: str | formats.Format = "float16", loss_scale: float | None = None) -> Figure:
        """Draw where each layer's values lie, by binade, between the limits of a format.

        A panel a direction (as in `summary`), a line a layer, the first on top; colour is the share of the layer's
        nonzero values, all steps together. Of more than 40 layers those are drawn that `summary` has first. The figure
        belongs to no window: a notebook shows it, a script saves it (`record.plot().savefig("record.png")`).

        Args:
            fmt: a format, or its name.
            loss_scale: as in `fractions`; each gradient moves by the nearest power of two.

        Raises:
            ValueError: as `fractions`, or a record without rows.
        """
        table, rows = self.summary(fmt, loss_scale), layout.joined(self._parts())
        scales = np.ones(len(rows.words))
        if loss_scale is not None:
            scales = np.where(self._are_gradients(rows), loss_scale * self._unscaling(rows), 1.0)
        return picture.draw(rows, self._coordinates(rows), np.log2(scales), table, formats.get(fmt))

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
        tensors = Tensors(rows, self._coordinates(rows), self._unscaling(rows), fmt)
        return LossScale.of(tensors, rows.nonfinite, lost)

    def fits(self, *, lost: float = 0.01) -> pd.DataFrame:
        """The narrowest format for each layer and direction, by its range alone, not its precision.

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
        where = self._coordinates(rows).assign(scaled=gradients, broken=broken)
        return fits(rows, where, self._unscaling(rows), lost)

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
            histograms.append(columns.histogram(rows.chosen(chosen)))
        return formats.ExponentHistogram.sum(histograms)

    def first_nonfinite(self) -> NonFinite | None:
        """The first tensor with a value that is not finite, and the rows that led to it; None if all are finite.

        Of the rows that the record holds; what `track(..., last=)` has found stays. Two kinds do not count. -inf among
        the activations of a module without weights of its own, or with others inside of it, may be a mask. Gradients
        of a skipped step are a loss scaler's search for a scale, if they were seen at a loss scale above 1 (`scaler=`
        of `track`); so may be those of a step that has not ended.
        """
        if self._first is None and (found := self._find(CHAIN)) is not None:
            return found[0]
        return self._first

    def _find(self, last: int) -> tuple[NonFinite, Rows] | None:
        """The first tensor that is not finite, and as rows that tensor and what led to it, so many in all."""
        rows = self._in_order()
        faults = np.flatnonzero(self._faults(rows))
        if not len(faults):
            return None
        at = int(faults[0])
        chain = rows.taken(np.arange(max(0, at + 1 - last), at + 1))
        frame = self._described(chain)
        weights: tuple[str, ...] = ()
        if frame["direction"].iloc[-1] == ACTIVATION:
            own = rows.nonfinite & self._of_slots(rows, [WEIGHT]) & (self._steps(rows) == frame["step"].iloc[-1])
            slots = [self._slots[slot] for slot in rows.words[own, layout.SLOT]]
            weights = tuple(dict.fromkeys(f"{slot.layer}.{slot.parameter}".lstrip(".") for slot in slots))
        return NonFinite.of(frame, weights), chain

    def _has_fault(self, words: NDArray[np.int64]) -> bool:
        return len(words) > 0 and bool(self._faults(replace(layout.NONE, words=words)).any())

    def _faults(self, rows: Rows) -> NDArray[np.bool_]:
        """Mask the rows with a value that is not finite and that neither a mask nor a loss scaler has made."""
        nans, positive, negative = rows.words[:, layout.NONFINITE].T > 0
        may_mask = np.array([*(slot.may_mask for slot in self._slots), False])[rows.words[:, layout.SLOT]]
        faults: NDArray[np.bool_] = nans | positive | negative & ~may_mask
        if self._scales and faults.any():
            steps = self._steps(rows)
            unused = np.isin(steps, list(self._skipped)) | (steps >= self._ended)
            faults &= ~(unused & self._are_gradients(rows) & (self._seen_scales(rows) > 1))
        return faults

    def _forget_old_steps(self) -> None:
        """Forget what was noted of steps without rows, once it is much."""
        if len(self._scales) + len(self._skipped) + len(self._late) > NOTES and len(self):
            rows = self._in_order()
            oldest, attempts = self._steps(rows)[0] - 1, set(rows.attempts.tolist())
            self._scales = {key: scale for key, scale in self._scales.items() if layout.step_of(key[0]) >= oldest}
            self._skipped = {step for step in self._skipped if step >= oldest}
            self._late &= attempts

    def _in_order(self) -> Rows:
        """All rows, in the order of steps."""
        rows = layout.joined(self._read())
        return rows.taken(np.argsort(self._steps(rows), kind="stable"))

    def _parts(self) -> list[Rows]:
        if self._last is None:
            return self._read()
        rows = self._in_order()
        return [rows.taken(np.arange(len(rows.words))[-self._last :])]

    def _read(self) -> list[Rows]:
        """The rows of each kernel, without those of a step that goes on while the one before is told of."""
        parts = [kernel.read() for kernel in self._kernels]
        if self._unfinished is None:
            return parts
        return [rows.chosen(rows.words[:, layout.STEP] < self._unfinished) for rows in parts]

    def _described(self, rows: Rows) -> pd.DataFrame:
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        return pd.concat([self._coordinates(rows), pd.DataFrame(columns.metrics(rows))], axis=1)

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

    def _unscaling(self, rows: Rows) -> NDArray[np.float64]:
        """What brings each row to loss scale 1; gradients at loss scale 0 are zeros at each."""
        seen = self._seen_scales(rows)
        return 1 / np.where(seen > 0, seen, 1.0)

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
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
        raise ValueError(f"the record holds no {kind} {name!r}; the nearest is {nearest[0]!r}")
