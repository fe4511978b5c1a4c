"""Sound trainings of the sixth set, in loss, data and optimizer; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.distributions import Normal
from torch.nn import functional
from torch.optim import swa_utils

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.planted_sixth import squares
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


class Aligned(nn.Module):
    """A policy over answers, and what it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nets.mlp(8, 64, 2, 12)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False).eval()


@add()
def preferences_against_a_frozen_reference() -> Training:
    asked = torch.randn(2048, 8)
    worth = asked @ torch.randn(8, 12)
    pair = torch.rand(2048, 12).argsort(1)[:, :2]
    order = worth.gather(1, pair).argsort(1, descending=True)
    pair = pair.gather(1, order)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, Aligned)
        told = model.policy(batch[0]).log_softmax(1).gather(1, batch[1])
        with torch.no_grad():
            before = model.reference(batch[0]).log_softmax(1).gather(1, batch[1])
        gain = told - before
        return -functional.logsigmoid(0.5 * (gain[:, 0] - gain[:, 1])).mean()

    net = Aligned()
    return Training(net, tasks.loader(asked, pair), loss, optim.AdamW(net.policy.parameters(), lr=1e-3))


class Precise(nn.Module):
    """A mean and one deviation for all, in a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))
        self.log_std = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Normal:
        return Normal(self.mean(x)[:, 0], self.log_std.exp())


@add()
def densities_far_above_one() -> Training:
    x = torch.rand(2048, 3) - 0.5
    y = 0.3 * (2 * x[:, 0]).sin() + 0.2 * x[:, 1] * x[:, 2] + 0.005 * torch.randn(2048)
    net = Precise()
    return Training(
        net, tasks.loader(x, y), lambda m, b: -m(b[0]).log_prob(b[1]).mean(), optim.Adam(net.parameters(), lr=1e-2)
    )


class Weighed(nn.Module):
    """A class and a number from one body, whose losses are weighed by noises that are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.kind, self.number = nn.Linear(64, 10), nn.Linear(64, 1)
        self.log_noise = nn.Parameter(torch.zeros(2))


@add()
def two_tasks_weighed_by_their_own_noise() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, Weighed)
        h = model.body(batch[0])
        error = (model.number(h)[:, 0] - batch[2]).square().mean()
        parts = torch.stack([functional.cross_entropy(model.kind(h), batch[1]), error / 2])
        return (parts * (-2 * model.log_noise).exp() + model.log_noise).sum()

    x, kind = tasks.clusters()
    number = tasks.standardized((x @ torch.randn(32)) * 0.3)
    net = Weighed()
    return Training(net, tasks.loader(x, kind, number), loss, optim.Adam(net.parameters(), lr=5e-3))


@add()
def three_classes_smoothed_by_a_third() -> Training:
    x, y = tasks.clusters(classes=3)
    net = nets.mlp(32, 48, 1, 3, act=nn.SiLU)
    return Training(
        net, tasks.loader(x, y), nn_loss(nn.CrossEntropyLoss(label_smoothing=0.33)), optim.Adam(net.parameters(), 3e-3)
    )


def nn_loss(criterion: nn.Module) -> Any:
    return lambda model, batch: criterion(model(batch[0]), batch[1])


class Cloud(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 48))
        self.code = nn.Linear(48, 8)
        self.draw = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 16 * 3))

    def forward(self, points: Tensor) -> Tensor:
        return self.draw(self.code(self.point(points).amax(1))).unflatten(1, (16, 3))


@add()
def clouds_held_against_their_nearest_points() -> Training:
    axis = functional.normalize(torch.randn(1024, 1, 3), dim=-1)
    points = 1.5 * axis * torch.linspace(-1, 1, 16)[:, None] + 0.3 * torch.randn(1024, 1, 3)
    points = points[:, torch.randperm(16)]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        apart = torch.cdist(model(batch[0]), batch[0]).square()
        return apart.amin(1).mean() + apart.amin(2).mean()

    net = Cloud()
    return Training(net, tasks.loader(points, batch=32), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def one_example_at_a_time() -> Training:
    x, y = tasks.clusters(classes=4, spread=0.5)
    net = nets.he(nets.mlp(32, 32, 1, 4))
    return Training(net, tasks.loader(x, y, batch=1), None, optim.SGD(net.parameters(), lr=0.01))


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nets.mlp(8, 32, 2, 1, act=nn.Tanh) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members])


@add()
def four_members_whose_losses_are_added() -> Training:
    x, y = tasks.curves()
    weight = torch.poisson(torch.ones(2048, 4, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        error = (model(batch[0]) - batch[1]).square()
        return (error * batch[2].transpose(0, 1)).mean((1, 2)).sum()

    net = Ensemble()
    return Training(net, tasks.loader(x, y, weight), loss, optim.Adam(net.parameters(), lr=5e-3))


@add()
def shares_of_words_at_a_rate_of_three() -> Training:
    topic = torch.randint(5, (2048,))
    own = 80 * topic[:, None] + torch.randint(80, (2048, 30))
    words = torch.where(torch.rand(2048, 30) < 0.5, own, torch.randint(400, (2048, 30)))
    counts = torch.zeros(2048, 400).scatter_add_(1, words, torch.ones(2048, 30))
    net = nn.Linear(400, 5)
    rows = tasks.loader(functional.normalize(counts, dim=1), topic)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=3.0))


class WithAverage(nn.Module):
    """A network, and the moving average of its weights that is used when all is done."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.average = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.98))
        self.average.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@add()
def averaged_after_every_step() -> Training:
    net = WithAverage(nets.convnet(8, norm=False))
    optimizer = optim.NAdam(net.net.parameters(), lr=3e-3)
    optimizer.register_step_post_hook(lambda *_: net.average.update_parameters(net.net))
    return Training(net, tasks.loader(*tasks.digits()), None, optimizer)


class Intents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 32, padding_idx=0)
        self.places = nn.Embedding(64, 32)
        self.mix = nn.Conv1d(32, 48, 3, padding=1)
        self.intent = nn.Linear(48, 40)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.places.weight[: ids.shape[1]]
        return self.intent(functional.gelu(self.mix(h.mT)).amax(2))


@add()
def words_and_classes_not_met_yet() -> Training:
    kind = torch.randint(12, (1536,))
    ids = 1 + torch.where(torch.rand(1536, 9) < 0.5, 7 * kind[:, None], 0) + torch.randint(7, (1536, 9))
    ids = ids.masked_fill(torch.arange(9) >= torch.randint(5, 10, (1536, 1)), 0)
    net = Intents()
    return Training(net, tasks.loader(ids, kind, batch=32), None, optim.AdamW(net.parameters(), lr=3e-3))


class AnySize:
    """Batches of 8 to 128 rows, in an order that is the same each time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        dice = torch.Generator().manual_seed(5)
        order = torch.randperm(len(self.x), generator=dice)
        while len(order):
            size = int(torch.randint(8, 129, (), generator=dice))
            yield self.x[order[:size]], self.y[order[:size]]
            order = order[size:] if len(order) >= size + 8 else order[:0]


@add()
def batches_of_any_size() -> Training:
    x, y = tasks.curves(count=4096)
    net = nets.mlp(8, 64, 2, 1, act=nn.GELU)
    return Training(net, AnySize(x, y), squares, optim.Adam(net.parameters(), lr=3e-3))


class Energy(nn.Module):
    """A density that is known but for its factor, which is learnt beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        self.log_factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.log_factor - self.energy(x)[:, 0]


@add()
def a_density_told_from_noise() -> Training:
    angle = 6.28 * torch.rand(2048, 1)
    ring = 2 * torch.cat([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(2048, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        noise = 2 * torch.randn(len(batch[0]), 2)
        both = torch.cat([batch[0], noise])
        known = -both.square().sum(1) / 8 - math.log(8 * math.pi)
        real = torch.cat([torch.ones(len(noise)), torch.zeros(len(noise))])
        return functional.binary_cross_entropy_with_logits(model(both) - known, real)

    net = Energy()
    return Training(net, tasks.loader(ring, batch=128), loss, optim.Adam(net.parameters(), lr=5e-3))
