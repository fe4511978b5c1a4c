"""Findings about parts that do not train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from depthgauge import architecture
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.signal.absent import moves_the_loss
from depthgauge.checking.questions.signal.wiring import Wiring, by_part, is_new
from depthgauge.checking.words import MOST_WHERE, listed


def findings(wiring: Wiring) -> Iterator[Finding]:
    """Frozen parts and layers."""
    parameters = wiring.parameters
    still = {name for name, each in parameters.items() if not each.requires_grad}
    if not still or len(still) == len(parameters):
        return
    size, whole = (sum(parameters[name].numel() for name in names) for names in (still, parameters))
    parts = [part for part, _ in by_part(wiring.training.model, still, set(parameters))]
    within = _frozen_layers(wiring, still) or _caught(wiring, still)
    measure = Measure("frozen share", size / whole, method="of all parameters")
    if within:
        text = (
            f"{listed(within)} does not train and has the weights of a new layer, while other layers train"
            if len(within) == 1
            else f"{listed(within)} do not train and have the weights of new layers, while other layers train"
        )
        advice = f"let {listed(within)} train (requires_grad_(True)), or load the weights it is to have"
        yield Finding(
            "frozen_layer", Status.LOOK, text, advice, "its parameters begin to train", tuple(within), measure
        )
    rest = [part for part in parts if not any(f"{part}.".startswith(f"{name}.") for name in within)]
    if rest:
        text = f"{100 * size / whole:.3g} % of the parameters are frozen ({listed(rest)})"
        yield Finding("frozen", Status.FINE, text, where=tuple(rest[:MOST_WHERE]), measure=measure)


def _frozen_layers(wiring: Wiring, still: set[str]) -> list[str]:
    """Frozen layers with weights of a new one, between layers that train, or the only one of four or more."""
    model, alive = wiring.training.model, wiring.passed.alive
    layers = architecture.layers(model)

    def some(name: str, names: Iterable[str]) -> bool:
        return any(other.startswith(f"{name}." if name else "") for other in names)

    trains = [some(name, alive) for name, _ in layers]
    frozen = [some(name, still) and not trains[place] for place, (name, _) in enumerate(layers)]
    if heads := _heads(wiring, layers, frozen, trains) or _head_of_learnt(wiring, layers, frozen, trains):
        return heads
    if sum(frozen) * 2 >= len(layers) or _is_base(wiring, frozen):
        return []
    alone = sum(frozen) == 1 and sum(trains) == len(layers) - 1 >= 3
    last = sum(frozen) == 1 and frozen[-1] and sum(trains) == len(layers) - 1 >= 2
    within = [alone or last or (any(trains[:place]) and any(trains[place + 1 :])) for place in range(len(layers))]
    return [
        name
        for place, (name, layer) in enumerate(layers)
        if frozen[place]
        and within[place]
        and is_new(layer)
        and not isinstance(layer, nn.Embedding)
        and (place == 0 or name not in wiring.passed.cut)
        and not _is_adapted(wiring, name)
        and _is_used(wiring, name, still)
    ]  # through what is cut no gradient passes: a target network's; standardized vectors of words look like new ones


def _heads(
    wiring: Wiring, layers: Sequence[tuple[str, nn.Module]], frozen: list[bool], trains: list[bool]
) -> list[str]:
    """Several frozen new heads side by side, each of which takes the features of layers that all train."""
    first = frozen.index(True) if any(frozen) else len(layers)
    names = [name for name, _ in layers[first:]]
    heads = [layer for _, layer in layers[first:]]
    if len(heads) < 2 or first < 2 or not all(trains[:first]) or not all(frozen[first:]):
        return []
    parents = {name.rpartition(".")[0] for name in names}
    beside = len(parents) == 1 and not isinstance(wiring.training.model.get_submodule(*parents), nn.Sequential)
    sizes = {each.in_features if isinstance(each, nn.Linear) else None for each in heads}
    outputs = {each.out_features for each in heads if isinstance(each, nn.Linear)}
    if not beside or len(sizes) != 1 or None in sizes or sizes & outputs or not all(map(is_new, heads)):
        return []
    used = all(wiring.passed.called.get(name) for name in names)
    return names if used and not any(name in wiring.passed.cut for name in names) else []


def _head_of_learnt(
    wiring: Wiring, layers: Sequence[tuple[str, nn.Module]], frozen: list[bool], trains: list[bool]
) -> list[str]:
    """Frozen new layers at the end, where all other frozen ones have learnt and what trains lies before: adapters."""
    last = max((place for place, each in enumerate(trains) if each), default=-1)
    still = [(place, *layers[place]) for place in range(len(layers)) if frozen[place] and _is_told(layers[place][1])]
    heads = [name for place, name, layer in still if place > last and is_new(layer)]
    body = [layer for _, name, layer in still if name not in heads]
    if not heads or not wiring.passed.alive or len(body) < 2 or any(map(is_new, body)):
        return []
    if [name for _, name, _ in still[-len(heads) :]] != heads or any(name in wiring.passed.cut for name in heads):
        return []
    return heads if all(wiring.passed.called.get(name) for name in heads) else []


def _is_told(layer: nn.Module) -> bool:
    """Whether a layer is of a kind, and has numbers enough, to tell new ones from others."""
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.weight.numel() >= 30


def _is_used(wiring: Wiring, name: str, still: set[str]) -> bool:
    """Whether a layer is called, or its own numbers count: those of one that is written over in each pass do not."""
    inside = [each for each in still if each.startswith(f"{name}.")]
    return bool(wiring.passed.called.get(name)) or moves_the_loss(wiring, inside)


def _caught(wiring: Wiring, still: set[str]) -> list[str]:
    """Frozen new layers whose name begins with that of another frozen module beside them, which is none of theirs."""
    model = wiring.training.model
    layers = [(name, layer) for name, layer in architecture.layers(model) if isinstance(layer, nn.Linear | nn.Conv2d)]
    modules = dict(model.named_modules())
    whole = {
        name: each
        for name, each in modules.items()
        if name and any(True for _ in each.parameters()) and not any(p.requires_grad for p in each.parameters())
    }
    return [
        name
        for name, layer in layers
        if is_new(layer)
        and any(other.startswith(f"{name}.") for other in still)
        and wiring.passed.called.get(name)
        and any(_is_prefix(other, name, each) for other, each in whole.items())
    ]


def _is_prefix(other: str, name: str, holder: nn.Module) -> bool:
    """Whether `startswith(other)` means a module that has been trained, or a table of vectors, and catches this one."""
    rest = name.removeprefix(other)
    if rest in {name, ""} or rest[0] == "." or (other[-1].isdecimal() and not rest[0].isdecimal()):
        return False
    layers = [layer for _, layer in architecture.layers(holder)] or [holder]
    return not any(is_new(each) and not isinstance(each, nn.Embedding) for each in layers)


def _is_base(wiring: Wiring, frozen: list[bool]) -> bool:
    """Whether frozen layers, two or more, hold most numbers: what trains between them are adapters."""
    layers = [layer for _, layer in architecture.layers(wiring.training.model)]
    sizes = [sum(each.numel() for each in architecture.own_parameters(layer).values()) for layer in layers]
    still = [size for size, off in zip(sizes, frozen, strict=True) if off]
    return len(still) > 1 and 2 * sum(still) > sum(sizes)


def _is_adapted(wiring: Wiring, name: str) -> bool:
    """Whether smaller tensors beside a frozen layer train around it: one takes its inputs, one gives its outputs."""
    parent = name.rpartition(".")[0]
    weight = getattr(wiring.training.model.get_submodule(name), "weight", None)
    holder = wiring.training.model.get_submodule(parent)
    if not isinstance(weight, Tensor) or isinstance(holder, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    start = f"{parent}." if parent else ""
    beside = [
        each
        for other, each in wiring.parameters.items()
        if other.startswith(start) and not other.startswith(f"{name}.") and each.requires_grad and each.dim() > 1
    ]
    sides = (weight.shape[0], weight.shape[1])
    less = sum(each.numel() for each in beside) < weight.numel()
    return bool(beside) and less and all(any(side in each.shape for each in beside) for side in sides)
