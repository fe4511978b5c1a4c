"""What a pass means: the same for every entry."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from zoo.entry import Case, Entry

from depthgauge import initialization, probe

SEED = 11
ENOUGH = 0.9
PARAMETRIZED = ".parametrizations."
_OPTIMIZERS = importlib.import_module("torch.optim.optimizer")  # torch.optim deletes the name
FIGURES = frozenset(
    ("count", "zeros", "nans", "positive_infinities", "negative_infinities")
    + ("mean", "second_moment", "min", "max", "log2_mean")
)


@dataclass(frozen=True)
class Outcome:
    """What came of an entry.

    Attributes:
        result: "pass", "partly" or "fails"; "broken" where it does not run without the probe.
        why: what was wrong, a clause for each fault.
        layers: weight layers: modules that own a floating parameter of two or more dimensions.
        seen: those with rows of activations.
        weighed: those with rows of weights.
        unseen: names of those without activations.
        reached: weight layers, embeddings aside, whose weights `initialization.apply` drew.
        reachable: how many there are of those.
        rows: of the record.
        warned: what the probe said.
    """

    result: str
    why: tuple[str, ...]
    layers: int = 0
    seen: int = 0
    weighed: int = 0
    unseen: tuple[str, ...] = ()
    reached: int = 0
    reachable: int = 0
    rows: int = 0
    warned: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As a mapping of plain values."""
        return asdict(self)


@dataclass
class Run:
    """One training: what it computed and what it left behind."""

    case: Case
    numbers: list[float]
    weights: list[tuple[str, bytes]]
    random: tuple[bytes, str, str]
    hooks: dict[str, Any]
    copied: dict[str, str]
    record: probe.Record | None = None
    faults: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()


def judge(entry: Entry) -> Outcome:
    """Train an entry's case with and without the probe, and compare."""
    try:
        first = _trained(entry, watched=False)  # imports what draws random numbers, compiles what is compiled once
        bare = _trained(entry, watched=False)
    except Exception as error:  # noqa: BLE001 # a package that cannot do it, or an entry that is wrong
        return Outcome("broken", (f"does not run without the probe: {_one_line(error)}",))
    if _numbers(first, bare) or _same_weights(first, bare):
        return Outcome("broken", ("does not compute the same twice, without the probe",))
    try:
        run = _trained(entry, watched=True)
    except Exception as error:  # noqa: BLE001 # what the probe does to a stranger's program is what is asked
        return Outcome("fails", (f"raises {_one_line(error)}",))
    assert run.record is not None
    faults = [text for text in (check(bare, run) for check in CHECKS) if text]
    frame = run.record.to_frame()
    layers = weight_layers(run.case.model)
    seen, weighed = (
        {name for name in layers if _shown(frame, name, direction)} for direction in ("activation", "weight")
    )
    reached, reachable = _reach(entry)
    enough = len(seen) >= ENOUGH * len(layers)
    return Outcome(
        "fails" if faults or run.faults else "pass" if enough else "partly",
        (*faults, *run.faults),
        layers=len(layers),
        seen=len(seen),
        weighed=len(weighed),
        unseen=tuple(name for name in layers if name not in seen),
        reached=reached,
        reachable=reachable,
        rows=len(frame),
        warned=run.warned,
    )


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own a floating parameter of two or more dimensions, by name, be it through a parametrization."""
    layers = {
        name.split(PARAMETRIZED)[0]: None
        for name, module in model.named_modules()
        if any(p.is_floating_point() and p.dim() > 1 for p in module.parameters(recurse=False))
    }
    return {name: model.get_submodule(name) for name in layers}


def _shown(frame: pd.DataFrame, layer: str, direction: str) -> bool:
    below = frame.layer.str.startswith(layer + PARAMETRIZED) if direction == "weight" else False
    return bool(((frame.direction == direction) & ((frame.layer == layer) | below)).any())


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
        said = tuple(dict.fromkeys(str(each.message) for each in caught if "depthgauge" in each.filename))
    weights, state, hooks = _weights(case.model), _random(), _hooks(case)
    if record is not None:
        rows = len(record)
        if case.loss is not None:
            case.loss(case.model)
            faults += ("a run after the block adds rows",) if len(record) != rows else ()
        rows = len(record)
        _run_copies(case, copies)
        faults += _rows_of_copies(record, rows, "after it")
    return Run(case, numbers, weights, state, hooks, ran, record, faults, said)


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
    dense = local.detach().cpu().contiguous().reshape(-1)
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
    return {name: len(value) for name, value in vars(owner).items() if name.endswith("hooks") and hasattr(value, "__len__")}


def _parameter_hooks(parameter: nn.Parameter) -> list[int | None]:
    kinds = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
    return [None if hooks is None else len(hooks) for hooks in kinds]


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
    changed = [f"{way}: {run.copied[way]} for {bare.copied[way]}" for way in bare.copied if bare.copied[way] != run.copied[way]]
    return f"copies end otherwise ({', '.join(changed)})" if changed else ""


def _some_rows(_bare: Run, run: Run) -> str:
    return "" if run.record is not None and len(run.record) else "no row at all"


def _unique(_bare: Run, run: Run) -> str:
    assert run.record is not None
    frame = run.record.to_frame()
    keys = frame[[name for name in frame.columns if name not in FIGURES]]
    twice = keys[keys.duplicated(keep=False)]
    return f"{len(twice)} rows share their keys, first those of {twice.layer.iloc[0]!r}" if len(twice) else ""


CHECKS: tuple[Callable[[Run, Run], str], ...] = (
    _numbers, _same_weights, _same_random, _same_hooks, _same_copies, _some_rows, _unique,
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
    except ValueError:
        return 0, len(layers)
    return sum(list(_own(module)) != before[name] for name, module in layers.items()), len(layers)


def _own(module: nn.Module) -> Iterator[bytes]:
    held = getattr(module, "parametrizations", {})
    return (_bytes(p) for owner in (module, *dict(held).values()) for p in owner.parameters(recurse=False) if p.dim() > 1)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    place = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if "depthgauge" in f.filename), None)
    where = f" at {place.filename.rsplit('/', 1)[-1]}:{place.name}" if place else ""
    return f"{type(error).__name__}{where}: {text[0][:160] if text else ''}"
