"""Sound trainings of the fifth set, in architecture and gradient; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.nn.utils import prune

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


def squares(model: nn.Module, batch: Any) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


class Equilibrium(nn.Module):
    """A fixed point sought without gradients, and one step from it with them."""

    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.Linear(32, 48)
        self.inner = nn.Linear(48, 48, bias=False)
        nn.init.normal_(self.inner.weight, std=0.4 / 48**0.5)
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        given = self.inject(x)
        with torch.no_grad():
            z = torch.zeros_like(given)
            for _ in range(12):
                z = torch.tanh(self.inner(z) + given)
        return self.out(torch.tanh(self.inner(z) + given))


@add()
def equilibrium_sought_without_gradients() -> Training:
    net = Equilibrium()
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.Adam(net.parameters(), lr=3e-3))


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        for t in range(10):
            x = x + 0.1 * self.field(torch.cat([x, torch.full_like(x[:, :1], t / 10)], 1))
        return x


@add()
def one_field_followed_for_ten_steps() -> Training:
    x = torch.randn(1024, 2)
    angle = 1.0 + 0.3 * x.norm(dim=1)
    turned = torch.stack(
        [angle.cos() * x[:, 0] - angle.sin() * x[:, 1], angle.sin() * x[:, 0] + angle.cos() * x[:, 1]], 1
    )
    net = Flow()
    return Training(net, tasks.loader(x, turned), squares, optim.Adam(net.parameters(), lr=1e-2))


class Greedy(nn.Module):
    """Each layer has a classifier of its own, and takes the one before it as given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64 if i == 0 else 48, 48) for i in range(3))
        self.heads = nn.ModuleList(nn.Linear(48, 10) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        h, scores = x.flatten(1), []
        for layer, head in zip(self.layers, self.heads, strict=True):
            h = functional.relu(layer(h.detach()))
            scores.append(head(h))
        return scores


@add()
def layers_that_learn_each_by_itself() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([functional.cross_entropy(scores, batch[1]) for scores in model(batch[0])]).sum()

    net = Greedy()
    return Training(net, tasks.loader(*tasks.digits()), loss, optim.Adam(net.parameters(), lr=2e-3))


class SignLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        binary = self.weight.sign() * self.weight.abs().mean(1, keepdim=True)
        return functional.linear(x, self.weight + (binary - self.weight).detach(), self.bias)


@add()
def weights_of_one_bit() -> Training:
    net = nn.Sequential(
        nn.Flatten(), SignLinear(64, 96), nn.BatchNorm1d(96), nn.Hardtanh(), SignLinear(96, 96), nn.BatchNorm1d(96),
        nn.Hardtanh(), nn.Linear(96, 10),
    )  # fmt: skip
    return Training(net, tasks.loader(*tasks.digits()), None, optim.Adam(net.parameters(), lr=3e-3))


class FourierFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(2 * torch.randn(2, 64), requires_grad=False)
        self.head = nn.Sequential(nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, place: Tensor) -> Tensor:
        phase = 6.28 * place @ self.frequencies
        return self.head(torch.cat([phase.sin(), phase.cos()], 1))


@add()
def random_frequencies_that_stay() -> Training:
    place = torch.rand(2048, 2)
    height = (9 * place[:, :1] * place[:, 1:]).sin() + (12 * place[:, :1]).cos()
    net = FourierFeatures()
    return Training(net, tasks.loader(place, height), squares, optim.Adam(net.head.parameters(), lr=3e-3))


@add()
def nine_of_ten_weights_pruned() -> Training:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    for layer in (net[1], net[3]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layer.weight.data.mul_(10**0.5)
        prune.random_unstructured(layer, "weight", amount=0.9)
    return Training(net, tasks.loader(*tasks.digits()), None, optim.Adam(net.parameters(), lr=1e-3))


class Spline(nn.Module):
    """Functions of one number each, as sums of bumps, added up (Kolmogorov-Arnold)."""

    def __init__(self, inputs: int, outputs: int, bumps: int = 8) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, bumps))
        self.height = nn.Parameter(torch.randn(outputs, inputs, bumps) / (inputs * bumps) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        bump = (-2 * (x.unsqueeze(-1) - self.centres).square()).exp()
        return torch.einsum("nib,oib->no", bump, self.height)


@add()
def sums_of_learnt_functions() -> Training:
    net = nn.Sequential(Spline(8, 12), Spline(12, 1))
    return Training(net, tasks.loader(*tasks.curves()), squares, optim.Adam(net.parameters(), lr=1e-2))


class Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x).sigmoid()
        return g * torch.tanh(self.change(x)) + (1 - g) * x


@add()
def highways_that_start_nearly_shut() -> Training:
    net = nn.Sequential(nn.Linear(32, 40), nn.Tanh(), *(Highway(40) for _ in range(10)), nn.Linear(40, 10))
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.Adam(net.parameters(), lr=2e-3))


@add()
def only_biases_and_a_head_are_tuned() -> Training:
    x, y = tasks.digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    before = optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(6):
        for rows, labels in zip(x.split(128), y.split(128), strict=True):
            before.zero_grad()
            functional.cross_entropy(net(rows), labels % 5).backward()  # type: ignore[no-untyped-call] # torch's own
            before.step()
    net[5] = nn.Linear(64, 10)
    for name, p in net.named_parameters():
        p.requires_grad_(name.endswith("bias") or name.startswith("5."))
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, tasks.loader(x, y), None, optim.Adam(trained, lr=1e-2))


@add()
def six_layers_without_activations() -> Training:
    layers = [nn.Linear(16, 16, bias=False) for _ in range(6)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    x = torch.randn(1024, 16)
    y = x @ torch.randn(16, 16) / 4 + 0.1 * torch.randn(1024, 16)
    net = nn.Sequential(*layers)
    return Training(net, tasks.loader(x, y), squares, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class Slots(nn.Module):
    """Three slots that start at random and compete for eight parts of a scene."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 24)
        self.mean, self.spread = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.ones(24))
        self.q, self.k, self.v = (nn.Linear(24, 24, bias=False) for _ in range(3))
        self.update = nn.GRUCell(24, 24)
        self.says = nn.Linear(24, 6)

    def forward(self, parts: Tensor) -> Tensor:
        h = functional.layer_norm(self.part(parts), (24,))
        k, v = self.k(h), self.v(h)
        slots = self.mean + self.spread * torch.randn(len(parts), 3, 24)
        for _ in range(3):
            q = self.q(functional.layer_norm(slots, (24,)))
            share = (q @ k.mT / 24**0.5).softmax(1) + 1e-8
            mean = share / share.sum(-1, keepdim=True) @ v
            slots = self.update(mean.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return share.mT @ self.says(slots)


@add()
def slots_that_start_at_random() -> Training:
    things = 2 * torch.randn(1024, 3, 6)
    which = torch.randint(3, (1024, 8, 1)).expand(-1, -1, 6)
    parts = things.gather(1, which) + 0.1 * torch.randn(1024, 8, 6)
    net = Slots()
    return Training(
        net, tasks.loader(parts), lambda m, b: functional.mse_loss(m(b[0]), b[0]), optim.Adam(net.parameters(), lr=5e-3)
    )


class SumOfParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(4, 32), nn.SELU(), nn.Linear(32, 8))
        self.all = nn.Linear(8, 1)

    def forward(self, bag: Tensor, there: Tensor) -> Tensor:
        return self.all((self.each(bag) * there.unsqueeze(-1)).sum(1) / 10)[:, 0]


@add()
def bags_of_any_size_summed() -> Training:
    size = torch.randint(1, 60, (1024,))
    there = (torch.arange(60) < size[:, None]).float()
    bag = torch.randn(1024, 60, 4)
    weight = ((bag[..., 0].abs() + bag[..., 1]) * there).sum(1) / 10
    net = SumOfParts()
    return Training(
        net, tasks.loader(bag, there, weight), lambda m, b: functional.l1_loss(m(b[0], b[1]), b[2]),
        optim.Adam(net.parameters(), lr=5e-3),
    )  # fmt: skip


class Rotary(nn.Module):
    """One key and value for four queries, turned by their places; scores capped by a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 32)
        nn.init.normal_(self.embed.weight, std=32**-0.5)
        self.q, self.kv, self.o = (
            nn.Linear(32, 32, bias=False),
            nn.Linear(32, 16, bias=False),
            nn.Linear(32, 32, bias=False),
        )
        self.up, self.down = nn.Linear(32, 128, bias=False), nn.Linear(64, 32, bias=False)
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.down.weight)

    def turned(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] / 10.0 ** torch.arange(4)
        a, b = x.chunk(2, -1)
        cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * 32**0.5
        h = functional.rms_norm(x, (32,))
        k, v = self.kv(h).unsqueeze(2).chunk(2, -1)
        q, k = self.turned(self.q(h).unflatten(-1, (4, 8))), self.turned(k)
        scores = torch.einsum("bqhd,bkd->bhqk", q, k[:, :, 0]) / 8**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = torch.einsum("bhqk,bkd->bqhd", scores.masked_fill(later, float("-inf")).softmax(-1), v[:, :, 0])
        x = x + self.o(mixed.flatten(2))
        gate, up = self.up(functional.rms_norm(x, (32,))).chunk(2, -1)
        x = x + self.down(functional.silu(gate) * up)
        return 15 * torch.tanh(functional.rms_norm(x, (32,)) @ self.embed.weight.T / 15)


@add()
def rotary_language_with_capped_scores() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0][:, :-1])
        penalty = 1e-4 * scores.logsumexp(-1).square().mean()
        return functional.cross_entropy(scores.flatten(0, 1), batch[0][:, 1:].flatten()) + penalty

    net = Rotary()
    flat = [p for p in net.parameters() if p is not net.embed.weight]
    groups = [{"params": flat, "weight_decay": 0.1}, {"params": [net.embed.weight], "weight_decay": 0.0}]
    rows = tasks.loader(tasks.text(length=20), batch=32)
    return Training(net, rows, loss, optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95)))
