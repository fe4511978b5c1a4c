"""Findings about parameters that get no gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import of_a_package
from depthgauge.checking.questions.signal.passing import Passed
from depthgauge.checking.questions.signal.wiring import Wiring, by_part
from depthgauge.checking.steps import losses
from depthgauge.checking.words import MOST_WHERE, listed, plural
from depthgauge.seeding import Purpose, generator


def findings(wiring: Wiring) -> Iterator[Finding]:
    """Parts that get none, in no batch, and parts whose gradient is exactly zero."""
    passed, later = wiring.passed, wiring.later
    trained = {name for name, each in wiring.parameters.items() if each.requires_grad and each.numel()}
    if wiring.training.optimizer is not None:
        trained = {name for name in trained if id(wiring.parameters[name]) in wiring.held}
    given = passed.given | (later.given if later else set())
    alive = passed.alive | (later.alive if later else set())
    absent, zero = trained - given, (trained & given) - alive
    zero -= {name for name in zero if _beside_alive(name, alive)}
    alone, cut_off = _cut_off(wiring, list(by_part(wiring.training.model, absent, trained)))
    for part, names in alone:
        yield _absent(wiring, part, names)
    if cut_off:
        yield _behind_a_cut(wiring, cut_off)
    parts = list(by_part(wiring.training.model, zero, trained))
    if parts:
        yield _zero(wiring, parts)


_Parts = list[tuple[str, list[str]]]


def _cut_off(wiring: Wiring, parts: _Parts) -> tuple[_Parts, _Parts]:
    """Parts to be told one by one; and, where two or more are called and end before the loss, these together."""
    modules = dict(wiring.training.model.named_modules())
    ran = [
        part in modules
        and not of_a_package(modules.get(part.rpartition(".")[0], wiring.training.model))
        and any(map(wiring.passed.called.get, (part, *(name.rpartition(".")[0] for name in names))))
        for part, names in parts
    ]
    if sum(ran) < 2:
        return parts, []
    return [each for each, yes in zip(parts, ran, strict=True) if not yes], [
        each for each, yes in zip(parts, ran, strict=True) if yes
    ]


def _behind_a_cut(wiring: Wiring, parts: _Parts) -> Finding:
    """One finding for all that lies behind a cut: it names first what was called last."""
    order = {name: place for place, name in enumerate(wiring.passed.called)}
    inner = {part: [name.rpartition(".")[0] for name in names] for part, names in parts}
    parts = sorted(parts, key=lambda each: -max(order.get(name, -1) for name in (each[0], *inner[each[0]])))
    last, own = parts[0]
    size = sum(wiring.parameters[name].numel() for _, names in parts for name in names)
    why, advice = _why(wiring.passed, last, own, called=True, module=True)
    text = (
        f"{plural(size, 'parameter')} in {listed([part for part, _ in parts])} get no gradient in"
        f" {plural(wiring.passed.batches, 'batch')}: the last of them, `{last}`, is called, but {why}"
    )
    where = tuple(part for part, _ in parts)[:MOST_WHERE]
    measure = Measure("parameters without a gradient", float(size), unit="parameters")
    return Finding("no_gradient", Status.BROKEN, text, advice, f"{plural(size, 'parameter')} begin to train",
                   where, measure)  # fmt: skip


def _beside_alive(name: str, alive: set[str]) -> bool:
    """Whether another parameter of its module gets a gradient: a bias of keys, before a norm, has one of zero."""
    module, _, own = name.rpartition(".")
    if own in {"weight", "in_proj_weight"}:
        return False
    return any(other.rpartition(".")[0] == module for other in alive)


def _absent(wiring: Wiring, part: str, names: list[str]) -> Finding:
    model, passed = wiring.training.model, wiring.passed
    looked = plural(passed.batches, "batch")
    size = sum(wiring.parameters[name].numel() for name in names)
    measure = Measure("parameters without a gradient", float(size), unit="parameters", method=f"over {looked}")
    modules = dict(model.named_modules())
    what = f"{plural(size, 'parameter')} in `{part}`" if part in modules else f"`{part}`"
    holder = modules.get(part.rpartition(".")[0], model)
    called = bool(passed.called.get(part) or any(passed.called.get(name.rpartition(".")[0]) for name in names))
    if not called and _some_are_used(wiring, part) and _is_lonely(wiring, part):
        text = f"`{part}` was used in none of {looked}: each of them gave all it had to the same few of its siblings"
        advice = "let the router share examples out: smaller weights, noise, or a loss that balances"
        expected = f"{plural(size, 'parameter')} begin to train"
        return Finding("no_gradient", Status.BROKEN, text, advice, expected, (part, *names)[:MOST_WHERE], measure)
    if not called and _some_are_used(wiring, part):
        text = f"`{part}` was used in none of {looked}, while each of them used some of its siblings"
        advice = "look at how the router shares examples out"
        return Finding("idle_expert", Status.LOOK, text, advice, where=(part,), measure=measure)
    if part.rpartition(".")[2] == "bias" and f"{part.removesuffix('bias')}weight" in passed.alive:
        text = f"`{part}` is in no loss, while the weight beside it is used"
        advice = f"make the layer without it (bias=False), or add `{part}`"
        return Finding("unused_bias", Status.LOOK, text, advice, where=(part,), measure=measure)
    verb = "gets" if size == 1 or part not in modules else "get"
    moves = of_a_package(holder) and moves_the_loss(wiring, names)
    if of_a_package(holder) and not moves:
        text = f"{what} {verb} no gradient: this loss does not use what {type(holder).__name__} has there"
        advice = f"set requires_grad_(False) on `{part}`, or leave it out of the optimizer"
        return Finding("unused_by_package", Status.LOOK, text, advice, where=(part,), measure=measure)
    why, advice = _why(passed, part, names, called=called, module=part in modules)
    if moves:
        why = "the loss depends on it, but the backward pass does not reach it"
        advice = "look for a checkpoint whose inputs want no gradient (use_reentrant=False), no_grad, or a frozen input"
    text = f"{what} {verb} no gradient in {looked}: {why}"
    expected = f"{plural(size, 'parameter')} begin to train"
    return Finding("no_gradient", Status.BROKEN, text, advice, expected, (part, *names)[:MOST_WHERE], measure)


def moves_the_loss(wiring: Wiring, names: list[str]) -> bool:
    """Tell whether the loss changes with these parameters, and not by itself."""
    training = wiring.training
    with training.untouched(), torch.no_grad():
        before = losses(training, [wiring.batch])
        if losses(training, [wiring.batch]) != before:
            return False
        draws = generator(0, Purpose.DIRECTIONS)
        for each in map(wiring.parameters.__getitem__, names):
            size = float(nested.real(each).double().square().mean().sqrt()) or 0.1
            each.add_(size * torch.randn(each.shape, generator=draws).to(each))
        return losses(training, [wiring.batch]) != before


def _why(passed: Passed, part: str, names: list[str], *, called: bool, module: bool) -> tuple[str, str]:
    """The reason why a part gets no gradient, and what to do."""
    if not passed.called:
        return "the loss does not depend on it", f"use `{part}` in the forward pass, or remove it"
    if module and not called:
        return "it is not called", f"call `{part}` in the forward pass, or remove it"
    if any(name in passed.cut for name in {part, *(name.rpartition(".")[0] for name in names)}):
        return "its output has no gradient (torch.no_grad, .detach() or integers inside)", (
            f"let the gradient pass through `{part}`"
        )
    if called and module:
        return "its output is cut off from the loss (.detach(), .item(), a new tensor) or not used", (
            f"use the output of `{part}` in the loss, without .detach()"
        )
    return "the loss does not depend on it", f"use `{part}` in the forward pass, or remove it"


def _zero(wiring: Wiring, parts: list[tuple[str, list[str]]]) -> Finding:
    names = [name for _, own in parts for name in own]
    size = sum(wiring.parameters[name].numel() for name in names)
    seen = [*wiring.passed.units.layers.values(), *(wiring.later.units.layers.values() if wiring.later else ())]
    dead = [each for each in seen if each.dead_share == 1]
    flat = [each for each in seen if each.flat_share > 0.9]
    after = " and after the first steps" if wiring.later else ""
    where = [part for part, _ in parts]
    text = f"the gradient of {listed(where)} is exactly zero in {plural(wiring.passed.batches, 'batch')}{after}"
    advice = f"begin `{where[0]}` with other weights than these (torch.nn.init.kaiming_normal_)"
    if dead:
        text += f": all {len(dead[0].dead)} units after `{dead[0].layer}` are zero for all examples"
        advice = f"initialize `{dead[0].layer}` anew, its bias with 0"
        where = [dead[0].layer, *where]
    elif flat:
        text += (
            f": what `{flat[0].layer}` gives is {100 * flat[0].flat_share:.3g} % where {flat[0].kind.lower()} is flat"
        )
        advice = f"give `{flat[0].layer}` smaller weights, or scale what it gets"
    measure = Measure("parameters with a gradient of zero", float(size), unit="parameters")
    return Finding("no_gradient", Status.BROKEN, text, advice, f"{plural(size, 'parameter')} begin to train",
                   tuple(dict.fromkeys(where))[:MOST_WHERE], measure)  # fmt: skip


ROUTED = 8  # batches in which half of the experts or more got nothing: a router that is drawn at random shares out


def _alike(wiring: Wiring, part: str) -> list[int]:
    """In how many batches each of a part and its siblings of one class was called."""
    parent, _, _ = part.rpartition(".")
    modules = dict(wiring.training.model.named_modules())
    return [
        wiring.passed.called.get(f"{parent}.{name}" if parent else name, 0)
        for name, child in modules[parent].named_children()
        if type(child) is type(modules[part])
    ]


def _is_lonely(wiring: Wiring, part: str) -> bool:
    """Whether half of the experts or more get nothing in many batches, and the others something in each."""
    counts, looked = _alike(wiring, part), wiring.passed.batches
    idle = counts.count(0)
    return "expert" in part.lower() and looked >= ROUTED and len(counts) >= 3 and 2 * idle >= len(counts) and (
        counts.count(looked) + idle == len(counts))  # fmt: skip


def _some_are_used(wiring: Wiring, part: str) -> bool:
    """Whether a part is one of several alike of which not every batch uses each."""
    if part not in dict(wiring.training.model.named_modules()):
        return False
    counts = set(_alike(wiring, part))
    return "expert" in part.lower() or bool(counts - {0, wiring.passed.batches})
