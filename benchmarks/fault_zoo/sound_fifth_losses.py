"""Sound trainings of the fifth set, in loss, data and optimizer; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.sound_fifth import squares
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


class MixedUp:
    """Batches of which each row is a blend of two, and so are its labels."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.rows = tasks.loader(x, functional.one_hot(y, 10).float())

    def __iter__(self) -> Any:
        for x, y in self.rows:
            share, other = torch.rand(len(x), 1), torch.randperm(len(x))
            yield share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]


@add()
def rows_and_labels_blended() -> Training:
    x, y = tasks.clusters()
    net = nets.mlp(32, 64, 2, 10)
    return Training(
        net, MixedUp(x, y), lambda m, b: functional.cross_entropy(m(b[0]), b[1]), optim.Adam(net.parameters(), lr=2e-3)
    )


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.policy, self.value = nn.Linear(48, 4), nn.Linear(48, 1)
        for m, gain in ((self.body[0], 1.4), (self.body[2], 1.4), (self.policy, 0.01), (self.value, 1.0)):
            nn.init.orthogonal_(m.weight, gain)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.policy(h), self.value(h)[:, 0]


@add()
def policy_clipped_around_the_old_one() -> Training:
    net = ActorCritic()
    x = torch.randn(2048, 6)
    best = (x @ torch.randn(6, 4)).softmax(1)
    with torch.no_grad():
        old = net(x)[0].log_softmax(1)
    action = old.exp().multinomial(1)
    reward = best.gather(1, action)[:, 0] * 4
    gain = (reward - reward.mean()) / reward.std()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        state, a, was, advantage, returned = batch
        scores, value = model(state)
        log_p = scores.log_softmax(1)
        ratio = (log_p.gather(1, a) - was)[:, 0].exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return -surrogate + 0.5 * functional.mse_loss(value, returned) - 0.01 * entropy

    rows = tasks.loader(x, action, old.gather(1, action), gain, reward, batch=256)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=1e-3, eps=1e-5))


class QNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = nets.mlp(4, 48, 2, 3)
        self.target = copy.deepcopy(self.online).requires_grad_(False)


@add()
def values_against_a_frozen_copy() -> Training:
    state, action = torch.randn(2048, 4), torch.randint(3, (2048, 1))
    pushes = torch.randn(3, 4)
    after = 0.8 * state + 0.5 * pushes[action[:, 0]]
    reward = -after.square().sum(1) / 4

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, QNetwork)
        s, a, r, then = batch
        with torch.no_grad():
            aim = r + 0.9 * model.target(then).amax(1)
        return functional.smooth_l1_loss(model.online(s).gather(1, a)[:, 0], aim)

    net = QNetwork()
    return Training(
        net, tasks.loader(state, action, reward, after), loss, optim.RMSprop(net.online.parameters(), lr=1e-3)
    )


@add()
def scores_of_noisy_points() -> Training:
    angle = 6.28 * torch.rand(2048, 1)
    ring = torch.cat([angle.cos(), angle.sin()], 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        noise = torch.randn_like(batch[0])
        return (0.3 * model(batch[0] + 0.3 * noise) + noise).square().sum(1).mean()

    net = nets.mlp(2, 64, 2, 2, act=nn.Softplus)
    return Training(net, tasks.loader(ring, batch=256), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def views_made_independent() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b = (model(batch[0] + 0.4 * torch.randn_like(batch[0])) for _ in range(2))
        a, b = (((z - z.mean(0)) / (z.std(0) + 1e-4)) for z in (a, b))
        c = a.T @ b / len(a)
        return (c.diagonal() - 1).square().sum() + 0.01 * (c - c.diagonal().diag()).square().sum()

    net = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32, bias=False))
    return Training(net, tasks.loader(tasks.clusters()[0], batch=128), loss, optim.Adam(net.parameters(), lr=2e-3))


class Margins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.PReLU(), nn.Linear(64, 16))
        self.centres = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.body(x)) @ functional.normalize(self.centres).T


@add()
def cosines_with_a_margin_times_thirty() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return functional.cross_entropy(30 * (model(x) - 0.35 * functional.one_hot(y, 10)), y)

    net = Margins()
    return Training(net, tasks.loader(*tasks.clusters()), loss, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class Ordered(nn.Module):
    """One score, and a threshold for each of five steps."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1, bias=False))
        self.steps = nn.Parameter(torch.linspace(2, -2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x) + self.steps


@add()
def grades_by_five_thresholds() -> Training:
    x, value = tasks.curves()
    grade = (value > torch.linspace(-1.5, 1.5, 5)).float()
    net = Ordered()
    return Training(
        net, tasks.loader(x, grade), lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=5e-3),
    )  # fmt: skip


@add()
def raw_units_normalized_by_the_first_layer() -> Training:
    x, y = tasks.curves()
    units = torch.tensor([1e5, 300.0, 1.0, 1e-3, 50.0, 2e4, 7.0, 0.1])
    net = nn.Sequential(nn.BatchNorm1d(8, affine=False), *nets.mlp(8, 64, 2, 1))
    return Training(net, tasks.loader(x * units + 3 * units, y), squares, optim.Adam(net.parameters(), lr=3e-3))


class BayesLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.log_std = nn.Parameter(torch.full((outputs, inputs), -4.0))

    def forward(self, x: Tensor) -> Tensor:
        spread = functional.linear(x.square(), (2 * self.log_std).exp()).add(1e-8).sqrt()
        return functional.linear(x, self.mean) + spread * torch.randn_like(spread)

    def divergence(self) -> Tensor:
        return 0.5 * ((2 * self.log_std).exp() + self.mean.square() - 1 - 2 * self.log_std).sum()


@add()
def weights_that_are_distributions() -> Training:
    def bound(model: nn.Module, batch: Any) -> Tensor:
        apart = torch.stack([m.divergence() for m in model.modules() if isinstance(m, BayesLinear)]).sum()
        return functional.cross_entropy(model(batch[0]), batch[1]) + 0.1 * apart / 2048

    net = nn.Sequential(BayesLinear(32, 64), nn.ReLU(), BayesLinear(64, 10))
    return Training(net, tasks.loader(*tasks.clusters()), bound, optim.Adam(net.parameters(), lr=5e-3))


@add()
def hinge_that_most_examples_have_left() -> Training:
    x, y = tasks.clusters(classes=4)
    net = nets.mlp(32, 32, 1, 4)
    return Training(
        net,
        tasks.loader(x, y),
        lambda m, b: functional.multi_margin_loss(m(b[0]), b[1]),
        optim.SGD(net.parameters(), 0.1),
    )


class Process(nn.Module):
    """A Gaussian process over learnt features; its loss is the evidence of all the data."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2))
        self.log_scale, self.log_noise = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.features(x)
        k = (2 * self.log_scale).exp() * (-0.5 * torch.cdist(z, z).square()).exp()
        root = torch.linalg.cholesky(k + ((2 * self.log_noise).exp() + 1e-4) * torch.eye(len(x)))
        half = torch.linalg.solve_triangular(root, y[:, None], upper=False)
        return (0.5 * half.square().sum() + root.diagonal().log().sum()) / len(x)


@add()
def evidence_of_all_the_data_at_once() -> Training:
    x = torch.randn(96, 3)
    y = (2 * x[:, 0]).sin() + x[:, 1] * x[:, 2].tanh() + 0.1 * torch.randn(96)
    net = Process()
    return Training(net, [(x, y)], lambda m, b: m(*b), optim.Adam(net.parameters(), lr=2e-2))


@add()
def newtons_kin_on_one_batch() -> Training:
    x, y = tasks.clusters(classes=3, features=10, count=300)
    net = nn.Linear(10, 3)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1]) + 1e-3 * model.get_parameter("weight").square().sum()

    return Training(net, [(x, y)], loss, optim.LBFGS(net.parameters(), lr=0.5, max_iter=4))


@add()
def frequent_words_first() -> Training:
    chance = 1 / (1 + torch.arange(300.0))
    word = chance.multinomial(4096, replacement=True)
    context = (word[:, None] * 7 + torch.randint(3, (4096, 4))) % 300
    net = nn.Sequential(nn.EmbeddingBag(300, 32), nn.AdaptiveLogSoftmaxWithLoss(32, 300, [10, 60]))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model.get_submodule("1")(model.get_submodule("0")(batch[0]), batch[1]).loss

    return Training(net, tasks.loader(context, word, batch=128), loss, optim.Adam(net.parameters(), lr=1e-2))


@add()
def exits_on_the_way() -> Training:
    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.Conv2d(1 if i == 0 else 12, 12, 3, padding=1) for i in range(3))
            self.exits = nn.ModuleList(nn.Linear(12 * 16, 10) for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            out = []
            for stage, leave in zip(self.stages, self.exits, strict=True):
                x = functional.relu(stage(x))
                out.append(leave(functional.adaptive_avg_pool2d(x, 4).flatten(1)))
            return out

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = [functional.cross_entropy(scores, batch[1]) for scores in model(batch[0])]
        return 0.1 * parts[0] + 0.3 * parts[1] + parts[2]

    net = Exits()
    return Training(net, tasks.loader(*tasks.digits(), batch=32), loss, optim.Adam(net.parameters(), lr=3e-3))


@add()
def loss_in_tiny_units() -> Training:
    x, y = tasks.curves()
    net = nets.mlp(8, 48, 2, 1, act=nn.SiLU)
    metres = lambda m, b: 1e-6 * functional.mse_loss(m(b[0]), b[1])  # noqa: E731 - squares of millimetres, in metres
    return Training(net, tasks.loader(x, y), metres, optim.Adam(net.parameters(), lr=3e-3, eps=1e-16))
