"""One case of the scoring: a training of the zoo, a seed and a tool, and the row that comes of it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import depthgauge
from benchmarks.fault_zoo import generated, halves
from benchmarks.fault_zoo.entry import Planted
from benchmarks.fault_zoo.judging import Alarm, alarms, found
from benchmarks.fault_zoo.peers import TOOLS
from depthgauge import Training
from depthgauge.foreign import describe_error

CHECK = "depthgauge check"
GROUPS = ("fault", "twin", "sound", "generated")


@dataclasses.dataclass(frozen=True)
class Case:
    """A question of the scoring: which tool, which training, which seed.

    Attributes:
        tool: `depthgauge check`, or a peer's name.
        group: fault, twin, sound or generated.
        half: one of `halves.HALVES`; empty for generated trainings.
        name: the training's.
        seed: from which it is made.
        budget: seconds for the check.
    """

    tool: str
    group: str
    half: str
    name: str
    seed: int
    budget: float = 30.0

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return "|".join(map(str, dataclasses.astuple(self)))


def names(group: str, half: halves.Half) -> list[str]:
    """The trainings of a group that can be built here."""
    held = halves.sounds(half) if group == "sound" else halves.faults(half)
    return [each.name for each in held]


def run(case: Case) -> dict[str, Any]:
    """Make the training and ask the tool; what either raises is in the row."""
    row: dict[str, Any] = {"key": case.key, **dataclasses.asdict(case), "failed": ""}
    try:
        planted = _planted(case)
        row["sound"] = case.group != "generated" or generated.is_sound(case.seed)
        if not row["sound"]:
            return row
        training = _made(case, planted)
        start = time.perf_counter()
        told, statuses = _asked(case, training)
        row["seconds"] = time.perf_counter() - start
        row["statuses"] = statuses
        row["alarms"] = [dataclasses.asdict(each) for each in told]
        if case.group == "fault" and planted is not None:
            row["found"] = found(told, planted.found_by)
    except Exception as error:  # noqa: BLE001 - a tool that fails has a row, too
        row["failed"] = describe_error(error)
    return row


def _planted(case: Case) -> Planted | None:
    if case.group not in {"fault", "twin"}:
        return None
    return next(each for each in halves.faults(_half(case)) if each.name == case.name)


def _made(case: Case, planted: Planted | None) -> Training:
    if case.group == "generated":
        return generated.make(case.seed)
    if planted is not None:
        return planted.make(case.seed) if case.group == "fault" else planted.twin(case.seed)
    return next(each for each in halves.sounds(_half(case)) if each.name == case.name).make(case.seed)


def _half(case: Case) -> halves.Half:
    return next(half for half in halves.HALVES if half == case.half)


def _asked(case: Case, training: Training) -> tuple[tuple[Alarm, ...], dict[str, str]]:
    if case.tool != CHECK:
        return TOOLS[case.tool](training), {}
    checked = depthgauge.check(training, budget=case.budget)
    return alarms(checked), {answer.id: answer.status.value for answer in checked.asked}
