"""Planted faults on which the checks' thresholds may be set: number formats, and what depends on the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.nets import Language, he, mlp
from benchmarks.fault_zoo.tasks import clusters, digits, loader, signals, text
from depthgauge import Training

FAULTS = Faults()


class _Scores(nn.Module):
    """Attention of one head whose scores are in float16."""

    def __init__(self, width: int, fault: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.scale = 1.0 if fault else width**-0.5

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scale * (self.query(x).half() @ self.key(x).half().transpose(-2, -1))
        return x + scores.float().softmax(-1) @ self.value(x)


class _Sequence(nn.Module):
    """Attention over (N, length, features) in which the fault's queries and keys are not divided by anything."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.entry = nn.Linear(4, 32)
        self.places = nn.Parameter(torch.randn(8, 32))
        self.attention = _Scores(32, fault)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU())
        self.head = nn.Linear(64, 10)
        if fault:
            nn.init.normal_(self.attention.query.weight, std=8.0)
            nn.init.normal_(self.attention.key.weight, std=8.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x.unflatten(1, (8, 4))) + self.places
        return self.head(self.mlp(self.attention(x)).mean(1))


@FAULTS.add(
    ("precision", r"attention.*"),
    ("signal", r"attention.*"),
    source="https://github.com/plemeri/InSPyReNet/issues/36",
)
def attention_overflow(fault: bool) -> Training:
    """Attention scores beyond 65504 in float16."""
    model = _Sequence(fault)
    return Training(model, loader(*clusters(), batch=32), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


class _Unit(nn.Module):
    """Rows of length 1, in float16, with a guard against a division by 0."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        halves = x.half()
        return (halves / (halves.square().sum(-1, keepdim=True) + self.epsilon).sqrt()).float()


@FAULTS.add(
    ("precision", r"1|batches"),
    ("signal", r"1|batches"),
    source="https://github.com/facebookresearch/xformers/issues/96",
)
def epsilon_in_float16(fault: bool) -> Training:
    """A guard of 1e-8, which is 0 in float16, over rows of which some are all zeros."""
    rows, labels = clusters(features=16)
    rows[torch.rand(len(rows)) < 0.1] = 0.0
    model = nn.Sequential(nn.Identity(), _Unit(1e-8 if fault else 1e-3), *mlp(16, 64, 2, 10))
    return Training(model, loader(rows, labels), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(
    ("precision", r".+"),
    ("learning_rate", r"optimizer|model"),
    source="https://github.com/workofart/ml-by-hand/pull/85",
)
def updates_lost_in_bfloat16(fault: bool) -> Training:
    """Weights in bfloat16 and a rate whose updates are below half a unit in their last place."""
    images, labels = digits()
    model = mlp(64, 64, 2, 10)
    he(model)
    if fault:
        model.bfloat16()
        images = images.bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return Training(model, loader(images, labels), optimizer=optimizer)


class _Clipped(torch.optim.SGD):
    """SGD that divides by the loss scale, and clips before that or after it."""

    def __init__(self, parameters: Any, *, scale: float, fault: bool) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.scale = scale
        self.fault = fault

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        if self.fault:
            nn.utils.clip_grad_norm_(held, 1.0)
        for each in held:
            each.grad.div_(self.scale)
        if not self.fault:
            nn.utils.clip_grad_norm_(held, 1.0)
        super().step(closure)


@FAULTS.add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/9599",
)
def clipped_before_unscaling(fault: bool) -> Training:
    """Gradients clipped while they still hold the loss scale of 65536."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return 65536.0 * functional.cross_entropy(model(batch[0]), batch[1])

    model = he(mlp(64, 64, 2, 10))
    return Training(model, loader(*digits()), loss, _Clipped(model.parameters(), scale=65536.0, fault=fault))


@FAULTS.add(("reproducibility", r"loss"), source="https://github.com/huggingface/transformers/issues/24725")
def accumulation_over_lengths(fault: bool) -> Training:
    """Sequences of unequal lengths, each of whose losses is a mean over its own tokens, averaged over micro-batches."""
    tokens = text()
    lengths = torch.randint(3, tokens.shape[1] + 1, (len(tokens),))
    tokens[torch.arange(tokens.shape[1]) >= lengths[:, None]] = 0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, held = batch
        places = torch.arange(1, rows.shape[1])
        labels = rows[:, 1:].masked_fill(places >= held[:, None], -100)
        parts = zip(rows.split(8), labels.split(8), strict=True) if fault else [(rows, labels)]
        means = [functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), y.flatten()) for x, y in parts]
        return torch.stack(means).mean()

    model = Language()
    return Training(model, loader(tokens, lengths, batch=32), loss, torch.optim.AdamW(model.parameters(), lr=3e-3))


class _Reshaped(nn.Module):
    """Steps of a sequence first, as the recurrent layer takes them, by a transposition or by a reshape."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 32)
        self.head = nn.Linear(32, 4)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        rows, length, features = x.shape
        steps = x.reshape(length, rows, features) if self.fault else x.transpose(0, 1)
        return self.head(self.rnn(steps)[0][-1])


@FAULTS.add(
    ("reproducibility", r"model|rnn|batches|head|"), source="https://github.com/vitrioil/Speech-Separation/issues/4"
)
def reshaped_for_transposed(fault: bool) -> Training:
    """A reshape in place of a transposition, which mixes the batch's examples."""
    model = _Reshaped(fault)
    return Training(model, loader(*signals()), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))
