"""A live run, watched: its rows go to a logger as they come, and two things are told at once.

    with probe.watch(model, optimizer, every=10, to=SummaryWriter()):
        train()

The first value that is not finite, with the rows that led to it; and the layer that left its range first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from depthgauge.foreign import describe_error
from depthgauge.probe.alarm import WINDOW, Alarm, AlarmWarning, Ranges, figures
from depthgauge.probe.destinations import Destination, destinations
from depthgauge.probe.layers import Layers
from depthgauge.probe.nonfinite import NonFinite
from depthgauge.probe.record import CHAIN, Record
from depthgauge.probe.ring import NonFiniteWarning, warn_outside
from depthgauge.probe.tracking import track

if TYPE_CHECKING:
    import pandas as pd

EVERY = 10  # steps, of which one is recorded: a tenth of the probe's cost


class Watch:
    """A run that is watched from now on, until `close`; a context manager, too. `watch` makes one.

    Attributes:
        start: number of the first step, which a resumed run may set.
        first_nonfinite: the first tensor that was not finite, and the rows up to it; None so far.
        alarms: the alarms so far.
    """

    def __init__(self, to: Any, last: int, alarm: Callable[[Alarm], object] | None) -> None:
        self.start = 0
        self.first_nonfinite: NonFinite | None = None
        self.alarms: list[Alarm] = []
        self._to = to
        self._destinations: list[Destination] = []
        self._alarm = alarm
        self._ranges = Ranges()
        self._evaluated = 0  # recorded steps without a layer in training mode, as long as there was no other
        self._last = last
        self._tail: deque[pd.DataFrame] = deque()
        self._block = ExitStack()
        self._record: Record | None = None

    def begin(self, module: nn.Module, **options: Any) -> None:
        """Begin to record; options are those of `track`. Where it cannot, no table is made."""
        with ExitStack() as block:
            record = block.enter_context(track(module, on_step=self._on_step, **options))
            self._destinations = destinations(self._to)
            self._block, self._record = block.pop_all(), record

    @property
    def rows(self) -> pd.DataFrame:
        """The last rows, at most `last`, with the columns of `Record.to_frame`, and `log2_rms`."""
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        return pd.concat(self._tail, ignore_index=True).tail(self._last) if self._tail else pd.DataFrame()

    def close(self, error: BaseException | None = None) -> None:
        """End the watch; what is not written yet is written, or told of where it cannot be.

        Args:
            error: the exception that ends the training; it gets a note on the first value that was not finite.
        """
        record, self._record = self._record, None
        if record is None:
            return
        try:
            kind = None if error is None else type(error)
            self._block.__exit__(kind, error, None if error is None else error.__traceback__)
        finally:
            if error is not None:
                record._ended = math.inf  # no scaler will skip what is pending
            if len(record):
                self._take(record)
            if error is not None and self.first_nonfinite is not None:
                error.add_note(f"depthgauge: {self.first_nonfinite}")
            self._close_destinations()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.close(error)

    def _on_step(self, record: Record) -> None:
        known = self.first_nonfinite is not None
        rows = self._take(record)
        if not known and self.first_nonfinite is not None:
            warn_outside(str(self.first_nonfinite), NonFiniteWarning)
        for step in np.unique(rows["step"].to_numpy()):  # one, but where a step turned out late to have been skipped
            if alarm := self._ranges.observe(int(step), *figures(rows[rows["step"] == step])):
                self._raise(alarm)
        if len(rows) and not len(self._ranges) and not rows["training"].any():
            self._tell_of_evaluation()

    def _tell_of_evaluation(self) -> None:
        """Say once that no alarm can be raised, where as many steps as a range takes had no layer in training mode."""
        self._evaluated += 1
        if self._evaluated == WINDOW:
            text = (
                f"no layer was in training mode in {WINDOW} recorded steps: ranges are those of training mode, so that"
                " no alarm can be raised; values that are not finite are told all the same"
            )
            warn_outside(text, UserWarning)

    def _raise(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)
        if self._alarm is None:
            warn_outside(str(alarm), AlarmWarning)
        else:
            self._alarm(alarm)

    def _take(self, record: Record) -> pd.DataFrame:
        """Take the rows out of the record, and hand them on."""
        if self.first_nonfinite is None and any(record._has_fault(kernel.nonfinite()) for kernel in record._kernels):
            self.first_nonfinite = self._explained(record)
        rows = with_log2_rms(record.to_frame())
        rows["step"] += self.start
        record.clear()
        record._forget_old_steps()
        self._tail.append(rows)
        while len(self._tail) > 1 and sum(map(len, self._tail)) - len(self._tail[0]) >= self._last:
            self._tail.popleft()
        for each in [*self._destinations]:
            self._hand(each, rows)
        return rows

    def _hand(self, destination: Destination, rows: pd.DataFrame) -> None:
        """Hand rows on; a full disk does not end a training."""
        if not len(rows):
            return
        try:
            destination(rows.copy())  # which it may change
        except Exception as error:  # noqa: BLE001 - whatever a logger raises, the run goes on
            self._destinations.remove(destination)
            text = f"rows are written no more: {describe_error(error)}; the run is still watched"
            warn_outside(text, UserWarning)

    def _close_destinations(self) -> None:
        """Have each write what it holds; one that raises keeps no other from it, and hides no exception of the run."""
        failed = []
        for each in self._destinations:
            try:
                if callable(close := getattr(each, "close", None)):
                    close()
            except Exception as error:  # noqa: BLE001 - as above
                failed.append(f"the last rows could not be written: {describe_error(error)}")
        for text in failed:
            warn_outside(text, UserWarning)

    def _explained(self, record: Record) -> NonFinite | None:
        """The first tensor that is not finite, and the rows before it, those of earlier recorded steps included."""
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        if (found := record._find(self._last)) is None:
            return None
        first, _ = found
        chain = first.chain.assign(step=first.chain["step"] + self.start)
        missing = self._last - len(chain)
        if missing > 0 and self._tail:
            before = pd.concat(self._tail, ignore_index=True).tail(missing)[list(chain.columns)]
            chain = pd.concat([before, chain], ignore_index=True)
        return NonFinite.of(chain, first.weights)


def with_log2_rms(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a record with a column `log2_rms`: -inf where all values are zero, NaN where none is finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return rows.assign(log2_rms=np.log2(rows["second_moment"].to_numpy(np.float64)) / 2)


def watch(
    model: nn.Module,
    optimizer: Any = None,
    *,
    every: int = EVERY,
    to: Any = None,
    layers: Layers | None = None,
    scaler: Any = None,
    last: int = CHAIN,
    alarm: Callable[[Alarm], object] | None = None,
) -> Watch:
    """Watch a run from now on: hand its rows to a logger, and tell what goes wrong, and in which layer.

    The training computes what it computed before. A `NonFiniteWarning` tells once of the first tensor that is not
    finite, with the last rows before it; an exception that ends the block has it as a note. An `AlarmWarning` names the
    layer that left its range first: on average at most one false alarm in 100,000 recorded steps where the figures of
    layers scatter around a level, whatever the number of layers (docs/watching.md has the rates that were measured).

    Args:
        model: any module; its training loop stays as it is.
        optimizer: as in `track`; without one, steps are calls of the model.
        every: record one step of so many. What happens between is seen in the next one that is recorded.
        to: where each recorded step's rows go: a `SummaryWriter`, a path that ends in `.parquet` (a folder, which can
            be read at any time and is added to), a function of a frame, or a list of these. One that raises is told of
            and left out from then on.
        layers: as in `track`.
        scaler: as in `track`.
        last: rows that are kept and shown before the first value that is not finite.
        alarm: called with each `Alarm`, in place of the warning; what it raises ends the training.

    Returns:
        The `Watch`, which `with` or `close()` ends.

    Raises:
        ValueError: `to` takes no rows, `every` or `last` is below 1, or as `track` raises it.
        TypeError: the model is no module, `alarm` no function, or `every` no whole number.
    """
    if not isinstance(model, nn.Module):  # a user's code is not type-checked
        raise TypeError(f"watch takes a torch.nn.Module, not a {type(model).__name__}")
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every={every!r} is no number of steps; it takes a whole number from 1")
    if not (alarm is None or callable(alarm)):
        raise TypeError(f"alarm={alarm!r} cannot be called; it takes a function of an Alarm")
    if isinstance(last, bool) or not isinstance(last, int) or last < 1:  # type: ignore[redundant-expr]  # a user's code is not type-checked
        raise ValueError(f"last={last!r} keeps no row; it takes a whole number from 1")
    watched = Watch(to, last, alarm)
    watched.begin(model, optimizer=optimizer, every=every, layers=layers, scaler=scaler)
    return watched
