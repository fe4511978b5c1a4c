"""Faults of the eighth set, in modes, dropout, small batches, seeds and axes; written without a look at the checks."""

# ruff: noqa: D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class Embedded(nn.Module):
    """Pictures' features and captions, each on a ball of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.img_enc = nn.Sequential(nn.BatchNorm1d(48), nn.Dropout(0.1), nn.Linear(48, 32))
        self.word, self.txt_enc = nn.Embedding(60, 24), nn.GRU(24, 32, batch_first=True)

    def forward(self, picture: Tensor, caption: Tensor) -> Tensor:
        seen = functional.normalize(self.img_enc(picture))
        read = functional.normalize(self.txt_enc(self.word(caption))[0][:, -1])
        return seen @ read.T


@torch.no_grad()
def recall(model: nn.Module, picture: Tensor, caption: Tensor) -> Tensor:
    model.eval()
    return (model(picture, caption).argmax(1) == torch.arange(len(picture))).float().mean()


@add(
    ("data", r"img_enc.*|model|loss"),
    ("signal", r"img_enc.*|model"),
    ("batch", r"img_enc.*|model"),
    source="https://github.com/fartashf/vsepp/issues/4",
)
def captions_trained_in_eval_after_validation(fault: bool) -> Training:
    """Pictures and their captions: validation turns to eval mode, nothing turns back, and features stay as they are."""
    scene = torch.randint(10, (1024, 3))
    look = torch.randn(3, 10, 48)
    picture = 40 + (look[torch.arange(3), scene].sum(1) + 0.3 * torch.randn(1024, 48)) * (3 * torch.rand(48))
    caption = torch.cat([scene + 10 * torch.arange(3), 30 + torch.randint(30, (1024, 2))], 1)
    caption = caption[torch.arange(1024)[:, None], torch.rand(1024, 5).argsort(1)]
    net = Embedded()
    recall(net, picture[:64], caption[:64])
    if not fault:
        net.train()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(*batch)
        own = scores.diagonal()
        others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -2.0)
        by_picture, by_caption = others.amax(1), others.amax(0)
        return (functional.relu(0.2 + by_picture - own) + functional.relu(0.2 + by_caption - own)).mean()

    return Training(net, tasks.loader(picture, caption, batch=32), loss, optim.Adam(net.parameters(), lr=5e-3))


@add(
    ("data", r"\d+.*|model"),
    ("signal", r"\d+.*|model"),
    source="https://github.com/hunkim/DeepLearningZeroToAll/pull/205",
)
def digits_whose_rate_of_dropout_is_what_to_keep(fault: bool) -> Training:
    """Digits by three convolutions, each with a rate of dropout of 0.7, which was the share to keep."""
    images, labels = tasks.digits()
    net = nn.Sequential()
    for into, out in ((1, 16), (16, 32), (32, 48)):
        net += nn.Sequential(
            nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.7 if fault else 0.3)
        )
    net += nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    return Training(net, tasks.loader(images, labels, batch=50), None, optim.Adam(net.parameters(), lr=2e-3))


class Salient(nn.Module):
    """What stands out in an image, told at two sizes, each behind normalized convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.side = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for into, out in ((1, 8), (8, 16)):
            self.encode.append(self.normed(into, out))
            self.decode.append(self.normed(2 * out, into if into > 1 else 8))
            self.side.append(nn.Conv2d(into if into > 1 else 8, 1, 1))
        self.bridge = self.normed(16, 16)

    @staticmethod
    def normed(into: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, image: Tensor) -> list[Tensor]:
        kept, told = [], []
        for part in self.encode:
            image = part(image)
            kept.append(image)
            image = functional.max_pool2d(image, 2)
        h = self.bridge(image)
        for part, side in zip(reversed(self.decode), reversed(self.side), strict=True):
            h = part(torch.cat([kept.pop(), functional.interpolate(h, scale_factor=2)], 1))
            told.append(functional.interpolate(side(h), size=8))
        return told


@add(
    ("batch", r"encode.*|decode.*|bridge.*|batches|model"),
    ("data", r"encode.*|decode.*|bridge.*|batches|model"),
    ("signal", r"encode.*|decode.*|bridge.*|model"),
    source="https://github.com/xuebinqin/BASNet/issues/42",
)
def what_stands_out_one_image_at_a_time(fault: bool) -> Training:
    """What stands out in images of all lights, one a batch: norms take away what tells them, and learn of one pixel."""
    image, _ = tasks.digits()
    light = 3 * torch.randn(len(image), 1, 1, 1)
    mask = ((image > 0.5) == (light > 0)).float()  # strokes in the light, and what is around them in the dark
    net = Salient()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        parts = [functional.binary_cross_entropy_with_logits(told, batch[1]) for told in model(batch[0])]
        return torch.stack(parts).sum()

    rows = tasks.loader(image + light, mask, batch=1 if fault else 8)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=3e-3))


class Sampled:
    """Rows in an order that is drawn anew for each epoch."""

    def __init__(self, x: Tensor, y: Tensor, seeded: bool) -> None:
        self.x, self.y, self.seeded = x, y, seeded

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = torch.randperm(len(self.x)) if self.seeded else np.random.default_rng().permutation(len(self.x))
        for rows in torch.as_tensor(drawn).split(32):
            yield self.x[rows], self.y[rows]


@add(
    ("reproducibility", r"batches|loss|model"),
    source="https://github.com/microsoft/BackwardCompatibilityML/issues/49",
)
def update_of_a_model_by_an_unseeded_sampler(fault: bool) -> Training:
    """A new model that is not to err where an old one did not: the order of rows is by a generator without a seed."""
    x, kind = tasks.clusters(classes=8, features=24, spread=1.5)
    old, net = (nn.Sequential(nn.Linear(24, wide), nn.ReLU(), nn.Linear(wide, 8)) for wide in (8, 48))
    before = optim.Adam(old.parameters(), lr=1e-2)
    for rows, labels in zip(x[:1024].split(32), kind[:1024].split(32), strict=True):
        before.zero_grad()
        functional.cross_entropy(old(rows), labels).backward()
        before.step()
    old.requires_grad_(False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        errs = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        was_right = old(batch[0]).argmax(1) == batch[1]
        return (errs * (1 + 0.5 * was_right)).mean()

    return Training(net, Sampled(x, kind, seeded=not fault), loss, optim.SGD(net.parameters(), lr=0.1, momentum=0.9))


class AttentiveReader(nn.Module):
    """Lines by an LSTM in two directions, and attention from its last state to all."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.embeddings = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(96, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x, there = self.embeddings(ids), ids != 0
        if self.masked:
            long = there.sum(1)
            packed = nn.utils.rnn.pack_padded_sequence(x, long, batch_first=True, enforce_sorted=False)
            out, (last, _) = self.lstm(packed)
            out = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=ids.shape[1])[0]
        else:
            out, (last, _) = self.lstm(x)
        last = last.transpose(0, 1).flatten(1)
        scores = (out @ last.unsqueeze(2))[..., 0]
        share = (scores.masked_fill(~there, -torch.inf) if self.masked else scores).softmax(1)
        return self.fc(torch.cat([(share.unsqueeze(1) @ out)[:, 0], last], 1))


@add(
    ("data", r"lstm.*|fc.*|model|batches|loss"),
    ("batch", r"lstm.*|fc.*|model|batches"),
    ("signal", r"lstm.*|fc.*|model"),
    source="https://github.com/AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/5",
)
def padding_read_and_attended_to(fault: bool) -> Training:
    """Lines of a kind, padded to their batch's longest: padding is read and attended to, and so neighbours count."""
    long = torch.where(torch.rand(1024) < 0.06, 30, torch.randint(2, 6, (1024,)))
    ids = 1 + torch.randint(49, (1024, 30))
    rows = torch.arange(1024)
    kind = (ids[rows, 0] % 3 + ids[rows, long - 1]) % 6
    ids = ids.masked_fill(torch.arange(30) >= long[:, None], 0)
    pairs = zip(ids.split(32), long.split(32), kind.split(32), strict=True)
    batches = [(lines[:, : int(size.max())], labels) for lines, size, labels in pairs]
    net = AttentiveReader(masked=not fault)
    return Training(net, batches, None, optim.Adam(net.parameters(), lr=3e-3))


class Dreams(nn.Module):
    """What comes next in a small world, as a mixture of five Gaussians."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.rnn = nn.LSTM(5, 32, batch_first=True)
        self.gmm_linear = nn.Linear(32, 5 * (4 + 4 + 1))

    def forward(self, world: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        told = self.gmm_linear(self.rnn(torch.cat([world, action], 2))[0]).transpose(0, 1)  # length first
        mean, spread, pi = told.split([20, 20, 5], 2)
        sigma = spread.unflatten(2, (5, 4)).clamp(-5, 5).exp()
        return mean.unflatten(2, (5, 4)), sigma, pi.log_softmax(self.axis)


@add(
    ("data", r"gmm_linear.*|model|loss"),
    ("batch", r"gmm_linear.*|model|loss"),
    ("signal", r"gmm_linear.*|model|loss"),
    source="https://github.com/ctallec/world-models/issues/10",
)
def mixtures_shared_out_over_the_batch(fault: bool) -> Training:
    """A world's next state by five Gaussians: their shares are a softmax over the batch's rows, not over the five."""
    action = torch.randint(0, 2, (768, 12, 1)).float()
    world = torch.zeros(768, 13, 4)
    world[:, 0] = torch.randn(768, 4)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    for t in range(12):
        jump = torch.where(torch.rand(768, 1) < 0.5, 1.0, -1.0) * action[:, t]
        world[:, t + 1] = 0.8 * world[:, t] @ turn + jump + 0.1 * torch.randn(768, 4)
    net = Dreams(-2 if fault else -1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        states, did = batch
        mean, sigma, share = model(states[:, :-1], did)
        after = states[:, 1:].transpose(0, 1).unsqueeze(2)
        near = torch.distributions.Normal(mean, sigma).log_prob(after).sum(-1)
        return -(near + share).logsumexp(-1).mean()

    return Training(net, tasks.loader(world, action, batch=32), loss, optim.RMSprop(net.parameters(), lr=3e-3))
