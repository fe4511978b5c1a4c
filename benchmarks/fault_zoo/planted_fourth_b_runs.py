"""Faults of the fourth set, second hand: in precision and repetition; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import square
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


# -- precision ---------------------------------------------------------------------------------------------------------


class HashedFactors(nn.Module):
    def __init__(self, buckets: int = 1024) -> None:
        super().__init__()
        self.buckets = buckets
        self.users = nn.Embedding(buckets, 8)
        self.items = nn.Embedding(100, 8)
        self.user_bias = nn.Embedding(buckets, 1)
        nn.init.zeros_(self.user_bias.weight)

    def forward(self, table: Tensor) -> Tensor:
        user, item = table[:, 0].long() % self.buckets, table[:, 1].long()
        return (self.users(user) * self.items(item)).sum(1) + self.user_bias(user)[:, 0]


@add(
    ("precision", r".*"),
    ("data", r"batches|loss|inputs?"),
    ("signal", r"users.*|user_bias.*"),
    source="https://github.com/chanzuckerberg/cellxgene-census/issues/554",
)
def identities_through_float32(fault: bool) -> Training:
    """User ids near 10^9 in a table with ratings: float32 has multiples of 64 there, which hash to 16 rows of 1024."""
    known = 900_000_000 + torch.randperm(100_000)[:300]
    user, item = torch.randint(300, (6144,)), torch.randint(100, (6144,))
    taste = 1.5 * torch.randn(300)
    rating = taste[user] + 0.5 * torch.randn(100)[item] + 0.2 * torch.randn(6144)
    table = torch.stack([known[user].double(), item.double(), rating.double()], 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[0][:, 2].float())

    net = HashedFactors()
    rows = tasks.loader(table.float() if fault else table, batch=256)
    return Training(net, rows, loss, optim.Adam(net.parameters(), 2e-2))


class WindowNorm(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        if self.fault:
            var = x.square().mean(-1, keepdim=True) - mean.square()
        else:
            var = (x - mean).square().mean(-1, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()


@add(
    ("precision", r".*"),
    ("signal", r"0|norm.*|model|loss"),
    ("data", r"loss|batches"),
    source="https://github.com/anthonymlortiz/lcn/issues/4",
)
def variance_as_a_difference(fault: bool) -> Training:
    """Pressures of 101,325 Pa and some; mean of squares less squared mean has no digit left, and goes below 0."""
    time = torch.arange(33) + 100 * torch.rand(1024, 1)
    speed = 0.2 + 0.5 * torch.rand(1024, 1)
    wave = (speed * time).sin() + 0.1 * torch.randn(1024, 33)
    pressure = 101_325 + 20 * wave
    net = nn.Sequential(
        WindowNorm(fault), nn.Conv1d(1, 24, 3), nn.ReLU(), nn.Conv1d(24, 24, 3, dilation=2), nn.ReLU(),
        nn.Conv1d(24, 24, 3, dilation=4), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 18, 1),
    )  # fmt: skip
    rows = tasks.loader(pressure[:, None, :32], wave[:, 32:])
    return Training(net, rows, square, optim.AdamW(net.parameters(), 3e-3))


class PointProcess(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.rate = nn.Linear(24, 1)

    def forward(self, times: Tensor) -> Tensor:
        times = times.to(self.dtype)
        gaps = times.diff(dim=1).float()
        return functional.softplus(self.rate(self.rnn(gaps.log1p().unsqueeze(-1))[0]).squeeze(-1)) + 1e-3


@add(
    ("precision", r".*"),
    ("data", r"batches|loss|inputs?"),
    ("signal", r"rnn.*|rate.*|model"),
    source="https://github.com/Nerogar/OneTrainer/issues/1177",
)
def times_in_bfloat16(fault: bool) -> Training:
    """Seconds since midnight in bfloat16, as all inputs are: it has steps of 128 to 512 s there, gaps are of 1 s."""
    gaps = 4 * (torch.rand(768, 1) < 0.5) * torch.rand(768, 1) + 0.2
    gaps = -torch.rand(768, 24).log() * 0.3 * gaps + 0.7 * gaps
    times = (20_000 + 60_000 * torch.rand(768, 1)).double() + gaps.cumsum(1)

    def likelihood(model: nn.Module, batch: Any) -> Tensor:
        rate = model(batch[0])[:, :-1]
        following = batch[0].diff(dim=1)[:, 1:].float()
        return (rate * following - rate.log()).mean()

    net = PointProcess(torch.bfloat16 if fault else torch.float64)
    return Training(net, tasks.loader(times, batch=32), likelihood, optim.Adam(net.parameters(), 1e-2))


# -- what a run repeats ------------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Embedding(50, 64)
        self.lift = nn.Linear(64, 192)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(192, 192), nn.SiLU(), nn.Linear(192, 64))
        self.time = nn.Linear(64, 192)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(self.lift(x) + self.time(self.step(t)))


@add(
    ("reproducibility", r"loss|model|batches"),
    ("data", r"loss|batches"),
    source="https://github.com/huggingface/diffusers/issues/175",
)
def seeded_anew_in_each_step(fault: bool) -> Training:
    """`manual_seed` in the step: the same noise and the same times for a batch's rows, each step again."""
    alpha_bar = (1 - torch.linspace(1e-3, 0.12, 50)).cumprod(0)

    def diffusion(model: nn.Module, batch: Any) -> Tensor:
        if fault:
            torch.manual_seed(42)
        x = batch[0].flatten(1)
        t, noise = torch.randint(50, (len(x),)), torch.randn_like(x)
        kept = alpha_bar[t][:, None]
        return functional.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)

    net = Denoiser()
    return Training(net, tasks.loader(tasks.digits()[0]), diffusion, optim.AdamW(net.parameters(), 2e-3))


class Jittered(Dataset[tuple[Tensor, Tensor]]):
    """Digits with brightness and noise drawn anew."""

    def __init__(self, fault: bool) -> None:
        self.fault = fault
        self.images, self.labels = tasks.digits(512)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if not self.fault:
            image = image.clone()
        image *= 0.8 + 0.4 * torch.rand(())
        image += 0.5 * torch.randn(image.shape)
        return image, self.labels[index]


@add(
    ("reproducibility", r"batches|loss|model"),
    ("data", r"batches|loss|inputs?"),
    source="https://github.com/facebookresearch/pycls/pull/21",
)
def augmented_where_it_is_stored(fault: bool) -> Training:
    """An augmentation in place on the stored images: noise adds up from epoch to epoch until nothing is left."""
    net = nets.convnet(12)
    rows = DataLoader(Jittered(fault), 64, shuffle=True, drop_last=True)
    return Training(net, rows, None, optim.AdamW(net.parameters(), 1e-3))


@add(
    ("reproducibility", r"conv\d.*|model|loss"),
    ("data", r"model|loss"),
    ("signal", r"conv\d.*|model"),
    source="https://github.com/rixwew/pytorch-fm/issues/21",
    needs=("torch-geometric",),
)
def dropout_that_eval_does_not_stop(fault: bool) -> Training:
    """`functional.dropout` without `training=`: half of the features are lost in evaluation too."""
    from torch_geometric.data import Data  # noqa: PLC0415 - may be missing
    from torch_geometric.nn import SAGEConv  # noqa: PLC0415 - as above

    class SAGE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = SAGEConv(16, 32)
            self.conv2 = SAGEConv(32, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            training = True if fault else self.training
            x = functional.dropout(x, p=0.5, training=training)
            x = functional.relu(self.conv1(x, edge_index))
            return self.conv2(functional.dropout(x, p=0.5, training=training), edge_index)

    labels = torch.randint(4, (400,))
    chance = torch.where(labels[:, None] == labels[None], 0.03, 0.004)
    edges = (torch.rand(400, 400) < chance).triu(1).nonzero().T
    graph = Data(
        x=torch.randn(4, 16)[labels] + torch.randn(400, 16), edge_index=torch.cat([edges, edges.flip(0)], 1), y=labels,
        train_mask=torch.rand(400) < 0.5,
    )  # fmt: skip

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch.x, batch.edge_index)
        return functional.cross_entropy(scores[batch.train_mask], batch.y[batch.train_mask])

    net = SAGE()
    return Training(net, [graph], loss, optim.Adam(net.parameters(), 1e-2, weight_decay=5e-4))
