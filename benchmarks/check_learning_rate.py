"""Calibration of what a check says about learning rates: small trainings at sound rates, and at ones that are off.

    python -m benchmarks.check_learning_rate [--seeds 3] [--first 10] [--out rates.csv]

Each training has a rate at which it trains. It is asked about at that rate, at a third and three times of it, and at a
thirtieth and thirty times. What a rate does is told by an oracle that knows nothing of the check: 600 steps at each of
these rates. Thresholds were set on other seeds; docs/check-calibration.md has the result.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import Training, check, data
from depthgauge.checking.questions import learning_rate
from depthgauge.checking.steps import step

Batches = list[tuple[Tensor, Tensor]]
Case = tuple[Callable[[], nn.Module], Callable[[int], Batches], Any, Any, dict[str, Any]]
FACTORS = (1 / 30, 1 / 3, 1.0, 3.0, 30.0)
BATCHES = 60
STEPS, LAST = 600, 100  # of the oracle, and of these the ones whose loss counts
HARM = 0.75  # of the fall at the best smaller rate, below which the oracle calls a rate too large
SLOW = 0.5  # of the fall at the best larger rate, below which it calls one too small


def digits(batch: int, seed: int, *, flat: bool = True) -> Batches:
    """Images of digits, in a random order."""
    examples = data.load("digits").train
    draws = torch.Generator().manual_seed(seed)
    found: Batches = []
    while len(found) < BATCHES:
        for rows in torch.randperm(len(examples.y), generator=draws).split(batch)[:-1]:
            x = examples.x[rows]
            found.append((x.flatten(1) if flat else x, examples.y[rows]))
    return found[:BATCHES]


def curve(batch: int, seed: int) -> Batches:
    """A noisy function of ten inputs."""
    draws = torch.Generator().manual_seed(seed)
    slopes, x = torch.randn(10, 1, generator=draws), torch.randn(BATCHES, batch, 10, generator=draws)
    return list(zip(x, torch.tanh(x @ slopes) + 0.1 * torch.randn(BATCHES, batch, 1, generator=draws), strict=True))


def chain(batch: int, seed: int, tokens: int = 60, length: int = 24) -> Batches:
    """Sequences of a Markov chain, each token's next as its target."""
    draws = torch.Generator().manual_seed(seed)
    following = torch.softmax(3 * torch.randn(tokens, tokens, generator=draws), -1)
    x = torch.randint(tokens, (BATCHES * batch, 1), generator=draws)
    for _ in range(length):
        x = torch.cat([x, torch.multinomial(following[x[:, -1]], 1, generator=draws)], 1)
    return [(part[:, :-1], part[:, 1:]) for part in x.split(batch)]


def mlp(
    depth: int, width: int = 64, act: type[nn.Module] = nn.ReLU, norm: Any = None, ends: tuple[int, int] = (64, 10)
) -> nn.Sequential:
    layers: list[nn.Module] = []
    sizes = [ends[0]] + [width] * depth
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *([norm(b)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], ends[1]))


def he(model: nn.Sequential) -> nn.Sequential:
    for each in model:
        if isinstance(each, nn.Linear):
            nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
            nn.init.zeros_(each.bias)
    return model


def convolutions(norm: bool) -> nn.Sequential:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]

    return nn.Sequential(
        *block(1, 8), *block(8, 16), nn.MaxPool2d(2), *block(16, 16), nn.Flatten(), nn.Linear(256, 10)
    )  # fmt: skip


def frozen(model: nn.Sequential) -> nn.Sequential:
    for each in model[:-1].parameters():
        each.requires_grad_(False)
    return model


class Transformer(nn.Module):
    """A language model of two layers, its output tied to its embedding."""

    def __init__(self, tokens: int = 60, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.places = nn.Parameter(0.02 * torch.randn(1, 32, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, length, tokens) of tokens (N, length)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.body(self.embedding(x) + self.places[:, : x.shape[1]], mask=mask, is_causal=True)
        return functional.linear(hidden, self.embedding.weight)


class Recurrent(nn.Module):
    """A GRU over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 10) of images (N, 64)."""
        return self.head(self.body(x.view(-1, 8, 8))[0][:, -1])


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def rebuilt(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[0])


def contrast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x = batch[0]
    a, b = (functional.normalize(model(x + 0.1 * torch.randn_like(x)), dim=-1) for _ in range(2))
    return functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(x)))


def of(size: int, **options: Any) -> Callable[[int], Batches]:
    return lambda seed: digits(size, seed, **options)


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
ENDS = (10, 1)
CASES: dict[str, Case] = {
    "MLP, SGD": (lambda: mlp(2), of(32), None, SGD, {"lr": 0.1}),
    "MLP, momentum": (lambda: mlp(3), of(32), None, SGD, {"lr": 0.05, "momentum": 0.9}),
    "MLP, Nesterov, decay": (
        lambda: he(mlp(4)), of(64), None, SGD,
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    ),
    "MLP, Adam": (lambda: mlp(3), of(32), None, ADAM, {"lr": 1e-3}),
    "MLP, Adam, batch of 4": (lambda: mlp(2), of(4), None, ADAM, {"lr": 1e-3}),
    "MLP, Adam, batch of 256": (lambda: mlp(2), of(256), None, ADAM, {"lr": 1e-3}),
    "tanh, AdamW": (lambda: mlp(5, act=nn.Tanh), of(64), None, ADAMW, {"lr": 1e-3}),
    "batch norm, momentum": (lambda: mlp(3, norm=nn.BatchNorm1d), of(32), None, SGD, {"lr": 0.1, "momentum": 0.9}),
    "layer norm, Adam": (lambda: mlp(6, act=nn.GELU, norm=nn.LayerNorm), of(32), None, ADAM, {"lr": 3e-4}),
    "convolutions, batch norm": (
        lambda: convolutions(True), of(32, flat=False), None, SGD, {"lr": 0.05, "momentum": 0.9},
    ),
    "convolutions, Adam": (lambda: convolutions(False), of(32, flat=False), None, ADAM, {"lr": 1e-3}),
    "transformer, AdamW": (Transformer, lambda seed: chain(8, seed), None, ADAMW, {"lr": 1e-3}),
    "GRU, Adam": (Recurrent, of(32), None, ADAM, {"lr": 2e-3}),
    "autoencoder, Adam": (lambda: mlp(3, 32, ends=(64, 64)), of(32), rebuilt, ADAM, {"lr": 1e-3}),
    "contrastive, Adam": (lambda: mlp(2, ends=(64, 16)), of(64), contrast, ADAM, {"lr": 1e-3}),
    "regression, momentum": (
        lambda: mlp(2, 32, ends=ENDS), lambda seed: curve(32, seed), squared, SGD, {"lr": 0.05, "momentum": 0.9},
    ),
    "regression, Adam": (lambda: mlp(2, 32, ends=ENDS), lambda seed: curve(16, seed), squared, ADAM, {"lr": 1e-3}),
    "regression, RMSprop": (
        lambda: mlp(2, 32, ends=ENDS), lambda seed: curve(16, seed), squared, torch.optim.RMSprop, {"lr": 1e-3},
    ),
    "frozen body, Adam": (lambda: frozen(mlp(3)), of(32), None, ADAM, {"lr": 3e-3}),
    "MLP, Adagrad": (lambda: mlp(2), of(32), None, torch.optim.Adagrad, {"lr": 1e-2}),
    "softmax regression": (lambda: mlp(0), of(32), None, SGD, {"lr": 0.5}),
    "sigmoid, Adam": (lambda: mlp(1, act=nn.Sigmoid), of(32), None, ADAM, {"lr": 3e-3}),
}  # fmt: skip


def made(case: Case, seed: int, factor: float) -> Training:
    """The training of a seed, its rate times a factor."""
    build, batches, loss, optimizer, settings = case
    torch.manual_seed(seed)
    model = build()
    trained = [each for each in model.parameters() if each.requires_grad]
    return Training(model, batches(seed), loss, optimizer(trained, **{**settings, "lr": factor * settings["lr"]}))


def outcome(training: Training) -> float:
    """Mean loss of the last of the oracle's steps; infinite where one is not finite."""
    batches = training.first(BATCHES)
    made: list[float] = []
    for place in range(STEPS):
        made.append(step(training, batches[place % len(batches)]))
        if not math.isfinite(made[-1]):
            return math.inf
    return float(np.mean(made[-LAST:]))


def truths(case: Case, seed: int) -> dict[float, str]:
    """The oracle's word on each factor: too large, too small or sound."""
    start = float(np.mean([made(case, seed, 1.0).value(batch).item() for batch in case[1](seed)[:8]]))
    falls = {factor: start - outcome(made(case, seed, factor)) for factor in FACTORS}
    return {factor: _truth(falls, factor, start) for factor in FACTORS}


def _truth(falls: dict[float, float], factor: float, start: float) -> str:
    smaller, larger = (
        max((fall for each, fall in falls.items() if way * each > way * factor), default=-math.inf) for way in (-1, 1)
    )
    if smaller > 0.05 * abs(start) and falls[factor] < HARM * smaller:
        return "too large"
    return "too small" if larger > 0.05 * abs(start) and falls[factor] < SLOW * larger else "sound"


def rows(seeds: range) -> Iterator[dict[str, Any]]:
    kinds = learning_rate.QUESTION.all_kinds
    for name, case in CASES.items():
        for seed in seeds:
            truth = truths(case, seed)
            for factor in FACTORS:
                start = time.process_time()
                answer = check(made(case, seed, factor), only=["learning_rate"]).answers["learning_rate"]
                faults = [each.kind for each in answer.findings if kinds[each.kind].nature == "fault"]
                yield {
                    "training": name, "seed": seed, "factor": factor, "status": answer.status.value,
                    "truth": truth[factor], "fault": " ".join(faults), "suggested": answer.value, "low": answer.low,
                    "high": answer.high, "seconds": time.process_time() - start,
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Ask about learning rates that are sound, and about ones that are not."
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=10, help="first seed")
    parser.add_argument("--out", default="rates.csv")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame(rows(range(asked.first, asked.first + asked.seeds)))
    table.to_csv(asked.out, index=False)
    table["fault"] = table["fault"].replace("", "none")
    counts = pd.crosstab(table["fault"], table["factor"].map("{:.3g}".format)).to_markdown()
    truth = pd.crosstab(table["fault"], table["truth"]).to_markdown()
    sys.stdout.write(
        f"{counts}\n\n{truth}\n\n"
        f"{table['seconds'].median():.2f} s of one core each, {table['seconds'].max():.2f} at most\n"
    )


if __name__ == "__main__":
    main()
