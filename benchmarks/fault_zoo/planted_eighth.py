"""Faults of the eighth set, in gains, skips, and layers frozen, cut or copied; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class Stainer(nn.Module):
    """A slide as what is on it, and how it is stained: the first normalized, the second a Gaussian of four numbers."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.content = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.style = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.Flatten(),
        )  # fmt: skip
        self.make = nn.Sequential(nn.Conv2d(20, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
        for layer in (each for each in self.modules() if isinstance(each, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
            nn.init.zeros_(layer.bias)

    def forward(self, slide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.style(slide).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        told = self.content(slide)
        here = drawn[:, :, None, None].expand(-1, -1, *told.shape[2:])
        return self.make(torch.cat([told, here], 1)).sigmoid(), mean, spread


@add(
    ("signal", r"content.*|style.*|make.*|model|loss"),
    ("data", r"style.*|make.*|model|loss"),
    ("precision", r"content.*|style.*|make.*|model|loss"),
    source="https://github.com/sophiajw/HistAuGAN/pull/4",
)
def stains_by_weights_ten_times_too_wide(fault: bool) -> Training:
    """Slides taken apart into content and stain: weights of a deviation of 0.2 for 0.02, and variances overflow."""
    images, _ = tasks.pixels(count=1024)
    ink, paper = torch.rand(2, 1024, 3, 1, 1)
    slide = ink * images / 255 + paper * (1 - images / 255)
    net = Stainer(9.6 if fault else 0.96)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        made, mean, spread = model(batch[0])
        away = (spread.exp() + mean.square() - 1 - spread).mean() / 2
        return functional.l1_loss(made, batch[0]) + 0.01 * away

    return Training(net, tasks.loader(slide, batch=32), loss, optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.999)))


def squash(vector: Tensor) -> Tensor:
    size = vector.square().sum(-1, keepdim=True)
    return vector * size / (1 + size) / (size + 1e-7).sqrt()


class Capsules(nn.Module):
    """Capsules of eight numbers that vote for ten of sixteen, and agree in three rounds."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU())
        self.vote = nn.Parameter(std * torch.randn(32, 10, 16, 8))

    def forward(self, image: Tensor) -> Tensor:
        primary = squash(self.see(image).reshape(len(image), 8, 8, 4).transpose(2, 3).reshape(len(image), 32, 8))
        votes = torch.einsum("jodi,nji->njod", self.vote, primary)
        share = votes.new_zeros(len(image), 32, 10, 1)
        for _ in range(3):
            digit = squash((share.softmax(2) * votes).sum(1))
            share = share + (votes * digit.unsqueeze(1)).sum(-1, keepdim=True)
        return (digit.square().sum(-1) + 1e-7).sqrt()


@add(
    ("signal", r"vote|see.*|model"),
    ("learning_rate", r"vote|optimizer"),
    source="https://github.com/ageron/handson-ml/pull/176",
)
def capsules_whose_votes_are_drawn_too_small(fault: bool) -> Training:
    """Digits by capsules: votes of a deviation of 0.01 where 0.1 learns, lengths near 0, whose slopes are nothing."""
    images, labels = tasks.digits()
    net = Capsules(0.01 if fault else 0.1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        length, there = model(batch[0]), functional.one_hot(batch[1], 10)
        missed = there * functional.relu(0.9 - length).square()
        return (missed + 0.5 * (1 - there) * functional.relu(length - 0.1).square()).sum(1).mean()

    return Training(net, tasks.loader(images, labels, batch=16), loss, optim.Adam(net.parameters(), lr=1e-3))


@add(
    ("signal", r"\d+.*|model"),
    source="https://github.com/microsoft/CNTK/issues/476",
)
def frames_of_speech_by_seven_sigmoid_layers(fault: bool) -> Training:
    """Sounds by frames of filters and seven hidden layers: behind as many sigmoids, every frame gets one answer."""
    frames, sound = tasks.clusters(classes=12, features=44)
    net = nn.Sequential()
    for layer in range(7):
        net += nn.Sequential(nn.Linear(64 if layer else 44, 64), nn.Sigmoid() if fault else nn.ReLU())
        nn.init.normal_(net[-2].weight, std=math.sqrt(2 / net[-2].in_features))
        nn.init.zeros_(net[-2].bias)
    net += nn.Sequential(nn.Linear(64, 12))
    return Training(net, tasks.loader(frames, sound), None, optim.SGD(net.parameters(), lr=0.02, momentum=0.9))


class DarkBlock(nn.Module):
    def __init__(self, wide: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.one = nn.Sequential(
            nn.Conv2d(wide, wide // 2, 1, bias=False), nn.BatchNorm2d(wide // 2), nn.LeakyReLU(0.1)
        )
        self.two = nn.Sequential(
            nn.Conv2d(wide // 2, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        told = self.two(self.one(x))
        for _ in range(self.times):
            told = told + x
        return told


@add(
    ("signal", r"\d+.*|model|loss"),
    ("learning_rate", r"optimizer"),
    source="https://github.com/yakhyo/darknet-pytorch/issues/2",
)
def darknet_adds_its_shortcut_twice(fault: bool) -> Training:
    """Digits by a small Darknet: each of eight blocks adds what comes in twice, and so doubles what was said first."""
    images, labels = tasks.digits()
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.1),
        *(DarkBlock(32, 2 if fault else 1) for _ in range(8)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    rows = tasks.loader(images, labels, batch=32)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4))


class Tasked(nn.Module):
    """Features that have seen another task, and a classifier of the task at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2), nn.ReLU())
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(216, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image))


@add(
    ("signal", r"features.*|classifier.*|optimizer|model"),
    ("learning_rate", r"features.*|classifier.*|optimizer|model"),
    source="https://github.com/wannabeOG/MAS-PyTorch/issues/1",
)
def frozen_are_all_but_the_layers_to_freeze(fault: bool) -> Training:
    """A second task for a network whose first layer was to stay: the test is inverted, and all others stay."""
    images, labels = tasks.digits()
    net = Tasked()
    before = optim.Adam(net.parameters(), lr=3e-3)
    for rows, digits in zip(images[:640].split(64), labels[:640].split(64), strict=True):
        before.zero_grad()
        functional.cross_entropy(net(rows), digits % 2).backward()
        before.step()
    net.classifier = Tasked().classifier
    to_freeze = {"features.0.weight", "features.0.bias"}
    for name, parameter in net.named_parameters():
        parameter.requires_grad = (name in to_freeze) == fault
    rows = tasks.loader(images, labels, batch=32)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class Stacked(nn.Module):
    """As many layers between the first and the last as are asked for."""

    def __init__(self, num_layers: int, registered: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 32)
        layers = [nn.Linear(32, 32) for _ in range(num_layers)]
        self.list_of_layers = nn.ModuleList(layers) if registered else layers
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).tanh()
        for each in self.list_of_layers:
            h = each(h).tanh()
        return self.out(h)


@add(
    ("signal", r"list_of_layers.*|optimizer|model"),
    ("learning_rate", r"list_of_layers.*|optimizer|model"),
    source="https://github.com/pytorch/pytorch/issues/666",
)
def layers_counted_into_a_list(fault: bool) -> Training:
    """A smooth function by as many layers as asked for, which are in a list: the optimizer has the first and last."""
    net = Stacked(4, registered=not fault)
    return Training(
        net, tasks.loader(*tasks.curves()), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


class Recognizer(nn.Module):
    """Filters over a sound, whose strengths are read by a recurrent encoder."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.feats = nn.Conv1d(1, 6, 24, stride=12)
        self.norm = nn.BatchNorm1d(6)
        self.enc = nn.GRU(6, 32, batch_first=True)
        self.out = nn.Linear(32, 8)

    def forward(self, sound: Tensor) -> Tensor:
        feats = (self.feats(sound).square() + 1e-3).log()
        states = self.enc(self.norm(feats.detach() if self.cut else feats).mT)[0]
        return self.out(states.mean(1))


@add(
    ("signal", r"feats.*|model|optimizer"),
    ("learning_rate", r"feats.*|optimizer"),
    source="https://github.com/speechbrain/speechbrain/issues/1396",
)
def filters_of_speech_detached_before_the_encoder(fault: bool) -> Training:
    """Eight pitches by filters that are to be learnt: the encoder gets `feats.detach()`, and filters stay as drawn."""
    pitch = torch.randint(8, (1536,))
    times = torch.arange(240) / 240
    wave = (6.28 * ((16 + 4 * pitch)[:, None] * times + torch.rand(1536, 1))).sin() + torch.randn(1536, 240)
    net = Recognizer(cut=fault)
    return Training(net, tasks.loader(wave.unsqueeze(1), pitch), None, optim.Adam(net.parameters(), lr=5e-3))


class Llama(nn.Module):
    """Blocks over a table of tokens that is the head's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(40, 32)
        nn.init.normal_(self.tok_emb.weight, std=0.2)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.trf_blocks = nn.ModuleList([layer])
        self.final_norm = nn.RMSNorm(32)
        self.out_head = nn.Linear(32, 40, bias=False)
        self.out_head.weight = self.tok_emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tok_emb(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for block in self.trf_blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.out_head(self.final_norm(h))


@add(
    ("signal", r"tok_emb.*|out_head.*|model"),
    source="https://github.com/rasbt/LLMs-from-scratch/issues/822",
)
def head_assigned_a_copy_of_published_tokens(fault: bool) -> Training:
    """A language model with weights from elsewhere: head and table are each assigned a copy, and are tied no more."""
    elsewhere = Llama()
    before = optim.Adam(elsewhere.parameters(), lr=5e-3)
    for ids in tasks.text(vocabulary=40, length=12, count=960).split(32):
        before.zero_grad()
        next_token(elsewhere, (ids,)).backward()
        before.step()
    net = Llama()
    net.load_state_dict(elsewhere.state_dict())
    if fault:
        net.out_head.weight = nn.Parameter(elsewhere.tok_emb.weight.detach().clone())
    rows = tasks.loader(tasks.text(vocabulary=40, length=12), batch=32)
    return Training(net, rows, next_token, optim.AdamW(net.parameters(), lr=3e-3))
