"""Lightning's `Trainer`, watched.

from depthgauge.integrations.lightning import WatchCallback

Trainer(callbacks=[WatchCallback(every=10)]).fit(module)     # figures go to the Trainer's own loggers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # the same under its other name
    from pytorch_lightning.callbacks import Callback

from depthgauge.probe import Watch, scalars, watch

if TYPE_CHECKING:
    import pandas as pd


class WatchCallback(Callback):  # type: ignore[misc]  # of a class without types
    """Watch a `Trainer`'s run from its first step to its last, or to the exception that ends it.

    Figures of each recorded step go to the Trainer's loggers, and to `to`. With several optimizers a step ends when the
    last of them has stepped. Of several processes the first hands rows on.

    Args:
        log: whether the Trainer's loggers get the figures.
        **options: of `probe.watch`: `every`, `to`, `layers`, `scaler` (by default the Trainer's own), `last`, `alarm`.

    Attributes:
        watch: the last run's, with `alarms`, `first_nonfinite` and `rows`; None before the first.
    """

    def __init__(self, *, log: bool = True, **options: Any) -> None:
        self._log = log
        self._options = options
        self.watch: Watch | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch."""
        self._close()
        to = self._options.get("to")
        sinks = [*(to if isinstance(to, list | tuple) else [] if to is None else [to])]
        if self._log and trainer.loggers:
            sinks.append(_Loggers(trainer.loggers))
        if not trainer.is_global_zero:
            sinks = []
        optimizers = trainer.optimizers
        optimizer = optimizers if len(optimizers) > 1 else optimizers[0] if optimizers else None
        options = {"scaler": getattr(trainer.precision_plugin, "scaler", None), **self._options, "to": sinks}
        self.watch = watch(pl_module, optimizer, **options)
        self.watch.start = trainer.global_step // max(1, len(optimizers))  # it counts each optimizer's steps

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - their names
        """End the watch, and write what is not written yet."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002 - likewise
        """End the watch; the exception gets a note on the first value that was not finite."""
        self._close(exception)

    def _close(self, error: BaseException | None = None) -> None:
        if self.watch is not None:
            self.watch.close(error)


class _Loggers:
    """A Trainer's loggers as a destination."""

    def __init__(self, loggers: list[Any]) -> None:
        self._loggers = loggers

    def __call__(self, rows: pd.DataFrame) -> None:
        for logger in self._loggers:
            logger.log_metrics(scalars(rows), int(rows["step"].iloc[-1]))
