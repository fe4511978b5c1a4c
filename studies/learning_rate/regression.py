"""Linear regression with squared, absolute and Huber loss: descents, the steps that theory has, Huber's jump."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Rows

DELTA = 1.0  # where Huber's loss turns from a square into a line
START = 3.0  # distance at which a descent begins
LAST = 10  # pairs of steps at the end of a descent over which its distance is averaged
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Mapping[str, Loss] = {
    "squared": lambda outputs, targets: functional.mse_loss(outputs, targets) / 2,
    "absolute": functional.l1_loss,
    "huber": lambda outputs, targets: functional.huber_loss(outputs, targets, delta=DELTA),
}


def printed(x: Tensor, delta: float) -> Tensor:
    """Huber's loss without the constant -delta²/2: x²/2 up to delta, delta |x| beyond."""
    return torch.where(x.abs() <= delta, x.square() / 2, delta * x.abs())


def jumps(delta: float) -> dict[str, float]:
    """Rise of each form from delta to the next number of float64."""
    ends = torch.tensor([delta, math.nextafter(delta, math.inf)], dtype=torch.float64)
    zeros = torch.zeros_like(ends)
    values = {
        "printed": printed(ends, delta),
        "huber": functional.huber_loss(ends, zeros, reduction="none", delta=delta),
        "smooth_l1": functional.smooth_l1_loss(ends, zeros, reduction="none", beta=delta),
    }
    return {name: float(value[1] - value[0]) for name, value in values.items()}


def forms() -> pd.DataFrame:
    """Huber's loss of a point, as the notes print it and as torch has it, up to twice DELTA."""
    x = torch.linspace(0, 2 * DELTA, 401, dtype=torch.float64)
    torchs = functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=DELTA)
    both = {"printed": printed(x, DELTA), "torch": torchs}
    return pd.concat(pd.DataFrame({"form": form, "distance": x.numpy(), "loss": y.numpy()}) for form, y in both.items())


def regression(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (N, k) ~ N(0, I), targets of the weights, the weights, and a direction of length 1."""
    rows, inputs = case.integer("rows"), case.integer("inputs")
    draws = generator(case.random_seed("seed", "rows", "inputs"), Purpose.SAMPLE)
    shapes = ((rows, inputs), (inputs,), (rows,), (inputs,), (rows,))
    x, w, noise, start, off = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes)
    y = x @ w + case.number("noise") * noise
    if "outliers" in dict(case.params):
        y[off.argsort()[: round(case.number("outliers") * rows)]] += case.number("shift")
    return x, y, w, start / start.norm()


def descend(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Full-batch gradient descent of all cases at once, in float64; distance from the weights that made the targets."""
    loss, params = torch.func.vmap(LOSSES[cases[0].text("loss")]), dict(cases[0].params)
    x, y, truth, direction = (
        torch.stack(parts).to(context.device) for parts in zip(*map(regression, cases), strict=True)
    )
    far = x.new_tensor([case.number("distance") if "distance" in params else START for case in cases])
    rate = x.new_tensor([case.number("lr") if "lr" in params else 1.0 for case in cases])
    w, distances = truth + far[:, None] * direction, [far]
    for _ in range(cases[0].integer("steps") if "steps" in params else 1):
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            total = loss(torch.einsum("rnk,rk->rn", x, leaf), y).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        w = w - rate[:, None] * gradient
        distances.append((w - truth).norm(dim=1))
    lines = torch.stack(distances, dim=1).cpu().numpy()
    for i, case in enumerate(cases):
        if "distance" in params:
            yield case.rows("length", float(gradient[i].norm()))
            continue
        yield case.rows("end", float(lines[i, -2 * LAST :].mean()))
        if "outliers" not in params:
            yield case.rows("distance_left", lines[i], step=np.arange(lines.shape[1]))


def predicted_length(loss: str, distance: float, noise: float) -> float:
    """Length of E[psi(r) x] for inputs x ~ N(0, I), residuals r, slopes psi: distance E[psi'(r)] (Stein 1981).

    r is normal of variance distance² + noise²; psi' is 1 for squared loss, twice a unit point at 0 for the absolute,
    and 1 up to DELTA for Huber's.
    """
    deviation = math.hypot(distance, noise)
    slope = {
        "squared": 1.0, "absolute": math.sqrt(2 / math.pi) / deviation,
        "huber": math.erf(DELTA / (math.sqrt(2) * deviation)),
    }  # fmt: skip
    return distance * slope[loss]


def predicted_cycle(lr: float, noise: float) -> float:
    """Distance at which a step of absolute loss goes twice as far as the target is: 0 where it always falls short."""
    return math.sqrt(max(0.0, lr**2 / (2 * math.pi) - noise**2))
