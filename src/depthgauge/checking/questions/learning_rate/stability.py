"""The largest stable rate at the weights as they are: an optimizer's threshold over the sharpness that it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import curvature, nested
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.steps import set_rates, step
from depthgauge.workload import Training

MOMENTS = 10  # steps of rate 0 that Adam's moments are taken over: they are then of the weights as they are
PRODUCTS = 24  # with the Hessian, at most
A_PRODUCT = 4.0  # passes that one costs: 2.5 to 3.2 training steps, docs/curvature.md
FEWEST = 6  # products below which the largest eigenvalue is not come near
STILL = 1e12  # preconditioner of what no group moves: its part of the Hessian vanishes
LEAST = 4  # examples of a batch that is cut, so that they fit into the time


@dataclass(frozen=True)
class Stability:
    """The largest stable rate, that of the parameter group with the largest one.

    Attributes:
        value: the optimizer's threshold over the sharpness; NaN where it cannot be had, infinite without curvature.
        low: of the sharpness plus its residual.
        high: of the sharpness minus its residual.
        method: how it was had.
        why: it cannot be had; empty where it can.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    method: str = ""
    why: str = ""


def stability(training: Training, rates: Rates, batches: Sequence[Any], products: int) -> Stability:
    """Measure it on the first batch, or as much of it as fits into the time.

    Args:
        training: left as it was.
        rates: of its optimizer.
        batches: the first ones.
        products: that there is time for, each of a whole batch.
    """
    limit = threshold(training.optimizer)
    if isinstance(limit, str):
        return Stability(why=limit)
    part = _cut(batches[0], products)
    if part is None:
        return Stability(why="there was no time for the sharpness")
    try:
        with training.untouched():
            scale = _preconditioner(training, rates, batches)
            found = curvature.sharpness(
                training.model, lambda model, batch, _: training.value(batch, model), part, None,
                preconditioner=scale, tolerance=0.02, most_steps=max(FEWEST, min(PRODUCTS, products)),
            )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return Stability(why=f"no sharpness can be had of this loss: {error}")
    if not math.isfinite(found.value):
        return Stability(why="the curvature of this loss is not finite")
    rows = nested.rows(part)
    method = f"{limit:.3g} over the sharpness of {'a batch' if rows is None else f'{rows} examples'}"
    ends = (found.value, found.value + found.residual, found.value - found.residual)
    value, low, high = (limit / each if each > 0 else math.inf for each in ends)
    return Stability(value, low, high, method)


def threshold(optimizer: Any) -> float | str:
    """Rate times curvature from which on steps diverge on a quadratic, or why none is known (docs/learning-rate.md).

    Of SGD 2, of momentum m 2 + 2 m, of Nesterov's (2 + 2 m) / (1 + 2 m), of Adam (2 + 2 b) / (1 - b).
    """
    kind, groups = type(optimizer).__name__, optimizer.param_groups
    if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return f"no threshold of {kind} is known"
    if any(group.get("maximize") or group.get("amsgrad") or group.get("dampening") for group in groups):
        return f"no threshold of {kind} with maximize, amsgrad or dampening is known"
    coefficients = {float(group["betas"][0] if "betas" in group else group["momentum"]) for group in groups}
    if len(coefficients) != 1 or not 0 <= (m := coefficients.pop()) < 1:
        return "its parameter groups have different momenta, or one that is not below 1"
    if "betas" in groups[0]:
        return (2 + 2 * m) / (1 - m)
    return (2 + 2 * m) / (1 + 2 * m) if groups[0].get("nesterov") else 2 + 2 * m


def _cut(batch: Any, products: int) -> Any:
    """As much of a batch as lets enough products fit; None where not even a few examples do."""
    if products >= FEWEST:
        return batch
    rows = nested.rows(batch)
    fitting = int((rows or 0) * products / FEWEST)
    return nested.first(batch, fitting) if fitting >= LEAST else None


def _preconditioner(training: Training, rates: Rates, batches: Sequence[Any]) -> list[Tensor] | None:
    """What the steps are divided by, against the largest rate; None where it is 1 throughout."""
    optimizer = training.optimizer
    assert optimizer is not None
    adaptive = "betas" in optimizer.param_groups[0]
    shares = {
        id(each): rate / rates.largest
        for group, rate in zip(optimizer.param_groups, rates.peak, strict=True)
        for each in group["params"]
    }
    trained = [each for each in training.model.parameters() if each.requires_grad]
    if not adaptive and all(shares.get(id(each)) == 1 for each in trained):
        return None
    if adaptive:
        set_rates(optimizer, [0.0] * len(optimizer.param_groups))
        for place in range(MOMENTS):
            step(training, batches[place % len(batches)])
    found: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        for each in group["params"]:
            share, state = shares[id(each)], optimizer.state.get(each, {})
            divisor = _root(state, group) if adaptive else torch.ones_like(each, dtype=torch.double)
            if share and divisor is not None:
                found[id(each)] = divisor / share
    return [found.get(id(each), torch.full_like(each, STILL, dtype=torch.double)) for each in trained]


def _root(state: Any, group: Any) -> Tensor | None:
    """The square root of Adam's second moment, corrected for its start; None where it has none."""
    if "exp_avg_sq" not in state:
        return None
    square: Tensor = state["exp_avg_sq"].detach().double() / (1.0 - float(group["betas"][1]) ** int(state["step"]))
    return square.sqrt() + float(group["eps"])
