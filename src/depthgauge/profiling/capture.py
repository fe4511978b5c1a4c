"""Recording of a training step: the trace, the times with and without the profiler, the operators' cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from depthgauge import environment, float32, jsonfile, nested
from depthgauge.folder import write_whole
from depthgauge.jsonfile import JsonError, NoFileError, conform
from depthgauge.multiplying import stored
from depthgauge.operations import Operation, counting
from depthgauge.profiling.turns import Turns, measure
from depthgauge.roofline import Ceilings
from depthgauge.timing import Device, DeviceClock
from depthgauge.trace import PHASE
from depthgauge.updating import clear, update

# ruff: noqa: PLC0415 - what was captured before is read without torch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from depthgauge.workload import Training

_WARM_UP = 3
_LEAST, _MOST = 1e-12, 1e24  # what is stored of a step, in seconds, bytes or operations


class ProfileError(RuntimeError):
    """A step that cannot be profiled; the message is one sentence for the user."""


@dataclass(frozen=True)
class Capture:
    """The record of one training step, as it is stored.

    Attributes:
        label: names it among others in one folder.
        setting: the request: model, preset, dtype, batch, device, compiled, threads, optimizer.
        examples: in a batch.
        precision: the format whose products set the ceiling of float32 operators: `tf32` where these are rounded.
        plain: seconds of a step without the profiler, the median of each block.
        profiled: the same under it, block by block in turns.
        first: seconds of the first step that is timed, with compilation where it is compiled; what eager mode does once
            (allocation, choice of algorithms) lies in steps before it.
        operations: the cost of each operator of a step, counted in eager mode.
        resident: bytes that lie in memory between steps: parameters, optimizer state, batch.
        ceilings: the device's roofline.
        trace: the trace's file, relative to the folder.
        fingerprint: the machine and the versions.
        command: the command line that makes it again.
        convolutions: the same format of float32 convolutions; empty, as in files of before: that of products.
        trained: bytes of the parameters that the optimizer moves; None in files of before, whose bounds take all.
    """

    label: str
    setting: Mapping[str, str | int | bool]
    examples: int
    precision: str
    plain: tuple[float, ...]
    profiled: tuple[float, ...]
    first: float
    operations: tuple[Operation, ...]
    resident: Mapping[str, int]
    ceilings: Ceilings
    trace: str
    fingerprint: Mapping[str, str | int | float | None]
    command: str = ""
    convolutions: str = ""
    trained: int | None = None

    def write(self, folder: Path) -> Path:
        """Store the capture under `profiles/`, in place of an earlier one of its label."""
        path = folder / "profiles" / f"{self.label}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema": 1, **asdict(self)}
        content["operations"] = [list(asdict(operation).values()) for operation in self.operations]
        write_whole(path, json.dumps(content, allow_nan=False, separators=(",", ":")).encode())
        return path

    @staticmethod
    def read(path: Path) -> Capture:
        """Read a capture that `write` has stored.

        Raises:
            ProfileError: the file does not hold it.
        """
        try:
            content = conform(jsonfile.read(path, utf8=True), dict[str, Any], "the whole")
            if content.pop("schema", None) != 1:
                raise JsonError("is not of this version of depthgauge")
            rows = conform(content.get("operations"), tuple[_Row, ...], "operations")
            captured = conform({**content, "operations": []}, Capture, "profile")
            return _sound(replace(captured, operations=tuple(Operation(*row) for row in rows)))
        except NoFileError as error:
            raise ProfileError(str(error)) from error
        except JsonError as error:
            what = str(error).removeprefix(f"{path} ")
            raise ProfileError(f"{path} holds no profile: it {what}") from error


_Row = tuple[str, tuple[tuple[int, ...], ...], int, int, str]  # an operation, as it is stored


def _sound(captured: Capture) -> Capture:
    """Check that a capture's numbers can be computed with.

    Raises:
        JsonError: a number is where none of its kind can be.
    """
    ceilings = captured.ceilings
    positive = {
        "plain": captured.plain,
        "profiled": captured.profiled,
        "first": (captured.first,),
        "examples": (captured.examples,),
        "ceilings.flops": tuple(ceilings.flops.values()),
        "ceilings.bandwidth": (ceilings.bandwidth, ceilings.cached_bandwidth),
        "ceilings.levels": tuple(float(number) for level in ceilings.levels for number in level),
    }
    counts = [count for operation in captured.operations for count in (operation.flops, operation.bytes)]
    several = {"resident": captured.resident.values(), "operations": counts, "trained": (captured.trained or 0,)}
    for name, numbers in {**positive, **several}.items():
        least = _LEAST if name in positive else 0
        if not numbers and name in {"plain", "profiled"}:
            raise JsonError(f"has no number in {name}")
        if any(not least <= number <= _MOST for number in numbers):
            raise JsonError(f"has a number in {name} that is not within {least:g} to {_MOST:g}")
    if len(captured.plain) != len(captured.profiled):
        raise JsonError(f"has {len(captured.plain)} numbers in plain and {len(captured.profiled)} in profiled")
    if Path(captured.trace).is_absolute() or ".." in Path(captured.trace).parts:
        raise JsonError(f"names a trace outside of its folder: {captured.trace}")
    return captured


def capture(
    training: Training,
    *,
    label: str,
    folder: Path,
    ceilings: Ceilings,
    setting: Mapping[str, str | int | bool],
    compiled: bool = False,
    seconds: float = 10.0,
    command: str = "",
) -> Capture:
    """Records steps of a training on its first batch, and stores trace and measurements in a folder.

    The time of a step is taken without the profiler, in the profiler's own waiting steps, in turns with steps under
    it; the trace is that of the turn whose traced steps were the quickest, hence the least disturbed.

    Args:
        training: in the mode, with the numbers, and on the device that it is to be profiled with; left as it was.
            Without an optimizer it is SGD with momentum.
        label: names the trace; a file name.
        folder: gets `traces/LABEL/*.pt.trace.json.gz` and `profiles/LABEL.json`.
        ceilings: the device's ceilings.
        setting: the setting to record.
        compiled: run the model through torch.compile.
        seconds: to spend on measuring, roughly; one turn at least is made.
        command: the command line that makes it again.

    Raises:
        ProfileError: nothing trains, the step fails, or its compilation does.
    """
    import torch

    if not any(parameter.requires_grad for parameter in training.model.parameters()):
        model = setting.get("model", "the model")
        raise ProfileError(f"{model} has no parameter that trains, so that there is no training step to profile")
    optimizer = training.optimizer or torch.optim.SGD(training.model.parameters(), lr=1e-4, momentum=0.9)
    (batch,) = training.first()
    training = replace(training, optimizer=optimizer)
    with training.untouched():
        with _failing(setting, batch, advice=getattr(batch, "assumed", False)):
            training.value(batch)
        with _failing(setting, batch):
            device = _device(training.model, batch)
            clock = DeviceClock(device)
            _step(training, batch)  # the optimizer makes its state
            with counting() as operations:
                _step(training, batch)
        resident = _resident(training, batch)

        running = _compiled(training.model, device) if compiled else None

        def step() -> None:
            _step(training, batch, running)

        with _failing(setting, batch, compiled=compiled):
            first = clock.time(step)
            warm = min(clock.time(step) for _ in range(_WARM_UP))
        traced = folder / "traces" / label

        def timed() -> float:
            with _failing(setting, batch):
                return clock.time(step)

        plain, profiled = measure(timed, device, Turns.within(seconds, warm), traced)
        examples = nested.examples(batch)
        products, convolutions = float32.formats() if device.launches else ("float32", "float32")
        captured = Capture(
            label=label,
            setting={**setting, "batch": examples},  # a user's own batch may have fewer rows than were asked for
            examples=examples,
            precision=products,
            convolutions=convolutions,
            trained=_trained(optimizer),
            plain=plain,
            profiled=profiled,
            first=first,
            operations=tuple(operations),
            resident=resident,
            ceilings=ceilings,
            trace=str(next(traced.glob("*.pt.trace.json.gz")).relative_to(folder)),
            fingerprint=environment.fingerprint(device.name, torch.get_num_threads()),
            command=command,
        )
    captured.write(folder)
    return captured


def _step(training: Training, batch: Any, running: nn.Module | None = None) -> None:
    """Forward, backward, optimizer; gradients are gone at the end, so that one step's memory is its own."""
    from torch.profiler import record_function

    assert training.optimizer is not None
    with record_function(PHASE + "forward"):
        value = training.value(batch, running)
    with record_function(PHASE + "backward"):
        value.backward()  # type: ignore[no-untyped-call] # torch has not typed it
    with record_function(PHASE + "optimizer"):
        update(training.optimizer, lambda: training.value(batch, running))
        clear(training.optimizer)


def _device(model: nn.Module, batch: Any) -> Device:
    """Return the step's device: the weights', or the batch's where there are no weights."""
    first = next(iter([*model.parameters(), *(tensor for _, tensor in nested.tensors(batch))]), None)
    return Device.named("cpu" if first is None else str(first.device))


def _compiled(model: nn.Module, device: Device) -> nn.Module:
    import torch

    # On a CPU the compiler's own loops are recorded only if it is told so.
    options: dict[str, str | int | bool | Callable[..., object]] = {"cpp.enable_kernel_profile": True}
    compiled: Any = torch.compile(model, options=None if device.launches else options)
    return cast("nn.Module", compiled)


@contextmanager
def _failing(
    setting: Mapping[str, object], batch: Any, *, compiled: bool = False, advice: bool = False
) -> Iterator[None]:
    what = f"{setting.get('model', 'the model')} in {setting.get('dtype', 'its format')}"
    where = f"on {setting.get('device', 'this device')}"
    try:
        yield
    except Exception as error:  # whatever a user's module raises
        message = " ".join(str(error).split())
        if not message or not isinstance(error, RuntimeError | ValueError):  # what these say is a sentence
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
        doing = "cannot be compiled" if compiled else "cannot run a training step"
        hint = "; say what it takes by --input-shape, --tokens or an example_input_array" if advice else ""
        raise ProfileError(f"{what} {doing} {where}, fed {nested.describe(batch)}: {message[:300]}{hint}") from error


def _resident(training: Training, batch: Any) -> dict[str, int]:
    import torch

    assert training.optimizer is not None
    entries = (value for entry in training.optimizer.state.values() for value in entry.values())
    state = [value for value in entries if isinstance(value, torch.Tensor)]
    weights = [*training.model.parameters(), *training.model.buffers()]
    parts = {"parameters": weights, "optimizer state": state, "batch": [tensor for _, tensor in nested.tensors(batch)]}
    return {name: _bytes(part for tensor in tensors for part in stored(tensor)) for name, tensors in parts.items()}


def _trained(optimizer: torch.optim.Optimizer) -> int:
    moved = (each for group in optimizer.param_groups for each in group["params"] if each.requires_grad)
    return _bytes(part for parameter in moved for part in stored(parameter))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Count the bytes of the tensors' memory, shared memory once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
