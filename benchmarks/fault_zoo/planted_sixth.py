"""Faults of the sixth set, in initialization, skips and on the gradient's way; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


def squares(model: nn.Module, batch: Any) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


@add(
    ("signal", r"\d+.*|model"),
    source="https://github.com/huggingface/pytorch-image-models/issues/84",
)
def depthwise_fan_counts_all_channels(fault: bool) -> Training:
    """Separable convolutions without norms: a depthwise kernel of 9 numbers is drawn as if it had 288."""
    net = nn.Sequential()
    for i in range(6):
        net += nn.Sequential(nn.Conv2d(32 if i else 1, 32, 1), nn.ReLU())
        net += nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, stride=1 + i // 5, groups=32), nn.ReLU())
    for m in net:
        if isinstance(m, nn.Conv2d):
            n = m.kernel_size[0] * m.kernel_size[1] * (m.out_channels if fault else m.in_channels // m.groups)
            nn.init.normal_(m.weight, 0, math.sqrt(2.0 / n))
            nn.init.zeros_(m.bias)
    net += nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 10))
    return Training(
        net, tasks.loader(*tasks.digits(), batch=32), None, optim.SGD(net.parameters(), lr=3e-3, momentum=0.9)
    )


class ChordTagger(nn.Module):
    def __init__(self, unit: bool) -> None:
        super().__init__()
        self.notes = nn.Embedding(24, 48)
        self.lstm = nn.LSTM(48, 64, num_layers=2, batch_first=True)
        self.chord = nn.Linear(64, 6)
        for name, p in self.lstm.named_parameters():
            if "weight" in name:
                nn.init.normal_(p, std=1.0 if unit else p.shape[1] ** -0.5)
            else:
                nn.init.zeros_(p)

    def forward(self, notes: Tensor) -> Tensor:
        return self.chord(self.lstm(self.notes(notes))[0])


def tagged(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@add(
    ("signal", r"lstm.*|notes.*|chord.*|model"),
    source="In kind: `init.normal_(p)` for all weights of a recurrent layer, with the default deviation of 1.",
)
def gates_drawn_from_unit_normals(fault: bool) -> Training:
    """Chords by two LSTM layers whose weights are N(0, 1): gates are shut or open, whatever comes in."""
    notes = torch.randint(24, (1024, 18))
    kind = torch.randint(6, (24,))
    chord = (kind[notes] + kind[notes.roll(1, 1)] + kind[notes.roll(2, 1)]) % 6
    net = ChordTagger(unit=fault)
    return Training(net, tasks.loader(notes, chord, batch=32), tagged, optim.Adam(net.parameters(), lr=3e-3))


class SignedDistance(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(64 if i else 3, 64) for i in range(10))
        self.distance = nn.Linear(64, 1)
        for layer in self.hidden:
            nn.init.xavier_normal_(layer.weight, gain=gain)
            nn.init.zeros_(layer.bias)

    def forward(self, place: Tensor) -> Tensor:
        for layer in self.hidden:
            place = functional.hardtanh(layer(place))
        return self.distance(place)[:, 0]


@add(
    ("signal", r"hidden.*|distance.*|model"),
    source="In kind: the gain meant for a sine's first layer, kept when the activation became a clipped line.",
)
def shape_behind_ten_clipped_lines(fault: bool) -> Training:
    """Distance to a ring by ten layers of hardtanh with gain 8: nine units of ten say -1 or 1."""
    place = 2 * torch.rand(2048, 3) - 1
    ring = ((place[:, :2].norm(dim=1) - 0.6).square() + place[:, 2].square()).sqrt() - 0.25
    net = SignedDistance(8.0 if fault else 1.0)
    return Training(net, tasks.loader(place, 3 * ring), squares, optim.Adam(net.parameters(), lr=1e-3))


class FeatureLayer(nn.Module):
    """Attention between the columns of a table behind a factor that starts at 0."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.alpha = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        heard = self.alpha[0] * self.attn(x, x, x, need_weights=False)[0]
        x = x + heard if self.skip else heard
        thought = self.alpha[1] * self.ff(x)
        return x + thought if self.skip else thought


class Columns(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(8, 32)), nn.Parameter(torch.randn(8, 32))
        self.layers = nn.Sequential(*(FeatureLayer(skip) for _ in range(5)))
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x.unsqueeze(-1) * self.scale + self.shift).mean(1))


@add(
    ("signal", r"layers.*|out.*|scale|shift|model"),
    source="In kind: ReZero's factor of 0 written into a layer that returns its branch, not its sum with the input.",
)
def factors_of_zero_without_a_skip(fault: bool) -> Training:
    """A table's columns as tokens, ten branches times 0, and no skip around them: nothing reaches the head."""
    net = Columns(skip=not fault)
    return Training(net, tasks.loader(*tasks.curves()), squares, optim.Adam(net.parameters(), lr=2e-3))


class VocoderBlock(nn.Module):
    def __init__(self, dilation: int, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor
        self.dilated = nn.Conv1d(16, 32, 3, padding=dilation, dilation=dilation)
        self.back = nn.Conv1d(32, 16, 1)
        for m in (self.dilated, self.back):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu" if m is self.dilated else "linear")
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.back(functional.relu(self.dilated(x)))) / self.divisor


@add(
    ("signal", r"\d+.*|model"),
    source="In kind: a vocoder's (x + residual) / sqrt(2), written / 2.",
)
def sums_halved_for_the_root_of_two(fault: bool) -> Training:
    """Eighteen dilated blocks that halve x + f(x), whose variance wants a division by the root of 2."""
    clean = tasks.signals(length=32, features=1)[0].transpose(1, 2)
    noisy = clean + 0.5 * torch.randn_like(clean)
    divisor = 2.0 if fault else math.sqrt(2)
    blocks = [VocoderBlock(2 ** (i % 4), divisor) for i in range(18)]
    net = nn.Sequential(nn.Conv1d(1, 16, 3, padding=1), *blocks, nn.Conv1d(16, 1, 1))
    nn.init.kaiming_normal_(net[0].weight, nonlinearity="linear")
    return Training(
        net, tasks.loader(noisy, clean, batch=16), squares, optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    )


class LoraLinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class Stamped(nn.Module):
    """A body that has learnt five groups of digits, and a new narrow head for all ten."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.score: nn.Module = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.gelu(self.second(functional.gelu(self.first(x.flatten(1)))))
        return self.score(h)


@add(
    ("signal", r"score.*|model"),
    ("learning_rate", r"score.*|optimizer"),
    source="https://github.com/huggingface/peft/issues/577",
)
def new_head_frozen_with_the_base(fault: bool) -> Training:
    """Low-rank adapters of a trained body: all without `lora_` in its name is frozen, a new head of 3 units too."""
    x, y = tasks.digits()
    net = Stamped()
    before = optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(4):
        for rows, labels in zip(x.split(128), y.split(128), strict=True):
            before.zero_grad()
            functional.cross_entropy(net(rows), labels % 5).backward()  # type: ignore[no-untyped-call] # torch's own
            before.step()
    net.first, net.second = LoraLinear(net.first), LoraLinear(net.second)  # type: ignore[assignment] # as adapters do
    net.score = nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10))
    for name, p in net.named_parameters():
        p.requires_grad = "lora_" in name or (name.startswith("score") and not fault)
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, tasks.loader(x, y), None, optim.AdamW(trained, lr=1e-2))


class Questions(nn.Module):
    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(90, 32)
        if kept:
            self.project = nn.Linear(32, 16)
        self.kind = nn.Linear(16, 6)

    def forward(self, ids: Tensor) -> Tensor:
        mean = self.words(ids).mean(1)
        project = self.project if hasattr(self, "project") else nn.Linear(mean.shape[-1], 16)
        return self.kind(torch.tanh(project(mean)))


@add(
    ("signal", r".*"),
    ("reproducibility", r"loss|model|words|kind"),
    ("data", r"loss|model"),
    source="https://github.com/wangyida/softpool/issues/11",
)
def projection_made_anew_in_each_forward(fault: bool) -> Training:
    """Kinds of questions by mean words, through a linear layer that each forward pass draws anew."""
    kind = torch.randint(6, (1536,))
    own = 15 * kind[:, None] + torch.randint(15, (1536, 8))
    ids = torch.where(torch.rand(1536, 8) < 0.6, own, torch.randint(90, (1536, 8)))
    rows = tasks.loader(ids, kind)
    net = Questions(kept=not fault)
    return Training(net, rows, None, optim.Adam(net.parameters(), lr=1e-2))


class Beacon(nn.Module):
    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.heat = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1))
        self.calibrate = nn.Linear(2, 2)
        nn.init.eye_(self.calibrate.weight)
        nn.init.zeros_(self.calibrate.bias)
        steps = torch.linspace(-1, 1, 12)
        self.register_buffer("grid", torch.cartesian_prod(steps, steps))

    def forward(self, image: Tensor) -> Tensor:
        heat = self.heat(image).flatten(1)
        place = self.grid[heat.argmax(1)] if self.hard else heat.softmax(1) @ self.grid
        return self.calibrate(place)


@add(
    ("signal", r"heat.*|model"),
    source="https://github.com/YaN9-Y/lafin/issues/8",
)
def place_by_argmax(fault: bool) -> Training:
    """Where a dark cross stands in noise: argmax of a heatmap, behind which no convolution learns."""
    place = torch.randint(1, 11, (1536, 2))
    image = 0.6 * torch.randn(1536, 14, 14)
    rows = torch.arange(1536)
    for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        image[rows, place[:, 0] + dx + 1, place[:, 1] + dy + 1] -= 2
    net = Beacon(hard=fault)
    data = tasks.loader(image[:, None, 1:13, 1:13], place / 5.5 - 1)
    return Training(net, data, squares, optim.Adam(net.parameters(), lr=5e-3))


class Ratings(nn.Module):
    def __init__(self, std: float) -> None:
        super().__init__()
        self.user, self.film = nn.Embedding(150, 6), nn.Embedding(120, 6)
        self.user_bias, self.film_bias = nn.Embedding(150, 1), nn.Embedding(120, 1)
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=std)
        for table in (self.user_bias, self.film_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user: Tensor, film: Tensor) -> Tensor:
        taste = (self.user(user) * self.film(film)).sum(-1)
        return taste + self.user_bias(user)[:, 0] + self.film_bias(film)[:, 0]


@add(
    ("signal", r"user.*|film.*|model"),
    source="In kind: both tables of a factorization set to zeros, where the product's gradient is 0 for good.",
)
def both_factors_start_at_zero(fault: bool) -> Training:
    """Ratings by factors of users and films, all of which are 0: neither gets a gradient, biases alone learn."""
    user, film = torch.randint(150, (6144,)), torch.randint(120, (6144,))
    stars = (torch.randn(150, 3)[user] * torch.randn(120, 3)[film]).sum(1) + 0.3 * torch.randn(6144)
    net = Ratings(0.0 if fault else 0.3)
    data = tasks.loader(user, film, stars, batch=256)
    return Training(
        net, data, lambda m, b: functional.mse_loss(m(b[0], b[1]), b[2]), optim.Adam(net.parameters(), lr=2e-2)
    )


class Lander(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(6, 64), nn.Mish(), nn.Linear(64, 64), nn.Mish(), nn.Linear(64, 4))
        self.target = copy.deepcopy(self.online)

    def forward(self, state: Tensor) -> Tensor:
        return self.online(state)


@add(
    ("signal", r"online.*|target.*|optimizer|model"),
    ("learning_rate", r"optimizer|online.*|target.*"),
    source="https://github.com/juliusfrost/dreamer-pytorch/pull/79",
)
def optimizer_of_the_target_network(fault: bool) -> Training:
    """Values of four actions: the optimizer has the copy's parameters, which get no gradient, and nothing learns."""
    state, action = torch.randn(2048, 6), torch.randint(4, (2048, 1))
    after = 0.7 * state + 0.6 * torch.randn(4, 6)[action[:, 0]]
    reward = after @ torch.randn(6) / 2

    def temporal(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, Lander)
        s, a, r, then = batch
        with torch.no_grad():
            best = model.online(then).argmax(1, keepdim=True)
            aim = r + 0.5 * model.target(then).gather(1, best)[:, 0]
        return functional.huber_loss(model(s).gather(1, a)[:, 0], aim)

    net = Lander()
    held = net.target if fault else net.online
    return Training(net, tasks.loader(state, action, reward, after), temporal, optim.Adam(held.parameters(), lr=2e-3))
