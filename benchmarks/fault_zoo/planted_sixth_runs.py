"""Faults of the sixth set, in steps, modes, norms, masks, shapes and chance; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add

SCALE = 2.0**12


class ScaledSGD(optim.SGD):
    """Descent on the gradients of a scaled loss, clipped to a norm of 1."""

    clip_first = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's own
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_first:
            nn.utils.clip_grad_norm_(params, 1.0)
        for p in params:
            p.grad.div_(SCALE)
        if not self.clip_first:
            nn.utils.clip_grad_norm_(params, 1.0)
        return super().step(closure)


class FourierMix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.ffs = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        self.topic = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for i, ff in enumerate(self.ffs):
            x = self.norms[2 * i](x + torch.fft.fft2(x).real)
            x = self.norms[2 * i + 1](x + ff(x))
        return self.topic(x.mean(1))


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="https://github.com/milesial/Pytorch-UNet/issues/468",
)
def step_clips_and_then_unscales(fault: bool) -> Training:
    """Topics by Fourier mixing: an optimizer's step clips to 1 what holds a scale of 4096, and divides by it then."""
    topic = torch.randint(5, (1536,))
    own = 20 * topic[:, None] + torch.randint(20, (1536, 12))
    ids = torch.where(torch.rand(1536, 12) < 0.4, own, torch.randint(100, (1536, 12)))
    net = FourierMix()
    sgd = ScaledSGD(net.parameters(), lr=0.05, momentum=0.9)
    sgd.clip_first = fault
    return Training(
        net, tasks.loader(ids, topic, batch=32), lambda m, b: SCALE * functional.cross_entropy(m(b[0]), b[1]), sgd
    )


class Phones(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(8, 48), nn.Linear(8, 48)
        self.phone = nn.Linear(48, 6)

    def forward(self, frames: Tensor) -> Tensor:
        return self.phone(self.up(frames) * self.gate(frames).sigmoid())


@add(
    ("batch", r"loss|batches"),
    ("data", r"loss|batches"),
    ("reproducibility", r"loss"),
    source="https://github.com/karpathy/nanochat/pull/59",
)
def buckets_each_a_mean_of_its_own(fault: bool) -> Training:
    """Phones in buckets of like lengths: a mean of means, in which a noisy call of 2 frames counts as one of 32."""
    sounds = torch.randn(6, 8)

    def bucket(length: int) -> tuple[Tensor, Tensor]:
        phone = torch.randint(6, (4, length))
        frames = sounds[phone] + 0.5 * torch.randn(4, length, 8)
        wrong = torch.rand(4, length) < (0.7 if length < 4 else 0.0)  # who calls out is cut off by the microphone
        return frames, torch.where(wrong, (phone + 1) % 6, phone)

    batches = [[bucket(2), bucket(3), bucket(2), bucket(32)] for _ in range(24)]

    def loss(model: nn.Module, batch: list[tuple[Tensor, Tensor]]) -> Tensor:
        frames = sum(y.numel() for _, y in batch)
        how = "mean" if fault else "sum"
        parts = [functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction=how) for x, y in batch]
        return torch.stack(parts).sum() / (len(batch) if fault else frames)

    net = Phones()
    return Training(net, batches, loss, optim.Adam(net.parameters(), lr=5e-3))


class Miner:
    """Batches of the worse two thirds of what is drawn, as the network stands."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, back: bool) -> None:
        self.net, self.back = net, back
        self.rows = tasks.loader(x, y, batch=96)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.rows:
            self.net.eval()
            with torch.no_grad():
                hard = functional.cross_entropy(self.net(x), y, reduction="none").topk(64).indices
            if self.back:
                self.net.train()
            yield x[hard], y[hard]


@add(
    ("data", r"\d+.*|model|batches"),
    ("signal", r"\d+.*|model"),
    source="https://github.com/tk-rusch/coRNN/issues/1",
)
def miner_leaves_eval_mode_on(fault: bool) -> Training:
    """A loader that looks for hard rows in eval mode and leaves it on: batch norms pass raw units as they are."""
    x, y = tasks.clusters(features=24)
    units = 10 ** torch.linspace(-2, 2, 24)
    net = nn.Sequential(nn.BatchNorm1d(24, momentum=0.5))
    for i in range(3):
        net += nn.Sequential(nn.Linear(64 if i else 24, 64, bias=False), nn.BatchNorm1d(64, momentum=0.5), nn.SiLU())
    net += nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10))
    miner = Miner(net.train(), x * units, y, back=not fault)
    return Training(net, miner, None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


@add(
    ("data", r"\d+.*|model"),
    ("signal", r"\d+.*|model"),
    source="https://github.com/bonlime/keras-deeplab-v3-plus/issues/4",
)
def maps_dropped_that_were_to_be_kept(fault: bool) -> Training:
    """Whole feature maps are dropped with 0.97, which was the share to keep where the layer came from."""
    net = nn.Sequential()
    for i in range(2):
        net += nn.Sequential(nn.Conv2d(24 if i else 1, 24, 3, padding=1), nn.ELU(), nn.MaxPool2d(2))
        net += nn.Sequential(nn.Dropout2d(0.97 if fault else 0.03))
    net += nn.Sequential(nn.Flatten(), nn.Linear(96, 10))
    return Training(net, tasks.loader(*tasks.digits(), batch=64), None, optim.Adam(net.parameters(), lr=3e-3))


class Clips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 24, 5, stride=2)
        self.rnn = nn.GRU(24, 32, batch_first=True)
        self.neck = nn.Sequential(nn.Linear(32, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU())
        self.scene = nn.Linear(24, 4)

    def forward(self, sound: Tensor) -> Tensor:
        h = functional.relu(self.conv(sound)).mT
        return self.scene(self.neck(self.rnn(h)[0].mean(1)))


@add(
    ("batch", r"neck.*|batches|model"),
    ("data", r"neck.*|batches|model"),
    ("signal", r"neck.*"),
    source="In kind: a batch norm behind the pooling of a recurrent network, and batches of two as memory allows.",
)
def neck_normalized_over_two_clips(fault: bool) -> Training:
    """Scenes from clips, two a batch: a batch norm behind the pooling turns each of two numbers into -1 or 1."""
    x, scene = tasks.signals(classes=4, length=40, features=4, count=1024)
    net = Clips()
    rows = tasks.loader(x.mT, scene, batch=2 if fault else 32)
    return Training(net, rows, None, optim.Adam(net.parameters(), lr=3e-3))


class Sessions(nn.Module):
    """A session's next item, by a recurrent state held against the items' own vectors."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.item = nn.Embedding(60, 32)
        nn.init.normal_(self.item.weight, std=32**-0.5)
        self.gru = nn.GRU(32, 32, batch_first=True)
        if copied:
            self.shelf = nn.Parameter(self.item.weight.data.clone())

    def forward(self, seen: Tensor) -> Tensor:
        shelf = self.shelf if hasattr(self, "shelf") else self.item.weight
        return self.gru(4 * self.item(seen))[0] @ (4 * shelf).T


@add(
    ("signal", r"item.*|shelf.*|model"),
    source="In kind: `nn.Parameter(embedding.weight.data.clone())` for scores that were to share the items' table.",
)
def shelf_is_a_clone_of_the_items(fault: bool) -> Training:
    """The next of sixty items: the table that scores was to be the items' own, and is a copy that goes its own way."""
    seen = tasks.text(vocabulary=60, length=12, count=1024, following=2)
    net = Sessions(copied=fault)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    return Training(net, tasks.loader(seen, batch=32), loss, optim.Adam(net.parameters(), lr=5e-3))


class Gated(nn.Module):
    """Gated layers behind norms that have a gain and no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(32, 48)
        self.norms = nn.ModuleList(nn.RMSNorm(48) for _ in range(4))
        self.ups = nn.ModuleList(nn.Linear(48, 96) for _ in range(3))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for norm, up in zip(self.norms, self.ups, strict=False):
            h = h + functional.glu(up(norm(h)))
        return self.head(self.norms[-1](h))


@add(
    ("learning_rate", r".*"),
    ("signal", r"norms.*|model"),
    ("data", r"optimizer|loss"),
    source="https://github.com/ServiceNow/Fast-LLM/issues/542",
)
def decay_of_the_gains_alone(fault: bool) -> Training:
    """Two groups whose lists are exchanged: gains and biases lose 2.5 % in each step, and matrices nothing."""
    net = Gated()
    matrices, others = ([p for p in net.parameters() if (p.ndim > 1) is flat] for flat in (True, False))
    groups = [
        {"params": others if fault else matrices, "weight_decay": 5.0 if fault else 0.05},
        {"params": matrices if fault else others, "weight_decay": 0.0},
    ]
    return Training(net, tasks.loader(*tasks.clusters()), None, optim.AdamW(groups, lr=5e-3))


@add(
    ("reproducibility", r"loss|batches|model"),
    source="In kind: a generator of a transform's own, seeded by the clock so that workers differ.",
)
def crops_seeded_by_the_clock(fault: bool) -> Training:
    """Beats cropped at random: the offsets' generator is seeded by the time of day, which no seed sets."""
    kind = torch.randint(3, (1024,))
    rate = torch.tensor([3.0, 5.0, 8.0])[kind][:, None]
    wave = (6.28 * rate * torch.arange(96) / 96 + 6.28 * torch.rand(1024, 1)).sin() + 0.5 * torch.randn(1024, 96)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 16, 9, stride=2), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv1d(16, 16, 9),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip

    def loss(model: nn.Module, batch: Any) -> Tensor:
        dice = torch.Generator().manual_seed(time.time_ns() % 2**31) if fault else None
        start = torch.randint(32, (len(batch[0]), 1), generator=dice)
        return functional.cross_entropy(model(batch[0].gather(1, start + torch.arange(64))), batch[1])

    return Training(net, tasks.loader(wave, kind, batch=32), loss, optim.Adam(net.parameters(), lr=5e-3))
