"""Recurrent networks over stacked replicas, the two tasks of long memory, and their training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import replicas
from depthgauge.replicas.optimizers import clip
from depthgauge.replicas.order import orders

KINDS = ("RNN", "orthogonal RNN", "identity RNN", "LSTM", "LSTM, bias 1", "chrono LSTM")
GATES = 4  # of an LSTM: input, forget, candidate, output
SYMBOLS, KEPT = 4, 3  # kinds of symbols, and how many are to be recalled
FEATURES = {"adding": 2, "copying": SYMBOLS + 2}
OUTPUTS = {"adding": (1, 1), "copying": (KEPT, SYMBOLS)}  # last steps that answer, numbers each
BASELINES = {"adding": 1 / 6, "copying": math.log(SYMBOLS)}  # the loss of the best answer that knows no input
LARGEST = 1.0  # bound of a gradient's norm in training
HELD_OUT = 400  # sequences that the loss is taken over at the end
Weights = Mapping[str, Tensor]


def draw(kind: str, shape: tuple[int, int, int], longest: int, generator: torch.Generator) -> Weights:
    """One network: uniform in +-1/sqrt(width), PyTorch's default, without biases; but what its kind names.

    Args:
        kind: one of `KINDS`. A chrono LSTM has forget biases ln u, u uniform in 1 .. longest - 1, and input biases of
            the opposite sign (Tallec and Ollivier 2018, arXiv:1804.11188).
        shape: units, features of a step, and numbers that a step answers.
        longest: steps that a chrono LSTM expects to remember over.
        generator: on the CPU.
    """
    width, inputs, outputs = shape
    gates, bound = GATES if "LSTM" in kind else 1, width**-0.5
    shapes = {"input": (gates * width, inputs), "state": (gates * width, width), "output": (outputs, width)}
    weights = {
        name: torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
        for name, shape in shapes.items()
    }
    weights |= {"bias": torch.zeros(gates * width).double(), "output_bias": torch.zeros(outputs).double()}
    spread = torch.rand(width, generator=generator, dtype=torch.float64)
    if kind == "orthogonal RNN":
        nn.init.orthogonal_(weights["state"], generator=generator)
    elif kind == "identity RNN":
        nn.init.eye_(weights["state"])
    elif kind == "LSTM, bias 1":
        weights["bias"][width : 2 * width] = 1.0
    elif kind == "chrono LSTM":
        weights["bias"][width : 2 * width] = torch.log(1 + spread * (longest - 2))
        weights["bias"][:width] = -weights["bias"][width : 2 * width]
    return weights


def stacked(networks: Sequence[Weights], dtype: torch.dtype) -> dict[str, Tensor]:
    """Networks of one shape as tensors (R, ...)."""
    return {name: torch.stack([each[name] for each in networks]).to(dtype) for name in networks[0]}


def states(kind: str, weights: Weights, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that each step passes on, and those that it shows, (R, B, width) each; inputs (R, B, T, features).

    An RNN passes on what it shows; an LSTM passes on its cell.
    """
    given = torch.einsum("rbtf,rof->rtbo", x, weights["input"]) + weights["bias"][:, None, None]
    across = weights["state"].transpose(1, 2)
    shown = passed = given.new_zeros(len(given), x.shape[1], across.shape[1])
    kept, told = [], []
    for step in given.unbind(1):
        now = torch.baddbmm(step, shown, across)
        if "LSTM" in kind:
            i, f, g, o = now.chunk(GATES, -1)
            passed = f.sigmoid() * passed + i.sigmoid() * g.tanh()
            shown = o.sigmoid() * passed.tanh()
        else:
            passed = shown = now.relu() if kind == "identity RNN" else now.tanh()
        kept.append(passed)
        told.append(shown)
    return kept, told


def gradients(kind: str, weights: Weights, x: Tensor, cotangent: Tensor) -> Tensor:
    """Mean square (R, T) of the gradient at what 0, 1, ... steps back was passed on, over that of the cotangent.

    Args:
        kind: one of `KINDS`.
        weights: stacked.
        x: (R, B, T, features).
        cotangent: (R, B, width), of what the last step passes on.
    """
    kept, _ = states(kind, {name: each.detach().requires_grad_() for name, each in weights.items()}, x)
    found = torch.autograd.grad(kept[-1], kept, cotangent)
    return (
        torch.stack([each.square().sum((1, 2)) for each in reversed(found)], 1)
        / cotangent.square().sum((1, 2))[:, None]
    )


def sequences(task: str, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (count, length, features) and answers, (count, 1, 1) or (count, KEPT).

    Adding: a number in [0, 1] and a mark a step; the answer is the sum of the two marked, one in each half, less 1
    (Hochreiter and Schmidhuber 1997). Copying: KEPT symbols, blanks, a sign, and then the symbols are to be told.
    """
    rows = torch.arange(count)
    if task == "adding":
        value, mark = torch.rand(count, length, generator=generator), torch.zeros(count, length)
        for start, end in ((0, length // 2), (length // 2, length)):
            mark[rows, torch.randint(start, end, (count,), generator=generator)] = 1.0
        return torch.stack([value, mark], 2), ((value * mark).sum(1) - 1)[:, None, None]
    symbols = torch.randint(SYMBOLS, (count, KEPT), generator=generator)
    shown = torch.full((count, length), SYMBOLS)
    shown[:, :KEPT], shown[:, -KEPT] = symbols, SYMBOLS + 1
    return functional.one_hot(shown, SYMBOLS + 2).float(), symbols


def losses(task: str, kind: str, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """Mean losses (R,) over sequences (R, B, ...)."""
    steps, _ = OUTPUTS[task]
    _, told = states(kind, weights, x)
    last = torch.stack(told[-steps:], 2)
    out = torch.einsum("rbsw,row->rbso", last, weights["output"]) + weights["output_bias"][:, None, None]
    if task == "adding":
        return (out - y).square().mean((1, 2, 3))
    logs = functional.log_softmax(out, -1)
    return -logs.gather(-1, y[..., None]).mean((1, 2, 3))


def train(
    task: str, kind: str, weights: dict[str, Tensor], given: tuple[Tensor, Tensor], *, rates: Sequence[float],
    seeds: Sequence[int], batch: int, steps: int,
) -> Tensor:  # fmt: skip
    """Train replicas by Adam, gradients clipped to norm LARGEST; the loss (R,) of HELD_OUT sequences over the baseline.

    Args:
        task: one of `FEATURES`.
        kind: one of `KINDS`.
        weights: stacked; they are changed.
        given: all sequences and answers; the last HELD_OUT are not trained on.
        rates: one a replica.
        seeds: one a replica: of its order.
        batch: sequences a step.
        steps: number of steps.
    """
    x, y = given
    order = orders(seeds, len(x) - HELD_OUT, batch, steps).to(x.device)
    leaves = [each.requires_grad_() for each in weights.values()]
    with torch.no_grad():
        rate = leaves[0].new_tensor(rates)
        adam = replicas.Adam(list(rates)).stacked([each.detach() for each in leaves], rate, None)
    for indices in order:
        with torch.enable_grad():
            loss = losses(task, kind, weights, x[indices], y[indices])
            found = list(torch.autograd.grad(loss.sum(), leaves))
        with torch.no_grad():
            clip(found, rate.new_full(rate.shape, LARGEST))
            adam.begin()
            for place, gradient in enumerate(found):
                adam.update(place, gradient)
    with torch.no_grad():
        held = (each[-HELD_OUT:].expand(len(rates), *each[-HELD_OUT:].shape) for each in (x, y))
        return losses(task, kind, weights, *held) / BASELINES[task]
