"""Faults of the ninth set, in modes, dropout, small batches, seeds and axes; written without a look at the checks."""

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


class Translation(nn.Module):
    """A small translator: an encoder of words, and a decoder that attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.src_embed, self.trg_embed = nn.Embedding(30, 32), nn.Embedding(31, 32)
        self.places = nn.Parameter(0.1 * torch.randn(8, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoderLayer(32, 2, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.output_layer = nn.Linear(32, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        told = self.encoder(self.src_embed(source) + self.places)
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.output_layer(self.decoder(self.trg_embed(target) + self.places, told, tgt_mask=mask))


@torch.no_grad()
def validate(model: nn.Module, source: Tensor, target: Tensor) -> float:
    """Share of words told right, in eval mode."""
    model.eval()
    return float((model(source, target).argmax(2) == target).float().mean())


@add(
    ("data", r"encoder.*|decoder.*|model|loss"),
    ("signal", r"encoder.*|decoder.*|model"),
    ("batch", r"encoder.*|decoder.*|model"),
    source="https://github.com/joeynmt/joeynmt/issues/184",
)
def translator_goes_on_in_eval_after_validation(fault: bool) -> Training:
    """Sentences word by word into another tongue: validation turns to eval mode, and nothing turns back."""
    tongue = torch.randperm(30)
    source = torch.randint(30, (1024, 8))
    target = tongue[source]
    given = torch.cat([torch.full((1024, 1), 30), target[:, :-1]], 1)
    net = Translation()
    validate(net, source[:32], given[:32])
    if not fault:
        net.train()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(*batch[:2]).mT, batch[2], label_smoothing=0.05)

    rows = tasks.loader(source, given, target, batch=32)
    return Training(net, rows, loss, optim.Adam(net.parameters(), lr=3e-3))


class Dense(nn.Module):
    """Layers that each get what all before them said, as many findings are told from the end."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, 12, 3, padding=1)) for wide in (12, 24, 36)
        )
        self.norm, self.drop, self.classifier = nn.BatchNorm2d(48), nn.Dropout(drop), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.classifier(self.drop(self.norm(x).relu().mean((2, 3))))


@add(
    ("data", r"drop.*|classifier.*|model"),
    ("signal", r"drop.*|classifier.*|model"),
    source="https://github.com/Gofinge/CheXpert_Baseline_PyTorch/issues/5",
)
def findings_behind_a_dropout_of_nine_tenths(fault: bool) -> Training:
    """Findings in images by a small DenseNet: a dropout of 0.9 before the last layer, meant as the share to keep."""
    there = (torch.rand(1024, 5) < 0.3).float()
    sign = torch.randn(5, 1, 3, 3).repeat(1, 1, 4, 4)
    image = 0.7 * torch.einsum("np,pchw->nchw", there, sign) + torch.randn(1024, 1, 12, 12)
    net = Dense(0.9 if fault else 0.1)
    return Training(
        net, tasks.loader(image, there, batch=32),
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        optim.Adam(net.parameters(), lr=3e-3),
    )  # fmt: skip


@add(
    ("batch", r"\d+.*|batches|model"),
    ("data", r"\d+.*|batches|model"),
    ("signal", r"\d+.*|model"),
    source="https://github.com/pytorch/pytorch/issues/19916",
)
def sizes_told_from_two_small_maps_by_batch_norms(fault: bool) -> Training:
    """How large a spot is, from maps of few pixels behind batch norms: of two images a batch each tells of both."""
    size, at = 0.8 + 2.5 * torch.rand(1024, 1), 1.5 + 5 * torch.rand(1024, 2)
    grid = torch.arange(8.0)
    away = (grid[:, None] - at[:, :1, None]).square() + (grid - at[:, 1:, None]).square()
    image = 2 * (-away / size.unsqueeze(2).square()).exp().unsqueeze(1) + 0.1 * torch.randn(1024, 1, 8, 8)
    net = nn.Sequential()
    for into, out in ((1, 16), (16, 24), (24, 32)):
        net += nn.Sequential(nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
    net += nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    rows = tasks.loader(image, size - 2.05, batch=2 if fault else 64)
    return Training(
        net, rows, lambda m, b: functional.mse_loss(m(b[0]), b[1]), optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    )


class Scatter(nn.Module):
    """Nodes by sums over their edges, added up one edge after the other, or as threads come to it."""

    def __init__(self, edges: Tensor, atomic: bool) -> None:
        super().__init__()
        self.register_buffer("edges", edges)
        self.atomic = atomic
        self.conv1, self.conv2 = nn.Linear(16, 32), nn.Linear(32, 5)
        degree = torch.bincount(edges[1], minlength=int(edges.max()) + 1)
        self.register_buffer("degree", degree.clamp(min=1).float().unsqueeze(1))

    def mean(self, h: Tensor) -> Tensor:
        source, target = self.edges
        if self.atomic:  # which thread comes first is not told by a seed
            order = torch.as_tensor(np.random.default_rng().permutation(len(source)))
            source, target = source[order], target[order]
        return torch.zeros_like(h).index_add(0, target, h[source]) / self.degree

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        h = (h + self.mean(h)).relu()
        h = self.conv2(h)
        return h + self.mean(h)


@add(
    ("reproducibility", r".*"),
    source="https://github.com/pytorch/pytorch/issues/23151",
)
def messages_added_in_the_order_of_threads(fault: bool) -> Training:
    """Nodes of a graph by means over neighbours: a scatter adds them in any order, and no seed gives the same sum."""
    kind = torch.randint(5, (400,))
    x = torch.randn(5, 16)[kind] + 1.5 * torch.randn(400, 16)
    pairs = torch.randint(400, (2, 12000))
    edges = pairs[:, (kind[pairs[0]] == kind[pairs[1]]) | (torch.rand(12000) < 0.1)]
    seen = torch.rand(400) < 0.5
    net = Scatter(edges, atomic=fault)
    return Training(
        net, [(x, kind, seen)], lambda m, b: functional.cross_entropy(m(b[0])[b[2]], b[1][b[2]]),
        optim.Adam(net.parameters(), lr=1e-2),
    )  # fmt: skip


class Infinite:
    """Batches without end, drawn with replacement by a generator with a seed, or by one of the worker's own."""

    def __init__(self, volume: Tensor, kind: Tensor, seed: int | None, count: int = 60) -> None:
        self.volume, self.kind, self.seed, self.count = volume, kind, seed, count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = np.random.RandomState(self.seed)
        for _ in range(self.count):
            rows = torch.as_tensor(drawn.choice(len(self.kind), 16, replace=True))
            yield self.volume[rows], self.kind[rows]


@add(
    ("reproducibility", r"batches|loss|model|optimizer"),
    source="https://github.com/MIC-DKFZ/batchgenerators/issues/105",
)
def patches_without_end_and_without_a_seed(fault: bool) -> Training:
    """Small volumes of four kinds: a shuffle's seed is not used where batches are endless, and each run differs."""
    kind = torch.randint(4, (640,))
    shape = functional.interpolate(torch.randn(4, 1, 3, 3, 3), size=6, mode="trilinear")
    volume = shape[kind] + 0.8 * torch.randn(640, 1, 6, 6, 6)
    net = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU(0.01), nn.Conv3d(8, 12, 3, 2),
        nn.LeakyReLU(0.01), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    rows = Infinite(volume, kind, None if fault else int(torch.randint(1 << 31, ())))
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True))


class Workers:
    """Four workers in turn that each simulate what they hand on, by generators with seeds of their own or with one."""

    def __init__(self, seed: int, same: bool) -> None:
        self.seed, self.same = seed, same

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = [np.random.RandomState(self.seed + (0 if self.same else each)) for each in range(4)]
        for batch in range(60):
            now = drawn[batch % 4]
            rate, x = now.uniform(0.5, 3, (32, 1)), now.uniform(0, 3, (32, 12))
            curve = np.exp(-rate * np.sort(x)) + 0.05 * now.normal(size=(32, 12))
            yield torch.as_tensor(np.concatenate([np.sort(x) - 1.5, curve], 1)).float(), torch.as_tensor(rate).float()


@add(
    ("data", r"batches|inputs?|loss"),
    ("reproducibility", r"batches"),
    ("batch", r"batches"),
    source="https://github.com/pytorch/pytorch/issues/5059",
)
def four_workers_draw_the_same_numbers(fault: bool) -> Training:
    """Rates of decay from simulated curves: workers start with one state of NumPy, so four batches in a row are one."""
    net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
    rows = Workers(int(torch.randint(1 << 30, ())), same=fault)
    return Training(
        net, rows, lambda m, b: functional.mse_loss(m(b[0]), b[1] - 1.75), optim.Adam(net.parameters(), lr=2e-3)
    )


class Attentive(nn.Module):
    """What a query finds among ten facts, by an attention whose shares add up over facts, or over the batch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear_in = nn.Linear(16, 16, bias=False)
        self.linear_out = nn.Linear(32, 6)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        scores = (self.linear_in(query).unsqueeze(1) @ context.mT)[:, 0]
        weights = scores.softmax(self.axis)
        mixed = (weights.unsqueeze(1) @ context)[:, 0]
        return self.linear_out(torch.cat([mixed, query], 1))


@add(
    ("data", r"linear_.*|model|loss"),
    ("batch", r"linear_.*|model|loss"),
    ("signal", r"linear_.*|model|loss"),
    source="https://github.com/PetrochukM/PyTorch-NLP/issues/2",
)
def attention_shared_out_among_the_rows(fault: bool) -> Training:
    """Answers looked up among ten facts: `Softmax(dim=0)` shares attention out among the rows of a batch."""
    names = functional.normalize(torch.randn(40, 10)) * 2
    asked, answer = torch.randint(40, (1536,)), torch.randint(6, (1536,))
    others = torch.randint(40, (1536, 10))
    others = torch.where(others == asked[:, None], (others + 1) % 40, others)
    place, rows = torch.randint(10, (1536,)), torch.arange(1536)
    others[rows, place] = asked
    said = torch.randint(6, (1536, 10))
    said[rows, place] = answer
    context = torch.cat([names[others], functional.one_hot(said, 6).float()], 2)
    query = torch.cat([names[asked], torch.zeros(1536, 6)], 1)
    net = Attentive(0 if fault else -1)
    return Training(
        net, tasks.loader(query, context, answer, batch=32), lambda m, b: functional.cross_entropy(m(*b[:2]), b[2]),
        optim.Adam(net.parameters(), lr=1e-2),
    )  # fmt: skip
