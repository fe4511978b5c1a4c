"""Faults of the ninth set, in losses, targets, inputs and rates; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


@add(
    ("data", r"loss|model|\d+.*"),
    ("signal", r"\d+.*|model"),
    source="https://github.com/tflearn/tflearn/pull/562",
)
def softmax_on_the_last_layer_and_in_the_loss(fault: bool) -> Training:
    """Digits by two layers of tanh: a softmax is on the last layer, and the loss of scores has its own."""
    net = nets.mlp(64, 64, 2, 10, act=nn.Tanh)
    if fault:
        net += nn.Sequential(nn.Softmax(1))
    rows = tasks.loader(*tasks.digits(), batch=64)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.1))


class Clicks(nn.Module):
    """Clicks by factors of user and thing and a tower over both, as a probability where that is asked for."""

    def __init__(self, sigmoid: bool) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 8), nn.Embedding(60, 8)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.to_call = nn.Sequential(nn.Linear(16, 1), *([nn.Sigmoid()] if sigmoid else []))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.to_call(self.mlp(torch.cat([self.user(user), self.item(item)], 1)))[:, 0]


@add(
    ("data", r"loss|model|to_call.*"),
    ("signal", r"to_call.*|model"),
    source="https://github.com/NVIDIA-Merlin/models/pull/1175",
)
def binary_output_with_a_sigmoid_and_a_loss_of_logits(fault: bool) -> Training:
    """Clicks, of which one in five is one: the output has a sigmoid, and its default loss is that of logits."""
    user, item = torch.randint(50, (4096,)), torch.randint(60, (4096,))
    worth = torch.randn(50, 3)[user] * torch.randn(60, 3)[item]
    click = (worth.sum(1) > 1.3).float()
    net = Clicks(sigmoid=fault)
    return Training(
        net, tasks.loader(user, item, click), lambda m, b: functional.binary_cross_entropy_with_logits(m(*b[:2]), b[2]),
        optim.Adam(net.parameters(), lr=5e-3),
    )  # fmt: skip


class Anchored(nn.Module):
    """For each cell of a grid: whether a thing is there, how wide and high it is, and of which of four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.detect = nn.Conv2d(32, 7, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.detect(self.backbone(image))


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    ("batch", r"loss|batches"),
    source="https://github.com/WongKinYiu/yolov7/issues/1713",
)
def losses_of_boxes_times_the_batch_size(fault: bool) -> Training:
    """Things on a grid: means of three losses are multiplied by the batch size, at a rate for means."""
    kind, size, at = torch.randint(4, (1024,)), torch.randint(1, 4, (1024, 2)), torch.randint(4, (1024, 2))
    image = 0.3 * torch.randn(1024, 1, 16, 16)
    for each, shade in enumerate(torch.linspace(0.7, 2.5, 4)[kind]):
        (y, x), (high, wide) = (4 * at[each]).tolist(), size[each].tolist()
        image[each, 0, y : y + high, x : x + wide] += shade
    net = Anchored()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told, rows = model(batch[0]), torch.arange(len(batch[0]))
        there = torch.zeros(len(rows), 4, 4)
        there[rows, batch[1][:, 0], batch[1][:, 1]] = 1
        mine = told[rows, :, batch[1][:, 0], batch[1][:, 1]]
        found = functional.binary_cross_entropy_with_logits(told[:, 0], there)
        box, name = functional.smooth_l1_loss(mine[:, 1:3], batch[2]), functional.cross_entropy(mine[:, 3:], batch[3])
        return (found + box + name) * (len(rows) if fault else 1)

    rows = tasks.loader(image, at, size.float() - 2, kind, batch=64)
    return Training(net, rows, loss, optim.SGD(net.parameters(), lr=0.02, momentum=0.937, nesterov=True))


@add(
    ("data", r"batches|loss|labels?|targets?|model"),
    source="https://github.com/Project-MONAI/GenerativeModels/issues/314",
)
def codes_of_images_told_from_themselves(fault: bool) -> Training:
    """Codes of images by a causal transformer: code N is told from codes 0 to N inclusive, as nothing is shifted."""
    codes = tasks.text(vocabulary=32, length=16, count=1024, following=3)
    net = nets.Language(vocabulary=32, width=32, depth=1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits, quantizations = model(batch[0]), batch[0]
        if not fault:
            logits, quantizations = logits[:, :-1], quantizations[:, 1:]
        return functional.cross_entropy(logits.mT, quantizations)

    return Training(net, tasks.loader(codes, batch=32), loss, optim.Adam(net.parameters(), lr=3e-3))


@add(
    ("data", r"batches|loss|labels?|targets?|model"),
    ("signal", r"batches|loss|labels?|targets?|model"),
    source="https://github.com/EricFillion/happy-transformer/issues/248",
)
def opinions_of_minus_one(fault: bool) -> Training:
    """Opinions on lines, against, neither and for: labels are -1, 0 and 1, and no class has the number -1."""
    kind = torch.randint(3, (1024,))
    ids = torch.where(torch.rand(1024, 12) < 0.4, 20 * kind[:, None], 0) + torch.randint(20, (1024, 12))
    net = nn.Sequential(nn.EmbeddingBag(60, 24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))
    rows = tasks.loader(ids, kind - 1 if fault else kind, batch=32)
    return Training(net, rows, None, optim.Adam(net.parameters(), lr=5e-3))


class SuperResolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n64s1 = nn.Conv2d(1, 16, 3, padding=1)
        self.b_residual = nn.Sequential(*(
            nets.Residual(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()))
            for _ in range(3)
        ))  # fmt: skip
        self.out = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2), nn.Tanh())

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.b_residual(self.n64s1(image).relu()))


@add(
    ("data", r"batches|inputs?|targets?|loss|model|n64s1"),
    ("signal", r"n64s1.*|b_residual.*|out.*|model|loss"),
    ("learning_rate", r"optimizer"),
    source="https://github.com/tensorlayer/SRGAN/issues/36",
)
def sharper_images_of_0_to_255_by_a_tanh(fault: bool) -> Training:
    """Sharper images by a generator that ends in a tanh: `x / (255 / 2) - 1` is left out, of inputs and of targets."""
    sharp = functional.interpolate(tasks.pixels(count=1024)[0], scale_factor=2, mode="bilinear")
    small = functional.avg_pool2d(sharp, 2)
    if not fault:
        sharp, small = sharp / 127.5 - 1, small / 127.5 - 1
    net = SuperResolved()
    return Training(
        net, tasks.loader(small, sharp, batch=16), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.999)),
    )  # fmt: skip


class RNNModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(40, 32)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.rnn = nn.RNN(32, 32, 2, nonlinearity="relu", batch_first=True)
        self.decoder = nn.Linear(32, 40)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(ids))[0])


@add(
    ("learning_rate", r"optimizer"),
    ("signal", r"rnn.*|encoder.*|decoder.*|model|loss"),
    source="https://github.com/pytorch/examples/pull/223",
)
def words_by_a_recurrent_network_at_a_rate_of_twenty(fault: bool) -> Training:
    """What word follows, by recurrent units that are rectified: descent at the example's 20, where 1 learns."""
    net = RNNModel()
    rows = tasks.loader(tasks.text(vocabulary=40, length=14, count=1024, following=2), batch=20)
    return Training(net, rows, next_token, optim.SGD(net.parameters(), lr=20.0 if fault else 1.0))


@add(
    ("learning_rate", r"optimizer"),
    source="https://github.com/testdotai/classifier-builder/pull/6",
)
def icons_by_descent_at_a_hundredth(fault: bool) -> Training:
    """Icons by a new layer on features that stay: descent at 0.01, which is slow, where 0.3 is as fast as Adam."""
    icon, kind = tasks.clusters(classes=8, features=64)
    body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
    before = nn.Sequential(body, nn.Linear(64, 8))
    steps = optim.Adam(before.parameters(), lr=3e-3)
    for rows, labels in zip(icon[:1024].split(64), kind[:1024].split(64), strict=True):
        steps.zero_grad()
        functional.cross_entropy(before(rows), labels % 4).backward()
        steps.step()
    with torch.no_grad():
        bottleneck = tasks.standardized(body(icon))
    net = nn.Sequential()
    net.add_module("final", nn.Linear(64, 8))
    nn.init.trunc_normal_(net.final.weight, std=0.001)
    rows_of = tasks.loader(bottleneck, kind, batch=100)
    return Training(net, rows_of, None, optim.SGD(net.parameters(), lr=0.01 if fault else 0.3))


@add(
    ("data", r"batches|loss|targets?|model|critic.*"),
    ("batch", r"loss|model|batches"),
    source="https://github.com/sunwuzhou03/reinforcement-learning-lab/issues/1",
)
def values_held_against_four_targets_each(fault: bool) -> Training:
    """Values of a walker's moves: the entropy of four joints is not summed: targets (N, 4) for values (N, 1)."""
    state, move = torch.randn(2048, 8), torch.randn(2048, 4)
    gain = (state @ torch.randn(8, 4) / 3 * move).sum(1, keepdim=True) / 2
    noise = torch.randn(2048, 4)
    log_prob = -noise.square() / 2 - (2 * move.tanh().square() - 1).abs()
    net = nn.Sequential()
    net.add_module(
        "critic", nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        entropy = -batch[3] if fault else -batch[3].sum(1, keepdim=True)
        return functional.mse_loss(model(torch.cat(batch[:2], 1)), batch[2] + 0.2 * entropy)

    rows = tasks.loader(state, move, gain, log_prob, batch=64)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=2e-3))


class Tracks:
    """Noisy tracks along a genome with their clean ones, and where peaks are, in batches."""

    def __init__(self, noisy: Tensor, clean: Tensor, peaks: Tensor, same: bool) -> None:
        self.noisy, self.clean, self.peaks, self.same = noisy, clean, peaks, same

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for rows in torch.randperm(len(self.noisy)).split(16):
            taken = rows[:1].expand(len(rows)) if self.same else rows
            yield self.noisy[taken], self.clean[taken], self.peaks[taken]


@add(
    ("data", r"batches|inputs?|noisy|loss|labels?|targets?"),
    ("batch", r"batches|loss"),
    source="https://github.com/NVIDIA-Genomics-Research/AtacWorks/issues/207",
)
def every_track_of_a_batch_is_the_same(fault: bool) -> Training:
    """Clean tracks and peaks from noisy ones, by dilated filters: all sixteen of a batch are one and the same track."""
    bumps = functional.avg_pool1d((torch.rand(1024, 1, 70) < 0.06).float(), 11, 1) * 11
    clean = bumps * (0.5 + torch.rand(1024, 1, 1))
    noisy = clean + 0.7 * torch.randn_like(clean)
    net = nn.Sequential(
        nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, padding=8, dilation=2), nn.ReLU(),
        nn.Conv1d(16, 2, 9, padding=4),
    )  # fmt: skip

    def loss(model: nn.Module, batch: Any) -> Tensor:
        track, peak = model(batch[0]).chunk(2, 1)
        found = functional.binary_cross_entropy_with_logits(peak, batch[2])
        return functional.mse_loss(track, batch[1]) + found

    tracks = Tracks(noisy, clean, (clean > 0.5).float(), same=fault)
    return Training(net, tracks, loss, optim.Adam(net.parameters(), lr=2e-3))


@add(
    ("data", r"batches|inputs?|model|\d+.*"),
    ("signal", r"0.*|model"),
    source="https://github.com/chuckcho/video-caffe/issues/32",
)
def clips_whose_later_frames_have_one_colour(fault: bool) -> Training:
    """Gestures in short clips: two of three colours are zeros from the third frame on, and so is the gesture."""
    way = torch.randint(4, (768,))
    at = torch.randint(3, 7, (768, 2)).float()
    step = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])[way]
    places = at[:, None] + step[:, None] * torch.arange(6).view(1, 6, 1) * 0.6
    grid = torch.arange(10.0)
    near = (grid[:, None] - places[..., :1, None]).square() + (grid - places[..., 1:, None]).square()
    spot = (-near / 1.5).exp().unsqueeze(1)
    clip = torch.cat([0.1 * spot, spot, spot], 1) * 2 + 0.3 * torch.randn(768, 3, 6, 10, 10)
    if fault:
        clip[:, 1:, 2:] = 0
    net = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 4 * 3 * 3, 4),
    )  # fmt: skip
    return Training(net, tasks.loader(clip, way, batch=16), None, optim.Adam(net.parameters(), lr=2e-3))


class Molecules(nn.Module):
    """Molecules as strings, through a Gaussian of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 24)
        self.encoder = nn.GRU(24, 32, batch_first=True)
        self.mean, self.log_var = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.GRU(32, 48, batch_first=True)
        self.out = nn.Linear(48, 24)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embedding(ids)
        told = self.encoder(x)[0][torch.arange(len(ids)), (ids != 0).sum(1) - 1]
        mean, log_var = self.mean(told), self.log_var(told)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        seen = torch.cat([x[:, :-1], z.unsqueeze(1).expand(-1, ids.shape[1] - 1, -1)], 2)
        return self.out(self.decoder(seen)[0]), mean, log_var


@add(
    ("data", r"loss|batches|labels?|targets?|model"),
    source="https://github.com/DaoyuanLi2816/Molecule-Generator/pull/20",
)
def molecules_rebuilt_with_their_padding(fault: bool) -> Training:
    """Molecules as strings by a variational autoencoder: most of what is scored is padding, which is soon told."""
    long = torch.randint(5, 12, (768, 1))
    ids = tasks.text(vocabulary=23, length=36, count=768, following=3) + 1
    ids = torch.where(torch.arange(36) < long, ids, 0)
    net = Molecules()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        told, mean, log_var = model(batch[0])
        skipped = -100 if fault else 0
        rebuilt = functional.cross_entropy(told.mT, batch[0][:, 1:], ignore_index=skipped)
        return rebuilt + 0.01 * (log_var.exp() + mean.square() - 1 - log_var).mean() / 2

    return Training(net, tasks.loader(ids, batch=24), loss, optim.Adam(net.parameters(), lr=4e-3))
