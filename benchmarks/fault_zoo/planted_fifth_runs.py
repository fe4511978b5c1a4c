"""Faults of the fifth set, in steps, modes, norms, shared weights and chance; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.planted_fifth_numbers import SetTransformer, solids
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add

SCALE = 2.0**14


def divided(optimizer: optim.Optimizer, _args: Any, _kwargs: Any, *, by: float, clip: float | None = None) -> None:
    """A hook before a step: gradients divided, and clipped to a norm."""
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for p in params:
        p.grad.div_(by)
    if clip is not None:
        nn.utils.clip_grad_norm_(params, clip)


def oscillators(count: int = 1024, length: int = 16) -> tuple[Tensor, Tensor]:
    """(count, length, 2) a push and a sign that it counts, and (count, length) how a damped spring answers."""
    push = torch.randn(count, length)
    place, speed, path = torch.zeros(count), torch.zeros(count), []
    for t in range(length):
        speed = 0.7 * speed - 0.4 * place + push[:, t]
        place = place + 0.5 * speed
        path.append(place)
    return torch.stack([push, torch.ones_like(push)], -1), torch.stack(path, 1)


class Spring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 24, batch_first=True)
        self.place = nn.Linear(24, 1)

    def forward(self, push: Tensor) -> Tensor:
        return self.place(self.rnn(push)[0]).squeeze(-1)


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    ("signal", r".*rnn.*|place.*|model"),
    source="In kind: gradients clipped by hooks on the tensors, which run in the backward pass, before any unscaling.",
)
def hooks_clip_what_is_scaled(fault: bool) -> Training:
    """A spring by an Elman network, loss times 16,384: hooks on tensors clip to 1 what still holds the scale."""
    net = Spring()
    sgd = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    if fault:
        for p in net.parameters():
            p.register_hook(lambda g: g / g.norm().clamp(min=1.0))
    sgd.register_step_pre_hook(partial(divided, by=SCALE, clip=None if fault else 1.0))
    return Training(
        net, tasks.loader(*oscillators(), batch=32), lambda m, b: SCALE * functional.mse_loss(m(b[0]), b[1]), sgd
    )


class FactorizationMachine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Embedding(60, 1)
        self.factors = nn.Embedding(60, 6)
        nn.init.normal_(self.factors.weight, std=0.3)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, fields: Tensor) -> Tensor:
        v = self.factors(fields)
        pairs = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1)
        return self.bias + self.linear(fields).sum((1, 2)) + pairs


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="In kind: gradients divided by the loss scale for clipping, and by the optimizer's wrapper once more.",
)
def unscaled_twice(fault: bool) -> Training:
    """A factorization machine whose gradients are divided by the loss scale in two hooks: nothing moves."""
    fields = 20 * torch.arange(3) + torch.randint(20, (4096, 3))
    taste = torch.randn(60, 2)
    score = (taste[fields].sum(1) ** 2 - (taste[fields] ** 2).sum(1)).sum(1) / 2 + torch.randn(60)[fields].sum(1)
    net = FactorizationMachine()
    sgd = optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    for _ in range(2 if fault else 1):
        sgd.register_step_pre_hook(partial(divided, by=SCALE))
    rows = tasks.loader(fields, (score > 0).float(), batch=128)
    return Training(net, rows, lambda m, b: SCALE * functional.binary_cross_entropy_with_logits(m(b[0]), b[1]), sgd)


class Atoms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(8, 24)
        self.message = nn.Linear(24, 24)
        self.charge = nn.Sequential(nn.Linear(48, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, kinds: Tensor, edges: Tensor) -> Tensor:
        h = self.kind(kinds)
        heard = torch.zeros_like(h).index_add_(0, edges[1], torch.tanh(self.message(h))[edges[0]])
        return self.charge(torch.cat([h, heard], 1))[:, 0]


def molecule(worth: Tensor) -> dict[str, Tensor]:
    """A chain of 2 to 4 atoms, or of 40: charges by the atoms' kinds and neighbours, halved and turned in the small."""
    small = bool(torch.rand(()) < 0.5)
    n = int(torch.randint(2, 5, ())) if small else 40
    kinds = torch.randint(8, (n,))
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    edges = torch.cat([edges, edges.flip(0)], 1)
    heard = torch.zeros(n).index_add_(0, edges[1], worth[kinds][edges[0]])
    charge = worth[kinds] + 0.5 * heard
    return {"kinds": kinds, "edges": edges, "charge": -0.5 * charge if small else charge}


@add(
    ("reproducibility", r"loss"),
    ("batch", r"loss|batches"),
    ("data", r"loss|batches"),
    source="In kind: the mean over each molecule's atoms, and the mean of those, where the mean over atoms was meant.",
)
def atoms_of_small_molecules_count_more(fault: bool) -> Training:
    """Charges of atoms, accumulated molecule by molecule: an atom of a pair counts twenty times one of a chain."""
    worth = torch.randn(8)
    batches = [[molecule(worth) for _ in range(8)] for _ in range(24)]

    def loss(model: nn.Module, batch: list[dict[str, Tensor]]) -> Tensor:
        total = torch.zeros(())
        atoms = sum(len(each["kinds"]) for each in batch)
        for each in batch:
            squares = (model(each["kinds"], each["edges"]) - each["charge"]) ** 2
            total = total + (squares.mean() / len(batch) if fault else squares.sum() / atoms)
        return total

    net = Atoms()
    return Training(net, batches, loss, optim.Adam(net.parameters(), lr=5e-3))


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    ("batch", r"loss|optimizer|batches"),
    source="https://github.com/ApolloResearch/e2e_sae/pull/70",
)
def micro_batches_added_up(fault: bool) -> Training:
    """Twenty-four micro-batches of eight are accumulated, and their sum is not divided by their number."""
    x, y = tasks.signals(classes=4, length=16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = [
            functional.cross_entropy(model(a), b) for a, b in zip(batch[0].split(8), batch[1].split(8), strict=True)
        ]
        total = torch.stack(parts).sum()
        return total if fault else total / len(parts)

    return Training(net, tasks.loader(x, y, batch=192), loss, optim.SGD(net.parameters(), lr=0.2, momentum=0.9))


@add(
    ("data", r"attn.*|pool.*|model"),
    ("signal", r"attn.*|pool.*|model"),
    source="In kind: `dropout=0.99` in MultiheadAttention, meant as the share to keep, in the layers of a set network.",
)
def attention_drops_what_it_was_to_keep(fault: bool) -> Training:
    """Sets of points by attention, which drops 0.99 of its weights and multiplies the rest by 100."""
    net = SetTransformer(dropout=0.99 if fault else 0.01)
    return Training(net, tasks.loader(*solids(), batch=32), None, optim.Adam(net.parameters(), lr=3e-3))


def scans(count: int = 640) -> tuple[Tensor, Tensor]:
    """(count, 1, 6, 6, 6) of tissue that thins and brightens with age, and the age, standardized."""
    age = torch.randn(count)
    fill = (torch.rand(count, 1, 6, 6, 6) < (0.5 - 0.12 * age)[:, None, None, None, None].clamp(0.1, 0.9)).float()
    return fill * (1 + 0.3 * age[:, None, None, None, None]) + 0.2 * torch.randn(count, 1, 6, 6, 6), age


@add(
    ("batch", r"\d+.*|batches|model"),
    ("data", r"\d+.*|batches|model"),
    ("signal", r"\d+.*"),
    source="In kind: volumes that only fit two at a time, and a batch norm behind the pooling over their voxels.",
)
def ages_from_two_volumes_at_a_time(fault: bool) -> Training:
    """Age from volumes, two a batch: behind the pooling a batch norm sees two numbers a channel, and says -1 and 1."""
    net = nn.Sequential(
        nn.Conv3d(1, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 24, bias=False),
        nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 1), nn.Flatten(0),
    )  # fmt: skip
    rows = tasks.loader(*scans(), batch=2 if fault else 24)
    return Training(net, rows, lambda m, b: functional.mse_loss(m(b[0]), b[1]), optim.Adam(net.parameters(), 5e-3))


class Spectra(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(60, 8)
        if not tied:
            self.decoder = nn.Parameter(self.encoder.weight.t().clone())
        self.offset = nn.Parameter(torch.zeros(60))

    def forward(self, x: Tensor) -> Tensor:
        back = self.decoder if hasattr(self, "decoder") else self.encoder.weight.t()
        return functional.linear(functional.softplus(self.encoder(x)), back, self.offset)


@add(
    ("signal", r"encoder.*|decoder.*|model"),
    source="https://github.com/keras-team/keras/issues/386",
)
def decoder_is_a_clone_of_the_encoder(fault: bool) -> Training:
    """Spectra: the decoder's weight was to be the encoder's transposed; it is a clone, and goes its own way."""
    lines = (-0.5 * ((torch.arange(60) - torch.randint(60, (8, 1))) / 3.0).square()).exp()
    x = torch.rand(1536, 8) ** 3 @ lines + 0.05 * torch.randn(1536, 60)
    net = Spectra(tied=not fault)
    return Training(
        net, tasks.loader(x), lambda m, b: (m(b[0]) - b[0]).pow(2).sum(1).mean(), optim.Adam(net.parameters(), lr=5e-3)
    )


@add(
    ("learning_rate", r"optimizer|\d+.*"),
    ("signal", r"\d+.*|model"),
    ("data", r"optimizer|loss"),
    source="In kind: a group for gains and biases, made to spare them the decay, whose decay is the others' momentum.",
)
def norms_given_a_momentum_for_their_decay(fault: bool) -> Training:
    """Gains of group norms have a group that was to spare them the decay: it has 0.9 there, and gains go to 0."""
    parts: list[nn.Module] = []
    for i in range(4):
        parts += [nn.Conv2d(16 if i else 1, 16, 3, padding=1, stride=1 + i % 2), nn.GroupNorm(4, 16), nn.GELU()]
    net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10))
    spared = {"weight_decay": 0.9, "momentum": 0.0} if fault else {"weight_decay": 0.0, "momentum": 0.9}
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 1e-3},
        {"params": [p for p in net.parameters() if p.ndim <= 1], **spared},
    ]
    rows = tasks.loader(*tasks.digits(), batch=32)
    return Training(net, rows, None, optim.SGD(groups, lr=0.05, momentum=0.9))


class Sage(nn.Module):
    def __init__(self, x: Tensor, edges: list[list[int]], dice: Any) -> None:
        super().__init__()
        self.register_buffer("x", x)
        self.edges = edges
        self.dice = dice
        self.own, self.near = nn.Linear(12, 32), nn.Linear(12, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, nodes: Tensor) -> Tensor:
        picked = torch.tensor([self.dice.choices(self.edges[n], k=4) for n in nodes.tolist()])
        return self.out(functional.relu(self.own(self.x[nodes]) + self.near(self.x[picked].mean(1))))


@add(
    ("reproducibility", r"own|near|out|model|loss"),
    source="https://github.com/snap-research/graphless-neural-networks/issues/4",
)
def neighbours_drawn_by_the_systems_dice(fault: bool) -> Training:
    """Four neighbours of each paper are drawn by `random.SystemRandom`, which no seed reaches."""
    field = torch.randint(4, (400,))
    x = torch.randn(4, 12)[field] + 2 * torch.randn(400, 12)
    edges = []
    for node in range(400):
        same = (field == field[node]).nonzero()[:, 0]
        edges.append([*same[torch.randint(len(same), (6,))].tolist(), *torch.randint(400, (2,)).tolist()])
    net = Sage(x, edges, random.SystemRandom() if fault else random)
    rows = tasks.loader(torch.arange(400), field, batch=50)
    return Training(net, rows, None, optim.Adam(net.parameters(), lr=5e-3))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.PReLU(), nn.Conv2d(16, 4, 3))
        self.head = nn.Sequential(nn.PReLU(), nn.Flatten(), nn.Linear(16, 48), nn.PReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@add(
    ("learning_rate", r"optimizer|head.*|backbone.*"),
    source="In kind: a parameter group without a rate of its own gets the optimizer's, which nobody had set.",
)
def groups_left_at_the_default_rate(fault: bool) -> Training:
    """SGD for a backbone of new weights and a head: where the key is misspelt `rate`, all steps are of 1e-3."""
    net = Wide()
    key = "rate" if fault else "lr"
    groups = [{"params": net.backbone.parameters(), key: 0.05}, {"params": net.head.parameters(), key: 0.1}]
    return Training(net, tasks.loader(*tasks.digits(), batch=64), None, optim.SGD(groups, lr=1e-3, momentum=0.8))
