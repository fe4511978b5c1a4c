"""Frozen parts that were to be loaded, and have the numbers that they were built with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import architecture, nested, seeding
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import of_a_package
from depthgauge.checking.questions.signal.drawn import can_tell, is_drawn
from depthgauge.checking.questions.signal.wiring import Wiring
from depthgauge.checking.words import MOST_WHERE, listed, plural
from depthgauge.seeding import Purpose
from depthgauge.workload import Training

OF_A_PACKAGE, WITH_NORMS, ALONE = 2, 3, 4
"""Matrices of independent draws, at least, by what else tells that a part is no deliberate random projection."""


def findings(wiring: Wiring) -> Iterator[Finding]:
    """Yield frozen parts before all that trains that have not learnt, and whose output it gets."""
    for part in _parts(wiring):
        module = wiring.training.model.get_submodule(part)
        names, unlearnt = _unlearnt(part, module)
        if not names:
            yield from _left(wiring, part, module)
        if not names or not _reaches(wiring, part, names):
            continue
        size = sum(wiring.parameters[name].numel() for name in names)
        text = f"`{part}` is frozen, and its numbers are those of a new one: {plural(len(names), 'weight')}"
        text += f" ({plural(size, 'parameter')}) of independent draws{unlearnt}; what trains gets what it makes of them"
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        yield Finding(
            "never_loaded", Status.LOOK, text,
            f"load the weights that `{part}` is to have (look at what load_state_dict returns with strict=False, or"
            " call from_pretrained), or let it train", "features that were learnt in place of random ones",
            (part, *layers)[:MOST_WHERE], Measure("frozen numbers that are draws", float(size), unit="parameters"),
        )  # fmt: skip


def _left(wiring: Wiring, part: str, module: nn.Module) -> Iterator[Finding]:
    """Yield layers of a frozen part that are as they were built, among others that have learnt."""
    layers = [
        (f"{part}.{name}", each) for name, each in module.named_modules() if name and (_is_map(each) or _is_norm(each))
    ]
    told = [(name, each) for name, each in layers if _is_map(each) and can_tell(each.weight)]
    after = {name: layers[place + 1 :][:1] for place, (name, _) in enumerate(layers)}
    new = [name for name, each in told if _is_as_built(each, after[name]) and wiring.passed.called.get(name)]
    learnt = [name for name, each in told if name not in new and _has_learnt(each, after[name])]
    if not new or len(learnt) < 2 or not _reaches(wiring, part, [f"{name}.weight" for name in new]):
        return
    size = sum(wiring.parameters[f"{name}.weight"].numel() for name in new)
    yield Finding(
        "never_loaded", Status.LOOK,
        f"`{part}` is frozen and has learnt, but {listed(new)} ({plural(size, 'parameter')}) in it has the numbers of a"
        " new layer: independent draws, with a bias of 0 or a norm whose scales are 1 and whose shifts are 0",
        f"load the weights of {listed(new)} (look at what load_state_dict returns with strict=False), or let it train",
        "features that were learnt in place of random ones", tuple(new[:MOST_WHERE]),
        Measure("frozen numbers that are draws", float(size), unit="parameters"),
    )  # fmt: skip


def _is_map(module: nn.Module) -> bool:
    weight = architecture.own_parameters(module).get("weight")  # a parametrized one is none of its own
    return weight is not None and weight.dim() > 1 and not isinstance(module, nn.Embedding)


def _is_as_built(layer: nn.Module, after: Sequence[tuple[str, nn.Module]]) -> bool:
    """Tell whether a layer is draws, with a bias of 0, or without one before a norm that is as it was built."""
    bias = getattr(layer, "bias", None)
    zero = isinstance(bias, Tensor) and not bool(bias.any())
    before_norm = any(_is_norm(each) and _is_start(each) for _, each in after)
    return (zero or before_norm) and is_drawn(layer.get_parameter("weight"))


def _has_learnt(layer: nn.Module, after: Sequence[tuple[str, nn.Module]]) -> bool:
    """Tell whether its numbers, or those of a norm behind it, are not those that it was built with."""
    return not is_drawn(layer.get_parameter("weight")) or any(
        _is_norm(each) and not _is_start(each) for _, each in after
    )


def _parts(wiring: Wiring) -> list[str]:
    """Largest modules that are frozen, are called, and whose layers' outputs no gradient can pass."""
    model, parameters, passed = wiring.training.model, wiring.parameters, wiring.passed
    if not passed.alive or any(map(nn.parameter.is_lazy, parameters.values())):
        return []
    found: list[str] = []
    for name, module in model.named_modules():
        own = list(module.parameters())
        inside = any(name.startswith(f"{other}.") for other in found)
        if not name or inside or not own or any(each.requires_grad for each in own):
            continue
        found.append(name)
    return [name for name in found if _is_before(wiring, name)]


def _is_before(wiring: Wiring, part: str) -> bool:
    ran = [
        name
        for name, _ in architecture.layers(wiring.training.model.get_submodule(part))
        if wiring.passed.called.get(f"{part}.{name}" if name else part)
    ]
    return bool(ran) and all((f"{part}.{name}" if name else part) in wiring.passed.cut for name in ran)


def _unlearnt(part: str, module: nn.Module) -> tuple[list[str], str]:
    """Names of matrices that are draws, where all that can tell are, and what else says so; none where that is less."""
    held = [(f"{part}.{name}", each) for name, each in module.named_parameters() if "weight" in name.rpartition(".")[2]]
    names = [name for name, each in held if can_tell(each)]
    norms = [each for each in module.modules() if _is_norm(each)]
    if not all(map(_is_start, norms)) or not all(is_drawn(each) for name, each in held if name in names):
        return [], ""
    least = OF_A_PACKAGE if any(map(of_a_package, module.modules())) else WITH_NORMS if norms else ALONE
    unlearnt = f", and {plural(len(norms), 'norm')} whose scales are 1 and whose shifts are 0" if norms else ""
    return (names, unlearnt) if len(names) >= least else ([], "")


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and "weight" in architecture.own_parameters(module)


def _is_start(norm: nn.Module) -> bool:
    weight, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
    same = bool((weight == 1).all()) or bool((weight == 0).all())
    return same and (not isinstance(bias, Tensor) or not bool(bias.any()))


# -- what trains gets what they make ----------------------------------------------------------------------------------


def _reaches(wiring: Wiring, part: str, names: Sequence[str]) -> bool:
    """Tell whether a layer that trains gets other numbers where the last of these matrices has others, tried."""
    training = wiring.training
    layers = [
        (name, layer)
        for name, layer in architecture.layers(training.model)
        if any(f"{name}.{own}".lstrip(".") in wiring.passed.alive for own in architecture.own_parameters(layer))
        and not f"{name}.".startswith(f"{part}.")
    ]
    try:
        before = _given(training, layers, None)
        after = _given(training, layers, [wiring.parameters[name] for name in names])
    except Exception:  # noqa: BLE001 - the user's code; what was not tried is not told
        return False
    return any(not torch.equal(before[name], after[name]) for name in before.keys() & after.keys()
               if before[name].shape == after[name].shape)  # fmt: skip


def _given(
    training: Training, layers: Sequence[tuple[str, nn.Module]], turned: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """What layers get in a pass, first, with the signs of these matrices as they are or drawn anew."""
    given: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            first = next((each for _, each in nested.tensors((args, kwargs)) if nested.inexact(each)), None)
            if first is not None:
                given.setdefault(name, first.detach().clone())

        return hook

    with training.untouched(), ExitStack() as hooks:
        with torch.no_grad():
            for each in turned or ():
                signs = torch.rand(each.shape, generator=seeding.generator(0, Purpose.WEIGHTS)) < 0.5
                each.copy_(torch.where(signs.to(each.device), each, -each))
        for name, layer in layers:
            hooks.callback(layer.register_forward_pre_hook(noting(name), with_kwargs=True).remove)
        seeding.seed_globals(0, Purpose.DROPOUT)
        training.value(training.first()[0])
    return given
