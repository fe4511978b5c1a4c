"""Sound trainings of the seventh set, in architecture, gradient and steps; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.planted_seventh import squared
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


class Zeroed(nn.Module):
    """A block without a norm whose last layer starts at 0, and scalars beside it."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.one.weight, std=(2 / width) ** 0.5 * blocks**-0.5)
        nn.init.zeros_(self.two.weight)
        self.shift, self.scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.one(x + self.shift[0]) + self.shift[1])
        return x + self.scale * self.two(h) + self.shift[2]


@add()
def twelve_blocks_without_a_norm_that_start_as_nothing() -> Training:
    net = nn.Sequential(nn.Linear(32, 48), *(Zeroed(48, 12) for _ in range(12)), nn.Linear(48, 10))
    nn.init.zeros_(net[-1].weight)
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class HashedGrid(nn.Module):
    """Tables of tiny numbers at several resolutions, of which a place reads four corners each."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(256, 2) for _ in range(4))
        for table in self.tables:
            nn.init.uniform_(table.weight, -1e-4, 1e-4)
        self.read = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, place: Tensor) -> Tensor:
        told = []
        for level, table in enumerate(self.tables):
            at = place * 4 * 1.6**level
            low, part = at.floor().long(), at.frac()
            value = place.new_zeros(len(place), 2)
            for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
                corner = ((low[:, 0] + dx) ^ ((low[:, 1] + dy) * 2654435761)) % 256
                value = value + weight.unsqueeze(1) * table(corner)
            told.append(value)
        return self.read(torch.cat(told, 1))


@add()
def tables_of_tiny_numbers_behind_a_hash() -> Training:
    place = torch.rand(4096, 2)
    colour = torch.stack([(9 * place[:, 0]).sin(), (7 * place.sum(1)).cos(), (place[:, 1] > 0.5).float()], 1)
    net = HashedGrid()
    rows = tasks.loader(place, colour, batch=256)
    return Training(net, rows, squared, optim.Adam(net.parameters(), lr=1e-2, eps=1e-15, betas=(0.9, 0.99)))


class Rounded(nn.Module):
    """Codes of five levels a number, through which gradients pass as if nothing had been rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ELU(), nn.Linear(64, 64))

    def forward(self, image: Tensor) -> Tensor:
        bound = 2 * self.encoder(image).tanh()
        return self.decoder(bound + (bound.round() - bound).detach()).view_as(image)


@add()
def codes_rounded_to_five_levels() -> Training:
    net = Rounded()
    return Training(
        net, tasks.loader(tasks.digits()[0], batch=64), lambda m, b: functional.mse_loss(m(b[0]), b[0]),
        optim.Adam(net.parameters(), lr=2e-3),
    )  # fmt: skip


class Energy(nn.Module):
    """A scalar whose slopes say how place and speed change: gradients inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(
            nn.Linear(2, 48), nn.Softplus(), nn.Linear(48, 48), nn.Softplus(), nn.Linear(48, 1, bias=False)
        )

    def forward(self, state: Tensor) -> Tensor:
        with torch.enable_grad():
            at = state.detach().requires_grad_()
            slope = torch.autograd.grad(self.energy(at).sum(), at, create_graph=True)[0]
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


@add()
def pendulum_by_the_slopes_of_its_energy() -> Training:
    state = 4 * torch.rand(2048, 2) - 2
    change = torch.stack([state[:, 1], -state[:, 0].sin()], 1)
    net = Energy()
    return Training(net, tasks.loader(state, change), squared, optim.Adam(net.parameters(), lr=5e-3))


class Decayed(nn.Module):
    """Each channel an average that fades at a pace of its own, from slow to fast."""

    def __init__(self) -> None:
        super().__init__()
        self.note = nn.Embedding(12, 32)
        self.pace = nn.Parameter(torch.linspace(-4, 2, 32))
        self.gate, self.out = nn.Linear(32, 32), nn.Linear(32, 12)

    def forward(self, ids: Tensor) -> Tensor:
        x, keep = self.note(ids), (-self.pace.exp()).exp()
        state, states = x.new_zeros(len(x), 32), []
        for now in x.unbind(1):
            state = keep * state + (1 - keep) * now
            states.append(state)
        return self.out(4 * torch.stack(states, 1) * self.gate(x).sigmoid())


@add()
def averages_that_fade_each_at_its_pace() -> Training:
    ids = tasks.text(vocabulary=12, length=18, count=1024, following=2)
    net = Decayed()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    return Training(net, tasks.loader(ids, batch=32), loss, optim.Adam(net.parameters(), lr=1e-2))


@add()
def inputs_of_which_four_in_five_are_dropped() -> Training:
    x = (torch.rand(2048, 5) @ torch.rand(5, 60) > 1.35).float()
    net = nn.Sequential(nn.Dropout(0.8), nn.Linear(60, 64), nn.ReLU(), nn.Linear(64, 60))
    return Training(
        net, tasks.loader(x), lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[0]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


@add()
def table_kept_within_a_length() -> Training:
    """An embedding that shortens its own rows in each forward pass, and whose row of padding never moves."""
    kind = torch.randint(6, (1024,))
    ids = 1 + 10 * kind[:, None] + torch.randint(10, (1024, 8))
    ids = torch.where(
        torch.rand(1024, 8) < 0.3, 0, torch.where(torch.rand(1024, 8) < 0.3, torch.randint(1, 61, (1024, 8)), ids)
    )
    net = nn.Sequential(
        nn.EmbeddingBag(61, 24, max_norm=1.0, padding_idx=0), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6)
    )
    return Training(net, tasks.loader(ids, kind, batch=32), None, optim.Adam(net.parameters(), lr=1e-2))


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        spectral = parametrizations.spectral_norm
        self.body = nn.Sequential(
            spectral(nn.Linear(8, 64)), nn.LeakyReLU(0.2), spectral(nn.Linear(64, 64)), nn.LeakyReLU(0.2),
            spectral(nn.Linear(64, 1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@add()
def judge_with_weights_of_norm_one() -> Training:
    """Real rows against made ones by a hinge, each weight divided by its largest stretch."""
    real = torch.randn(2048, 2) @ torch.randn(2, 8) + 0.3 * torch.randn(2048, 8) + 1.5
    made = torch.randn(2048, 8)
    net = Merged()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.relu(1 - model(batch[0])).mean() + functional.relu(1 + model(batch[1])).mean()

    return Training(net, tasks.loader(real, made), loss, optim.Adam(net.parameters(), lr=2e-3, betas=(0.0, 0.9)))


class Compensated(optim.Optimizer):
    """Momentum on bfloat16 weights, with what rounding loses kept for the next step."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        said = None if closure is None else closure()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                mean = self.state[p].setdefault("mean", torch.zeros_like(p, dtype=torch.float32))
                lost = self.state[p].setdefault("lost", torch.zeros_like(p))
                mean.mul_(0.9).add_(p.grad.float())
                wanted = p.float() + lost.float() - group["lr"] * mean
                p.copy_(wanted)
                lost.copy_(wanted - p.float())
        return said


@add()
def bfloat16_weights_whose_rests_are_kept() -> Training:
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).bfloat16()
    x, y = tasks.clusters()
    return Training(
        net, tasks.loader(x.bfloat16(), y), lambda m, b: functional.cross_entropy(m(b[0]).float(), b[1]),
        Compensated(net.parameters(), lr=0.03),
    )  # fmt: skip


class Unscaling(optim.SGD):
    """Gradients of a loss times 4096, divided first and clipped then."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in params:
            p.grad.div_(4096)
        nn.utils.clip_grad_norm_(params, 1.0)
        return super().step(closure)


@add()
def loss_times_4096_taken_out_before_clipping() -> Training:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    return Training(
        net, tasks.loader(*tasks.digits(), batch=32), lambda m, b: 4096 * functional.cross_entropy(m(b[0]), b[1]),
        Unscaling(net.parameters(), lr=0.05, momentum=0.9),
    )  # fmt: skip


class Langevin(optim.SGD):
    """Descent with noise of its own, from the generator that seeds set."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        said = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p), alpha=(2 * group["lr"] * 1e-5) ** 0.5)
        return said


@add()
def descent_that_shakes_its_weights() -> Training:
    net = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
    return Training(net, tasks.loader(*tasks.curves()), squared, Langevin(net.parameters(), lr=0.1))


class Parts(nn.Module):
    """Pictures as sums of parts, none of which takes anything away."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Embedding(512, 12)
        self.part = nn.Parameter(torch.rand(12, 64))
        nn.init.uniform_(self.amount.weight, 0, 0.3)

    def forward(self, which: Tensor) -> Tensor:
        return self.amount(which) @ self.part


class NeverBelowZero(optim.Adam):
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        said = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.clamp_(min=0)
        return said


@add()
def parts_that_are_never_below_zero() -> Training:
    images = tasks.pixels(count=512)[0].flatten(1) / 255
    net = Parts()
    rows = tasks.loader(torch.arange(512), images, batch=128)
    return Training(net, rows, squared, NeverBelowZero(net.parameters(), lr=2e-2))
