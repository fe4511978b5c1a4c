"""Sound trainings of the eighth set, in losses, targets and batches; written without a look at the checks."""

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


def plain(into: int, out: int, wide: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, out))


@add()
def claims_that_are_nothing_or_any_amount() -> Training:
    """Claims, of which most are 0 and the rest of any size, by a deviance between Poisson's and a gamma's."""
    x = torch.randn(3072, 8)
    mean = (1.5 * x[:, 0] - x[:, 1] * x[:, 2]).clamp(-3, 3).exp()
    number = torch.poisson(0.7 * mean)
    claim = number * torch.distributions.Gamma(2.0, 2.0).sample((3072,))
    net = plain(8, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        log = model(batch[0])[:, 0].clamp(-6, 6)
        return (2 * batch[1] * (-0.5 * log).exp() + 2 * (0.5 * log).exp()).mean()

    return Training(net, tasks.loader(x, claim, batch=96), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def angles_by_the_cosine_of_what_is_between() -> Training:
    """Directions of rows: the model says any angle, and the loss looks at it by turns; it falls to -1 and not to 0."""
    x = torch.randn(2048, 6)
    angle = torch.atan2(*(x @ torch.randn(6, 2)).unbind(1))
    net = nn.Sequential(plain(6, 2), nn.Flatten())

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told = model(batch[0])
        return -(torch.atan2(told[:, 0], told[:, 1]) - batch[1]).cos().mean()

    return Training(net, tasks.loader(x, angle), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def half_of_the_labels_are_not_known() -> Training:
    """Digits of which most have no label, -100, and are to be told alike with and without noise."""
    images, labels = tasks.digits()
    some = torch.where(torch.rand(len(labels)) < 0.3, labels, -100)
    net = nn.Sequential(nn.Flatten(), plain(64, 10))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, noisy = model(batch[0]), model(batch[0] + 0.3 * torch.randn_like(batch[0]))
        alike = functional.kl_div(noisy.log_softmax(1), scores.detach().softmax(1), reduction="batchmean")
        return functional.cross_entropy(scores, batch[1], ignore_index=-100) + 0.3 * alike

    return Training(net, tasks.loader(images, some, batch=64), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def some_are_bad_and_none_are_known_to_be_good() -> Training:
    """Some good rows are marked and all others are unknown: a risk without what is counted twice, not below 0."""
    x, kind = tasks.clusters(classes=2, features=16, spread=0.6)
    marked = (kind == 1) & (torch.rand(len(kind)) < 0.4)
    net = plain(16, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, known = model(batch[0])[:, 0], batch[1]
        good, other = scores[known], scores[~known]
        share = 0.5
        taken = functional.softplus(other).mean() - share * functional.softplus(good).mean()
        return share * functional.softplus(-good).mean() + taken.clamp(min=0)

    return Training(net, tasks.loader(x, marked, batch=64), loss, optim.Adam(net.parameters(), lr=1e-3))


@add()
def times_of_which_some_are_only_known_to_be_later() -> Training:
    """Hours until a failure, a third of them cut: density where it was seen, and survival where it was not."""
    x = torch.randn(2048, 8)
    spare = (x @ torch.randn(8)).mul(0.5).exp()
    hours = spare * torch.distributions.Weibull(1.0, 1.5).sample((2048,))
    cut = spare * torch.rand(2048) * 3
    seen = hours < cut
    net = plain(8, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, time, failed = batch
        scale, shape = model(rows).unbind(1)
        shape = 0.3 + functional.softplus(shape)
        log = (time + 1e-3).log() - scale
        return ((shape * log).exp() - failed * (shape.log() + (shape - 1) * log - scale)).mean()

    rows = tasks.loader(x, torch.minimum(hours, cut), seen.float())
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def zeros_of_two_sorts_among_counts() -> Training:
    """Counts most of which are 0, some for want of anyone to count: a share of zeros beside a Poisson rate."""
    x = torch.randn(3072, 8)
    there = torch.rand(3072) < (x[:, 0] + x[:, 1]).mul(2).sigmoid()
    count = torch.poisson((1 + 0.7 * x[:, 2] - 0.5 * x[:, 3]).exp().clamp(max=20)) * there
    net = plain(8, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, n = batch
        logit, rate = model(rows).unbind(1)
        density = torch.distributions.Poisson(rate.clamp(-6, 4).exp()).log_prob(n)
        some = functional.logsigmoid(logit) + density
        none = torch.logaddexp(functional.logsigmoid(-logit), functional.logsigmoid(logit) + density)
        return -torch.where(n == 0, none, some).mean()

    return Training(net, tasks.loader(x, count, batch=96), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def numbers_as_shares_of_their_neighbours() -> Training:
    """A number as a class among 21, its label shared out over classes near it: the loss has a floor above 0."""
    x, y = tasks.curves()
    steps = torch.linspace(-3, 3, 21)
    share = (-(y - steps).square() / 0.2).softmax(1)
    net = plain(8, 21)
    return Training(
        net, tasks.loader(x, share), lambda m, b: functional.cross_entropy(m(b[0]), b[1]),
        optim.AdamW(net.parameters(), lr=2e-3),
    )  # fmt: skip


class Pairs(nn.Module):
    """Two towers of one input each: rows of the batch are each other's wrong answers, and a temperature learns."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = plain(20, 16), plain(12, 16)
        self.warmth, self.shift = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-5.0))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        mine, theirs = functional.normalize(self.one(a)), functional.normalize(self.other(b))
        return self.warmth.exp() * mine @ theirs.T + self.shift


@add()
def pairs_told_each_by_a_sigmoid() -> Training:
    """All pairs of a batch, each told by its own sigmoid; the sum is by rows, and a shift of -5 starts it low."""
    hidden = torch.randn(2048, 6)
    a = hidden @ torch.randn(6, 20) + 0.3 * torch.randn(2048, 20)
    b = hidden @ torch.randn(6, 12) + 0.3 * torch.randn(2048, 12)
    net = Pairs()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(*batch)
        sign = 2 * torch.eye(len(scores)) - 1
        return -functional.logsigmoid(sign * scores).sum(1).mean()

    return Training(net, tasks.loader(a, b, batch=64), loss, optim.Adam(net.parameters(), lr=2e-3))


class Episodes:
    """Tasks of three classes that are drawn anew: two examples each to go by, and four each to tell."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.warp = torch.randn(3, 10) / 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.count):
            centre = torch.randn(3, 1, 3)
            hidden = centre + 0.4 * torch.randn(3, 6, 3)
            rows = (hidden @ self.warp).tanh() + 0.1 * torch.randn(3, 6, 10)
            yield rows[:, :2], rows[:, 2:]


@add()
def classes_that_no_two_batches_share() -> Training:
    """Prototypes of two examples each: labels are numbers within an episode, and mean nothing beyond it."""
    net = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 12))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        middle = model(batch[0]).mean(1)
        told = model(batch[1])
        away = (told.unsqueeze(2) - middle).square().sum(-1)
        return functional.cross_entropy(-away.flatten(0, 1), torch.arange(3).repeat_interleave(4))

    return Training(net, Episodes(200), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def moves_weighed_by_what_they_won() -> Training:
    """Moves on record, each weighed by the exponential of its advantage over a value that is learnt beside it."""
    state, move = torch.randn(2048, 6), torch.randint(4, (2048,))
    gain = (state @ torch.randn(6, 4)).gather(1, move[:, None])[:, 0] / 2 + 0.1 * torch.randn(2048)
    net = plain(6, 5)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told = model(batch[0])
        over = batch[2] - told[:, 4]
        weight = (over.detach()).exp().clamp(max=10)
        policy = functional.cross_entropy(told[:, :4], batch[1], reduction="none")
        return (weight * policy).mean() + over.square().mean()

    return Training(net, tasks.loader(state, move, gain), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def overlap_of_sorted_errors() -> Training:
    """Bright pixels by a hinge whose errors are sorted, each weighed by what it takes from the overlap."""
    image = torch.randn(512, 1, 10, 10)
    bright = (functional.avg_pool2d(image, 3, 1, 1) > 0.4).float()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
    )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        errors = (1 - model(batch[0]) * (2 * batch[1] - 1)).flatten()
        errors, order = errors.sort(descending=True)
        truth = batch[1].flatten()[order]
        shared, either = truth.sum() - truth.cumsum(0), truth.sum() + (1 - truth).cumsum(0)
        lost = 1 - shared / either
        return functional.relu(errors) @ torch.cat([lost[:1], lost.diff()])

    return Training(net, tasks.loader(image, bright, batch=16), loss, optim.Adam(net.parameters(), lr=3e-3))
