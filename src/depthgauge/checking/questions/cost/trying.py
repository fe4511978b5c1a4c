"""Savings that are tried on the training itself: two ways of doing the same, timed in turns, and put back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from depthgauge import nested, stats
from depthgauge.checking.questions.cost.phases import Phases, doubled
from depthgauge.copies import copied
from depthgauge.stats import Comparison
from depthgauge.timing import clock, in_turns
from depthgauge.workload import Training

if TYPE_CHECKING:
    import pandas as pd

Work = Callable[[], object]

BLOCKS = 8  # turns A B B A: a 99 % interval of a median takes 8
HOPELESS = 2.0  # times as long as the present way: one that takes that is not timed any further
LARGEST_COPY = 50_000_000  # numbers of a model that is copied to be tried in another memory format


@dataclass(frozen=True)
class Saving:
    """One way that was tried.

    Attributes:
        kind: the finding's.
        what: the way, in words.
        ratio: its time over that of the present one, of the part that it concerns.
        before: seconds of that part as it is.
        step: seconds of a whole step as it is.
        per: examples a call of the other way, over those of the present one.
    """

    kind: str
    what: str
    ratio: Comparison
    before: float
    step: float
    per: float = 1.0

    @property
    def left(self) -> float:
        """Share of a step's time for as many examples that is left, at least by its interval's far end."""
        return self._of(self.ratio.effect.high)

    @property
    def expected(self) -> float:
        """The same by its median."""
        return self._of(self.ratio.effect.value)

    @property
    def seconds(self) -> float:
        """Seconds of a step that it saves, by its median."""
        return self.step * (1 - self.expected)

    def _of(self, ratio: float) -> float:
        part = self.before / self.step
        return part * ratio / self.per + (1 - part)


def table(savings: list[Saving]) -> pd.DataFrame:
    """A row a way that was tried: its time over the present way's, and the share of a step that it saves."""
    import pandas as pd  # noqa: PLC0415 - of the evidence alone

    return pd.DataFrame(
        [
            {"tried": each.what, "time_ratio": effect.value, "low_99": effect.low, "high_99": effect.high,
             "saved_share": 1 - each.expected, "saved_ms": 1e3 * each.seconds}
            for each in savings
            for effect in (each.ratio.effect,)
        ]
    )  # fmt: skip


class Tries:
    """Ways to do a training's step.

    Args:
        training: the user's; left as it was.
        batch: on which it is tried.
        phases: what its steps take now.
        fits: whether so many seconds are left.
    """

    def __init__(self, training: Training, batch: Any, phases: Phases, fits: Callable[[float], bool]) -> None:
        self._training, self._batch, self._phases, self._fits = training, batch, phases, fits
        self._clock = clock(phases.device)
        self._pass = phases.phase("forward").value + phases.phase("backward").value
        self.skipped: list[str] = []

    def all(self) -> Iterator[Saving]:
        """Each way that applies and for which there is time."""
        for name, way in (
            ("the optimizer's fused form", self._fused), ("threads", self._threads),
            ("a channels-last layout", self._channels_last), ("a batch of twice the size", self._larger),
        ):  # fmt: skip
            try:
                saving = way()
            except Exception as error:  # noqa: BLE001 - a way that the training does not bear is no saving
                self.skipped.append(f"{name}: {type(error).__name__}")
                continue
            if saving is not None:
                yield saving

    def _compared(self, now: Work, other: Work, name: str, seconds: float) -> Comparison | None:
        if not self._fits(BLOCKS * 6 * seconds):
            self.skipped.append(f"{name}: no time")
            return None
        quickest = [min(self._clock.time(work) for _ in range(3)) for work in (now, other)]
        if quickest[1] > HOPELESS * quickest[0]:
            self.skipped.append(f"{name}: far slower")
            return None
        times = in_turns(self._clock, other, now, BLOCKS)
        return stats.time_ratio(times[:, 0], times[:, 1])

    def _once(self, batch: Any, model: nn.Module | None = None) -> Work:
        def work() -> None:
            self._training.value(batch, model).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return work

    def _saving(self, kind: str, what: str, ratio: Comparison | None, before: float, per: float = 1.0) -> Saving | None:
        return None if ratio is None else Saving(kind, what, ratio, before, self._phases.step.value, per)

    def _fused(self) -> Saving | None:
        """The optimizer's own fused kernel."""
        optimizer = self._training.optimizer
        if optimizer is None or not type(optimizer).__module__.startswith("torch.optim"):
            return None
        if "fused" not in inspect.signature(type(optimizer)).parameters:
            return None
        if any(group.get("fused") or group.get("differentiable") for group in optimizer.param_groups):
            return None
        seconds = self._phases.phase("optimizer").value
        with self._training.untouched():
            self._once(self._batch)()
            now, other = (rebuilt(optimizer, fused=fused) for fused in (False, True))
            ratio = self._compared(now.step, other.step, "the optimizer's fused form", seconds)
        return self._saving("fused_optimizer", "the optimizer's fused form (fused=True)", ratio, seconds)

    def _threads(self) -> Saving | None:
        """One thread in place of several; more than the user has set would disturb what else the machine does."""
        now, other = torch.get_num_threads(), 1
        if self._phases.device.name != "cpu" or now == other:
            return None
        once = self._once(self._batch)

        def with_threads(count: int) -> Work:
            def work() -> None:
                torch.set_num_threads(count)
                once()

            return work

        try:
            with self._training.untouched():
                ratio = self._compared(with_threads(now), with_threads(other), "threads", self._pass)
        finally:
            torch.set_num_threads(now)
        return self._saving("threads", f"torch.set_num_threads({other}) in place of {now}", ratio, self._pass)

    def _channels_last(self) -> Saving | None:
        """Images whose channels lie side by side."""
        model = self._training.model
        images = any(tensor.dim() == 4 and tensor.is_floating_point() for _, tensor in nested.tensors(self._batch))
        convolves = any(isinstance(part, nn.Conv2d) and part.groups == 1 for part in model.modules())
        if not images or not convolves or sum(each.numel() for each in model.parameters()) > LARGEST_COPY:
            return None
        turned = copied(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own
        batch = nested.mapped(self._batch, _channels_last)
        with self._training.untouched():
            now, other = self._once(self._batch), self._once(batch, turned)
            ratio = self._compared(now, other, "a channels-last layout", self._pass)
        return self._saving("channels_last", "a channels-last layout of weights and images", ratio, self._pass)

    def _larger(self) -> Saving | None:
        """Twice the batch."""
        if nested.rows(self._batch) is None:
            return None
        batch = doubled(self._batch)
        with self._training.untouched():
            now, other = self._once(self._batch), self._once(batch)
            ratio = self._compared(now, other, "a batch of twice the size", 1.5 * self._pass)
        return self._saving("larger_batch", "a batch of twice the size", ratio, self._pass, 2.0)


def rebuilt(optimizer: torch.optim.Optimizer, **changed: Any) -> torch.optim.Optimizer:
    """A new optimizer of the same kind over the same groups, with other options."""
    groups = [{**group, "params": list(group["params"]), **changed} for group in optimizer.param_groups]
    kind: Any = type(optimizer)
    made: torch.optim.Optimizer = kind(groups, **changed)
    return made


def _channels_last(tensor: Tensor) -> Tensor:
    images = tensor.dim() == 4 and tensor.is_floating_point()
    return tensor.contiguous(memory_format=torch.channels_last) if images else tensor


@contextmanager
def waits() -> Iterator[list[int]]:
    """Count within the block how often a number is read from a tensor, for which an accelerator's queue is waited."""
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415 - used here alone

    counts = [0]

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not typed __init_subclass__
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            counts[0] += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads():  # type: ignore[no-untyped-call]  # as above
        yield counts
