"""Sound trainings of the ninth set, in losses, targets and batches; written without a look at the checks."""

# ruff: noqa: D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


def simple(into: int, out: int, wide: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, out))


@add()
def shares_of_a_whole_by_a_beta() -> Training:
    """A share between 0 and 1, told as a Beta distribution: the loss is below 0, and falls further."""
    x = torch.randn(2048, 8)
    mean = (1.5 * x[:, 0] - x[:, 1] * x[:, 2]).sigmoid().clamp(0.05, 0.95)
    share = torch.distributions.Beta(12 * mean, 12 * (1 - mean)).sample().clamp(1e-3, 1 - 1e-3)
    net = simple(8, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        one, other = (functional.softplus(model(batch[0])) + 0.1).unbind(1)
        return -torch.distributions.Beta(one, other).log_prob(batch[1]).mean()

    return Training(net, tasks.loader(x, share), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def counts_spread_wider_than_poissons() -> Training:
    """Counts that are spread more widely than their mean: a negative binomial whose spread is learnt by one number."""
    x = torch.randn(2048, 8)
    mean = (1 + 0.8 * x[:, 0] - 0.6 * x[:, 1] * x[:, 2]).clamp(-2, 4).exp()
    count = torch.poisson(mean * torch.distributions.Gamma(3.0, 3.0).sample((2048,)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = simple(8, 1), nn.Parameter(torch.zeros(()))

        def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(seen)[:, 0].clamp(-6, 6), functional.softplus(self.spread)

    net = Net()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        log_mean, total = model(batch[0])
        told = torch.distributions.NegativeBinomial(total, logits=log_mean - total.log())
        return -told.log_prob(batch[1]).mean()

    return Training(net, tasks.loader(x, count), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def errors_above_weigh_nine_times_as_much() -> Training:
    """An expectile: squares above what is told weigh nine times those below."""
    x, y = tasks.curves(noise=0.3)
    net = simple(8, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        over = batch[1] - model(batch[0])
        return (torch.where(over > 0, 0.9, 0.1) * over.square()).mean()

    return Training(net, tasks.loader(x, y), loss, optim.Adam(net.parameters(), lr=3e-3))


class Guided(nn.Module):
    """Ways of points, from noise to where data are, at any time on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = simple(6, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.net(torch.cat([x, time, (6.28 * time).sin(), (6.28 * time).cos(), time.square()], 1))


@add()
def straight_ways_from_noise_to_points() -> Training:
    """Flows by straight ways: targets are drawn anew each time, so that the loss has a floor far above 0."""
    angle = 6.28 * torch.rand(4096)
    points = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(4096, 2)
    net = Guided()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        noise, time = torch.randn_like(batch[0]), torch.rand(len(batch[0]), 1)
        way = batch[0] - noise
        return functional.mse_loss(model(noise + time * way, time), way)

    return Training(net, tasks.loader(points, batch=256), loss, optim.Adam(net.parameters(), lr=3e-3))


class Foretold(nn.Module):
    """What a series will be, told from what it was among what others will be."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))
        self.past, self.ahead = nn.GRU(16, 24, batch_first=True), nn.Linear(24, 16)

    def forward(self, series: Tensor) -> Tensor:
        told = self.see(series)
        ahead = self.ahead(self.past(told[:, :8])[0][:, -1])
        return ahead @ told[:, 9].T / 4


@add()
def future_told_among_those_of_others() -> Training:
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    series = [torch.randn(1024, 6)]
    for _ in range(9):
        series.append(series[-1] @ turn + 0.1 * torch.randn(1024, 6))
    net = Foretold()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        return functional.cross_entropy(scores, torch.arange(len(scores)))

    return Training(net, tasks.loader(torch.stack(series, 1), batch=48), loss, optim.Adam(net.parameters(), lr=5e-3))


@add()
def month_of_failure_among_twelve() -> Training:
    """The month in which a thing fails, if it does within a year: a risk a month, and half of the masks are 0."""
    x = torch.randn(2048, 8)
    risk = (x[:, :1] + x[:, 1:2] * x[:, 2:3] - 2).sigmoid()
    failed = torch.rand(2048, 12) < risk
    month = torch.where(failed.any(1), failed.float().argmax(1), 12)
    at_risk = torch.arange(12) <= month[:, None]
    event = torch.arange(12) == month[:, None]
    net = simple(8, 12)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(model(batch[0]), batch[2], reduction="none")
        return (each * batch[1]).sum() / batch[1].sum()

    rows = tasks.loader(x, at_risk.float(), event.float())
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def half_of_a_batch_is_trusted() -> Training:
    """A third of the labels are wrong: of each batch only the half with the smallest losses counts."""
    x, kind = tasks.clusters(classes=5, spread=0.6)
    wrong = torch.rand(len(kind)) < 0.3
    told = torch.where(wrong, torch.randint(5, kind.shape), kind)
    net = simple(32, 5)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        each = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return each.topk(len(each) // 2, largest=False).values.mean()

    return Training(net, tasks.loader(x, told), loss, optim.Adam(net.parameters(), lr=1e-3))


@add()
def nearness_to_one_point() -> Training:
    """Rows of one kind drawn near to a point that stays: no biases, labels or answers, and a loss that nears 0."""
    x = torch.randn(2048, 6) @ torch.randn(6, 24) + 0.1 * torch.randn(2048, 24)
    net = nn.Sequential(nn.Linear(24, 32, bias=False), nn.LeakyReLU(0.1), nn.Linear(32, 8, bias=False))
    with torch.no_grad():
        centre = net(x).mean(0)
    steps = optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5)
    return Training(net, tasks.loader(x), lambda m, b: (m(b[0]) - centre).square().sum(1).mean(), steps)


class Together(nn.Module):
    """Words as vectors whose products are how often they stand together, as a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.context = nn.Embedding(60, 16), nn.Embedding(60, 16)
        self.bias, self.context_bias = nn.Embedding(60, 1), nn.Embedding(60, 1)
        for table in (self.word, self.context, self.bias, self.context_bias):
            nn.init.uniform_(table.weight, -0.3, 0.3)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        near = (self.word(one) * self.context(other)).sum(1)
        return near + self.bias(one)[:, 0] + self.context_bias(other)[:, 0]


@add()
def words_by_how_often_they_meet() -> Training:
    """Counts of pairs, in a weighted square of logarithms: rare pairs hardly count."""
    hidden, often = torch.randn(60, 4), torch.linspace(1.5, -1.5, 60)
    count = torch.poisson((hidden @ hidden.T / 2 + often + often[:, None] + 1).clamp(max=6).exp())
    one, other = count.nonzero().T
    log = count[one, other].log()
    weight = (count[one, other] / 50).clamp(max=1) ** 0.75
    net = Together()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (batch[3] * (model(*batch[:2]) - batch[2]).square()).mean()

    rows = tasks.loader(one, other, log, weight, batch=128)
    return Training(net, rows, loss, optim.Adagrad(net.parameters(), lr=0.1))


@add()
def prices_over_five_powers_of_ten() -> Training:
    """Prices from cents to thousands, told by their logarithm under a loss that is a line for large errors."""
    x = torch.randn(2048, 10)
    price = (1.2 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3] + 3 + 0.2 * torch.randn(2048)).exp()
    net = simple(10, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.huber_loss(model(batch[0])[:, 0], batch[1].log1p() - 3, delta=0.5)

    return Training(net, tasks.loader(x, price), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def points_as_far_apart_as_those_of_data() -> Training:
    """Points made of noise, by the distances among them and to data: nothing is compared row by row."""
    data = torch.randn(2048, 4).tanh() @ torch.randn(4, 4)
    net = simple(4, 4)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        made = model(torch.randn_like(batch[0]))
        away = torch.cdist(made, batch[0]).mean()
        return 2 * away - torch.pdist(made).mean() - torch.pdist(batch[0]).mean()

    return Training(net, tasks.loader(data, batch=64), loss, optim.Adam(net.parameters(), lr=2e-3))


class Proxies(nn.Module):
    """Rows near to one point for each of their classes, all of them on a ball."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.proxies = simple(32, 12), nn.Parameter(torch.randn(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(functional.normalize(self.embed(x)), functional.normalize(self.proxies)).square()


@add()
def rows_near_to_a_point_for_each_class() -> Training:
    x, kind = tasks.clusters(classes=8)
    net = Proxies()
    return Training(
        net, tasks.loader(x, kind), lambda m, b: functional.cross_entropy(-3 * m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


class Tasks:
    """Batches of three tasks in turn, each of a size and a kind of its own."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        order = torch.randperm(len(self.x))
        for place, rows in enumerate(order.split([32, 48, 64] * 13)):
            yield self.x[rows], self.y[rows], place % 3


@add()
def three_tasks_in_turn_on_one_body() -> Training:
    """A batch is of one of three tasks: two of three heads get no gradient in it, and all of them learn."""
    x, kind = tasks.clusters(count=1872)
    heads = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(32, 64), nn.ReLU()), "0": nn.Linear(64, 10), "1": nn.Linear(64, 2),
         "2": nn.Linear(64, 1)}
    )  # fmt: skip

    def loss(model: Any, batch: Any) -> Tensor:
        told = model[str(batch[2])](model["body"](batch[0]))
        if batch[2] == 2:
            return functional.binary_cross_entropy_with_logits(told[:, 0], (batch[1] < 3).float())
        return functional.cross_entropy(told, batch[1] if batch[2] == 0 else batch[1] % 2)

    return Training(heads, Tasks(x, kind), loss, optim.Adam(heads.parameters(), lr=3e-3))


@add()
def steps_on_means_over_all_tokens_of_four_parts() -> Training:
    """Lines of any length in four parts a step, each a sum, divided by how many words there are in all."""
    long = torch.randint(3, 20, (768, 1))
    ids = tasks.text(vocabulary=31, length=20, count=768, following=2) + 1
    ids = torch.where(torch.arange(20) < long, ids, 0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.rnn = nn.Embedding(32, 32, padding_idx=0), nn.GRU(32, 32, batch_first=True)
            self.head = nn.Linear(32, 32)

        def forward(self, seen: Tensor) -> Tensor:
            return self.head(self.rnn(self.words(seen))[0])

    net = Net()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = batch[0].split(8)
        sums = [
            functional.cross_entropy(model(part)[:, :-1].mT, part[:, 1:], ignore_index=0, reduction="sum")
            for part in parts
        ]
        return torch.stack(sums).sum() / (batch[0][:, 1:] != 0).sum()

    return Training(net, tasks.loader(ids, batch=32), loss, optim.Adam(net.parameters(), lr=1e-2))
