"""Sound trainings of the seventh set, in losses, targets and batches; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


@add()
def values_as_fifty_shares() -> Training:
    """Returns of four actions, each as shares of 51 values, moved by a reward and laid out anew."""
    state, action = torch.randn(2048, 6), torch.randint(4, (2048,))
    reward = (state * torch.randn(4, 6)[action]).sum(1).tanh() + 0.1 * torch.randn(2048)
    after = 0.7 * state + 0.5 * torch.randn(2048, 6)
    support = torch.linspace(-3, 3, 51)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4 * 51), nn.Unflatten(1, (4, 51)))
    frozen = copy.deepcopy(net).requires_grad_(False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        s, a, r, then = batch
        rows = torch.arange(len(s))
        p = frozen(then).softmax(-1)
        best = (p @ support).argmax(1)
        at = ((r[:, None] + 0.2 * support).clamp(-3, 3) + 3) / 0.12
        near = (1 - (at.unsqueeze(2) - torch.arange(51)).abs()).clamp(min=0)
        aim = (p[rows, best].unsqueeze(2) * near).sum(1)
        return -(aim * model(s)[rows, a].log_softmax(-1)).sum(1).mean()

    return Training(net, tasks.loader(state, action, reward, after), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def voices_in_either_order_by_decibels() -> Training:
    """Two waves out of their sum, in whichever order is nearer; the loss is minus decibels and falls below 0."""
    times = torch.arange(48) / 48

    def wave(fast: float) -> Tensor:
        return (6.28 * (fast * times + torch.rand(1024, 1))).sin() * (0.5 + torch.rand(1024, 1))

    parts = torch.stack([wave(3), wave(9)], 1)
    swap = torch.rand(1024) < 0.5
    parts[swap] = parts[swap].flip(1)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 48)), nn.Conv1d(1, 24, 17, padding=8), nn.PReLU(), nn.Conv1d(24, 2, 9, padding=4)
    )

    def decibels(made: Tensor, true: Tensor) -> Tensor:
        along = (made * true).sum(-1, keepdim=True) / true.square().sum(-1, keepdim=True) * true
        return 10 * (along.square().sum(-1) / ((made - along).square().sum(-1) + 1e-6) + 1e-6).log10()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        made = model(batch[0].sum(1))
        ways = [decibels(made, batch[0][:, list(order)]).mean(1) for order in itertools.permutations(range(2))]
        return -torch.stack(ways).amax(0).mean()

    return Training(net, tasks.loader(parts, batch=32), loss, optim.Adam(net.parameters(), lr=3e-3))


class Soft(optim.Adam):
    """Adam, behind which rows of the first table have length 1 again."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        said = super().step(closure)
        table = self.param_groups[0]["params"][0]
        table.div_(table.norm(dim=1, keepdim=True))
        return said


class Moves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.thing, self.step = nn.Embedding(60, 16), nn.Embedding(5, 16)

    def forward(self, one: Tensor, how: Tensor, other: Tensor) -> Tensor:
        return (self.thing(one) + self.step(how) - self.thing(other)).norm(dim=-1)


@add()
def things_moved_by_relations_with_a_margin() -> Training:
    """Things on a ball; broken triples are drawn anew in each step, and most have left the margin after some time."""
    one, how = torch.randint(60, (3072,)), torch.randint(5, (3072,))
    other = (one + 7 * how + torch.randint(2, (3072,))) % 60
    net = Moves()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, r, b = batch
        broken = torch.randint(60, a.shape)
        return functional.relu(0.8 + model(a, r, b) - model(a, r, broken)).mean()

    return Training(net, tasks.loader(one, how, other, batch=128), loss, Soft(net.parameters(), lr=1e-2))


@add()
def bags_of_which_one_part_tells() -> Training:
    """Bags of twelve patches, of which the one with the largest score is asked, and gets all of the gradient."""
    bad = torch.randint(2, (1024,)).float()
    patch = torch.randn(1024, 12, 10)
    patch[torch.arange(1024), torch.randint(12, (1024,))] += 2.5 * bad.unsqueeze(1) * torch.randn(10).sign()
    net = nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(), nn.AdaptiveMaxPool1d(1), nn.Flatten(0)
    )
    return Training(
        net, tasks.loader(patch, bad, batch=32),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]), optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


class Guess(nn.Module):
    """Values at some places from those at others: each row hears what was seen of its own curve alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64))
        self.tell = nn.Sequential(nn.Linear(65, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        told = self.seen(torch.stack([x, y], -1)).mean(1, keepdim=True).expand(-1, at.shape[1], -1)
        mean, spread = self.tell(torch.cat([told, at.unsqueeze(-1)], -1)).unbind(-1)
        return mean, 0.1 + functional.softplus(spread)


@add()
def curves_guessed_from_as_many_points_as_come() -> Training:
    """Each batch is cut at another number of points; the loss is a density's and falls below 0."""
    x = 4 * torch.rand(1024, 24) - 2
    y = (x * (0.5 + torch.rand(1024, 1)) + 3 * torch.rand(1024, 1)).sin()
    net = Guess()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        cut = int(torch.randint(3, 12, ()))
        mean, spread = model(batch[0][:, :cut], batch[1][:, :cut], batch[0])
        return -torch.distributions.Normal(mean, spread).log_prob(batch[1]).mean()

    return Training(net, tasks.loader(x, y, batch=32), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def groups_shared_out_evenly_over_the_batch() -> Training:
    """Two views of a row are to name one of eight prototypes, which the batch must use evenly: rows hang together."""
    x, _ = tasks.clusters(classes=8, spread=0.4)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16), nn.LayerNorm(16, elementwise_affine=False))
    net += nn.Sequential(nn.Linear(16, 8, bias=False))

    @torch.no_grad()
    def even(scores: Tensor) -> Tensor:
        share = (scores / 0.5).exp()
        for _ in range(3):
            share = share / share.sum(0, keepdim=True)
            share = share / share.sum(1, keepdim=True)
        return share

    def loss(model: nn.Module, batch: Any) -> Tensor:
        one, other = (model(batch[0] + 0.2 * torch.randn_like(batch[0])) for _ in range(2))
        return (functional.cross_entropy(one, even(other)) + functional.cross_entropy(other, even(one))) / 2

    return Training(net, tasks.loader(x, batch=128), loss, optim.SGD(net.parameters(), lr=0.1, momentum=0.9))


@add()
def known_rate_of_wrong_labels() -> Training:
    """Three labels of ten are another class, by a known table, which stands between probabilities and the loss."""
    x, kind = tasks.digits()
    table = 0.7 * torch.eye(10) + 0.3 * torch.eye(10).roll(1, 1)
    told = torch.multinomial(table[kind], 1)[:, 0]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.nll_loss((model(batch[0]) @ table + 1e-8).log(), batch[1])

    return Training(net, tasks.loader(x, told), loss, optim.Adam(net.parameters(), lr=2e-3))


@add()
def lines_of_like_lengths_together() -> Training:
    """Batches sorted by length, each padded to its own longest; what is padding is masked and not scored."""
    ids = tasks.text(vocabulary=29, length=20, count=960, following=2) + 1
    long = torch.randint(4, 21, (960,)).sort().values
    ids = ids.masked_fill(torch.arange(20) >= long.unsqueeze(1), 0)
    batches = [rows[:, : int(size.max())] for rows, size in zip(ids.split(32), long.split(32), strict=True)]
    order = torch.randperm(len(batches)).tolist()

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letter = nn.Embedding(30, 24, padding_idx=0)
            self.lstm = nn.LSTM(24, 48, batch_first=True)
            self.after = nn.Linear(48, 30)

        def forward(self, rows: Tensor) -> Tensor:
            return self.after(self.lstm(self.letter(rows))[0])

    net = Reader()

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        scores = model(rows[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(scores, rows[:, 1:].flatten(), ignore_index=0)

    return Training(net, [batches[i] for i in order], loss, optim.Adam(net.parameters(), lr=5e-3))


@add()
def bonus_for_an_actor_that_stays_open() -> Training:
    """A squashed Gaussian actor against a frozen judge: the loss is minus a value, and starts and ends anywhere."""
    state = torch.randn(2048, 5)
    best = torch.randn(5, 2) / 2
    net = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        mean, spread = model(batch[0]).chunk(2, 1)
        normal = torch.distributions.Normal(mean, spread.clamp(-4, 1).exp())
        raw = normal.rsample()
        action = raw.tanh()
        entropy = -(normal.log_prob(raw) - (1 - action.square() + 1e-6).log()).sum(1)
        value = 5 - 4 * (action - (batch[0] @ best).tanh()).square().sum(1)
        return -(value + 0.1 * entropy).mean()

    return Training(net, tasks.loader(state), loss, optim.Adam(net.parameters(), lr=2e-3))


class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)


@add()
def scores_matched_along_random_lines() -> Training:
    """The slope of a log density, by derivatives of derivatives along random lines: the loss is below 0 in the end."""
    ring = torch.randn(2048, 2)
    x = ring / ring.norm(dim=1, keepdim=True) + 0.25 * torch.randn(2048, 2)
    net = Slices()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        at = batch[0].detach().requires_grad_()
        line = torch.randn_like(at)
        along = (model(at) * line).sum(1)
        bend = torch.autograd.grad(along.sum(), at, create_graph=True)[0]
        return ((bend * line).sum(1) + along.square() / 2).mean()

    return Training(net, tasks.loader(x, batch=128), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def pages_ranked_within_each_question() -> Training:
    """Ten pages to a question: scores are normalized over a question's pages, and the head has no bias to learn."""
    page = torch.randn(1024, 10, 8)
    worth = (page @ torch.randn(8, 3)).tanh().sum(-1)
    net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1, bias=False), nn.Flatten())
    return Training(
        net, tasks.loader(page, (2 * worth).softmax(1), batch=32), lambda m, b: functional.cross_entropy(m(b[0]), b[1]),
        optim.AdamW(net.parameters(), lr=3e-3),
    )  # fmt: skip
