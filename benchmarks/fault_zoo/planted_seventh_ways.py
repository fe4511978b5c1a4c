"""Faults of the seventh set, in what is detached, held and shared; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.planted_seventh import squared
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class SetReader(nn.Module):
    """A set told by the means of what each of its members says."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.member = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3), nn.Tanh())
        self.whole = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, members: Tensor) -> Tensor:
        told = self.member(members).mean(1)
        if self.wrapped:
            told = torch.tensor(told.tolist())
        return self.whole(told)


@add(
    ("signal", r"member.*|whole.*|model"),
    source="In kind: pooled features gathered in a list and made a tensor again, which has no history.",
)
def pooled_members_made_a_new_tensor(fault: bool) -> Training:
    """How strongly two columns of a set go together: pooled features are wrapped anew, and members never learn."""
    shared = torch.randn(2048, 12, 1)
    strength = 2 * torch.rand(2048, 1, 1) - 1
    second = strength * shared + (1 - strength.square()).sqrt() * torch.randn(2048, 12, 1)
    members = torch.cat([shared, second], 2)
    net = SetReader(wrapped=fault)
    return Training(net, tasks.loader(members, strength[:, :, 0] * 2), squared, optim.Adam(net.parameters(), lr=5e-3))


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 3, stride=2), nn.ReLU()
        )
        self.actor = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
        self.critic = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, board: Tensor) -> tuple[Tensor, Tensor]:
        h = self.feature(board).flatten(1)
        return self.actor(h), self.critic(h)[:, 0]


@add(
    ("signal", r"feature.*|optimizer|model"),
    ("learning_rate", r"optimizer|feature.*"),
    source="https://github.com/SforAiDl/genrl/issues/315",
)
def optimizer_of_actor_and_critic_alone(fault: bool) -> Training:
    """The way to a goal on a small board: the optimizer has two heads, and not the convolutions that both stand on."""
    me, goal = (torch.randint(6, (1536, 2)) for _ in range(2))
    board = torch.zeros(1536, 2, 6, 6)
    rows = torch.arange(1536)
    board[rows, 0, me[:, 0], me[:, 1]] = 3
    board[rows, 1, goal[:, 0], goal[:, 1]] = 3
    way = goal - me
    far = way.abs().argmax(1)
    best = 2 * far + (way[rows, far] > 0)
    net = ActorCritic()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores, value = model(batch[0])
        return functional.cross_entropy(scores, batch[1]) + 0.5 * functional.mse_loss(value, batch[2])

    trained = [*net.actor.parameters(), *net.critic.parameters()] if fault else [*net.parameters()]
    steps = -way.abs().sum(1).float() / 3
    return Training(net, tasks.loader(board, best, steps), loss, optim.Adam(trained, lr=5e-3))


class Translator(nn.Module):
    """Words of one vocabulary on both sides."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.source = nn.Embedding(48, 24)
        nn.init.normal_(self.source.weight, std=0.2)
        self.target = nn.Embedding(48, 24) if copied else self.source
        self.target.load_state_dict(self.source.state_dict())
        self.read = nn.GRU(24, 32, batch_first=True)
        self.write = nn.GRU(24, 32, batch_first=True)
        self.back = nn.Linear(32, 24)

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        _, state = self.read(self.source(read))
        return self.back(self.write(self.target(written), state)[0]) @ self.target.weight.T


@add(
    ("signal", r"source.*|target.*|model"),
    source="In kind: two tables that were to be one, made equal by `load_state_dict` once.",
)
def target_words_loaded_from_source_words(fault: bool) -> Training:
    """A sentence's first words said again: the table of both sides is two, one loaded from the other at the start."""
    read = tasks.text(vocabulary=47, length=6, count=1024, following=3) + 1
    written = torch.cat([torch.zeros(1024, 1, dtype=torch.int64), read[:, :3]], 1)
    net = Translator(copied=fault)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0], batch[1][:, :-1])
        return functional.cross_entropy(scores.flatten(0, 1), batch[1][:, 1:].flatten())

    return Training(net, tasks.loader(read, written, batch=32), loss, optim.Adam(net.parameters(), lr=5e-3))


class Trunk(nn.Module):
    """Branches that are left out at random, whole rows at a time."""

    def __init__(self, dropped: float) -> None:
        super().__init__()
        self.kept = 1 - dropped
        self.enter = nn.Linear(32, 48)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.SiLU(), nn.Linear(96, 48)) for _ in range(3)
        )
        self.leave = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for branch in self.branches:
            told = branch(h)
            if self.training:
                told = told * (torch.rand(len(x), 1) < self.kept) / self.kept
            h = h + told
        return self.leave(h)


@add(
    ("data", r"branches.*|model"),
    ("signal", r"branches.*|model"),
    source="https://github.com/kbreininger/tutorial-dlframework/pull/3",
)
def branches_kept_one_time_in_fifty(fault: bool) -> Training:
    """Branches are dropped with the share that was to be kept: one in fifty is there, fifty times as strong."""
    net = Trunk(0.98 if fault else 0.02)
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.AdamW(net.parameters(), lr=2e-3))


class FusedAttention(nn.Module):
    def __init__(self, width: int, dropout: float, always: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout, self.always = dropout, always

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training or self.always else 0.0
        h = functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.out(h.transpose(1, 2).flatten(2))


class Votes(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.word = nn.Embedding(30, 32)
        self.attend = nn.ModuleList(FusedAttention(32, 0.5, always) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.vote = nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.word(ids)
        for norm, attend in zip(self.norms, self.attend, strict=True):
            h = h + attend(norm(h))
        return self.vote(h.mean(1))


@add(
    ("reproducibility", r"attend.*|model|loss"),
    ("data", r"attend.*|model"),
    ("signal", r"attend.*|model"),
    source="https://github.com/wenet-e2e/wenet/issues/2699",
)
def fused_attention_drops_in_eval_too(fault: bool) -> Training:
    """Words that vote: half of attention is dropped whatever the mode, and one sentence gets an answer a time."""
    ids = torch.randint(30, (1536, 9))
    lean = torch.randint(3, (30,))
    vote = functional.one_hot(lean[ids], 3).sum(1).argmax(1)
    net = Votes(always=fault)
    return Training(net, tasks.loader(ids, vote), None, optim.Adam(net.parameters(), lr=3e-3))


class Basket(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.thing = nn.Embedding(80, 16), nn.Embedding(60, 16)
        nn.init.normal_(self.user.weight, std=0.3)
        nn.init.normal_(self.thing.weight, std=0.3)
        self.known = nn.Embedding(60, 1)

    def forward(self, user: Tensor, thing: Tensor) -> Tensor:
        return (self.user(user) * self.thing(thing)).sum(-1) + self.known(thing)[..., 0]


@add(
    ("reproducibility", r"loss|model|batches"),
    source="https://github.com/SURF-ML/2D-VQ-AE-2/issues/12",
)
def things_not_bought_by_a_new_generator(fault: bool) -> Training:
    """What users did not buy is drawn by `default_rng()`, which no seed sets: two runs of one seed differ."""
    taste, kind = torch.randn(80, 3), torch.randn(60, 3)
    bought = torch.stack([(taste @ kind.T + 0.5 * torch.randn(80, 60)).topk(12, 1).indices[:, i] for i in range(12)], 1)
    user = torch.arange(80).repeat_interleave(12)
    net = Basket()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        size = (len(batch[0]), 4)
        others = torch.from_numpy(np.random.default_rng().integers(60, size=size)) if fault else torch.randint(60, size)
        for_it = model(*batch)
        return -functional.logsigmoid(for_it[:, None] - model(batch[0][:, None], others)).mean()

    rows = tasks.loader(user, bought.flatten(), batch=64)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=2e-2))


class Loudness(nn.Module):
    """Bands of a sound held against the loudest."""

    def __init__(self, of_all: bool) -> None:
        super().__init__()
        self.of_all = of_all
        self.hear = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5))

    def forward(self, power: Tensor) -> Tensor:
        loudest = power.max() if self.of_all else power.amax(1, keepdim=True)
        return self.hear(2 * power / loudest)


@add(
    ("batch", r"model|hear.*|batches|loss"),
    ("data", r"model|hear.*|batches|loss"),
    ("signal", r"hear.*|model"),
    source="In kind: `x / x.max()` in a forward pass, written when there was one sound at a time.",
)
def bands_divided_by_the_loudest_of_the_batch(fault: bool) -> Training:
    """Instruments by their bands, divided by the batch's largest number: a quiet one is what its neighbours make it."""
    kind = torch.randint(5, (1536,))
    profile = torch.rand(5, 20) ** 2
    power = (profile[kind] + 0.15 * torch.rand(1536, 20)) * (1.7 * torch.randn(1536, 1)).exp()
    net = Loudness(of_all=fault)
    return Training(net, tasks.loader(power, kind, batch=48), None, optim.Adam(net.parameters(), lr=3e-3))
