"""Deep residual stacks under the schemes that are to keep them trainable: many networks at once, drawn and trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from depthgauge import theory
from depthgauge.replicas.order import orders
from depthgauge.seeding import Purpose, generator
from depthgauge.theory.stabilizers import Norm, ResidualGrowth

LAYERS = 2  # pairs of ReLU and weights in a branch
EPSILON = 1e-5
Law = Callable[[int], float]
Parameters = dict[str, Tensor]


def one(_blocks: int) -> float:
    """A factor of 1 at any depth."""
    return 1.0


def root(blocks: int) -> float:
    """1 / sqrt(L)."""
    return 1 / math.sqrt(blocks)


@dataclass(frozen=True)
class Scheme:
    """Residual blocks x' = shortcut x + scale f(x), f two times ReLU and He's weights; all numbers by blocks L.

    Attributes:
        norm: over the units (`layer`) or the batch before the branch, as in `theory.residual_growth`; none has gains.
        scale: factor on the branch at the start.
        learned: parameters that the factor is: none, one a block, or one a unit.
        shortcut: factor on the shortcut.
        inner: factor on He's draws of the branch's first weights.
        outer: likewise of its last.
        offsets: a scalar bias before each ReLU and each weight, as Fixup has it.
        silent: whether the output's weights start at 0.
    """

    norm: Norm = "none"
    scale: Law = one
    learned: str = ""
    shortcut: Law = one
    inner: Law = one
    outer: Law = one
    offsets: bool = False
    silent: bool = False

    def law(self, blocks: int, width: float = math.inf) -> ResidualGrowth:
        """Theory's growth at the start."""
        factor = self.scale(blocks) * self.inner(blocks) * self.outer(blocks)
        return theory.residual_growth(
            self.norm, blocks, scale=factor, shortcut=self.shortcut(blocks), layers=LAYERS, width=width
        )


def layer_scale(blocks: int) -> float:
    """Touvron et al. 2021: 0.1 up to depth 18, 1e-5 up to 24, 1e-6 beyond."""
    return 0.1 if blocks <= 18 else 1e-5 if blocks <= 24 else 1e-6


SCHEMES: Mapping[str, Scheme] = {
    "plain": Scheme(),
    "1/sqrt(L)": Scheme(scale=root),
    "Fixup": Scheme(learned="block", inner=root, outer=lambda _: 0.0, offsets=True, silent=True),
    "SkipInit/ReZero": Scheme(scale=lambda _: 0.0, learned="block"),
    "LayerScale": Scheme("layer", layer_scale, "unit"),
    "DeepNorm": Scheme(
        "post",
        shortcut=lambda blocks: blocks**0.25,
        inner=lambda blocks: (4 * blocks) ** -0.25,
        outer=lambda blocks: (4 * blocks) ** -0.25,
    ),
    "norm after": Scheme("post"),
    "layer norm": Scheme("layer"),
    "batch norm": Scheme("batch"),
}


def draw(
    scheme: Scheme, seeds: Sequence[int], *, blocks: int, width: int, inputs: int, classes: int
) -> Parameters:  # fmt: skip
    """One network a seed, (R, ...), blocks before replicas: all schemes get the same normal draws."""
    kept: dict[str, list[Tensor]] = {"first": [], "inner": [], "outer": [], "output": []}
    for seed in seeds:
        own = generator(seed, Purpose.WEIGHTS)
        kept["first"].append(torch.randn(inputs, width, generator=own) / math.sqrt(inputs))
        for name in ("inner", "outer"):
            kept[name].append(torch.randn(blocks, width, width, generator=own) * math.sqrt(2 / width))
        kept["output"].append(torch.randn(width, classes, generator=own) / math.sqrt(width))
    count = len(seeds)
    found = {name: torch.stack(each, 1 if name in ("inner", "outer") else 0) for name, each in kept.items()}
    if blocks:
        found["inner"] *= scheme.inner(blocks)
        found["outer"] *= scheme.outer(blocks)
    else:
        del found["inner"], found["outer"]
    found["output"] *= 0.0 if scheme.silent else 1.0
    found["bias"] = torch.zeros(count, 1, classes)
    if scheme.learned and blocks:
        found["factor"] = torch.full((blocks, count, 1, width if scheme.learned == "unit" else 1), scheme.scale(blocks))
    if scheme.offsets and blocks:
        found["offsets"] = torch.zeros(blocks, 4, count, 1, 1)
    return found


def normed(x: Tensor, norm: Norm) -> Tensor:
    """(R, B, n) over its units (`layer`, `post`), over its batch, or as it is."""
    if norm == "none":
        return x
    if norm == "batch":
        centred = x - x.mean(1, keepdim=True)
        return centred * (centred.square().mean(1, keepdim=True) + EPSILON).rsqrt()
    return layer_norm(x, x.shape[-1:], eps=EPSILON)


def streams(scheme: Scheme, parameters: Parameters, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """The stream (R, B, n) before the first block and after each, with the branch that the sum has got."""
    found: list[tuple[Tensor, Tensor | None]] = [(x @ parameters["first"], None)]
    inner, outer = (parameters[name].unbind(0) if name in parameters else () for name in ("inner", "outer"))
    blocks = len(inner)
    factors: Sequence[Tensor | float] = [scheme.scale(blocks or 1)] * blocks
    if "factor" in parameters:
        factors = parameters["factor"].unbind(0)
    offsets = parameters["offsets"].unbind(0) if "offsets" in parameters else [None] * blocks
    before: Norm = "none" if scheme.norm == "post" else scheme.norm
    between: Norm = "batch" if scheme.norm == "batch" else "none"
    for a, b, factor, offset in zip(inner, outer, factors, offsets, strict=True):
        x, h = found[-1][0], normed(found[-1][0], before)
        o = (0.0, 0.0, 0.0, 0.0) if offset is None else offset.unbind(0)
        h = (torch.relu(h + o[0]) + o[1]) @ a if offset is not None else torch.relu(h) @ a
        h = normed(h, between)
        h = (torch.relu(h + o[2]) + o[3]) @ b if offset is not None else torch.relu(h) @ b
        branch = h if isinstance(factor, float) and factor == 1 else h * factor
        shortcut = scheme.shortcut(blocks)
        total = (x if shortcut == 1 else shortcut * x) + branch
        found.append((normed(total, "post") if scheme.norm == "post" else total, branch))
    return found


def scores(scheme: Scheme, parameters: Parameters, x: Tensor, *, cut: bool = False) -> Tensor:
    """(R, B, inputs) -> (R, B, classes); the stream is normed before the output where its branches are.

    With `cut`, every branch is left out.
    """
    last = x @ parameters["first"] if cut else streams(scheme, parameters, x)[-1][0]
    if cut and scheme.norm == "post":
        last = normed(last, "post")
    return normed(last, "none" if scheme.norm == "post" else scheme.norm) @ parameters["output"] + parameters["bias"]


@dataclass(frozen=True)
class Ends:
    """The ends of the replicas, (R,) each.

    Attributes:
        steps: steps to the target, the budget where it was not reached.
        reached: whether it was.
        accuracy: share of the watched examples right at the last look.
        cut: the same with every branch left out.
    """

    steps: np.ndarray[Any, Any]
    reached: np.ndarray[Any, Any]
    accuracy: np.ndarray[Any, Any]
    cut: np.ndarray[Any, Any]


def train(
    scheme: Scheme,
    parameters: Parameters,
    x: Tensor,
    y: Tensor,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    batch: int,
    watched: int,
    target: float,
    every: int = 5,
) -> Ends:
    """SGD of all replicas until each has `target` of the first `watched` examples right, or its steps are spent."""
    parameters = {name: each.clone().requires_grad_() for name, each in parameters.items()}
    order, rate = orders(seeds, len(x), batch, steps), torch.tensor(rates)
    count = len(seeds)
    seen, labels = x[:watched].expand(count, -1, -1), y[:watched]
    first, reached, ended = np.full(count, steps), np.zeros(count, bool), np.zeros(count, bool)
    accuracy, left = np.zeros(count), np.zeros(count)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                right, finite = _right(scores(scheme, parameters, seen), labels)
                cut, _ = _right(scores(scheme, parameters, seen, cut=True), labels)
            accuracy, left = np.where(reached, accuracy, right), np.where(reached, left, cut)
            there = (right >= target) & ~reached
            first[there] = step
            reached |= there
            ended |= reached | ~finite
            if ended.all():
                break
        if step < steps:
            _step(scheme, parameters, x[order[step]], y[order[step]], rate)
    return Ends(first, reached, accuracy, left)


def _right(out: Tensor, labels: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Share of the labels that each replica has right, 0 where a score is not finite; and whether all are."""
    finite = out.isfinite().flatten(1).all(1)
    right = (out.argmax(-1) == labels).double().mean(1)
    return torch.where(finite, right, 0.0).numpy(), finite.numpy()


def _step(scheme: Scheme, parameters: Parameters, x: Tensor, y: Tensor, rate: Tensor) -> None:
    loss = cross_entropy(scores(scheme, parameters, x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    with torch.no_grad():
        for (name, each), gradient in zip(parameters.items(), gradients, strict=True):
            place = {"inner": 1, "outer": 1, "factor": 1, "offsets": 2}.get(name, 0)
            shape = [1] * each.dim()
            shape[place] = len(rate)
            each.sub_(gradient * rate.view(shape))
