"""Faults of the ninth set, in gains, skips, and layers frozen, cut or copied; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import nets, tasks
from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token, square
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


@add(
    ("signal", r"\d+.*|model|loss"),
    ("learning_rate", r"\d+.*|optimizer"),
    ("data", r"loss|model"),
    source="https://github.com/MichalDanielDobrzanski/DeepLearningPython/issues/13",
)
def rectified_units_with_weights_of_unit_normals(fault: bool) -> Training:
    """Digits by a book's network whose sigmoids became ReLUs: weights are drawn from N(0, 1), not a tenth of it."""
    net = nets.mlp(64, 64, 2, 10)
    for layer in (each for each in net if isinstance(each, nn.Linear)):
        for parameter in (layer.weight, layer.bias):
            nn.init.normal_(parameter, std=1.0 if fault else 0.1)
    rows = tasks.loader(*tasks.digits(), batch=32)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.05))


@add(
    ("signal", r"\d+.*|model"),
    ("learning_rate", r"\d+.*|optimizer"),
    source="https://github.com/NVIDIA/DIGITS/issues/535",
)
def vgg_with_gaussian_fillers_of_a_hundredth(fault: bool) -> Training:
    """Digits by a narrow VGG: all weights have a deviation of 0.01, and the loss stays where a guess puts it."""
    images, labels = tasks.digits()
    net = nn.Sequential()
    for place, (into, out) in enumerate(((1, 16), (16, 16), (16, 24), (24, 24), (24, 32), (32, 32))):
        net += nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.ReLU())
        net += nn.Sequential(*([nn.MaxPool2d(2)] if place % 2 else []))
    net += nn.Sequential(nn.Flatten(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10))
    nets.he(net)
    nn.init.normal_(net[-1].weight, std=0.05)
    for layer in (each for each in net if isinstance(each, nn.Conv2d | nn.Linear)):
        nn.init.constant_(layer.bias, 0.1)
        if fault:
            nn.init.normal_(layer.weight, std=0.01)
    rows = tasks.loader(images, labels, batch=32)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4))


@add(
    ("signal", r"\d+.*|model"),
    source="https://github.com/torch/torch7/issues/1092",
)
def twelve_sigmoids_and_a_tanh(fault: bool) -> Training:
    """Seven numbers of 28 by twelve sigmoid layers and a last tanh: no step changes the loss, as it does with one."""
    x = torch.randn(2048, 28)
    y = (x @ torch.randn(28, 7) / 28**0.5).tanh()
    widths = [28, 56, 58, *[64] * 9, 56] if fault else [28, 56]
    net = nn.Sequential()
    for into, out in itertools.pairwise(widths):
        net += nn.Sequential(nn.Linear(into, out), nn.Sigmoid())
    net += nn.Sequential(nn.Linear(56, 7), nn.Tanh())
    return Training(net, tasks.loader(x, y), square, optim.SGD(net.parameters(), lr=0.3, momentum=0.9))


class BasicBlock(nn.Module):
    def __init__(self, into: int, out: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        same = into == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(into, out, 1, stride, bias=False)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        told = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (told + self.shortcut(x)).relu() if self.residual else told.relu()


@add(
    ("signal", r"layers.*|stem.*|model|head.*"),
    source="https://github.com/delira-dev/delira/issues/91",
)
def resnet_18_without_its_residuals(fault: bool) -> Training:
    """Digits by a narrow ResNet of 18 layers, whose residual connections were forgotten."""
    images, labels = tasks.digits()
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()))
    shapes = [(12, 12, 1), (12, 12, 1), (12, 16, 2), (16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 1), (32, 32, 1)]
    net.add_module("layers", nn.Sequential(*(BasicBlock(*shape, residual=not fault) for shape in shapes)))
    if fault:
        for block in net.layers:
            block.shortcut = nn.Identity()  # it is not there
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))
    rows = tasks.loader(images, labels, batch=32)
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.02, momentum=0.9))


@add(
    ("signal", r"body.*|tail.*|head.*|model|loss"),
    ("learning_rate", r"optimizer"),
    ("data", r"loss|model"),
    source="https://github.com/JiahuiYu/wdsr_ntire2018/issues/21",
)
def wide_blocks_without_the_tenth_that_depth_asks_for(fault: bool) -> Training:
    """Sharper digits by 16 wide residual blocks: their scale is left at 1, not 0.1, and the first loss is huge."""
    sharp = functional.interpolate(tasks.digits(count=1024)[0], scale_factor=2, mode="bilinear")
    small = functional.avg_pool2d(sharp, 2)
    scale = 1.0 if fault else 0.1
    net = nn.Sequential()
    net.add_module("head", nn.Conv2d(1, 8, 3, padding=1))
    blocks = (
        nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1)) for _ in range(16)
    )
    net.add_module("body", nn.Sequential(*(nets.Residual(nets.he(block), scale=scale) for block in blocks)))
    net.add_module("tail", nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2)))
    return Training(
        net, tasks.loader(small, sharp, batch=8), lambda m, b: functional.l1_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=1e-3),
    )  # fmt: skip


class Detector(nn.Module):
    """A small detector: a stem, two stages, and for each cell which of five things is there, if any."""

    def __init__(self, frozen_stages: int) -> None:
        super().__init__()
        self.frozen_stages = frozen_stages
        self.stem = self.stage(1, 16, 1)
        self.layer1, self.layer2 = self.stage(16, 16, 2), self.stage(16, 32, 2)
        self.head = nn.Conv2d(32, 6, 1)
        self.train()

    @staticmethod
    def stage(into: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        for name in ("stem", "layer1", "layer2")[: self.frozen_stages + 1]:
            getattr(self, name).requires_grad_(False).eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.stem(image))))


@add(
    ("signal", r"stem.*|layer1.*|optimizer|model"),
    ("learning_rate", r"stem.*|layer1.*|optimizer|model"),
    ("data", r"stem.*|layer1.*|model"),
    ("batch", r"stem.*|layer1.*|model"),
    source="https://github.com/open-mmlab/mmdetection/issues/311",
)
def detector_from_scratch_with_a_frozen_stage(fault: bool) -> Training:
    """Things on a grid, from scratch: `frozen_stages=1` of a pretrained configuration keeps two stages as drawn."""
    kind, at = torch.randint(5, (1024,)), torch.randint(14, (2, 1024))
    stamp = (torch.rand(5, 3, 3) < 0.5).float()
    image = 0.5 * torch.randn(1024, 1, 16, 16)
    rows = torch.arange(1024)
    for y in range(3):
        for x in range(3):
            image[rows, 0, at[0] + y, at[1] + x] += 2 * stamp[kind, y, x] + 0.5
    cells = torch.full((1024, 4, 4), 5)
    cells[rows, (at[0] + 1) // 4, (at[1] + 1) // 4] = kind
    net = Detector(1 if fault else -1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        weight = torch.tensor([1.0, 1, 1, 1, 1, 0.2])
        return functional.cross_entropy(model(batch[0]), batch[1], weight)

    return Training(net, tasks.loader(image, cells, batch=32), loss, optim.SGD(net.parameters(), lr=0.05, momentum=0.9))


class Sentences(nn.Module):
    """Sentences by filters of three widths over their words, each one's loudest place."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(80, 16)
        conv1d = [nn.Conv1d(16, 8, width) for width in (3, 4, 5)]
        self.conv1d = nn.ModuleList(conv1d) if registered else conv1d
        self.linear = nn.Linear(24, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).mT
        return self.linear(torch.cat([conv(x).relu().amax(2) for conv in self.conv1d], 1))


@add(
    ("signal", r"conv1d.*|optimizer|model"),
    ("learning_rate", r"conv1d.*|optimizer|model"),
    source="https://github.com/pytorch/pytorch/issues/1053",
)
def filters_of_three_widths_in_a_list(fault: bool) -> Training:
    """Sentences by three widths of filters, kept in a list: the optimizer has words and the last layer only."""
    kind = torch.randint(6, (1024,))
    phrase = torch.randint(80, (6, 4))
    ids = torch.randint(80, (1024, 16))
    start = torch.randint(13, (1024,))
    ids.scatter_(1, start[:, None] + torch.arange(4), phrase[kind])
    net = Sentences(registered=not fault)
    return Training(net, tasks.loader(ids, kind, batch=32), None, optim.Adam(net.parameters(), lr=5e-3))


class Adaptive(nn.Module):
    """Joints of a body and a graph that is learnt: who listens to whom is an attention of two embeddings."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.W_phi, self.W_theta = nn.Linear(20, 16), nn.Linear(20, 16)
        self.conv1, self.conv2 = nn.Linear(20, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 6)

    def forward(self, joints: Tensor) -> Tensor:
        adj = (self.W_phi(joints) @ self.W_theta(joints).mT).softmax(-1)
        if self.cut:
            adj = adj.detach()
        h = (adj @ self.conv1(joints)).relu()
        return self.out((adj @ self.conv2(h)).relu().mean(1))


@add(
    ("signal", r"W_.*|optimizer|model"),
    ("learning_rate", r"W_.*|optimizer"),
    source="https://github.com/queenie88/A-GCN/issues/4",
)
def graph_to_be_learnt_is_detached(fault: bool) -> Training:
    """Actions by joints and a graph between them: `adj` is detached, and what it is made of stays as it was drawn."""
    kind = torch.randint(6, (1024,))
    move = torch.randn(6, 3, 20)
    joints = torch.randn(1024, 12, 20)
    who = torch.rand(1024, 12).argsort(1)[:, :3]
    joints[torch.arange(1024)[:, None], who] += 1.5 * move[kind]
    net = Adaptive(cut=fault)
    return Training(net, tasks.loader(joints, kind, batch=32), None, optim.Adam(net.parameters(), lr=3e-3))


class Gemma(nn.Module):
    """Blocks over a table that is scaled by the root of its width, and is the head's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(36, 32)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([layer])
        self.norm = nn.RMSNorm(32)
        self.lm_head = nn.Linear(32, 36, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed_tokens(ids) * 32**0.5
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for layer in self.layers:
            h = layer(h, src_mask=mask, is_causal=True)
        return self.lm_head(self.norm(h))


@add(
    ("signal", r"embed_tokens.*|lm_head.*|model"),
    source="https://github.com/ml-explore/mlx-lm/pull/373",
)
def head_that_duplicates_the_table(fault: bool) -> Training:
    """A small Gemma, whose head is loaded with a duplicate of the table and drifts from it, where both are one."""
    net = Gemma()
    if fault:
        net.lm_head.weight = nn.Parameter(net.embed_tokens.weight.detach().clone())
    rows = tasks.loader(tasks.text(vocabulary=36, length=14, count=1024, following=2), batch=32)
    return Training(net, rows, next_token, optim.AdamW(net.parameters(), lr=3e-3))


class Shrunk(nets.Language):
    """A language model that shrinks what the gradient does to its table, for stability."""

    share = 0.1

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.embedding(tokens)
        x = self.share * words + (1 - self.share) * words.detach() + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@add(
    ("signal", r"embedding.*|optimizer|model"),
    ("learning_rate", r"embedding.*|optimizer"),
    source="https://github.com/zai-org/ChatGLM3/issues/1117",
)
def no_gradient_gets_back_to_the_words(fault: bool) -> Training:
    """A language model whose words' gradient is shrunk, and to nothing: it is 0 for the table, and for nothing else."""
    net = Shrunk(vocabulary=40, width=32, depth=1)
    net.share = 0.0 if fault else 0.1
    rows = tasks.loader(tasks.text(vocabulary=40, length=14, count=1024, following=2), batch=32)
    return Training(net, rows, next_token, optim.Adam(net.parameters(), lr=3e-3))
