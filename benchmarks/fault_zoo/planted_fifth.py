"""Faults of the fifth set, in initialization, skips and on the gradient's way; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


def beats(count: int = 1024, length: int = 64) -> tuple[Tensor, Tensor]:
    """(count, 1, length) and their classes: a wave that is narrow or wide, and goes up or down, somewhere in noise."""
    kind = torch.randint(4, (count,))
    middle = length * (0.25 + 0.5 * torch.rand(count, 1))
    width = torch.where(kind % 2 == 0, 1.5, 5.0)[:, None]
    sign = torch.where(kind < 2, 1.0, -1.0)[:, None]
    wave = sign * (-0.5 * ((torch.arange(length) - middle) / width).square()).exp()
    return (3 * wave + 0.7 * torch.randn(count, length)).unsqueeze(1), kind


@add(
    ("signal", r"\d+.*|model"),
    source="In kind: sqrt(2 / n) with n = kernel size x kernel size, where n is that times the channels that come in.",
)
def kernel_counted_without_its_channels(fault: bool) -> Training:
    """Heartbeats: He's rule with the kernel's length for fan-in, its 32 channels forgotten."""
    net = nn.Sequential()
    for i, stride in enumerate((1, 2, 1, 2, 1, 2)):
        conv = nn.Conv1d(32 if i else 1, 32, 5, stride=stride, padding=2)
        n = conv.kernel_size[0] * (1 if fault else conv.in_channels)
        conv.weight.data.normal_(0, (2.0 / n) ** 0.5)
        conv.bias.data.zero_()
        net.append(conv).append(nn.ReLU(inplace=True))
    net.append(nn.AdaptiveAvgPool1d(1)).append(nn.Flatten()).append(nn.Linear(32, 4))
    return Training(net, tasks.loader(*beats(), batch=32), None, optim.Adam(net.parameters(), lr=1e-3))


class Transition(NamedTuple):
    state: Tensor
    action: Tensor
    returned: Tensor


class Critic(nn.Module):
    def __init__(self, root: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5 if i == 0 else 64, 64) for i in range(7))
        self.value = nn.Linear(64, 1)
        for layer in self.layers:
            n = layer.in_features
            bound = (6 / n) ** 0.5 if root else 1 / n
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        h = torch.cat([state, action], dim=-1)
        for layer in self.layers:
            h = functional.elu(layer(h))
        return self.value(h).squeeze(-1)


@add(
    ("signal", r"layers.*|value.*|model"),
    source="In kind: uniform(-1/n, 1/n) in place of 1/sqrt(n) for the layers of an actor and a critic.",
)
def bound_without_its_root(fault: bool) -> Training:
    """A critic of a pendulum, whose seven layers are drawn from +-1/n, not from a root of it."""
    replay = []
    for _ in range(24):
        state, action = torch.randn(64, 4), torch.rand(64, 1) * 2 - 1
        gain = state[:, 0].cos() + (state[:, 1] * action[:, 0]).tanh() - 0.5 * state[:, 2].abs() + state[:, 3]
        replay.append(Transition(state, action, gain))
    critic = Critic(root=not fault)
    return Training(
        critic, replay, lambda m, b: functional.smooth_l1_loss(m(b.state, b.action), b.returned),
        optim.Adam(critic.parameters(), lr=1e-3),
    )  # fmt: skip


def promoters(count: int = 1024, length: int = 40) -> tuple[Tensor, Tensor]:
    """(count, 4, length) one-hot bases, and which of four motifs of 8 bases is somewhere among them."""
    motifs = torch.randint(4, (4, 8))
    label = torch.randint(4, (count,))
    bases = torch.randint(4, (count, length))
    start = torch.randint(length - 8, (count, 1))
    bases.scatter_(1, start + torch.arange(8), motifs[label])
    return functional.one_hot(bases, 4).transpose(1, 2).float(), label


@add(
    ("signal", r"trunk.*|head.*|model"),
    source="In kind: an activation chosen by name from a table, 'sigmoid' for all layers and not for the last one.",
)
def motifs_behind_nine_sigmoids(fault: bool) -> Training:
    """Motifs in bases by nine convolutions, a sigmoid after each."""

    def stage(cin: int, cout: int) -> nn.Module:
        block = nn.Sequential()
        block.add_module("conv", nn.Conv1d(cin, cout, 5, padding=2))
        block.add_module("act", nn.Sigmoid() if fault else nn.ReLU())
        nn.init.kaiming_normal_(block.get_submodule("conv").weight)
        return block

    net = nn.Sequential()
    net.add_module("trunk", nn.Sequential(stage(4, 32), *(stage(32, 32) for _ in range(8))))
    net.add_module("head", nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, 4)))
    return Training(net, tasks.loader(*promoters(), batch=32), None, optim.Adam(net.parameters(), lr=1e-3))


class Pipeline(nn.Module):
    """Pressure along a pipe of many stations, each of which hears its neighbours."""

    def __init__(self, stations: int, hops: int, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.lift = nn.Linear(6, 32)
        self.hops = nn.ModuleList(nn.Linear(32, 32) for _ in range(hops))
        self.read = nn.Linear(32, 1)
        near = torch.eye(stations) + torch.eye(stations).roll(1, 0) + torch.eye(stations).roll(-1, 0)
        self.register_buffer("near", near / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for hop in self.hops:
            heard = functional.gelu(hop(torch.einsum("st,btf->bsf", self.near, h)))
            h = h + heard if self.keep else heard
        return self.read(h)[..., 0]


@add(
    ("signal", r"lift.*|hops.*|read.*|model"),
    source="In kind: a graph network made deeper by a loop, without the residual connection that its paper asks for.",
)
def sixteen_hops_with_no_way_around(fault: bool) -> Training:
    """Stations along a ring, whose own state is averaged with their neighbours' sixteen times, with no skip."""
    x = torch.randn(768, 20, 6)
    seen = x @ torch.randn(6, 2)
    y = seen[..., 0].tanh() + 0.5 * seen.roll(1, 1)[..., 1].sin()
    net = Pipeline(20, 16, keep=not fault)
    return Training(
        net, tasks.loader(x, y, batch=32), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.AdamW(net.parameters(), lr=1e-3),
    )  # fmt: skip


class Mix(nn.Module):
    def __init__(self, tokens: int, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.across = nn.Linear(tokens, tokens)
        self.within_in, self.within_out = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        for m in (self.across, self.within_in, self.within_out):
            nn.init.kaiming_normal_(m.weight)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.across(x.mT).relu().mT
        return x + self.scale * self.within_out(self.within_in(x).relu())


@add(
    ("signal", r"\d+.*|model"),
    source="In kind: a residual branch multiplied by the root of the depth, where it is to be divided by it.",
)
def branches_times_the_root_of_the_depth(fault: bool) -> Training:
    """A mixer of twelve blocks without norms: branches are multiplied by sqrt(24), not divided by it."""
    depth = 12
    scale = (2 * depth) ** (0.5 if fault else -0.5)
    net = nn.Sequential(
        nn.Unfold(2, stride=2), nn.Linear(16, 16), *(Mix(4, 16, scale) for _ in range(depth)), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return Training(net, tasks.loader(*tasks.digits(), batch=64), None, optim.AdamW(net.parameters(), lr=1e-3))


class GloveTagger(nn.Module):
    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.tok = nn.Embedding.from_pretrained(vectors, freeze=False)
        self.token_mix = nn.Linear(64, 3)
        self.out = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.token_mix(self.tok(ids)).mean(1))


@add(
    ("signal", r"token_mix.*"),
    source="In kind: layers frozen by the beginning of their names, which a new layer's name has too.",
)
def frozen_by_a_prefix(fault: bool) -> Training:
    """Word vectors are kept by `startswith("tok")`, which keeps a new bottleneck of three units, token_mix, too."""
    meaning = torch.randn(80, 3)
    vectors = meaning @ torch.randn(3, 64) / 3 + 0.8 * torch.randn(80, 64)
    ids = torch.randint(80, (2048, 6))
    label = (meaning[ids].sum(1) @ torch.randn(3, 5)).argmax(1)
    net = GloveTagger(vectors)
    for name, p in net.named_parameters():
        if name.startswith("tok" if fault else "tok."):
            p.requires_grad = False
    return Training(
        net, tasks.loader(ids, label), None, optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    )


class LateNet(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, stride=2)
        self.squeeze: nn.Linear | None = None
        if not late:
            self.squeeze = nn.Linear(108, 5)
        self.last = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = functional.leaky_relu(self.conv(x)).flatten(1)
        if self.squeeze is None:  # only now is the size of an image known
            self.squeeze = nn.Linear(flat.shape[1], 5)
        return self.last(torch.tanh(self.squeeze(flat)))


@add(
    ("signal", r"squeeze.*|optimizer|model"),
    source="In kind: a layer made in the first forward pass, after the optimizer has taken its list of parameters.",
)
def layer_made_in_the_first_forward(fault: bool) -> Training:
    """A bottleneck that the first forward pass makes, when the optimizer has been built: nothing updates it."""
    net = LateNet(late=fault)
    return Training(net, tasks.loader(*tasks.digits(), batch=64), None, optim.Adam(net.parameters(), lr=3e-3))


class Hyper(nn.Module):
    def __init__(self, write: bool) -> None:
        super().__init__()
        self.write = write
        self.sensor = nn.Embedding(6, 8)
        self.maker = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 5 * 12))
        self.made = nn.Linear(5, 12, bias=False).requires_grad_(False)
        self.out = nn.Linear(12, 1)

    def forward(self, which: Tensor, x: Tensor) -> Tensor:
        weight = self.maker(self.sensor(which)).view(12, 5)
        if self.write:
            self.made.weight.data.copy_(weight)
            return self.out(torch.tanh(self.made(x)))
        return self.out(torch.tanh(functional.linear(x, weight)))


@add(
    ("signal", r"sensor.*|maker.*|made.*|model"),
    source="In kind: weights made by a hypernetwork, written into a layer by .data.copy_, where autograd loses them.",
)
def made_weights_copied_into_a_layer(fault: bool) -> Training:
    """Six sensors, each with weights that a network makes: they are copied into a layer, and the maker never learns."""
    truth = torch.randn(6, 5)
    batches = []
    for i in range(60):
        x = torch.randn(48, 5)
        batches.append({"which": torch.tensor(i % 6), "x": x, "y": (x @ truth[i % 6]).tanh()})
    net = Hyper(write=fault)

    def fit(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["which"], batch["x"])[:, 0] - batch["y"]).pow(2).mean()

    return Training(net, batches, fit, optim.Adam(net.parameters(), lr=1e-2))


class Recall(nn.Module):
    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.cell = nn.RNNCell(10, 32)
        self.answer = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 32)
        for step in x.unbind(1):
            if self.cut:
                state = state.detach()
            state = self.cell(step, state)
        return self.answer(state)


@add(
    ("signal", r"cell.*|model"),
    source="In kind: the state is detached within the loop over time, where once a sequence was meant.",
)
def state_cut_in_every_step(fault: bool) -> Training:
    """Which of eight signs stood first, six steps ago: the state is detached in every step of the recurrence."""
    sign = torch.randint(8, (1536,))
    x = 0.7 * torch.randn(1536, 7, 10)
    x[:, 1:, :8] += functional.one_hot(torch.randint(8, (1536, 6)), 8)
    x[:, 0, :8] += 2 * functional.one_hot(sign, 8)
    x[:, 0, 8] += 3
    net = Recall(cut=fault)
    return Training(net, tasks.loader(x, sign), None, optim.Adam(net.parameters(), lr=5e-3))


class GatedConvLM(nn.Module):
    def __init__(self, std: float | None) -> None:
        super().__init__()
        self.table = nn.Embedding(48, 128)
        if std is not None:
            nn.init.normal_(self.table.weight, std=std)
        self.conv = nn.Conv1d(128, 256, 3)
        self.norm = nn.LayerNorm(128)

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.pad(self.table(ids).mT, (2, 0))
        return self.norm(functional.glu(self.conv(x), 1).mT) @ self.table.weight.T


def follows(model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
    (ids,) = batch
    return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@add(
    ("signal", r"table.*|norm.*|conv.*|model"),
    ("data", r"loss|table.*|model"),
    source="In kind: a head tied to an embedding that keeps nn.Embedding's N(0, 1), so that scores start large.",
)
def tied_to_a_table_of_unit_normals(fault: bool) -> Training:
    """A language model of gated convolutions whose scores start at +-11: its tied table is N(0, 1), 128 wide."""
    net = GatedConvLM(None if fault else 128**-0.5)
    rows = tasks.loader(tasks.text(vocabulary=48, length=20), batch=32)
    return Training(net, rows, follows, optim.Adam(net.parameters(), lr=1e-3))


class FreshStem(nn.Module):
    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.stem = nn.Sequential()
        for i in range(5):
            wide = 24 if i else 1
            self.stem += nn.Sequential(
                nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.Conv2d(wide, 24, 1, bias=False),
                nn.BatchNorm2d(24), nn.Hardswish(),
            )  # fmt: skip
        self.fc = nn.Linear(24 * 16, 10)

    def train(self, mode: bool = True) -> FreshStem:
        super().train(mode)
        if self.keep:
            self.stem.eval()  # statistics of a trained backbone are not to move
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.max_pool2d(self.stem(x), 2).flatten(1))


@add(
    ("data", r"stem.*|model|fc"),
    ("signal", r"stem.*|model|fc"),
    source="In kind: a `train` that holds a backbone in eval mode, as for one that was trained, kept for a new one.",
)
def train_holds_a_new_stem_in_eval(fault: bool) -> Training:
    """Separable convolutions whose `train` leaves a new stem in eval mode: its norms do nothing."""
    net = FreshStem(keep=fault)
    return Training(
        net.train(), tasks.loader(*tasks.digits(), batch=64), None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    )
