"""What a pass means: the same for every entry."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import pickle
import random
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from depthgauge import Training, initialization, probe
from depthgauge.profiling.capture import capture
from depthgauge.roofline import Ceilings
from zoo.entry import Case, Entry, floating

SEED = 11
ENOUGH = 0.9
CEILINGS = Ceilings("cpu", 1, {"float32": 1e11}, 1e10, 1e10)  # what is measured is not held against them here
ACTIVATION, ACTIVATION_GRADIENT, WEIGHT, WEIGHT_GRADIENT, UPDATE = probe.DIRECTIONS
PARAMETRIZED = ".parametrizations."
HELD = (nn.ParameterList, nn.ParameterDict)  # which never run: their parameters are those of the module around them
_OPTIMIZERS = importlib.import_module("torch.optim.optimizer")  # torch.optim deletes the name


@dataclass(frozen=True)
class Outcome:
    """What came of an entry.

    Attributes:
        result: "pass", "partly" or "fails"; "broken" where it does not run without the probe, "not run" where a
            package is not to be had.
        why: what was wrong, a clause for each fault.
        layers: weight layers: modules that own a floating parameter of two or more dimensions.
        seen: those with rows of activations and of weights, be they shared with another layer.
        unseen: names of the others.
        reached: weight layers, embeddings aside, whose weights `initialization.apply` drew.
        reachable: how many there are of those.
        training: what `depthgauge.Training` did not leave as it was; None where it was not asked.
        profile: why `depthgauge profile` cannot measure a step of it; None where it was not asked.
        rows: of the record.
        warned: what the probe said.
    """

    result: str
    why: tuple[str, ...]
    layers: int = 0
    seen: int = 0
    unseen: tuple[str, ...] = ()
    reached: int = 0
    reachable: int = 0
    training: str | None = None
    profile: str | None = None
    rows: int = 0
    warned: tuple[str, ...] = ()


Reference = dict[tuple[str, str], list[tuple[int, float]]]


@dataclass
class Run:
    """One training: what it computed and what it left behind."""

    entry: Entry
    case: Case
    numbers: list[float]
    weights: list[tuple[str, bytes]]
    random: tuple[bytes, str, str]
    hooks: dict[str, Any]
    copied: dict[str, str]
    record: probe.Record | None = None
    reference: Reference = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()


def judge(entry: Entry) -> Outcome:
    """Train an entry's case with and without the probe, and compare."""
    try:
        first = _trained(entry, watched=False)  # imports what draws random numbers, compiles what is compiled once
        bare = _trained(entry, watched=False)
    except ImportError as error:
        return Outcome("not run", (f"cannot be imported: {_one_line(error)}",))
    except Exception as error:  # noqa: BLE001 # a package that cannot do it, or an entry that is wrong
        return Outcome("broken", (f"does not run without the probe: {_one_line(error)}",))
    if _numbers(first, bare) or _same_weights(first, bare):
        return Outcome("broken", ("does not compute the same twice, without the probe",))
    try:
        run = _trained(entry, watched=True)
    except Exception as error:  # noqa: BLE001 # what the probe does to a stranger's program is what is asked
        return Outcome("fails", (f"raises {_one_line(error)}",))
    assert run.record is not None
    with contextlib.suppress(Exception):  # where hooks of this kind do not go, there is nothing to compare
        run.reference = _reference(entry)
    faults = [text for text in (check(bare, run) for check in CHECKS) if text]
    layers = weight_layers(run.case.model)
    unseen = _unseen(run, layers)
    faults += _untold(run, unseen)
    reached, reachable = _reach(entry)
    enough = len(layers) - len(unseen) >= ENOUGH * len(layers)
    return Outcome(
        "fails" if faults or run.faults else "pass" if enough else "partly",
        (*faults, *run.faults),
        layers=len(layers),
        seen=len(layers) - len(unseen),
        unseen=tuple(unseen),
        reached=reached,
        reachable=reachable,
        training=_left_by_training(entry),
        profile=_unprofiled(entry) if entry.kind == "module" else None,
        rows=len(run.record),
        warned=run.warned,
    )


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own a floating parameter of two or more dimensions, by name, be it through a parametrization.

    Where a model has none of that kind, as its weights are stored flat, those that own any floating parameter.
    """
    return _owners(model, 2) or _owners(model, 1)


def _owners(model: nn.Module, dimensions: int) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, HELD) and PARAMETRIZED not in name
        if any(p.is_floating_point() and p.dim() >= dimensions for p in _parameters(module))
    }


def _unseen(run: Run, layers: dict[str, nn.Module]) -> list[str]:
    """Weight layers without rows of activations, or without any of their weights."""
    assert run.record is not None
    frame = run.record.to_frame()
    names = {id(parameter): name for name, parameter in run.case.model.named_parameters()}
    ran = set(frame.layer[frame.direction == "activation"])
    weights = frame[frame.direction == "weight"]
    weighed = {f"{layer}.{own}".removeprefix(".") for layer, own in zip(weights.layer, weights.parameter, strict=True)}
    return [
        name
        for name, module in layers.items()
        if not (name in ran or _inside(run, name)) or not any(names[id(p)] in weighed for p in _parameters(module))
    ]


def _untold(run: Run, unseen: list[str]) -> list[str]:
    """What is not seen is told, layer by layer, or at once where no call was seen; what was not asked for is not."""
    assert run.record is not None
    told = tuple(each.layer for each in run.record.unread)
    silent = any("no call of the tracked modules" in text for text in run.warned) or "directions" in run.case.watch
    missing = [] if silent else [name for name in unseen if not _among(name, told)]
    return [f"says nothing of {', '.join(map(repr, missing[:3]))}, not seen"] if missing else []


def _among(name: str, told: tuple[str, ...]) -> bool:
    """Whether a layer is told of by its own name, or by that of the block that it is in."""
    return any(name == each or name.startswith(f"{each}.") for each in told)


def _inside(run: Run, layer: str) -> bool:
    """Whether a layer returned what a layer inside of it had returned, whose rows it then is."""
    assert run.record is not None
    frame = run.record.to_frame()
    rows = frame[(frame.direction == "activation") & frame.layer.str.startswith(f"{layer}." if layer else "")]
    return any(
        _near(run.reference.get((ACTIVATION, layer), []), *row) for row in zip(rows["count"], rows["mean"], strict=True)
    )


def _near(seen: list[tuple[int, float]], count: int, mean: float) -> bool:
    """Tell whether one is the tensor: float32's rounding of numbers that largely cancel in the mean is let pass."""
    return any(n == count and np.isclose(mean, m, rtol=2e-5, atol=1e-9, equal_nan=True) for n, m in seen)


def _parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """A module's own parameters, those in lists and dictionaries, and those behind its parametrizations."""
    parametrized: Mapping[str, nn.Module] = dict(getattr(module, "parametrizations", {}))
    held = (child for child in module.children() if isinstance(child, HELD))
    for owner in (module, *held, *parametrized.values()):
        yield from owner.parameters(recurse=False)


def _trained(entry: Entry, *, watched: bool) -> Run:
    _seed()
    case = entry.build()
    record = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if watched:
            with probe.track(case.model, optimizer=case.optimizer, **case.watch) as record:
                numbers = case.train(case)
                rows = len(record)
                copies = _copies(case)
                ran = _run_copies(case, copies)
                faults = _rows_of_copies(record, rows, "inside of the block")
        else:
            numbers, faults = case.train(case), ()
            copies = _copies(case)
            ran = _run_copies(case, copies)
        said = tuple(
            dict.fromkeys(str(each.message) for each in caught if each.category.__module__.startswith("depthgauge"))
        )
    weights, state, hooks = _weights(case.model), _random(), _hooks(case)
    if record is not None:
        rows = len(record)
        if case.loss is not None:
            case.loss(case.model)
            faults += ("a run after the block adds rows",) if len(record) != rows else ()
        rows = len(record)
        _run_copies(case, copies)
        faults += _rows_of_copies(record, rows, "after it")
    return Run(entry, case, numbers, weights, state, hooks, ran, record, faults=faults, warned=said)


def _seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 # what the packages draw from
    torch.manual_seed(SEED)


def _random() -> tuple[bytes, str, str]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        str(random.getstate()),
        str(np.random.get_state()),  # noqa: NPY002 # likewise
    )


def _weights(model: nn.Module) -> list[tuple[str, bytes]]:
    return [
        (name, _bytes(tensor))
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
    ]


def _bytes(tensor: torch.Tensor) -> bytes:
    local: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    dense = (local.detach().to_dense() if local.is_sparse else local.detach()).contiguous().reshape(-1)
    return bytes(dense.view(torch.uint8).numpy().tobytes()) if dense.numel() else b""


def _copies(case: Case) -> dict[str, nn.Module | str]:
    """Copies of the model by the way they were made, or what was raised."""
    ways: dict[str, Callable[[], nn.Module]] = {
        "deepcopy": lambda: copy.deepcopy(case.model),
        "pickle": lambda: pickle.loads(pickle.dumps(case.model)),
        "torch.save": lambda: _saved(case.model),
    }
    made: dict[str, nn.Module | str] = {}
    for way, make in ways.items():
        try:
            made[way] = make()
        except Exception as error:  # noqa: BLE001 # not every model can be copied; it must not depend on the probe
            made[way] = type(error).__name__
    return made


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def _run_copies(case: Case, copies: dict[str, nn.Module | str]) -> dict[str, str]:
    """How each copy ended, the same with and without the probe."""
    return {way: _ending(case, made) for way, made in copies.items()}


def _ending(case: Case, made: nn.Module | str) -> str:
    if isinstance(made, str):
        return made
    if case.loss is None:
        return "copied"
    try:
        loss = case.loss(made)
        if loss.requires_grad:
            loss.backward()
    except Exception as error:  # noqa: BLE001 # likewise
        return type(error).__name__
    return "copied and ran"


def _rows_of_copies(record: probe.Record, rows: int, where: str) -> tuple[str, ...]:
    return (f"a copy of the model adds rows {where}",) if len(record) != rows else ()


def _hooks(case: Case) -> dict[str, Any]:
    """Everything by which a module, a parameter or an optimizer tells that somebody listens, or changed its methods."""
    found: dict[str, Any] = {"torch": _listening(torch.nn.modules.module) | _listening(_OPTIMIZERS)}
    for name, module in case.model.named_modules():
        found[f"module {name}"] = (type(module).__name__, sorted(vars(module)), _listening(module))
        for own, parameter in module.named_parameters(recurse=False):
            found[f"parameter {name}.{own}"] = (sorted(vars(parameter)), _parameter_hooks(parameter))
    optimizers = case.optimizer if isinstance(case.optimizer, list | tuple) else [case.optimizer]
    for number, optimizer in enumerate(each for each in optimizers if each is not None):
        found[f"optimizer {number}"] = (sorted(vars(optimizer)), _listening(optimizer))
    return found


def _listening(owner: Any) -> dict[str, int]:
    return {
        name: len(value) for name, value in vars(owner).items() if name.endswith("hooks") and hasattr(value, "__len__")
    }


def _parameter_hooks(parameter: nn.Parameter) -> list[int]:
    return [len(hooks or ()) for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)]


def _numbers(bare: Run, run: Run) -> str:
    same = np.array_equal(np.array(bare.numbers), np.array(run.numbers), equal_nan=True)
    assert bare.numbers, "the training returned no number to compare"
    return "" if same else f"losses change: {bare.numbers} without the probe, {run.numbers} with it"


def _same_weights(bare: Run, run: Run) -> str:
    changed = [a[0] for a, b in zip(bare.weights, run.weights, strict=True) if a != b]
    return f"weights change: {', '.join(changed[:3])}" if changed else ""


def _same_random(bare: Run, run: Run) -> str:
    return "" if bare.random == run.random else "random numbers are drawn"


def _same_hooks(bare: Run, run: Run) -> str:
    left = [name for name in bare.hooks | run.hooks if bare.hooks.get(name) != run.hooks.get(name)]
    return f"something is left at {', '.join(left[:3])}" if left else ""


def _same_copies(bare: Run, run: Run) -> str:
    changed = [
        f"{way}: {run.copied[way]} for {bare.copied[way]}" for way in bare.copied if bare.copied[way] != run.copied[way]
    ]
    return f"copies end otherwise ({', '.join(changed)})" if changed else ""


def _some_rows(_bare: Run, run: Run) -> str:
    return "" if run.record is not None and len(run.record) else "no row at all"


def _true(_bare: Run, run: Run) -> str:
    """Rows are of tensors that plain hooks see: on each module, and around each step of an optimizer."""
    assert run.record is not None
    frame = run.record.to_frame()
    places = frame.layer.where(frame.parameter.isna(), frame.layer + "." + frame.parameter.fillna(""))
    for direction, place, count, mean in zip(frame.direction, places, frame["count"], frame["mean"], strict=True):
        seen = run.reference.get((direction, place.removeprefix(".")))
        if seen is not None and not _near(seen, count, mean):
            return f"{direction} of {place!r}: no tensor of {count} numbers has a mean of {mean:.6g}"
    return ""


def _reference(entry: Entry) -> Reference:
    """What plain hooks see of a training, by direction and place; without what they cannot read."""
    _seed()
    case = entry.build()
    seen = Seen()
    names = {parameter: name for name, parameter in case.model.named_parameters()}
    before: dict[str, torch.Tensor] = {}

    def read(_optimizer: Any, *_: Any) -> None:
        for parameter, name in names.items():
            before[name] = parameter.detach().clone()
            seen.add(WEIGHT, name, parameter)
            seen.add(WEIGHT_GRADIENT, name, parameter.grad)

    def compare(_optimizer: Any, *_: Any) -> None:
        for parameter, name in names.items():
            seen.add(UPDATE, name, _plain(parameter) - _plain(before[name]))
            seen.add(WEIGHT_GRADIENT, name, parameter.grad)

    def hook(name: str) -> Callable[..., None]:
        def see(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen.add(ACTIVATION, name, output)
            with contextlib.suppress(Exception):  # likewise
                for tensor in floating(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda gradient: seen.add(ACTIVATION_GRADIENT, name, gradient))

        return see

    # Before the hooks that a module has: the probe tells of what its forward returned.
    handles = [module.register_forward_hook(hook(name), prepend=True) for name, module in case.model.named_modules()]
    if case.optimizer is not None:
        handles.append(_OPTIMIZERS.register_optimizer_step_pre_hook(read))
        handles.append(_OPTIMIZERS.register_optimizer_step_post_hook(compare))
    try:
        case.train(case)
    finally:
        for handle in handles:
            handle.remove()
    return {place: values for place, values in seen.values.items() if place not in seen.unread}


class Seen:
    """How many numbers tensors have, and the mean of those that are finite, by direction and place."""

    def __init__(self) -> None:
        self.values: Reference = {}
        self.unread: set[tuple[str, str]] = set()

    def add(self, direction: str, place: str, output: Any) -> None:
        """The tensors of an output."""
        try:
            with torch.no_grad():
                for values in map(_plain, floating(output)):
                    finite = values[values.isfinite()]
                    told = (int(values.numel()), float(finite.mean()))
                    self.values.setdefault((direction, place), []).append(told)
        except Exception:  # noqa: BLE001 # there is nothing to compare
            self.unread.add((direction, place))


def _plain(output: torch.Tensor) -> torch.Tensor:
    local: Any = output.to_local() if hasattr(output, "to_local") else output
    local = local.coalesce() if local.is_sparse else local
    values: torch.Tensor = (local.values() if local.is_nested or local.is_sparse else local).detach()
    return (torch.view_as_real(values) if values.is_complex() else values).double()


def _readable(_bare: Run, run: Run) -> str:
    """Fractions of a row sum to one."""
    assert run.record is not None
    shares = run.record.fractions("float16")
    total = shares[shares.n > 0][["under", "subnormal", "normal", "over"]].sum(axis=1)
    return "" if np.allclose(total, 1) else f"fractions sum to {total.min():.3g} to {total.max():.3g}"


def _unique(_bare: Run, run: Run) -> str:
    assert run.record is not None
    frame = run.record.to_frame()
    keys = frame[[name for name in frame.columns if name not in probe.METRICS]]
    twice = keys[keys.duplicated(keep=False)]
    return f"{len(twice)} rows share their keys, first those of {twice.layer.iloc[0]!r}" if len(twice) else ""


CHECKS: tuple[Callable[[Run, Run], str], ...] = (
    _numbers, _same_weights, _same_random, _same_hooks, _same_copies, _some_rows, _unique, _true, _readable,
)  # fmt: skip


def _reach(entry: Entry) -> tuple[int, int]:
    """Weight layers that "he" draws, and how many there are; embeddings, which it leaves alone, are not counted."""
    _seed()
    case = entry.build()
    if case.loss is not None:
        case.loss(case.model)  # lazy layers exist from here on
    layers = {n: m for n, m in weight_layers(case.model).items() if not isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    before = {name: list(_own(module)) for name, module in layers.items()}
    try:
        initialization.apply(case.model, "he", seed=1)
    except (ValueError, RuntimeError):
        return 0, len(layers)
    return sum(list(_own(module)) != before[name] for name, module in layers.items()), len(layers)


def _own(module: nn.Module) -> Iterator[bytes]:
    return (_bytes(p) for p in _parameters(module) if p.dim() > 1)


def _left_by_training(entry: Entry) -> str | None:
    """What a step within `Training.untouched` changes; "" for nothing."""
    _seed()
    case = entry.build()
    if case.loss is None or not isinstance(case.optimizer, torch.optim.Optimizer):
        return None
    loss = case.loss
    loss(case.model).backward()  # lazy layers, and gradients that have to be there again
    training = Training(case.model, [None], lambda model, _: loss(model), case.optimizer)
    before = _state(case)
    try:
        with training.untouched():

            def evaluate() -> torch.Tensor:
                case.optimizer.zero_grad()
                value = training.value(training.first()[0])
                value.backward()
                return value

            case.optimizer.step(evaluate)
    except Exception as error:  # noqa: BLE001 # any of it is an answer
        return f"raises {_one_line(error)}"
    after = _state(case)
    return ", ".join(name for name in before if before[name] != after[name])


def _unprofiled(entry: Entry) -> str | None:
    """Why a step cannot be profiled; "" where it can."""
    _seed()
    case = entry.build()
    loss = case.loss
    if loss is None:
        return None
    training = Training(case.model, [None], lambda model, _: loss(model))
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            capture(training, label="step", folder=Path(folder), ceilings=CEILINGS, setting={"model": "it"}, seconds=0)
    except Exception as error:  # noqa: BLE001 # any of it is an answer
        return _one_line(error)
    return ""


def _state(case: Case) -> dict[str, Any]:
    gradients = [None if p.grad is None else _bytes(p.grad) for p in case.model.parameters()]
    modes = [module.training for module in case.model.modules()]
    return {
        "weights": _weights(case.model), "gradients": gradients, "modes": modes, "random states": _random(),
        "hooks": _hooks(case), "optimizer": str([list(case.optimizer.state.values()), case.optimizer.param_groups]),
    }  # fmt: skip


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    place = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if "depthgauge" in f.filename), None)
    where = f" at {place.filename.rsplit('/', 1)[-1]}:{place.name}" if place else ""
    return f"{type(error).__name__}{where}: {text[0][:160] if text else ''}"
