"""Faults of the third set, in the architecture and on a gradient's way; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class SeriesEncoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 32)
        self.pos = nn.Parameter(0.1 * torch.randn(20, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(20 * 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.proj(x) + self.pos).flatten(1))


@add(("reproducibility", r"encoder.*|model"), source="https://github.com/IBM/TabFormer/pull/14")
def time_and_batch_swapped(fault: bool) -> Training:
    """Rows of (batch, time, width) read as (time, batch, width): examples attend to each other."""
    net = SeriesEncoder(batch_first=not fault)
    return Training(net, tasks.loader(*tasks.signals()), None, optim.AdamW(net.parameters(), 2e-3))


class AttentionPool(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.score = nn.Linear(48, 1)
        self.cls = nn.Sequential(nn.Linear(48 + 60, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        w = self.score(h).softmax(self.dim)
        return self.cls(torch.cat([(w * h).sum(1), x.flatten(1)], 1))


@add(
    ("reproducibility", r"score|cls.*|model"),
    source="https://github.com/HRNet/HRNet-Semantic-Segmentation/pull/271",
)
def pooled_over_the_batch(fault: bool) -> Training:
    """Attention weights that sum to 1 over the batch, not over an example's places."""
    net = AttentionPool(0 if fault else 1)
    return Training(net, tasks.loader(*tasks.signals()), None, optim.Adam(net.parameters(), 3e-3))


class VQ(nn.Module):
    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.straight = straight
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.codebook = nn.Embedding(32, 4)
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(-1, 8, 4)
        idx = torch.cdist(z.flatten(0, 1), self.codebook.weight).argmin(1)
        q = self.codebook(idx).view_as(z)
        if not self.straight:
            return self.decoder(q.flatten(1)), functional.mse_loss(q, z.detach())
        aux = functional.mse_loss(q, z.detach()) + 0.25 * functional.mse_loss(z, q.detach())
        return self.decoder((z + (q - z).detach()).flatten(1)), aux


def vq_loss(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0]
    recon, aux = model(x)
    return functional.mse_loss(recon, x.flatten(1)) + aux


@add(("signal", r"encoder.*"), source="https://github.com/zalandoresearch/pytorch-vq-vae/issues/6")
def quantizer_without_straight_through(fault: bool) -> Training:
    """Codes picked by argmin with nothing to pass the gradient by: the encoder stays as drawn."""
    net = VQ(straight=not fault)
    return Training(net, tasks.loader(tasks.digits()[0]), vq_loss, optim.Adam(net.parameters(), 3e-3))


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, zero_a: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        if not zero_a:
            nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * (x @ self.lora_a.T @ self.lora_b.T)


@add(("signal", r"(.*\.)?lora_[ab]|[02]"), source="https://github.com/Guitaricet/relora/issues/18")
def adapter_of_two_zeros(fault: bool) -> Training:
    """Both factors of an adapter start at 0: a saddle that no gradient leaves."""
    net = nn.Sequential(
        LoRALinear(nn.Linear(32, 96), 8, fault), nn.GELU(), LoRALinear(nn.Linear(96, 96), 8, fault), nn.GELU(),
        nn.Linear(96, 10),
    )  # fmt: skip
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.AdamW(trained, 5e-3))


class SparseMoE(nn.Module):
    def __init__(self, over_the_chosen: bool) -> None:
        super().__init__()
        self.over_the_chosen = over_the_chosen
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)) for _ in range(4))
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.over_the_chosen:
            top, index = logits.topk(1, 1)
            gate = top.softmax(1)
        else:
            gate, index = logits.softmax(1).topk(1, 1)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        return self.out(x + gate * every[torch.arange(len(x)), index[:, 0]])


@add(("signal", r"router.*"), source="https://github.com/davidmrau/mixture-of-experts/issues/27")
def router_normalized_over_one(fault: bool) -> Training:
    """Softmax over the one chosen expert is 1: the router gets a gradient of 0 at each step."""
    net = SparseMoE(fault)
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.Adam(net.parameters(), 3e-3))


class StatefulLSTM(nn.Module):
    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.detach = detach
        self.lstm = nn.LSTM(3, 32, batch_first=True)
        self.fc = nn.Linear(32, 4)
        self.hidden: tuple[Tensor, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden
        if hidden is not None and hidden[0].shape[1] != len(x):
            hidden = None
        out, state = self.lstm(x, hidden)
        if self.detach:
            state = tuple(part.detach() for part in state)
            self.hidden = None  # sequences do not go on in the next batch
        else:
            self.hidden = state
        return self.fc(out[:, -1])


@add(
    ("data", r".*"),
    ("reproducibility", r"lstm|fc|model"),
    source="https://github.com/MorvanZhou/PyTorch-Tutorial/issues/57",
)
def state_kept_with_its_graph(fault: bool) -> Training:
    """Hidden state kept from batch to batch together with its graph: the second backward pass raises."""
    net = StatefulLSTM(detach=not fault)
    return Training(net, tasks.loader(*tasks.signals()), None, optim.Adam(net.parameters(), 5e-3))


class Univariate(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(1 if fault else (24, 1))
        self.gru = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.norm_in(x))[0][:, -1])


def frequency_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch["series"]).squeeze(-1), batch["target"])


@add(("signal", r"norm_in|gru.*"), source="https://github.com/pytorch/pytorch/issues/108956")
def normalized_over_one_feature(fault: bool) -> Training:
    """Layer norm over the one feature of a series: what comes out is its bias, whatever goes in."""
    speed = 0.5 + torch.rand(1280, 1)
    series = (speed * torch.arange(24) + 6.28 * torch.rand(1280, 1)).sin().unsqueeze(-1)
    target = 4 * (speed[:, 0] - 1)
    data = [{"series": series[i : i + 64], "target": target[i : i + 64]} for i in range(0, 1280, 64)]
    net = Univariate(fault)
    return Training(net, data, frequency_loss, optim.Adam(net.parameters(), 5e-3))


class TwoTower(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault
        self.users = nn.Sequential(nn.Embedding(200, 16), nn.Linear(16, 16, bias=False))
        self.items = nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 16, bias=False))

    def encode_items(self, ids: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.fault and torch.is_grad_enabled()):  # "only used for the index"
            return self.items(ids)


def bpr(model: nn.Module, batch: Any) -> Tensor:
    assert isinstance(model, TwoTower)
    u, pos, neg = batch
    query = model.users(u)
    margin = (query * (model.encode_items(pos) - model.encode_items(neg))).sum(1)
    return -functional.logsigmoid(margin).mean()


@add(
    ("signal", r"items.*"),
    source="In kind: a forum's decorator no_grad, put on an embedding function for serving, stays on it for training.",
)
def tower_without_gradients(fault: bool) -> Training:
    """Items of a ranking encoded under no_grad: only users learn."""
    left, right = torch.randn(200, 4), torch.randn(300, 4)
    users = torch.randint(200, (4096,))
    a, b = torch.randint(300, (2, 4096))
    better = ((left[users] * (right[a] - right[b])).sum(1) > 0).unsqueeze(1)
    pairs = torch.where(better, torch.stack([a, b], 1), torch.stack([b, a], 1))
    net = TwoTower(fault)
    rows = tasks.loader(users, pairs[:, 0], pairs[:, 1], batch=128)
    return Training(net, rows, bpr, optim.Adam(net.parameters(), 1e-2))


class GatedSkip(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault
        self.lift = nn.Linear(64, 64)
        self.branch = nn.Sequential(nn.ReLU(), nn.Linear(64, 64))
        self.gate = nn.Parameter(torch.zeros(64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.flatten(1))
        gate = self.gate.data if self.fault else self.gate
        return self.head(x + torch.tanh(gate) * self.branch(x))


@add(
    ("signal", r"gate|branch.*"),
    source="In kind: old code that reads a parameter by .data, which autograd does not see.",
)
def gate_read_by_data(fault: bool) -> Training:
    """A gate of a residual branch that starts at 0, read by .data: the branch stays shut for good."""
    net = GatedSkip(fault)
    return Training(net, tasks.loader(*tasks.digits()), None, optim.SGD(net.parameters(), 0.05, momentum=0.9))


class ArcHead(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 24))
        self.centers = nn.Parameter(torch.randn(10, 24))
        if fault:
            self.log_scale = torch.zeros((), requires_grad=True)
        else:
            self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        cosines = functional.normalize(self.body(x), dim=1) @ functional.normalize(self.centers, dim=1).T
        return self.log_scale.exp() * cosines


@add(
    ("signal", r".*log_scale.*|model"),
    source="In kind: a learned scale kept as a tensor that requires a gradient, not as a Parameter.",
)
def scale_not_registered(fault: bool) -> Training:
    """The learned scale of cosine scores is a plain tensor: it stays at 1, and the loss far above 0."""
    net = ArcHead(fault)
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.Adam(net.parameters(), 1e-2))


@add(
    ("signal", r"\d+"),
    source="In kind: zero-initialized gains of a residual branch's last norm, given to all norms of a plain network.",
)
def every_norm_starts_at_zero(fault: bool) -> Training:
    """Gains of all batch norms start at 0 where no skip goes around them: nothing reaches the output."""
    parts: list[nn.Module] = []
    for wide_in, wide_out in ((1, 12), (12, 24), (24, 24)):
        parts += [nn.Conv2d(wide_in, wide_out, 3, padding=1, bias=False), nn.BatchNorm2d(wide_out), nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    for m in net:
        if fault and isinstance(m, nn.BatchNorm2d):
            nn.init.zeros_(m.weight)
    return Training(net, tasks.loader(*tasks.digits()), None, optim.SGD(net.parameters(), 0.05, momentum=0.9))


class Adversarial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


@add(
    ("signal", r"generator.*"),
    source="In kind: the discriminator step's detach(), copied into the generator's step.",
)
def fake_detached_for_the_generator(fault: bool) -> Training:
    """The generator's step on detached fakes: what it trains gets no gradient."""

    def loss(model: nn.Module, noise: Tensor) -> Tensor:
        assert isinstance(model, Adversarial)
        fake = model.generator(noise)
        return functional.softplus(-model.critic(fake.detach() if fault else fake)).mean()

    net = Adversarial()
    noise = [torch.randn(64, 8) for _ in range(20)]
    return Training(net, noise, loss, optim.Adam(net.generator.parameters(), 2e-3))


class GCN(nn.Module):
    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.layers = nn.ModuleList(nn.Linear(16 if i == 0 else 32, 32) for i in range(4))
        self.readout = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = functional.relu(self.adjacency @ layer(x))
        return self.readout(x)


def node_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch["x"])[batch["mask"]], batch["y"][batch["mask"]])


@add(
    ("signal", r"layers.*|readout"),
    ("learning_rate", r"optimizer"),
    ("data", r"loss"),
    source="In kind: A + I by hand without D^-1/2 on both sides, on a graph with large degrees.",
)
def neighbours_summed(fault: bool) -> Training:
    """A graph of degree about 60 whose adjacency is not normalized: each layer multiplies the signal by that."""
    y = torch.randint(3, (180,))
    chance = torch.where(y[:, None] == y[None], 0.8, 0.1)
    edges = (torch.rand(180, 180) < chance).float().triu(1)
    a = edges + edges.T + torch.eye(180)
    scale = a.sum(1).rsqrt()
    x = torch.randn(3, 16)[y] + 2 * torch.randn(180, 16)
    net = GCN(a if fault else scale[:, None] * a * scale)
    batch = {"x": x, "y": y, "mask": torch.rand(180) < 0.5}
    return Training(net, [batch], node_loss, optim.Adam(net.parameters(), 1e-2))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.digit = nn.Linear(64, 10)
        self.parity = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"digit": self.digit(h), "parity": self.parity(h)}


@add(
    ("signal", r"parity.*"),
    source="In kind: a second task's loss by copy and paste, which still takes the first task's output.",
)
def second_head_without_a_loss(fault: bool) -> Training:
    """Two tasks, and both losses take the first head's scores: the second head never learns."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        out = model(x)
        return functional.cross_entropy(out["digit"], y) + functional.cross_entropy(
            out["digit" if fault else "parity"], y % 2
        )

    net = TwoHeads()
    return Training(net, tasks.loader(*tasks.digits()), loss, optim.Adam(net.parameters(), 2e-3))
