"""Findings about which parameters a gradient reaches, and which of them the optimizer moves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge import architecture
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.signal.passing import Passed
from depthgauge.workload import Training

MOST_NAMED = 3  # in a sentence; `where` has all
MOST_WHERE = 12


@dataclass(frozen=True, eq=False)
class Wiring:
    """What is known of a training's parameters.

    Attributes:
        training: the user's.
        passed: the passes at the weights as they are, and where all-zero parameters were opened.
        later: the pass after the first steps; None where none was made.
        others: unregistered tensors that train, by name.
        moved: whether the first steps changed any weight.
        opaque: whether parts of the graph could not be looked into.
    """

    training: Training
    passed: Passed
    later: Passed | None
    others: dict[str, Tensor]
    opaque: bool

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        return dict(self.training.model.named_parameters())

    @property
    def held(self) -> set[int]:
        """Ids of what the optimizer holds; empty without one."""
        optimizer = self.training.optimizer
        return set() if optimizer is None else {id(each) for group in optimizer.param_groups for each in group["params"]}


def findings(wiring: Wiring) -> Iterator[Finding]:
    """All about the parameters."""
    yield from _without_gradient(wiring)
    yield from _unregistered(wiring)
    yield from _optimizer(wiring)
    yield from _frozen(wiring)
    yield from _copies(wiring)


# -- no gradient -------------------------------------------------------------------------------------------------------


def _without_gradient(wiring: Wiring) -> Iterator[Finding]:
    passed, later = wiring.passed, wiring.later
    trained = {name for name, each in wiring.parameters.items() if each.requires_grad and each.numel()}
    if wiring.training.optimizer is not None:
        trained = {name for name in trained if id(wiring.parameters[name]) in wiring.held}
    given = passed.given | (later.given if later else set())
    alive = passed.alive | (later.alive if later else set())
    absent, zero = trained - given, (trained & given) - alive
    zero -= {name for name in zero if _beside_alive(name, alive)}
    for part, names in _by_part(wiring.training.model, absent, trained):
        yield _absent(wiring, part, names)
    parts = list(_by_part(wiring.training.model, zero, trained))
    if parts:
        yield _zero(wiring, parts)


def _beside_alive(name: str, alive: set[str]) -> bool:
    """Whether another parameter of its module gets a gradient: a bias of keys, before a norm, has one of zero."""
    module, _, own = name.rpartition(".")
    if own in {"weight", "in_proj_weight"}:
        return False
    return any(other.rpartition(".")[0] == module for other in alive)


def _by_part(model: nn.Module, names: set[str], trained: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Parameters by the largest module all of whose trained ones are among them, or by themselves."""
    left = dict.fromkeys(name for name, _ in model.named_parameters() if name in names)
    for prefix, _ in model.named_modules():
        inside = [name for name in trained if not prefix or name.startswith(f"{prefix}.")]
        if prefix and inside and all(name in left for name in inside):
            own = [name for name in left if name.startswith(f"{prefix}.")]
            yield prefix, own
            for name in own:
                del left[name]
    for name in left:
        yield name, [name]


def _absent(wiring: Wiring, part: str, names: list[str]) -> Finding:
    model, passed = wiring.training.model, wiring.passed
    modules = dict(model.named_modules())
    batches = _batches(passed.batches)
    size = sum(wiring.parameters[name].numel() for name in names)
    measure = Measure("parameters without a gradient", float(size), unit="parameters", method=f"over {batches}")
    what = f"{_count(size)} in `{part}`" if part in modules else f"`{part}`"
    called = passed.called.get(part, 0) or any(passed.called.get(name.rpartition(".")[0]) for name in names)
    holder = modules.get(part.rpartition(".")[0], model)
    if not called and _some_are_used(wiring, part):
        text = f"`{part}` was used in none of {batches}, while each of them used some of its siblings"
        return Finding("idle_expert", Status.LOOK, text, "look at how its router shares examples out",
                       where=(part,), measure=measure)  # fmt: skip
    if not called and _of_a_package(holder):
        text = f"{what} get no gradient: {type(holder).__name__} does not use them for this loss"
        advice = f"set `requires_grad_(False)` on `{part}`, or leave it out of the optimizer"
        return Finding("unused_by_package", Status.LOOK, text, advice, where=(part,), measure=measure)
    below = any(name in passed.cut for name in {part, *(name.rpartition(".")[0] for name in names)})
    if part in modules and not called:
        why, advice = "it is not called", f"call `{part}` in the forward pass, or remove it"
    elif below:
        why = "its output has no gradient (torch.no_grad, .detach() or integers inside)"
        advice = f"let the gradient pass through `{part}`"
    elif called and part in modules:
        why = "its output is cut off from the loss (.detach(), .item(), a new tensor) or not used"
        advice = f"use the output of `{part}` in the loss, without .detach()"
    else:
        why, advice = "the loss does not depend on it", f"use `{part}` in the forward pass, or remove it"
    verb = "gets" if size == 1 or part not in modules else "get"
    text = f"{what} {verb} no gradient in {batches}: {why}"
    held = wiring.training.optimizer is not None
    expected = f"{_count(size)} that stay as they are begin to train" if held else "they begin to train"
    return Finding("no_gradient", Status.BROKEN, text, advice, expected, (part, *names)[:MOST_WHERE], measure)


def _zero(wiring: Wiring, parts: list[tuple[str, list[str]]]) -> Finding:
    names = [name for _, own in parts for name in own]
    size = sum(wiring.parameters[name].numel() for name in names)
    seen = [*wiring.passed.units.layers.values(), *(wiring.later.units.layers.values() if wiring.later else ())]
    dead = [each for each in seen if each.dead_share == 1]
    flat = [each for each in seen if each.flat_share > 0.9]
    after = " and after the first steps" if wiring.later else ""
    text = f"the gradient of {_listed([part for part, _ in parts])} is exactly zero in {_batches(wiring.passed.batches)}{after}"
    where = [part for part, _ in parts]
    advice = f"begin `{where[0]}` with other weights than these (torch.nn.init.kaiming_normal_)"
    if dead:
        text += f": all {len(dead[-1].dead)} units after `{dead[-1].layer}` are zero for all examples"
        advice = f"initialize `{dead[-1].layer}` anew, its bias with 0"
        where = [dead[-1].layer, *where]
    elif flat:
        text += f": what `{flat[0].layer}` gives is {100 * flat[0].flat_share:.3g} % where {flat[0].kind.lower()} is flat"
        advice = f"give `{flat[0].layer}` smaller weights, or scale what it gets"
    measure = Measure("parameters with a gradient of zero", float(size), unit="parameters")
    return Finding("no_gradient", Status.BROKEN, text, advice, f"{_count(size)} begin to train",
                   tuple(dict.fromkeys(where))[:MOST_WHERE], measure)  # fmt: skip


def _some_are_used(wiring: Wiring, part: str) -> bool:
    """Whether a part is one of several alike of which not every batch uses each."""
    parent, _, _ = part.rpartition(".")
    modules = dict(wiring.training.model.named_modules())
    if part not in modules:
        return False
    alike = [
        f"{parent}.{name}" if parent else name
        for name, child in modules[parent].named_children()
        if type(child) is type(modules[part])
    ]
    counts = {wiring.passed.called.get(name, 0) for name in alike}
    return "expert" in part.lower() or bool(counts - {0, wiring.passed.batches})


def _of_a_package(module: nn.Module) -> bool:
    """Whether its class is an installed package's: what such a model leaves unused is not the user's code."""
    try:
        place = inspect.getfile(type(module))
    except (TypeError, OSError):
        return False
    return ("site-packages" in place or "dist-packages" in place) and not type(module).__module__.startswith("torch.")


# -- not registered, not held ------------------------------------------------------------------------------------------


def _unregistered(wiring: Wiring) -> Iterator[Finding]:
    later = wiring.later.held if wiring.later else set()
    used = [name for name in wiring.others if name in wiring.passed.held | later]
    free = [name for name in used if id(wiring.others[name]) not in wiring.held]
    inner = [name for name in free if name.startswith("loss.") and isinstance(wiring.others[name], nn.Parameter)]
    inner = [name for name in inner if name.count(".") > 1]  # a module's that the loss uses, such as the other of a GAN
    lost = [name for name in free if name not in inner]
    if lost:
        size = sum(wiring.others[name].numel() for name in lost)
        text = (
            f"{_listed(lost)} ({_count(size)}) are in the loss and train in no optimizer:"
            " neither the model's parameters nor the optimizer know them"
        )
        advice = f"register {_listed(lost)}: nn.ModuleList or nn.ParameterList in place of a list, nn.Parameter in place"
        advice += " of a tensor; then build the optimizer"
        measure = Measure("unregistered numbers", float(size), unit="numbers")
        parents = [name.rpartition(".")[0] for name in lost]
        where = tuple(dict.fromkeys(each for each in (*lost, *parents) if each))
        yield Finding("unregistered", Status.BROKEN, text, advice, f"{_count(size)} begin to train", where[:MOST_WHERE],
                      measure)  # fmt: skip
    if inner:
        text = f"the loss uses {_listed(inner)}, which get a gradient and are in no group of the optimizer"
        advice = "add them to the optimizer where they are to train; else requires_grad_(False)"
        yield Finding("left_out", Status.LOOK, text, advice, where=tuple(inner[:MOST_WHERE]))


def _optimizer(wiring: Wiring) -> Iterator[Finding]:
    training, passed = wiring.training, wiring.passed
    if training.optimizer is None:
        return
    parameters = wiring.parameters
    missing = {name for name in passed.given if id(parameters[name]) not in wiring.held}
    stale = _stale(wiring)
    parts = [part for part, _ in _by_part(training.model, missing, {n for n, p in parameters.items() if p.requires_grad})]
    size = sum(parameters[name].numel() for name in missing)
    measure = Measure("parameters in no group", float(size), unit="parameters")
    where = tuple(dict.fromkeys((*parts, *sorted(missing), "optimizer")))[:MOST_WHERE]
    if missing and stale:
        text = (
            f"the optimizer holds {_plural(len(stale), 'tensor')} that the model no longer has, and does not hold"
            f" {_listed(parts)} ({_count(size)}): part of the model was replaced after the optimizer was built"
        )
        yield Finding("stale_parameters", Status.BROKEN, text, "build the optimizer after the last change to the model",
                      f"{_count(size)} begin to train", where, measure)  # fmt: skip
    elif missing:
        text = f"{_listed(parts)} ({_count(size)}) get a gradient, and no group of the optimizer holds them"
        advice = f"add {_listed(parts)} to the optimizer, or freeze them with requires_grad_(False)"
        if _meant(wiring, missing):
            yield Finding("left_out", Status.LOOK, text, advice, where=where, measure=measure)
        else:
            yield Finding("not_in_optimizer", Status.LOOK, text, advice, f"{_count(size)} begin to train", where, measure)
    elif stale:
        text = f"the optimizer holds {_plural(len(stale), 'tensor')} that is neither the model's nor in the loss's graph"
        advice = "build the optimizer over the model's parameters alone"
        yield Finding("left_out", Status.LOOK, text, advice, where=("optimizer",))


def _stale(wiring: Wiring) -> list[Tensor]:
    """What the optimizer holds, and neither the model, the loss nor what they refer to has."""
    assert wiring.training.optimizer is not None
    known = {id(each) for module in wiring.training.modules for each in module.parameters()}
    known |= {id(each) for each in wiring.others.values()}
    tensors = [each for group in wiring.training.optimizer.param_groups for each in group["params"]]
    return [each for each in tensors if id(each) not in known and each.grad is None]


def _meant(wiring: Wiring, missing: set[str]) -> bool:
    """Whether parts were left out of the optimizer on purpose: all below what trains, unless fresh, or another half."""
    layers = [name for name, _ in architecture.layers(wiring.training.model)]
    out = [any(other.startswith(f"{name}.") for other in missing) for name in layers]
    new = any(_new(wiring.training.model.get_submodule(name)) for name, left in zip(layers, out, strict=True) if left)
    last = next((place for place in reversed(range(len(out))) if out[place]), -1)
    below = last >= 0 and all(out[: last + 1]) and not all(out)
    words = ("discriminator", "critic", "teacher", "target", "ema", "disc")
    other_half = all(any(word in name.lower().split(".")[0] for word in words) for name in missing)
    return other_half or (below and not new)


# -- frozen, copied ----------------------------------------------------------------------------------------------------


def _frozen(wiring: Wiring) -> Iterator[Finding]:
    parameters = wiring.parameters
    still = {name for name, each in parameters.items() if not each.requires_grad}
    if not still or len(still) == len(parameters):
        return
    size, whole = (sum(parameters[name].numel() for name in names) for names in (still, parameters))
    parts = [part for part, _ in _by_part(wiring.training.model, still, set(parameters))]
    within = _frozen_layers(wiring, still)
    measure = Measure("frozen share", size / whole, method="of all parameters")
    if within:
        text = (
            f"{_listed(within)} does not train and has the weights of a new layer, while other layers train"
            if len(within) == 1
            else f"{_listed(within)} do not train and have the weights of new layers, while other layers train"
        )
        advice = f"let {_listed(within)} train (requires_grad_(True)), or load the weights it is to have"
        yield Finding("frozen_layer", Status.LOOK, text, advice, "its parameters begin to train", tuple(within), measure)
    rest = [part for part in parts if not any(f"{part}.".startswith(f"{name}.") for name in within)]
    if rest:
        text = f"{100 * size / whole:.3g} % of the parameters are frozen ({_listed(rest)})"
        yield Finding("frozen", Status.FINE, text, where=tuple(rest[:MOST_WHERE]), measure=measure)


def _frozen_layers(wiring: Wiring, still: set[str]) -> list[str]:
    """Frozen layers with weights of a new one, between layers that train, or the only one of four or more."""
    model, alive = wiring.training.model, wiring.passed.alive
    layers = architecture.layers(model)

    def some(name: str, names: Iterable[str]) -> bool:
        return any(other.startswith(f"{name}." if name else "") for other in names)

    trains = [some(name, alive) for name, _ in layers]
    frozen = [some(name, still) and not trains[place] for place, (name, _) in enumerate(layers)]
    if sum(frozen) * 2 >= len(layers):
        return []
    alone = sum(frozen) == 1 and sum(trains) == len(layers) - 1 >= 3
    return [
        name
        for place, (name, layer) in enumerate(layers)
        if frozen[place] and (alone or (any(trains[:place]) and any(trains[place + 1 :]))) and _new(layer)
    ]


def _new(layer: nn.Module) -> bool:
    """Whether a layer has weights of a new one: in torch's bound, 1 / sqrt(fan-in), and filling it; or a bias of 0."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or not isinstance(weight, Tensor):
        return False
    if isinstance(bias, Tensor) and not bool(bias.any()) and bool(weight.any()):
        return True  # which no step leaves
    bound, largest = 1 / math.sqrt(weight[0].numel()), weight.detach().abs().max().item()
    return weight.numel() >= 30 and 0.85 * bound < largest <= bound * (1 + 1e-6)  # of 30 all below 0.85: 0.8 %


def _copies(wiring: Wiring) -> Iterator[Finding]:
    """Embeddings and output layers of equal bits in two tensors, both of which train."""
    alive = wiring.passed.alive
    modules = dict(wiring.training.model.named_modules())
    matrices = [
        (name, each.detach(), modules[name.rpartition(".")[0]])
        for name, each in wiring.parameters.items()
        if name in alive and each.dim() == 2 and min(each.shape) > 1
    ]
    for place, (name, first, holder) in enumerate(matrices):
        for other, second, beside in matrices[place + 1 :]:
            if type(holder) is type(beside) and first.shape[0] == second.shape[0]:
                continue  # blocks that were made by a copy, as torch's transformers are
            turned = second if first.shape == second.shape else second.T
            if not _same(first, turned):
                continue
            text = f"`{name}` and `{other}` begin with the same values in two tensors: they are not tied"
            advice = f"share one tensor, `{other}` = `{name}`, or draw one of them anew"
            where = (name, other, name.rpartition(".")[0], other.rpartition(".")[0])
            size = Measure("parameters that are copies", float(first.numel()), unit="parameters")
            yield Finding("tied_by_copy", Status.LOOK, text, advice, f"{_count(first.numel())} fewer to train", where, size)


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
        return False
    return bool(torch.equal(first, second)) and bool((first != first.flatten()[0]).any())


# -- words -------------------------------------------------------------------------------------------------------------


def _count(size: int) -> str:
    return f"{size:,} parameter{'s' if size != 1 else ''}"


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


def _batches(count: int) -> str:
    return _plural(count, "batch").replace("batchs", "batches")


def _listed(names: Iterable[str]) -> str:
    every = [f"`{name}`" if name else "the model" for name in names]
    listed = ", ".join(every[:MOST_NAMED])
    return listed + (f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else "")
