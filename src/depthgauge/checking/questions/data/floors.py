"""Can any output at all bring the loss down, as far as its labels or targets ask?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.held import Held
from depthgauge.checking.questions.data.outputs import Outputs, normal_like
from depthgauge.seeding import Purpose, generator

HEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the label's score above the others
RISE = 3.0  # height of another's score, against which the gain is held
HARDLY = 0.1  # of that rise, which the label's own score gains at most
FIRM = 0.06  # of the loss, that drawn outputs lose at most in so many steps of their own
STEPS, RATE = 100, 0.1
UNREACHED = 0.2  # of the targets' variance, that no output in its bounds can take away
BOUNDS = {
    "Sigmoid": (0.0, 1.0, "a sigmoid"), "Softmax": (0.0, 1.0, "a softmax"), "Tanh": (-1.0, 1.0, "a tanh"),
    "Relu": (0.0, math.inf, "a ReLU"), "Softplus": (0.0, math.inf, "a softplus"),
}  # fmt: skip

KINDS = {
    "labels_hardly_count": Kind(
        "fault",
        f"the best height of the labels' scores gains less than {HARDLY:g} of what a height of {RISE:g} of"
        " other classes'"
        " scores loses",
    ),
    "flat_loss": Kind(
        "fault",
        f"the loss normalizes the outputs, and {STEPS} steps of outputs that are free lower it by less than {FIRM:.0%}",
    ),
    "out_of_reach": Kind(
        "fault",
        f"outputs are bounded (sigmoid, tanh, ReLU), and {UNREACHED:.0%} of the targets' variance or more lies beyond",
    ),
}


def findings(outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    """Yield what keeps the loss up, whatever the model says."""
    yield from _labels(outputs, pairs)
    yield from _bounds(outputs, pairs)
    if not any(pair.classes is not None for pair in pairs):
        yield from _flat(outputs)


def _labels(outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    for pair in pairs:
        output = outputs.free[pair.leaf]
        labels, dim = pair.targets, pair.classes
        if dim is None or labels.dim() != output.dim() - 1 or output.shape[dim] < 3 or _normalized(output, dim):
            continue
        if bool((labels < 0).any()) or not _towards(outputs, pair):
            continue
        hot = torch.nn.functional.one_hot(labels, output.shape[dim]).to(output).movedim(-1, dim)
        losses = [_at(outputs, pair.leaf, height * hot) for height in (0.0, *HEIGHTS)]
        rise = _at(outputs, pair.leaf, RISE * hot.roll(1, dim)) - losses[0]
        gain = losses[0] - min(losses)
        if math.isfinite(sum(losses)) and rise > 0 and gain < HARDLY * min(rise, losses[0]):
            yield Finding(
                "labels_hardly_count", Status.BROKEN,
                f"the loss is {losses[0]:.4g} with equal scores, and {min(losses):.4g} with the best scores"
                " for the labels:"
                " hardly anything in it asks for them",
                "look at how much of a label is smoothed away, or mixed with other"
                " classes", "scores tell the labels", ("loss",),
                Measure("gain of the labels over the loss of others", gain / rise),
            )  # fmt: skip
            return


def _at(outputs: Outputs, leaf: int, value: Tensor) -> float:
    return outputs.loss([value if place == leaf else each for place, each in enumerate(outputs.free)])


def _normalized(output: Tensor, dim: int) -> bool:
    """Whether outputs are probabilities or their logarithms already."""
    sums = torch.logsumexp(output.float(), dim) if bool((output <= 0).all()) else output.float().sum(dim).log()
    return bool((output >= 0).all() or (output <= 0).all()) and bool((sums.abs() < 0.05).all())


def _towards(outputs: Outputs, pair: Held) -> bool:
    """Whether the labels' own scores are raised most, and not those of another place's."""
    zero = [torch.zeros_like(each) if place == pair.leaf else each for place, each in enumerate(outputs.free)]
    signs = pair.signs(zero[pair.leaf], outputs.gradient(zero)[1][pair.leaf])[0]
    return len(signs) >= 8 and (signs > 0).float().mean().item() > 0.9


def _bounds(outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    for pair in pairs:
        low, high, what = BOUNDS.get(outputs.makers[pair.leaf], (0.0, 0.0, ""))
        output, targets = outputs.free[pair.leaf], pair.targets
        if not what or pair.classes is not None or output.numel() != targets.numel() or targets.numel() < 16:
            continue
        beyond = (targets - targets.clamp(low, high)).double().square().mean().item()
        variance = targets.double().var(correction=0).item()
        if not beyond > UNREACHED * variance > 0:
            continue
        best = _at(outputs, pair.leaf, targets.reshape(output.shape))
        nearest = _at(outputs, pair.leaf, targets.clamp(low, high).reshape(output.shape))
        if best < 0.05 * nearest:
            yield Finding(
                "out_of_reach", Status.BROKEN,
                f"outputs pass {what}, which bounds them to {low:g} and {high:g}, and the targets go from"
                f" {targets.min().item():.3g} to {targets.max().item():.3g}: the loss stays above {nearest:.3g}",
                f"leave {what} out after the last layer, or bring the targets between its"
                " bounds", "the loss can fall to 0",
                ("loss", "model"), Measure("square out of reach over the targets' variance", beyond / variance),
            )  # fmt: skip
            return


def _flat(outputs: Outputs) -> Iterator[Finding]:
    """A loss of normalized outputs that hardly depends on them."""
    if any(each.dim() != 2 or each.shape[1] < 4 or len(each) < 8 for each in outputs.free):
        return
    draws = generator(0, Purpose.OPERANDS)
    values = [normal_like(each, draws) for each in outputs.free]
    unit = all(bool(((each.norm(dim=1) - 1).abs() < 1e-2).all()) for each in outputs.free)  # the model's own work
    losses = [_of_free(outputs, [scale * each for each in values], unit)[0] for scale in (1.0, 10.0, 100.0)]
    if not losses[0] > 0 or not all(abs(each - losses[0]) < 1e-3 * losses[0] for each in losses):
        return
    leaves = [each.clone().requires_grad_() for each in values]
    adam = torch.optim.Adam(leaves, lr=RATE, foreach=False)
    lowest = losses[0]
    for _ in range(STEPS):
        loss, given = _of_free(outputs, leaves, unit)
        lowest = min(lowest, loss)
        for leaf, gradient in zip(leaves, given, strict=True):
            leaf.grad = gradient
        adam.step()
    if losses[0] - lowest < FIRM * losses[0]:
        yield Finding(
            "flat_loss", Status.BROKEN,
            f"the loss normalizes the outputs, and whatever they are it lies near {losses[0]:.4g}: outputs"
            " that are free to"
            f" move bring it to {lowest:.4g}",
            "look at the temperature: similarities between -1 and 1 are divided by one well below 1, not multiplied",
            "the loss tells good outputs from others", ("loss",),
            Measure("fall of the loss with free outputs", (losses[0] - lowest) / losses[0], unit="of itself"),
        )  # fmt: skip


def _of_free(outputs: Outputs, values: Sequence[Tensor], unit: bool) -> tuple[float, tuple[Tensor, ...]]:
    """The loss and its gradient by outputs, brought to unit length before where they are to be."""
    if not unit:
        return outputs.gradient(values)
    leaves = [each.detach().requires_grad_() for each in values]
    with torch.enable_grad():
        made = [torch.nn.functional.normalize(each, dim=1) for each in leaves]
    loss, given = outputs.gradient(made)
    return loss, torch.autograd.grad(made, leaves, given)
