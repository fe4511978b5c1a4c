"""Hugging Face's `Trainer`, watched.

from depthgauge.integrations.huggingface import WatchCallback

Trainer(..., callbacks=[WatchCallback(every=10, to="run.parquet")]).train()
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from depthgauge.probe import Watch, watch


class WatchCallback(TrainerCallback):  # type: ignore[misc]  # of a class without types
    """Watch a `Trainer`'s run from its first step to its last.

    Steps are those of the Trainer: a resumed run goes on counting. Of several processes the first hands rows on.
    A training that an exception ends is told of no end: call `close(error)`, or begin another one.

    Args:
        **options: of `probe.watch`: `every`, `to`, `layers`, `scaler` (by default the Trainer's own), `last`, `alarm`.

    Attributes:
        watch: the last run's, with `alarms`, `first_nonfinite` and `rows`; None before the first.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.watch: Watch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - their names
        """Begin to watch."""
        self.close()
        optimizer = kwargs["optimizer"]
        options = {"scaler": getattr(optimizer, "scaler", None), **self._options}  # that of Accelerate's wrapper
        if not state.is_world_process_zero:
            options["to"] = None  # tables and loggers have one writer
        self.watch = watch(kwargs["model"], optimizer, **options)
        self.watch.start = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - their names
        """End the watch, and write what is not written yet."""
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """End the watch of a run that ended otherwise; an exception gets a note on the first value not finite."""
        if self.watch is not None:
            self.watch.close(error)
