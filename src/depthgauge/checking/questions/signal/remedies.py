"""Initializations laid over a training, tried for a few of its own steps, and put back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depthgauge import initialization, nested
from depthgauge.checking.questions.signal import skips
from depthgauge.checking.questions.signal.depth import Passage, passage
from depthgauge.checking.steps import go_on, losses
from depthgauge.checking.words import listed
from depthgauge.initialization.maps import Layer, weighted
from depthgauge.seeding import Purpose, generator, seed_globals
from depthgauge.workload import Training

STEPS = 30  # of a trial, at most
LEAST = 5  # steps that can tell at all
FURTHER = 4.0  # times as far down: what an initialization has to be worth before it is advised
HELD = 0.05  # of the way that the remedy goes
"""Of 59 drawn trainings that train well none with a suspicious passage went less than 0.07 of a remedy's way in 30
steps, of eleven with wrong gains or without skips none more than 0.041 of it."""
OF_ROWS = "rows of norm 1"
EVEN = "weights scaled so that the gradient keeps its size"
LARGE_ROWS = 2.0  # root mean square of an embedding's numbers, that torch draws from N(0, 1)
INNER = 2  # layers between the first and the last, from which on a gradient grows by degrees
LONGER = 4  # times the steps, in which a training that only begins slowly
CAUGHT_UP = 0.5  # goes half of the remedy's way
CERTAIN = 3.0  # standard errors over batches by which a remedy's loss has to be lower


@dataclass(frozen=True, eq=False)
class Trial:
    """A training's first steps from some weights.

    Attributes:
        name: of the remedy; empty for the weights as they are.
        says: the remedy as advice: `initialize ... with ...`.
        before: losses of the reference batches at the start.
        after: after the steps; not finite where it diverged.
        decades: log10 of the gradient at the first layers over that at the last, at the start.
        steps: that were made.
    """

    name: str
    says: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    decades: float
    steps: int

    @property
    def ended(self) -> float:
        """Mean loss after the steps; infinite where it is not finite."""
        mean = float(np.mean(self.after)) if self.after else math.inf
        return mean if math.isfinite(mean) else math.inf


def start_of(remedy: Trial, plain: Trial) -> float:
    """The loss from which both are measured: the lower of the two at the start."""
    starts = [float(np.mean(each.before)) for each in (remedy, plain) if each.before]
    return min((value for value in starts if math.isfinite(value)), default=math.inf)


def way(remedy: Trial, plain: Trial) -> float:
    """The way down of the weights as they are over that of the remedy; 0 where they go up, infinite where it does."""
    start = start_of(remedy, plain)
    down, plain_down = start - remedy.ended, start - plain.ended
    return max(0.0, plain_down) / down if down > 0 else math.inf


def better(remedy: Trial, plain: Trial) -> bool:
    """Tell whether a remedy brings the loss down several times as far, beyond chance."""
    if not math.isfinite(remedy.ended) or remedy.steps < LEAST or way(remedy, plain) > 1 / FURTHER:
        return False
    return lower(remedy, plain)


def lower(remedy: Trial, plain: Trial) -> bool:
    """Tell whether a remedy ends lower than the weights as they are, beyond chance."""
    if not math.isfinite(plain.ended):
        return math.isfinite(remedy.ended)
    return _beyond_chance(np.subtract(plain.after, remedy.after))


def progresses(plain: Trial) -> bool:
    """Tell whether the steps bring the loss down, beyond chance."""
    return math.isfinite(plain.ended) and _beyond_chance(np.subtract(plain.before, plain.after))


def _beyond_chance(differences: Any) -> bool:
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return float(differences.mean()) > CERTAIN * error


def trial(
    training: Training,
    batches: Sequence[Any],
    steps: int,
    lay: Callable[[nn.Module], None] | None,
    *,
    name: str = "",
    says: str = "",
) -> Trial:
    """Make the first steps from the weights as they are, or from a remedy's."""
    with training.untouched():
        seed_globals(0, Purpose.DROPOUT)
        if lay is not None:
            with torch.no_grad():
                lay(training.model)
        before = losses(training, batches)
        made = go_on(training, steps)
        after = losses(training, batches) if made == steps else (math.inf,) * len(batches)
    with training.untouched():
        if lay is not None:
            with torch.no_grad():
                lay(training.model)
        decades = passage(training, batches[:1]).decades
    return Trial(name, says, before, after, decades, made)


Remedy = tuple[str, str, Callable[[nn.Module], None]]


def way_around(blocks: list[str]) -> Remedy:
    """Name, advice and function of a skip around each of these blocks."""
    return (f"x + f(x) in {len(blocks)} blocks", f"give {listed(blocks)} a way around: return x + block(x)",
            lambda model: skips.laid(model, blocks))  # fmt: skip


def remedies(training: Training, batch: Any, wrong: Sequence[str]) -> Iterator[Remedy]:
    """Name, advice and function of each remedy, the one to be tried first at the front.

    Args:
        training: whose layers are set.
        batch: that the data-driven one looks at.
        wrong: names of layers whose gain stands apart; the remedies for all layers follow.
    """
    if rows := far_rows(training.model):
        yield (f"{OF_ROWS} at {listed(rows)}", f"draw {listed(rows)} with standard deviation dim**-0.5",
               lambda model: _draw_rows(model, rows))  # fmt: skip
    gain, activation = _gain(training.model)
    every = [layer.name for layer in weighted(training.model) if layer.maps]
    draw = f"torch.nn.init.normal_(weight, std={gain:.3g} / fan_in**0.5), biases 0"
    if 0 < len(wrong) < len(every):
        yield (f"gain {gain:.3g} at {listed(wrong)}", f"initialize {listed(wrong)} with gain {gain:.3g}: {draw}",
               lambda model: _gaussian(model, gain, set(wrong)))  # fmt: skip
    says = f"initialize all {len(every)} weight layers with gain {gain:.3g} ({activation}): {draw}"
    yield f"gain {gain:.3g} for {activation} in all layers", says, lambda model: _gaussian(model, gain, set(every))
    if (flat := _flat(training.model)) and len(flat) > 1:
        says = f"put ReLU in place of {type(training.model.get_submodule(flat[0])).__name__.lower()} at {listed(flat)}"
        says += f", and initialize with gain {math.sqrt(2):.3g}"
        yield "ReLU and its gain", says, lambda model: _rectified(model, flat, set(every))
    elif _saturates(training.model):
        says = "put a normalization after each weight layer but the last (torch.nn.LayerNorm or BatchNorm), or ReLU in"
        says += " place of sigmoid and tanh"
        yield "a normalization after each layer", says, lambda model: _normalized(model, every[:-1])
    says = "initialize orthogonally, then divide each layer's weights by the standard deviation of its output"
    says += " (depthgauge.initialization.apply(model, 'lsuv', batch=x))"
    yield "unit variance, layer by layer", says, lambda model: _even(training, model, batch)


def evened(passage: Passage) -> Remedy | None:
    """Weights of the inner layers over the growth of the gradient from one to the next; None with calls that repeat."""
    table = passage.table
    back = table["backward_decades"].to_numpy(float)
    names = list(table["layer"].str.partition(":")[0])
    if len(set(names)) < len(names) or len(names) < INNER + 2 or not np.isfinite(back).all():
        return None
    factors = {name: 10.0 ** (back[place + 1] - back[place]) for place, name in enumerate(names[1:-1])}
    low, high = min(factors.values()), max(factors.values())
    says = f"multiply the weights of {listed(factors)} by {low:.2g}" + (f" to {high:.2g}" if high > 1.1 * low else "")

    def lay(model: nn.Module) -> None:
        for layer in weighted(model):
            for weight in layer.maps if layer.name in factors else ():
                weight.mul_(factors[layer.name])
            layer.bring()

    return EVEN, says, lay


def far_rows(model: nn.Module) -> list[str]:
    """Names of embeddings whose numbers are far larger than N(0, 1)."""
    tables = [(name, each.weight) for name, each in model.named_modules() if isinstance(each, nn.Embedding)]
    return [name for name, rows in tables if rows.detach().double().square().mean().sqrt().item() > LARGE_ROWS]


def _draw_rows(model: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(torch.randn(weight.shape, generator=generator(0, Purpose.WEIGHTS)) * weight.shape[1] ** -0.5)


def _saturates(model: nn.Module) -> bool:
    """Tell whether activations that saturate stand in a model without a normalization."""
    kinds = [type(module).__name__ for module in model.modules()]
    return any(kind in {"Sigmoid", "Tanh"} for kind in kinds) and not any("Norm" in kind for kind in kinds)


def _flat(model: nn.Module) -> list[str]:
    """Names of sigmoids, where they are the only activations."""
    kinds = {type(module).__name__ for module in model.modules()}
    if any("LU" in kind or "Norm" in kind or kind in {"Tanh", "LSTM", "GRU", "RNN"} for kind in kinds):
        return []
    return [name for name, module in model.named_modules() if isinstance(module, nn.Sigmoid)]


def _rectified(model: nn.Module, names: Sequence[str], layers: set[str]) -> None:
    """Let these activations be ReLU, with its gain in the layers; `untouched` takes the first away again."""
    _gaussian(model, math.sqrt(2), layers)
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(lambda _module, inputs, _output: inputs[0].relu())


def _normalized(model: nn.Module, names: Sequence[str]) -> None:
    """Normalize the output of each of these layers over its features; `untouched` takes it away again."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dim() < 2 or output[0].numel() < 2:
            return output
        return nn.functional.layer_norm(output, output.shape[1:])

    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(hook)


def _gain(model: nn.Module) -> tuple[float, str]:
    """The gain that keeps a signal through the model's activation, and its name; ReLU's where none is known."""
    kinds = {type(module).__name__ for module in model.modules()}
    for name, gain in (("Sigmoid", 1.0), ("Tanh", 5 / 3), ("SELU", 1.0)):
        if name in kinds and "ReLU" not in kinds:
            return gain, name.lower()
    return math.sqrt(2), "ReLU" if any("LU" in kind for kind in kinds) else "He's"


def _gaussian(model: nn.Module, gain: float, names: set[str]) -> None:
    initialization.apply(_Only(model, names), initialization.gaussian(gain))


class _Only(nn.Module):
    """The layers of these names, as one module whose parameters are theirs."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(module for name, module in model.named_modules() if name in names)


def _even(training: Training, model: nn.Module, batch: Any) -> None:
    """Orthogonal weights, each layer's divided by the standard deviation of its output, in one pass."""
    initialization.apply(model, "orthogonal")
    with _evened(model), torch.no_grad():
        training.value(batch)


@contextmanager
def _evened(model: nn.Module) -> Iterator[None]:
    """Scale the weights of each layer that is called, and its output with them, to a standard deviation of 1."""
    done: set[str] = set()

    def scaling(layer: Layer) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
            if layer.name in done or not isinstance(output, Tensor):
                return None
            done.add(layer.name)
            spread = nested.real(output.detach()).double().std().item()
            if not 1e-12 < spread < math.inf:
                return None
            for weight in layer.maps:
                weight.div_(spread)
            layer.bring()
            return output / spread

        return hook

    handles = [layer.module.register_forward_hook(scaling(layer)) for layer in weighted(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
