"""Steps without the profiler and under it, in turns, and the trace of the turn that was disturbed least."""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from depthgauge.timing import Device
from depthgauge.timing.subject import silent

# ruff: noqa: PLC0415 - what was captured before is read without torch

if TYPE_CHECKING:
    from torch.profiler import ProfilerActivity, profile

_BLOCKS = 10  # a block is some plain steps, and some under the profiler; 8 give an interval at 99 %
_ACTIVE = range(3, 11)  # steps of a trace: few where they are long
_TRACED = 0.3  # seconds that a trace should cover


@dataclass(frozen=True)
class Turns:
    """The plan of a measurement: `blocks` turns of `waiting` plain steps, one warm-up and `active` traced steps."""

    blocks: int
    waiting: int
    active: int

    @staticmethod
    def within(seconds: float, warm: float) -> Turns:
        """Turns that take so long together, where a warm step takes `warm` seconds."""
        active = min(max(int(_TRACED / warm), _ACTIVE[0]), _ACTIVE[-1])
        blocks = max(1, min(_BLOCKS, int(seconds / (warm * 2 * (2 + active)))))
        return Turns(blocks, max(2, min(20, int(seconds / 2 / blocks / warm))), active)


def measure(
    timed: Callable[[], float], device: Device, turns: Turns, traced: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of a step without the profiler and under it, a median a turn; the quickest trace is put into `traced`.

    Args:
        timed: runs a step and returns its seconds.
        device: the device of the steps.
        turns: the plan of the turns.
        traced: a folder; its name is the trace's.
    """
    plain: list[float] = []
    profiled: list[float] = []
    times: list[float] = []
    with tempfile.TemporaryDirectory() as made:

        def keep(recorder: profile) -> None:
            """Saves the trace if its steps were quicker than those of every turn before: the least disturbed."""
            if statistics.median(times[-turns.active :]) < min(profiled, default=math.inf):
                shutil.rmtree(made)
                _save(recorder, Path(made), traced.name)

        with _recorder(device, keep, turns) as recorder:
            for _ in range(turns.blocks):
                times.clear()
                for _ in range(turns.waiting + 1 + turns.active):
                    times.append(timed())
                    with silent():
                        recorder.step()
                plain.append(statistics.median(times[1 : turns.waiting]))  # the first follows the saving of a trace
                profiled.append(statistics.median(times[-turns.active :]))
        _replace(traced, Path(made))
    return tuple(plain), tuple(profiled)


@contextmanager
def _recorder(device: Device, keep: Callable[[profile], None], turns: Turns) -> Iterator[profile]:
    """The profiler over all turns; `keep` is called with each."""
    import torch
    from torch.profiler import profile, schedule

    recorder = profile(
        activities=activities(device),
        schedule=schedule(wait=turns.waiting, warmup=1, active=turns.active, repeat=turns.blocks),
        on_trace_ready=keep,
        record_shapes=True,
        profile_memory=True,
        with_flops=True,
    )
    with warnings.catch_warnings():
        # Each turn clears what the last has recorded: as it should.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)
        with silent():
            recorder.start()
        try:
            with torch.enable_grad():
                yield recorder
        finally:
            with silent():
                recorder.stop()


def _save(recorder: profile, folder: Path, label: str) -> None:
    from torch.profiler import tensorboard_trace_handler

    tensorboard_trace_handler(str(folder), worker_name=label, use_gzip=True)(recorder)


def _replace(traced: Path, made: Path) -> None:
    """File by file: `shutil.copytree` hides the operating system's reason in a list."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(traced)
    traced.mkdir(parents=True)
    for file in made.iterdir():
        shutil.copy2(file, traced)


def activities(device: Device) -> list[ProfilerActivity]:
    """List the profiler's activities: the host's, and the device's where it is another."""
    from torch.profiler import ProfilerActivity

    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.launches else [])]
