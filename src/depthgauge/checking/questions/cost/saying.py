"""The findings about cost, in words."""

from __future__ import annotations

import math

import torch

from depthgauge import environment, stats
from depthgauge.checking.answers import TRIFLE, Finding, Kind, Measure, Status, Tried
from depthgauge.checking.questions.cost.phases import Phases
from depthgauge.checking.questions.cost.room import Room
from depthgauge.checking.questions.cost.trying import Saving
from depthgauge.checking.words import percent
from depthgauge.stats import Estimate
from depthgauge.workload import Training

WORTH = 0.95  # of a step's time that is left, at most, by the far end of a 99 % interval: 5 % are worth a word
PLENTY = 100  # times the batch: where the memory holds more, it is no limit

_LEAST = f"at least 5 % of a step (99 % interval); below {1e3 * TRIFLE:g} ms a step it is told and the question fine"

KINDS = {
    "slow_loader": Kind(
        "opportunity", "batches take longer than forward, backward and optimizer together, by the 95 % intervals of the"
        f" medians: the device waits; below {1e3 * TRIFLE:g} ms it is told and the question fine",
    ),
    "synchronizing": Kind(
        "opportunity", "on an accelerator, numbers are read from tensors within a step, for each of which its queue is"
        " waited for",
    ),
    "anomaly_mode": Kind("opportunity", "autograd's anomaly mode is on, which looks through every gradient"),
    "fused_optimizer": Kind("opportunity", f"the optimizer's fused form saves {_LEAST}"),
    "threads": Kind("opportunity", f"another number of threads saves {_LEAST}"),
    "channels_last": Kind("opportunity", f"a channels-last layout saves {_LEAST}"),
    "larger_batch": Kind("opportunity", "twice the batch takes at least 5 % less time an example (99 % interval); told,"
        " whatever it saves, and left to you",
    ),
}  # fmt: skip

_ADVICE = {
    "fused_optimizer": "build the optimizer with fused=True",
    "channels_last": "call model.to(memory_format=torch.channels_last), and the same on each batch of images",
    "larger_batch": "take twice the batch where the batch question allows it, and the rate that it asks for",
}


def bounded(found: Estimate) -> bool:
    """Tell whether there were enough steps for an interval."""
    return found.has_interval and math.isfinite(found.low) and math.isfinite(found.high)


def milliseconds(found: Estimate) -> str:
    """`5.1 ms (4.9 to 5.3)`."""
    near = f" ({1e3 * found.low:.3g} to {1e3 * found.high:.3g})" if bounded(found) else ""
    return f"{1e3 * found.value:.3g} ms{near}"


def step_measure(phases: Phases) -> Measure:
    """The question's own figure."""
    step = phases.step
    low, high = (1e3 * each if bounded(step) else math.nan for each in (step.low, step.high))
    return Measure(
        "time of a step",
        1e3 * step.value,
        low,
        high,
        "ms",
        f"median of {len(phases.seconds)} steps with its 95 % interval",
    )


def summary(phases: Phases, fraction: float, room: Room | None) -> list[str]:
    """Clauses that are said whatever is found."""
    named = {name: share for name, share in phases.shares.items() if name != "loader" or phases.loads}
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in named.items())
    said = [f"a step takes {milliseconds(phases.step)}: {shares}"]
    if not phases.loads:
        said.append("the loader was not timed: it is an iterator")
    if not math.isnan(fraction):
        said.append(f"{percent(fraction)} of this device's matrix products")
    if room is not None:
        said.append(_room(room))
    return said


def _room(found: Room) -> str:
    text = f"{_bytes(found.bytes)} of tensors"
    if math.isnan(found.each) or found.each <= 0:
        return text
    text += f", {_bytes(found.each)} for each example more"
    if math.isnan(found.largest) or found.largest <= found.batch:
        return text
    if found.largest > PLENTY * found.batch:
        return f"{text}: the memory holds more than {PLENTY} such batches"
    return f"{text}, so that a batch of about {float(f'{found.largest:.2g}'):,.0f} would fill the memory"


def _bytes(value: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def slow_loader(training: Training, phases: Phases) -> Finding | None:
    """Batches that take longer than the step that they are for."""
    if not phases.loads:
        return None
    rest = phases.seconds.drop(columns="loader").sum(axis=1).to_numpy()
    waiting, working = phases.phase("loader"), stats.median(rest)
    if not (bounded(waiting) and bounded(working) and waiting.low > working.high):
        return None
    workers = getattr(training.batches, "num_workers", None)
    advice = (
        f"give the DataLoader num_workers={max(1, environment.cores() - 1)} and persistent_workers=True"
        if workers == 0
        else "prepare batches ahead (a cache on disk, fewer transforms, more workers)"
    )
    return Finding(
        "slow_loader", Status.LOOK if waiting.low - working.high >= TRIFLE else Status.FINE,
        f"A batch takes {milliseconds(waiting)} to come, and the rest of a step {milliseconds(working)}.",
        advice, f"a step takes {1e3 * working.value:.3g} ms where the loader keeps up, not"
        f" {1e3 * phases.step.value:.3g}", ("batches",),
        Measure("time of a batch", 1e3 * waiting.value, 1e3 * waiting.low, 1e3 * waiting.high, "ms"),
    )  # fmt: skip


def synchronizing(reads: int, phases: Phases) -> Finding | None:
    """Numbers that are read from an accelerator within a step."""
    if not reads or not phases.device.launches:
        return None
    return Finding(
        "synchronizing", Status.LOOK,
        f"Forward and backward pass read {reads} numbers from the device (.item(), float(), if tensor: ...), and each"
        " time wait until its queue is empty.",
        "keep them as tensors, and read them every few steps", "the host runs ahead of the device again", ("loss",),
        Measure("numbers read in a pass", float(reads)),
    )  # fmt: skip


def anomaly_mode() -> Finding | None:
    """Autograd's anomaly mode, left on."""
    if not torch.is_anomaly_enabled():
        return None
    return Finding(
        "anomaly_mode", Status.LOOK, "Autograd's anomaly mode is on: it looks for NaN in every gradient of each step.",
        "remove torch.autograd.set_detect_anomaly(True)", "backward passes are as quick as they can be", ("model",),
    )  # fmt: skip


def saving(found: Saving) -> Finding | None:
    """A way that saves time for sure."""
    if not found.left < WORTH:
        return None
    effect, name = found.ratio.effect, found.what
    times = f"{effect.value:.2f} times as long ({effect.low:.2f} to {effect.high:.2f})"
    part = "optimizer.step()" if found.kind == "fused_optimizer" else "forward and backward pass"
    per = "an example" if found.per > 1 else "a step"
    method = f"A B B A in turns, {effect.n} blocks; 99 % interval of the median ratio"
    return Finding(
        found.kind, Status.LOOK if found.seconds >= TRIFLE and found.kind != "larger_batch" else Status.FINE,
        f"With {name}, {part} takes {times}.",
        _ADVICE.get(found.kind, f"call {name.partition(' in place')[0]} before the training"),
        f"{100 * (1 - found.expected):.0f} % less time {per}",
        ("optimizer",) if found.kind == "fused_optimizer" else ("model",),
        Measure("time against the present one's", effect.value, effect.low, effect.high, "", method),
        Tried(name, f"milliseconds of {part}", 1e3 * found.before, 1e3 * found.before * effect.value),
    )  # fmt: skip
