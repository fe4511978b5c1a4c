"""Findings about what the model has registered, and what the optimizer holds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from depthgauge import architecture
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import held_by
from depthgauge.checking.questions.signal.wiring import Wiring, by_part, is_new
from depthgauge.checking.words import MOST_WHERE, listed, plural


def findings(wiring: Wiring) -> Iterator[Finding]:
    """Tensors that no one registered, parameters that no group holds, and tensors of another model."""
    yield from _unregistered(wiring)
    yield from _optimizer(wiring)


def _unregistered(wiring: Wiring) -> Iterator[Finding]:
    later = wiring.later.held if wiring.later else set()
    used = [name for name in wiring.others if name in wiring.passed.held | later]
    free = [name for name in used if id(wiring.others[name]) not in wiring.stepped]
    inner = [name for name in free if name.startswith("loss.") and isinstance(wiring.others[name], nn.Parameter)]
    inner = [name for name in inner if name.count(".") > 1]  # a module's that the loss uses, such as the other of a GAN
    alone = [name for name in inner if _is_of_a_loss(name, inner)]
    inner = [name for name in inner if name not in alone]
    lost = [name for name in free if name not in (*inner, *alone)]
    if alone:
        size = sum(wiring.others[name].numel() for name in alone)
        text = (
            f"{listed(alone)} ({plural(size, 'parameter')}) of the loss get a gradient, and no group of the optimizer"
        )
        text += " holds them"
        yield Finding("not_in_optimizer", Status.LOOK, text, f"add {listed(alone)} to the optimizer",
                      f"{plural(size, 'parameter')} begin to train", (*alone, "loss", "optimizer")[:MOST_WHERE],
                      Measure("parameters in no group", float(size), unit="parameters"))  # fmt: skip
    if lost:
        size = sum(wiring.others[name].numel() for name in lost)
        text = (
            f"{listed(lost)} ({plural(size, 'parameter')}) are in the loss and train in no optimizer:"
            " neither the model's parameters nor the optimizer know them"
        )
        advice = f"register {listed(lost)}: nn.ModuleList or nn.ParameterList in place of a list, nn.Parameter in place"
        advice += " of a tensor; then build the optimizer"
        measure = Measure("unregistered", float(size), unit="parameters")
        parents = [name.rpartition(".")[0] for name in lost]
        where = tuple(dict.fromkeys(each for each in (*lost, *parents) if each))
        expected = f"{plural(size, 'parameter')} begin to train"
        yield Finding("unregistered", Status.BROKEN, text, advice, expected, where[:MOST_WHERE], measure)
    if inner:
        text = f"the loss uses {listed(inner)}, which get a gradient and are in no group of the optimizer"
        advice = "add them to the optimizer where they are to train; else requires_grad_(False)"
        yield Finding("left_out", Status.LOOK, text, advice, where=tuple(inner[:MOST_WHERE]))


def _is_of_a_loss(name: str, names: list[str]) -> bool:
    """Whether a parameter is a loss module's own number, such as a temperature, and no layer of another network's."""
    holder, _, _ = name.rpartition(".")
    word = holder.lower().split(".")[1]
    other_half = word in _OTHER_HALVES or any(each in word for each in _WORDS)
    layer = f"{holder}.bias" in names or any(other.startswith(f"{holder}.") and other.count(".") > 2 for other in names)
    return holder.count(".") == 1 and not layer and not other_half


def _optimizer(wiring: Wiring) -> Iterator[Finding]:
    training, passed = wiring.training, wiring.passed
    if training.optimizer is None:
        return
    parameters = wiring.parameters
    missing = {name for name in passed.given if id(parameters[name]) not in wiring.stepped}
    stale = _stale(wiring)
    parts = [
        part for part, _ in by_part(training.model, missing, {n for n, p in parameters.items() if p.requires_grad})
    ]
    size = sum(parameters[name].numel() for name in missing)
    measure = Measure("parameters in no group", float(size), unit="parameters")
    where = tuple(dict.fromkeys((*parts, *sorted(missing), "optimizer")))[:MOST_WHERE]
    if missing and stale:
        text = (
            f"the optimizer holds {plural(len(stale), 'tensor')} that the model no longer has, and does not hold"
            f" {listed(parts)} ({plural(size, 'parameter')}): part of the model was replaced after the optimizer was"
            " built"
        )
        yield Finding("stale_parameters", Status.BROKEN, text, "build the optimizer after the last change to the model",
                      f"{plural(size, 'parameter')} begin to train", where, measure)  # fmt: skip
    elif missing:
        text = f"{listed(parts)} ({plural(size, 'parameter')}) get a gradient, and no group of the optimizer holds them"
        advice = f"add {listed(parts)} to the optimizer, or freeze them with requires_grad_(False)"
        if _meant(wiring, missing):
            yield Finding("left_out", Status.LOOK, text, advice, where=where, measure=measure)
        else:
            expected = f"{plural(size, 'parameter')} begin to train"
            yield Finding("not_in_optimizer", Status.LOOK, text, advice, expected, where, measure)
    elif stale:
        text = f"the optimizer holds {plural(len(stale), 'tensor')} that is neither the model's nor in the loss's graph"
        advice = "build the optimizer over the model's parameters alone"
        yield Finding("left_out", Status.LOOK, text, advice, where=("optimizer",))


def _stale(wiring: Wiring) -> list[Tensor]:
    """What the optimizer holds, and neither the model, the loss nor what they refer to has."""
    assert wiring.training.optimizer is not None
    known = {id(each) for module in wiring.training.modules for each in module.parameters()}
    known |= {id(each) for each in wiring.others.values()}
    tensors = held_by(wiring.training.optimizer)
    return [each for each in tensors if id(each) not in known and each.grad is None]


_WORDS = ("discriminator", "critic", "teacher", "target", "ema", "disc")
_OTHER_HALVES = {"d", "netd", "net_d", "d_net", "dis", "adversary", "q", "q1", "q2", "qf", "qf1", "qf2", "q_net"}


def _meant(wiring: Wiring, missing: set[str]) -> bool:
    """Whether parts were left out of the optimizer on purpose: all below what trains, unless fresh, or another half."""
    layers = [name for name, _ in architecture.layers(wiring.training.model)]
    out = [any(other.startswith(f"{name}.") for other in missing) for name in layers]
    fresh = any(
        is_new(wiring.training.model.get_submodule(name)) for name, left in zip(layers, out, strict=True) if left
    )
    last = next((place for place in reversed(range(len(out))) if out[place]), -1)
    below = last >= 0 and all(out[: last + 1]) and not all(out)
    first = {name.lower().split(".")[0] for name in missing}
    other_half = all(each in _OTHER_HALVES or any(word in each for word in _WORDS) for each in first)
    return other_half or (below and not fresh)
