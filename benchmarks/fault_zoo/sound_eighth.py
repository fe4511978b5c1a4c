"""Sound trainings of the eighth set, in architecture, gradient and steps; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import next_token, square
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add

Closure = Callable[[], float] | None


class Reversible(nn.Module):
    """Two halves, each moved by what the other says: nothing is lost on the way, and no skip is seen as such."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2))

    def forward(self, halves: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        one, other = halves
        one = one + self.f(other)
        return one, other + self.g(one)


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(32, 48)
        self.blocks = nn.ModuleList(Reversible(24) for _ in range(6))
        self.leave = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.enter(x).chunk(2, 1)
        for block in self.blocks:
            one, other = block((one, other))
        return self.leave(torch.cat([one, other], 1))


@add()
def halves_that_move_each_other() -> Training:
    net = Halves()
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.AdamW(net.parameters(), lr=2e-3))


class Hyper(nn.Module):
    """Weights of a small network that are what another network says of a row's setting."""

    def __init__(self) -> None:
        super().__init__()
        self.says = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 3 * 8 + 8 + 8 + 1))

    def forward(self, setting: Tensor, x: Tensor) -> Tensor:
        first, bias, second, last = self.says(setting).split([24, 8, 8, 1], 1)
        h = (torch.einsum("ni,nio->no", x, first.unflatten(1, (3, 8))) + bias).tanh()
        return (h * second).sum(1, keepdim=True) + last


@add()
def weights_told_by_another_network() -> Training:
    setting, x = 2 * torch.rand(2048, 2) - 1, torch.randn(2048, 3)
    y = (setting[:, :1] * x[:, :1] + setting[:, 1:] * x[:, 1:2].sin() + x[:, 2:]).tanh()
    net = Hyper()
    return Training(
        net, tasks.loader(setting, x, y), lambda m, b: functional.mse_loss(m(*b[:2]), b[2]),
        optim.Adam(net.parameters(), lr=5e-3),
    )  # fmt: skip


class Memory(nn.Module):
    """Keys that stay as they were drawn, at which values are learnt, and a query that looks the nearest four up."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", functional.normalize(torch.randn(96, 16)))
        self.values = nn.Embedding(96, 10)
        nn.init.normal_(self.values.weight, std=0.1)
        self.query = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        near, which = (self.query(x) @ self.keys.T).topk(4, 1)
        return 3 * (near.softmax(1).unsqueeze(2) * self.values(which)).sum(1)


@add()
def values_looked_up_at_keys_that_stay() -> Training:
    net = Memory()
    return Training(net, tasks.loader(*tasks.clusters(spread=0.6)), None, optim.Adam(net.parameters(), lr=2e-2))


class Pooled(nn.Module):
    """Places of what is loudest, as an average of places, so that an argmax has a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        share = self.heat(image).flatten(1).softmax(1).view(-1, 12, 12)
        ruler = torch.linspace(-1, 1, 12)
        return torch.stack([(share.sum(2) * ruler).sum(1), (share.sum(1) * ruler).sum(1)], 1)


@add()
def places_as_averages_under_a_softmax_over_pixels() -> Training:
    at = 2 * torch.rand(1024, 2) - 1
    ruler = torch.linspace(-1, 1, 12)
    away = (ruler[:, None] - at[:, :1, None]).square() + (ruler - at[:, 1:, None]).square()
    image = 3 * (-away / 0.05).exp().unsqueeze(1) + 0.5 * torch.randn(1024, 1, 12, 12)
    net = Pooled()
    return Training(net, tasks.loader(image, at, batch=32), square, optim.Adam(net.parameters(), lr=2e-3))


class Slots(nn.Module):
    """A cell whose gate of what is kept starts far open, by a bias of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(25, 24), nn.Linear(25, 24)
        nn.init.constant_(self.gates.bias, 4.0)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 24)
        for now in x.unbind(1):
            seen = torch.cat([state, now], 1)
            keep = self.gates(seen).sigmoid()
            state = keep * state + (1 - keep) * self.new(seen).tanh()
        return self.out(5 * state)


@add()
def cell_that_starts_by_keeping_nearly_all() -> Training:
    x = torch.randn(1024, 16, 1)
    net = Slots()
    return Training(net, tasks.loader(x, x.mean(1) * 2, batch=32), square, optim.Adam(net.parameters(), lr=5e-3))


class Inducing(nn.Module):
    """A set read through three learnt seeds that attend to it: two maps of attention, and no order."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.seeds = nn.Linear(2, 32), nn.Parameter(torch.randn(1, 3, 32))
        self.gather = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.out = nn.LayerNorm(32), nn.Linear(96, 1)

    def forward(self, members: Tensor) -> Tensor:
        h = functional.gelu(self.enter(members))
        seeds = self.seeds.expand(len(members), -1, -1)
        return self.out(self.norm(seeds + self.gather(seeds, h, h, need_weights=False)[0]).flatten(1))


@add()
def sets_gathered_by_three_seeds() -> Training:
    members = torch.randn(1024, 10, 2) + 2 * torch.randn(1024, 1, 2)
    y = members.mean(1)[:, :1].tanh() + members.mean(1)[:, 1:].abs()
    net = Inducing()
    return Training(net, tasks.loader(members, y, batch=32), square, optim.Adam(net.parameters(), lr=3e-3))


class Sharp(optim.Optimizer):
    """Descent by the gradient at a point a little uphill: two passes a step by a closure, or a plain step without."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        said = None
        if closure is not None:
            with torch.enable_grad():
                said = closure()
            params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            size = torch.stack([p.grad.norm() for p in params]).norm() + 1e-12
            up = [0.05 * p.grad / size for p in params]
            for p, way in zip(params, up, strict=True):
                p.add_(way)
            with torch.enable_grad():
                closure()
            for p, way in zip(params, up, strict=True):
                p.sub_(way)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad)
        return said


@add()
def descent_that_may_look_uphill_first() -> Training:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Training(net, tasks.loader(*tasks.digits()), None, Sharp(net.parameters(), lr=0.3))


@add()
def rates_that_differ_a_hundredfold_by_layer() -> Training:
    """A body that has learnt a kindred task moves slowly, and its new head fast, as in fine-tuning."""
    x, kind = tasks.clusters()
    body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    whole = nn.Sequential(body, nn.Linear(32, 2))
    before = optim.Adam(whole.parameters(), lr=3e-3)
    for rows, labels in zip(x.split(64), kind.split(64), strict=True):
        before.zero_grad()
        functional.cross_entropy(whole(rows), labels % 2).backward()
        before.step()
    net = nn.Sequential(body, nn.Linear(32, 10))
    steps = optim.AdamW([{"params": body.parameters(), "lr": 2e-4}, {"params": net[1].parameters(), "lr": 2e-2}])
    return Training(net, tasks.loader(x, kind), None, steps)


class Rounds(optim.SGD):
    """Momentum whose rate falls to near 0 by a cosine of fifty steps, and starts anew."""

    count = 0

    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        for group in self.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * (self.count % 50) / 50))
        self.count += 1
        return super().step(closure)


@add()
def rate_that_comes_round_again() -> Training:
    """A cosine that starts anew every fifty steps: at some steps the rate is near 0, and far from it soon after."""
    net = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    return Training(net, tasks.loader(*tasks.curves()), square, Rounds(net.parameters(), lr=0.1, momentum=0.9))


class Masked(nn.Linear):
    """A layer in which a unit sees inputs of no higher number only."""

    def __init__(self, into: Tensor, out: Tensor, *, strictly: bool) -> None:
        super().__init__(len(into), len(out))
        self.register_buffer("mask", (out[:, None] > into if strictly else out[:, None] >= into).float())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.mask * self.weight, self.bias)


@add()
def pixels_told_by_those_before_through_masked_weights() -> Training:
    """Each pixel of a digit from those before it: half of the weights are masked, and the first has a bias only."""
    images = (tasks.pixels()[0].flatten(1) > 100).float()
    places = torch.arange(64)
    hidden = torch.randint(63, (128,))
    net = nn.Sequential(
        Masked(places, hidden, strictly=False), nn.ReLU(), Masked(hidden, hidden, strictly=False), nn.ReLU(),
        Masked(hidden, places, strictly=True),
    )  # fmt: skip
    return Training(
        net, tasks.loader(images, batch=64), lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[0]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


class Snapshots(nn.Module):
    """A language model whose table is scaled by the root of its width, and whose head has a temperature that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 32)
        nn.init.normal_(self.table.weight, std=32**-0.5)
        self.mix = nn.GRU(32, 32, batch_first=True)
        self.warmth = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        states = functional.normalize(self.mix(self.table(ids) * 32**0.5)[0], dim=-1)
        return 10 * self.warmth.exp() * states @ functional.normalize(self.table.weight, dim=-1).T


@add()
def tokens_told_by_cosines_and_a_warmth() -> Training:
    net = Snapshots()
    rows = tasks.loader(tasks.text(following=2, length=12, count=1024), batch=32)
    return Training(net, rows, next_token, optim.Adam(net.parameters(), lr=1e-2))


class Teacher(nn.Module):
    """A pupil that is to guess what a slow copy of itself says; the copy has no gradient and moves in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.pupil = nn.Sequential(nn.Linear(32, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 16))
        self.guess = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.slow = copy.deepcopy(self.pupil).requires_grad_(False)
        self.head = nn.Linear(16, 10)

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        told = self.pupil(one)
        with torch.no_grad():
            aim = self.slow(other)
        return functional.normalize(self.guess(told)), functional.normalize(aim), self.head(told.detach())


class Following(optim.Adam):
    """Adam on the first group, whose first tensors those of the second follow, a twentieth of the way a step."""

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override] # torch's own
        said = super().step(closure)
        fast, slow = (group["params"] for group in self.param_groups)
        for mine, theirs in zip(slow, fast[: len(slow)], strict=True):
            mine.lerp_(theirs, 0.05)
        return said


@add()
def pupil_of_a_slow_copy_with_a_head_that_only_listens() -> Training:
    """A head on detached features learns beside it, and says nothing to what it stands on, as is meant."""
    x, kind = tasks.clusters()
    net = Teacher()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        one, other = (batch[0] + 0.3 * torch.randn_like(batch[0]) for _ in range(2))
        guess, aim, scores = model(one, other)
        return 2 - 2 * (guess * aim).sum(1).mean() + functional.cross_entropy(scores, batch[1])

    groups = [
        {"params": [*net.pupil.parameters(), *net.guess.parameters(), *net.head.parameters()]},
        {"params": [*net.slow.parameters()]},
    ]
    return Training(net, tasks.loader(x, kind), loss, Following(groups, lr=3e-3))
