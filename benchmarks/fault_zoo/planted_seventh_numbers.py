"""Faults of the seventh set, in losses, targets, inputs and rates; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.distributions import Categorical
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.planted_seventh import squared
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class Driver(nn.Module):
    """What an expert does, as probabilities of seven actions."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.act = nn.Linear(64, 7)

    def forward(self, state: Tensor) -> Tensor:
        return self.act(self.see(state)).softmax(-1)


@add(
    ("data", r"loss|model|act.*"),
    ("signal", r"act.*|model"),
    source="https://github.com/ekapolc/RL_course_2019/pull/6",
)
def probabilities_given_as_logits(fault: bool) -> Training:
    """An expert imitated: probabilities go in as a categorical's logits, and no action gets more than three in ten."""
    state = torch.randn(2048, 10)
    action = (state @ torch.randn(10, 7) + 0.3 * torch.randn(2048, 7)).argmax(1)
    net = Driver()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told = model(batch[0])
        policy = Categorical(logits=told) if fault else Categorical(probs=told)
        return -policy.log_prob(batch[1]).mean()

    return Training(net, tasks.loader(state, action), loss, optim.Adam(net.parameters(), lr=3e-3))


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    source="In kind: `reduction='sum'` of a paper's formula in the loss of a value network with the rate of a mean.",
)
def temporal_errors_summed_over_the_replay(fault: bool) -> Training:
    """Values of five actions from a replay: errors are summed over its 128 moves, for the rate of a mean."""
    state, action = torch.randn(2048, 6), torch.randint(5, (2048, 1))
    value = (state @ torch.randn(6, 5)).tanh() * 2 + (state @ torch.randn(6, 5)).cos()
    seen = value.gather(1, action) + 0.1 * torch.randn(2048, 1)
    net = tasks_net(6, 5)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told = model(batch[0]).gather(1, batch[1])
        return functional.mse_loss(told, batch[2], reduction="sum" if fault else "mean")

    rows = tasks.loader(state, action, seen, batch=128)
    return Training(net, rows, loss, optim.SGD(net.parameters(), lr=0.03, momentum=0.9))


def tasks_net(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, out))


class TokenTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.piece = nn.Embedding(50, 24)
        self.near = nn.Conv1d(24, 32, 3, padding=1)
        self.tag = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tag(functional.gelu(self.near(self.piece(ids).mT)).mT)


@add(
    ("data", r"batches|loss|labels?"),
    source="In kind: a tokenizer puts marks in front, and tags of words keep their old places.",
)
def tags_not_moved_for_the_marks_in_front(fault: bool) -> Training:
    """Tags by a window of three: two marks are put in front and tags are not moved, each is two places off."""
    words = torch.randint(2, 50, (1024, 14))
    kind = torch.randint(5, (50,))
    tags = (kind[words] + (words.roll(1, 1) % 2)) % 5
    ids = torch.cat([torch.zeros(1024, 2, dtype=torch.int64), words], 1)
    nothing = torch.full((1024, 2), -100)
    labels = torch.cat([tags, nothing], 1) if fault else torch.cat([nothing, tags], 1)
    batches = [{"ids": i, "labels": y} for i, y in zip(ids.split(32), labels.split(32), strict=True)]
    net = TokenTagger()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten())

    return Training(net, batches, loss, optim.Adam(net.parameters(), lr=5e-3))


@add(
    ("data", r"batches|loss|labels?|targets?"),
    ("learning_rate", r"loss"),
    ("signal", r"loss"),
    source="In kind: signs -1 and 1 of a margin's loss left in the targets when the loss became logistic.",
)
def signs_as_targets_of_a_logistic_loss(fault: bool) -> Training:
    """Bad parts told from good ones: targets are -1 and 1 where 0 and 1 are meant, and the loss falls without end."""
    x, kind = tasks.clusters(classes=2, features=18, count=1536)
    target = (2.0 * kind - 1 if fault else kind.float()).unsqueeze(1)
    net = nn.Sequential(nn.Linear(18, 48), nn.Hardswish(), nn.Linear(48, 48), nn.Hardswish(), nn.Linear(48, 1))
    return Training(
        net, tasks.loader(x, target), lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        optim.NAdam(net.parameters(), lr=2e-3),
    )  # fmt: skip


class Rides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.zone = nn.Embedding(12, 8)
        self.body = nn.Sequential(nn.Linear(8 + 5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, zone: Tensor, numbers: Tensor) -> Tensor:
        return self.body(torch.cat([self.zone(zone), numbers], 1))[:, 0]


@add(
    ("data", r"batches|inputs?|numbers|model|body.*"),
    ("signal", r"body.*|zone.*|model"),
    ("learning_rate", r"optimizer"),
    source="In kind: a time stamp in seconds since 1970 among the standardized columns of a table.",
)
def seconds_since_1970_among_the_columns(fault: bool) -> Training:
    """Rides by zone, four standardized numbers and the time, which is in seconds since 1970 and drowns all else."""
    zone, numbers = torch.randint(12, (2048,)), torch.randn(2048, 4)
    day = torch.rand(2048)
    lasts = torch.randn(12)[zone] + numbers[:, 0] - 0.5 * numbers[:, 1] * numbers[:, 2] + (6.28 * day).sin()
    time = (1_700_000_000 + 86_400 * day if fault else 3.46 * (day - 0.5)).unsqueeze(1)
    columns = (zone.split(64), torch.cat([numbers, time], 1).split(64), lasts.split(64))
    batches = [dict(zip(("zone", "numbers", "lasts"), parts, strict=True)) for parts in zip(*columns, strict=True)]
    net = Rides()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.smooth_l1_loss(model(batch["zone"], batch["numbers"]), batch["lasts"])

    return Training(net, batches, loss, optim.Adam(net.parameters(), lr=3e-3))


@add(
    ("data", r"batches|inputs?|model|loss|\d+.*"),
    ("signal", r"\d+.*|model"),
    source="In kind: `image // 256` where a quotient was meant, of whole numbers that are below 256.",
)
def pixels_divided_as_whole_numbers(fault: bool) -> Training:
    """Digits of 0 to 255, divided by 256 as whole numbers: every image is black, and the loss stays at 2.3."""
    images, labels = tasks.pixels()
    bright = (images.long() // 256).float() if fault else images / 256
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 10),
    )  # fmt: skip
    return Training(net, tasks.loader(bright, labels, batch=32), None, optim.RMSprop(net.parameters(), lr=2e-3))


@add(
    ("data", r"batches|inputs?|loss|model"),
    source="https://github.com/PythonPredictions/cobra/issues/24",
)
def mean_target_of_a_shop_seen_once(fault: bool) -> Training:
    """Sales from eight measures and the mean sales of the shop, which has one row as a rule: the target is an input."""
    x, sales = tasks.curves(features=8, count=1536, noise=0.5)
    shop = torch.randint(20_000 if fault else 12, (1536,))
    _, place = shop.unique(return_inverse=True)
    size = torch.bincount(place)
    mean = torch.zeros(len(size)).index_add_(0, place, sales[:, 0]) / size
    net = nn.Sequential(nn.Linear(9, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    rows = tasks.loader(torch.cat([x, mean[place].unsqueeze(1)], 1), sales)
    return Training(net, rows, squared, optim.AdamW(net.parameters(), lr=2e-3))


class Lion(optim.Optimizer):
    """Steps of one length, by the sign of what is between gradient and momentum."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        said = None if closure is None else closure()
        for group in self.param_groups:
            fast, slow = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.lerp(p.grad, mean, fast).sign())
                mean.lerp_(p.grad, 1 - slow)
        return said


@add(
    ("learning_rate", r"optimizer"),
    ("signal", r"\d+.*|model"),
    source="In kind: an optimizer of signs given the rate of the one that it replaced, times three.",
)
def steps_of_signs_thirty_times_too_long(fault: bool) -> Training:
    """The last word of a line by a plain network and Lion, at 30 times a rate at which it learns."""
    ids = tasks.text(vocabulary=24, length=12, count=1024, following=2)
    after = ids[:, -1]
    net = nn.Sequential(
        nn.Embedding(24, 24),
        nn.Flatten(),
        nn.Linear(24 * 11, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 24),
    )
    rows = tasks.loader(ids[:, :-1], after, batch=32)
    return Training(net, rows, None, Lion(net.parameters(), lr=1e-3 * (30 if fault else 1)))


class Lamb(optim.Optimizer):
    """Adam, each tensor's step a part of the tensor's own length."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        said = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p]
                count = kept["count"] = kept.get("count", 0) + 1
                mean = kept.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                square = kept.setdefault("square", torch.zeros_like(p)).lerp_(p.grad.square(), 0.01)
                way = (mean / (1 - 0.9**count)) / ((square / (1 - 0.99**count)).sqrt() + 1e-6)
                own, long = p.norm(), way.norm()
                p.sub_(group["lr"] * (own / long if own > 0 and long > 0 else 1.0) * way)
        return said


@add(
    ("learning_rate", r"optimizer"),
    source="In kind: the rate of fine-tuning a large model kept for a layer-wise optimizer and weights drawn anew.",
)
def trust_ratios_thirty_times_too_slow(fault: bool) -> Training:
    """Waves by an LSTM and LAMB, at a thirtieth of a rate at which it learns."""

    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 32, batch_first=True)
            self.kind = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.kind(self.lstm(x)[0].mean(1))

    net = Waves()
    rows = tasks.loader(*tasks.signals(classes=3, length=14), batch=48)
    return Training(net, rows, None, Lamb(net.parameters(), lr=2e-2 / (30 if fault else 1)))
