"""Fits of models of any size to few examples, two at a time: error on both sides, and the variance between the two.

Errors are squared, summed over outputs, means over examples. A pair of fits to two training sets tells the variance of
a prediction whatever its bias: half the squared difference of the two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from depthgauge import data, theory
from depthgauge.seeding import Purpose, generator

Floats = NDArray[np.float64]
NOISE = 0.2  # of the linear model's targets, whose weights have square 1; share of wrong labels of a network
FEATURES = 8  # of the linear model: times the examples
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-4, 3))  # over the mean squared length of an example's features
VALIDATION = 1000  # examples on which a penalty is chosen
CLASSES, PIXELS = 10, 64


@dataclass(frozen=True)
class Ends:
    """Errors of fits, without a penalty and with one.

    Attributes:
        train: error on the examples fitted.
        test: error on new ones.
        variance: the prediction's part of it.
        wrong: share of new examples classified wrongly; NaN where there are no classes.
        penalized: errors on new examples with a penalty, (penalties,).
        validation: those by which one is chosen, (penalties,).
        train_wrong: share of the examples fitted that are classified otherwise than their labels say.
        norms: of all weights, of each of the two networks.
    """

    train: float
    test: float
    variance: float
    wrong: float = math.nan
    penalized: Sequence[float] = ()
    validation: Sequence[float] = ()
    train_wrong: float = math.nan
    norms: Sequence[float] = ()


@dataclass(frozen=True)
class Plan:
    """Networks and how they are trained.

    Attributes:
        width: of a hidden layer.
        depth: number of hidden layers.
        steps: of Adam.
        rate: learning rate at the start; it falls to 0 as a cosine.
        penalty: times the squared norm of all weights, beside the error.
    """

    width: int
    depth: int
    steps: int
    rate: float
    penalty: float = 0.0

    @property
    def sizes(self) -> list[int]:
        """Inputs of the first layer, of the next, ..., and outputs."""
        return [PIXELS, *[self.width] * self.depth, CLASSES]


def width_of(parameters: float, depth: int) -> int:
    """Width at which a network of so many hidden layers comes closest to a number of parameters."""
    widths = np.arange(1, 4000)
    counts = widths * (PIXELS + 1) + (depth - 1) * widths * (widths + 1) + (widths + 1) * CLASSES
    return int(widths[np.abs(counts - parameters).argmin()])


def weights(features: int) -> Floats:
    """Weights of the linear model, the first the largest: b_j in proportion to 1 / j, of square 1."""
    b = 1 / np.arange(1, features + 1)
    return np.asarray(b / np.linalg.norm(b))


def effective(examples: int, features: int) -> tuple[float, float]:
    """Signal and noise of the linear model of which the first features are fitted: what is left out is noise."""
    signal = float((weights(FEATURES * examples)[:features] ** 2).sum())
    return signal, NOISE + 1 - signal


def linear(examples: int, features: int, draws: int, seed: int) -> Ends:
    """Least squares on the first of 8 n independent normal features, and ridge regression at its best penalty."""
    source = generator(seed, Purpose.INPUTS)
    b = weights(FEATURES * examples)
    signal, noise = effective(examples, features)
    penalty = examples * theory.best_penalty(features / examples, signal=signal, noise=noise)
    fits = np.empty((2, draws, features))
    train = np.empty(draws)
    for draw in range(draws):
        x = torch.randn(examples, len(b), generator=source, dtype=torch.float64).numpy()
        y = x @ b + math.sqrt(NOISE) * torch.randn(examples, generator=source, dtype=torch.float64).numpy()
        u, s, v = np.linalg.svd(x[:, :features], full_matrices=False)
        fits[:, draw] = (u.T @ y / s) @ v, (u.T @ y * s / (s**2 + penalty)) @ v
        train[draw] = ((x[:, :features] @ fits[0, draw] - y) ** 2).mean()
    test, best = ((fits - b[:features]) ** 2).sum(2).mean(1) + noise
    variance = float(fits[0].var(0, ddof=1).sum())
    return Ends(float(train.mean()), float(test), variance, penalized=(float(best),))


def random_features(examples: int, features: int, seed: int) -> Ends:
    """Least squares of least norm on random ReLU features of MNIST digits, one-hot targets; two fits, two draws."""
    digits = data.load("mnist5k")
    train, test = _inputs(digits.train.x), _inputs(digits.test.x)
    labels = one_hot(digits.train.y, CLASSES).double()
    order = torch.randperm(len(train), generator=generator(seed, Purpose.SAMPLE))
    held = order[2 * examples : 2 * examples + VALIDATION]
    source = generator(seed, Purpose.WEIGHTS)
    found, outputs = [], []
    for part in (order[:examples], order[examples : 2 * examples]):
        drawn = torch.randn(train.shape[1], features, generator=source) / math.sqrt(train.shape[1])
        phi, new, further = (torch.relu(x @ drawn).double() for x in (train[part], test, train[held]))
        u, s, v = torch.linalg.svd(phi, full_matrices=False)
        u, s, v = (each[..., s > torch.finfo(s.dtype).eps * max(phi.shape) * s[0]] for each in (u, s, v.T))
        seen, size = u.T @ labels[part], float(phi.square().sum(1).mean())
        solved = [v @ (seen * (s / (s**2 + size * c))[:, None]) for c in (0.0, *PENALTIES)]
        outputs.append(new @ solved[0])
        errors = [_error(new @ w, one_hot(digits.test.y, CLASSES)) for w in solved]
        checked = [_error(further @ w, labels[held]) for w in solved[1:]]
        found.append([_error(phi @ solved[0], labels[part]), _wrong(outputs[-1], digits.test.y), *errors, *checked])
    mean = np.mean(found, axis=0).tolist()
    last = 3 + len(PENALTIES)
    return Ends(mean[0], mean[2], _variance(*outputs), mean[1], mean[3:last], mean[last:])


def networks(examples: int, plan: Plan, seeds: Sequence[int], bounds: Sequence[float] = ()) -> list[Ends]:
    """ReLU networks on noisy 8 x 8 digits, two a seed, each on its own: squared error, Adam on all examples.

    A stack of replicas shares its examples, so these are trained here. Weights are He's draws, but for the first layer:
    inputs have a mean squared length of 1, its weights variance 2, as Adam fits worse where inputs are large.

    Args:
        examples: of each training set.
        plan: networks and their training.
        seeds: one a pair.
        bounds: largest norm of the weights of each network, (2 seeds,); without them there is none.
    """
    digits = data.load("digits")
    x, y, drawn, unit = [], [], [], math.sqrt(PIXELS)
    for seed in seeds:
        picked, labels, source = (generator(seed, p) for p in (Purpose.SAMPLE, Purpose.LABELS, Purpose.WEIGHTS))
        order = torch.randperm(len(digits.train), generator=picked)[: 2 * examples].view(2, examples)
        noisy = torch.rand(2, examples, generator=labels) < NOISE
        other = torch.randint(1, CLASSES, (2, examples), generator=labels)
        x.append(_inputs(digits.train.x)[order] / unit)
        y.append((digits.train.y[order] + noisy * other) % CLASSES)
        shapes = itertools.pairwise(plan.sizes)
        drawn.append([torch.randn(2, *shape, generator=source) * math.sqrt(2 / shape[0]) for shape in shapes])
        drawn[-1][0] *= unit
    inputs, labelled = torch.cat(x), torch.cat(y)
    matrices = [torch.cat(each) for each in zip(*drawn, strict=True)]
    stack = [each for w in matrices for each in (w, torch.zeros(len(w), 1, w.shape[2]))]
    _descend(stack, inputs, one_hot(labelled, CLASSES).float(), plan, torch.tensor(bounds))
    with torch.no_grad():
        fitted, new, norms = _outputs(stack, inputs), _outputs(stack, _inputs(digits.test.x) / unit), _norms(stack)
    return [_ends(fitted[i : i + 2], labelled[i : i + 2], new[i : i + 2], digits.test.y, norms[i : i + 2])
            for i in range(0, len(new), 2)]  # fmt: skip


def _ends(fitted: Tensor, labelled: Tensor, new: Tensor, labels: Tensor, norms: Tensor) -> Ends:
    """The ends of a pair of networks, from their outputs."""
    both = [
        (_error(one, one_hot(y, CLASSES)), _error(out, one_hot(labels, CLASSES)), _wrong(out, labels), _wrong(one, y))
        for one, y, out in zip(fitted, labelled, new, strict=True)
    ]
    train, test, wrong, train_wrong = np.mean(both, axis=0).tolist()
    return Ends(train, test, _variance(*new), wrong, train_wrong=train_wrong, norms=norms.tolist())


def _descend(stack: list[Tensor], inputs: Tensor, targets: Tensor, plan: Plan, bounds: Tensor) -> None:
    """Train in place; the gradient of one network does not depend on the others.

    A bound is part of the network: weights beyond the ball are scaled back to it before they are used, and descent
    follows what is left of the gradient, along the sphere. (Steps of Adam that are projected afterwards come to rest
    elsewhere than at the least error in the ball: its steps are not along the gradient.)
    """
    for parameter in stack:
        parameter.requires_grad_()
    adam = torch.optim.Adam(stack, plan.rate)
    for step in range(plan.steps):
        adam.param_groups[0]["lr"] = plan.rate * (1 + math.cos(math.pi * step / plan.steps)) / 2
        adam.zero_grad()
        loss = (_outputs(_in_ball(stack, bounds), inputs) - targets).square().sum(2).mean(1).sum()
        if plan.penalty and not len(bounds):
            loss = loss + plan.penalty * _norms(stack).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        adam.step()
    with torch.no_grad():
        stack[:] = _in_ball(stack, bounds)


def _in_ball(stack: list[Tensor], bounds: Tensor) -> list[Tensor]:
    """All weights of each network, scaled back to the norm that bounds them."""
    if not len(bounds):
        return stack
    shrink = (bounds / _norms(stack)).clamp(max=1)[:, None, None]
    return [parameter * shrink for parameter in stack]


def _norms(stack: Sequence[Tensor]) -> Tensor:
    """Norm of all weights of each network: (R,)."""
    squares = torch.stack([parameter.square().sum((1, 2)) for parameter in stack])
    return squares.sum(0).sqrt()


def _outputs(stack: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs of every network: (R, N, classes)."""
    for layer in range(0, len(stack), 2):
        x = (torch.relu(x) if layer else x) @ stack[layer] + stack[layer + 1]
    return x


def _inputs(images: Tensor) -> Tensor:
    """Rows whose squared length is the number of pixels, so that a He unit's input has a second moment of 2."""
    flat = images.flatten(1)
    return flat * math.sqrt(flat.shape[1] / float(flat.square().sum(1).mean()))


def _error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).square().sum(1).mean())


def _wrong(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) != labels).double().mean())


def _variance(one: Tensor, other: Tensor) -> float:
    return _error(one, other) / 2
