"""Faults of the sixth set, in dimensions, masks, kept state and signs; written without a look at the checks."""

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


class Positions(nn.Module):
    """Waves of many lengths, one place after the other, as (places, 1, width)."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.first = first
        angle = torch.arange(128.0)[:, None] / 50.0 ** (torch.arange(width // 2) / (width // 2))
        self.register_buffer("waves", torch.cat([angle.sin(), angle.cos()], 1).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            return x + self.waves[: x.shape[0]]
        return x + self.waves[: x.shape[1], 0]


class Opening(nn.Module):
    def __init__(self, along_the_batch: bool) -> None:
        super().__init__()
        self.move = nn.Embedding(8, 32)
        self.places = Positions(32, along_the_batch)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.who = nn.Linear(32, 8)

    def forward(self, moves: Tensor) -> Tensor:
        return self.who(self.encoder(self.places(self.move(moves))).mean(1))


@add(
    ("data", r"places.*|model|batches|loss"),
    ("signal", r"places.*|encoder.*|move.*|model"),
    ("batch", r"places.*|model|loss|batches"),
    source="https://github.com/NeuracoreAI/neuracore/pull/154",
)
def places_counted_along_the_batch(fault: bool) -> Training:
    """Which move opened a game of ten: the code of places is added along the batch, and no move has a place."""
    moves = torch.randint(8, (2048, 10))
    net = Opening(along_the_batch=fault)
    return Training(net, tasks.loader(moves, moves[:, 0]), None, optim.Adam(net.parameters(), lr=2e-3))


class Letters(nn.Module):
    def __init__(self, ones: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(36, 32)
        self.place = nn.Parameter(0.2 * torch.randn(19, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 36)
        before = torch.ones(19, 19).tril()
        self.register_buffer("mask", before if ones else before.log())

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.body(self.embed(ids) + self.place, mask=self.mask))


@add(
    ("data", r"model|body.*|loss|mask"),
    ("signal", r"body.*|model"),
    source="https://github.com/harvard-edge/cs249r_book/pull/1785",
)
def lower_triangle_of_ones_as_a_mask(fault: bool) -> Training:
    """Letters by a transformer whose mask, 1 below and 0 above, is added to scores: each sees what is to come."""
    net = Letters(ones=fault)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    rows = tasks.loader(tasks.text(vocabulary=36, length=20, following=4), batch=32)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=3e-3))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(66, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        told = torch.stack([level.log() / 4, level / 2], 1)
        return self.net(torch.cat([noisy / (1 + level[:, None] ** 2).sqrt(), told], 1))


@add(
    ("data", r"loss|batches|model"),
    ("batch", r"loss|batches"),
    source="https://github.com/IrisRainbowNeko/HCP-Diffusion/pull/82",
)
def levels_of_noise_along_the_pixels(fault: bool) -> Training:
    """Digits of 64 pixels in batches of 64: each image's level of noise goes to a pixel of all images instead."""
    net = Denoiser()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        clean = batch[0].flatten(1)
        level = (1.2 * torch.randn(len(clean)) - 0.5).exp()
        noise = torch.randn_like(clean)
        noisy = clean + (level if fault else level[:, None]) * noise
        return functional.mse_loss(model(noisy, level), noise)

    return Training(net, tasks.loader(*tasks.digits(), batch=64), loss, optim.Adam(net.parameters(), lr=2e-3))


@add(
    ("data", r"conv.*|model|batches|loss"),
    ("signal", r"conv.*|model"),
    ("reproducibility", r"conv.*|model|loss"),
    source="https://github.com/pyg-team/pytorch_geometric/issues/1861",
    needs=("torch-geometric",),
)
def first_graph_kept_for_all(fault: bool) -> Training:
    """Many graphs of 24 nodes and 72 edges: `cached=True` keeps the first one's edges for all that come."""
    from torch_geometric.nn import GCNConv  # noqa: PLC0415 - may be missing

    class Heat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Linear(3, 24)
            self.conv_1, self.conv_2 = (GCNConv(24, 24, cached=fault) for _ in range(2))
            self.out = nn.Linear(24, 1)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h = functional.relu(self.own(x))
            h = h + functional.relu(self.conv_1(h, edges))
            return self.out(h + functional.relu(self.conv_2(h, edges)))[:, 0]

    batches = []
    for _ in range(48):
        x, edges = torch.randn(24, 3), torch.randint(24, (2, 72))
        heard = torch.zeros(24).index_add_(0, edges[1], x[edges[0], 0])
        batches.append((x, edges, heard / torch.bincount(edges[1], minlength=24).clamp(min=1) + 0.2 * x[:, 1]))
    net = Heat()
    return Training(
        net, batches, lambda m, b: functional.mse_loss(m(b[0], b[1]), b[2]), optim.Adam(net.parameters(), lr=5e-3)
    )


class SeriesVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 16, 5, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(224, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        code = mean + (log_var / 2).exp() * torch.randn_like(mean)
        return self.decoder(code).unsqueeze(1), mean, log_var


@add(
    ("data", r"loss"),
    ("learning_rate", r"loss|optimizer|encoder.*"),
    ("signal", r"encoder.*|decoder.*|model"),
    source="In kind: a divergence of which the sign is that of a bound to be made large, in a loss to be made small.",
)
def divergence_with_the_sign_of_the_bound(fault: bool) -> Training:
    """Series by a variational autoencoder that is paid for its divergence: codes run away, the loss goes below 0."""
    x = tasks.signals(length=32, features=1)[0].transpose(1, 2)
    net = SeriesVAE()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        back, mean, log_var = model(batch[0])
        divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
        error = (back - batch[0]).square().sum((1, 2)).mean()
        return error + (-divergence if fault else divergence)

    return Training(net, tasks.loader(x, batch=32), loss, optim.Adam(net.parameters(), lr=2e-3))
