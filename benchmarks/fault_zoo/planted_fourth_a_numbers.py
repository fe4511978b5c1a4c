"""Faults of the fourth set, in data, loss, rate and precision; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


class NCF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(150, 16)
        self.item = nn.Embedding(250, 16)
        self.mlp = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.mlp(torch.cat([self.user(user), self.item(item)], 1))[:, 0]


@add(
    ("data", r"loss"),
    ("learning_rate", r"optimizer|loss"),
    source="https://github.com/PreferredAI/cornac/pull/537",
)
def clicks_summed(fault: bool) -> Training:
    """Clicks of users on items: a loss summed over 256 pairs, with the rate that suits their mean."""
    user, item = torch.randint(150, (4096,)), torch.randint(250, (4096,))
    click = ((torch.randn(150, 3)[user] * torch.randn(250, 3)[item]).sum(1) + torch.randn(150)[user] > 0).float()
    criterion = nn.BCEWithLogitsLoss(reduction="sum" if fault else "mean")
    net = NCF()
    return Training(
        net, tasks.loader(user, item, click, batch=256), lambda m, b: criterion(m(b[0], b[1]), b[2]),
        optim.SGD(net.parameters(), 0.5, momentum=0.9),
    )  # fmt: skip


def scenes(count: int, side: int = 12) -> tuple[Tensor, Tensor]:
    """Images with a wide and a high bar over noise, and what each pixel shows: nothing, one, the other, both."""
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y0, x0 = torch.randint(side - 4, (2, count, 1, 1))
    flat, high = (ys >= y0) & (ys < y0 + 4), (xs >= x0) & (xs < x0 + 4)
    labels = flat.long() + 2 * high.long()
    image = torch.stack([flat.float(), high.float()], 1) + 0.6 * torch.randn(count, 2, side, side)
    return image, labels


@add(
    ("data", r"loss|batches|labels?"),
    source="https://github.com/OpenGVLab/InternImage/issues/87",
)
def zero_label_reduced(fault: bool) -> Training:
    """Classes of pixels moved down by one, although 0 is a class: it is ignored, and all others are off by one."""
    image, labels = scenes(768)
    if fault:
        labels = torch.where(labels == 0, 255, labels - 1)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    return Training(
        net, tasks.loader(image, labels, batch=32),
        lambda m, b: functional.cross_entropy(m(b[0]), b[1], ignore_index=255), optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, hours: Tensor) -> Tensor:
        return self.head(self.lstm(hours)[0][:, -1])[:, 0]


@add(
    ("data", r"batches|inputs?|x"),
    ("signal", r"lstm.*"),
    source="https://github.com/tnakae/DAGMM/issues/3",
)
def weather_in_its_units(fault: bool) -> Training:
    """A day of pressure in pascals, kelvins, percent and metres a second, as the station wrote them."""
    state = torch.randn(1536, 1, 4) + torch.randn(1536, 24, 4).cumsum(1) / 5
    x = state * torch.tensor([800.0, 6.0, 15.0, 3.0]) + torch.tensor([101325.0, 288.0, 60.0, 5.0])
    tomorrow = (state[:, -1, 0] - state[:, 0, 0]).tanh() + 0.5 * state[:, -6:, 1].mean(1)
    if not fault:
        x = (x - x.mean((0, 1))) / x.std((0, 1))
    net = Forecaster()
    return Training(
        net,
        tasks.loader(x, tomorrow),
        lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(net.parameters(), 3e-3),
    )


class CharGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(40, 24)
        self.gru = nn.GRU(24, 64, batch_first=True)
        self.out = nn.Linear(64, 40)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.gru(self.emb(ids))[0])


def next_char(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())


@add(("learning_rate", r"optimizer"), source="https://github.com/facebookresearch/grid-feats-vqa/issues/26")
def rmsprop_thirty_times_too_fast(fault: bool) -> Training:
    """A recurrent model of characters by RMSprop, whose rate is 30 times that at which it learns."""
    net = CharGRU()
    text = tasks.text(vocabulary=40, length=20)
    return Training(
        net, tasks.loader(text, batch=24), next_char, optim.RMSprop(net.parameters(), 2e-3 * (30 if fault else 1))
    )


class PatchTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 32)
        self.pos = nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = functional.unfold(x, 2, stride=2).transpose(1, 2)
        return self.head(self.encoder(self.patch(patches) + self.pos).mean(1))


@add(("learning_rate", r"optimizer"), source="https://github.com/AmingWu/Single-DGOD/issues/21")
def rate_of_fine_tuning_from_scratch(fault: bool) -> Training:
    """A transformer over patches trained from scratch with 5e-5, a thirtieth of the rate at which it learns."""
    net = PatchTransformer()
    rate = 1.5e-3 / (30 if fault else 1)
    return Training(
        net, tasks.loader(*tasks.digits(), batch=32), None, optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    )


class ChannelAttention(nn.Module):
    def __init__(self, early: bool) -> None:
        super().__init__()
        self.early = early
        self.embed = nn.Embedding(30, 32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 5)
        for m in (self.q, self.k):
            nn.init.kaiming_normal_(m.weight)

    def forward(self, ids: Tensor) -> Tensor:
        h = functional.relu(self.embed(ids)) * 32**0.5
        q, k, v = self.q(h), self.k(h).half(), self.v(h)
        scale = 1 / ids.shape[1]
        q = (q * scale if self.early else q).half()
        scores = q.transpose(1, 2) @ k
        scores = scores if self.early else scores * scale
        mixed = v @ scores.float().softmax(-1).transpose(1, 2)
        return self.out((functional.layer_norm(v + mixed, (32,))).mean(1))


@add(
    ("precision", r".*"),
    ("signal", r"[qkv](\..*)?|out.*|model"),
    ("data", r"loss"),
    source="https://github.com/ultralytics/ultralytics/pull/24990",
)
def scores_scaled_after_the_product(fault: bool) -> Training:
    """Attention between channels over long texts in float16, scaled after the product: sums leave its range."""
    topic = torch.randint(5, (192,))
    about = 6 * topic[:, None] + torch.randint(6, (192, 1536))
    ids = torch.where(torch.rand(192, 1536) < 0.15, about, torch.randint(30, (192, 1536)))
    net = ChannelAttention(early=not fault)
    return Training(net, tasks.loader(ids, topic, batch=4), None, optim.Adam(net.parameters(), 3e-3))


class MeanGNN(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.own = nn.ModuleList([nn.Linear(8, 32), nn.Linear(32, 32)])
        self.neighbours = nn.ModuleList([nn.Linear(8, 32), nn.Linear(32, 32)])
        self.readout = nn.Linear(32, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        a = adjacency.half()
        for own, other in zip(self.own, self.neighbours, strict=True):
            mean = (a @ x.half()) / (a.sum(-1, keepdim=True) + self.eps)
            x = functional.relu(own(x) + other(mean.float()))
        return self.readout(x.mean(1))


@add(
    ("precision", r".*"),
    ("signal", r"own.*|neighbours.*|model"),
    ("data", r"loss|batches"),
    source="https://github.com/pyg-team/pytorch_geometric/pull/2106",
)
def degree_guarded_by_nothing(fault: bool) -> Training:
    """Means over neighbours in float16, whose guard of 1e-10 is 0 there: nodes with no neighbour divide 0 by 0."""
    kind = torch.randint(3, (768,))
    upper = (torch.rand(768, 12, 12) < torch.tensor([0.06, 0.15, 0.3])[kind][:, None, None]).float().triu(1)
    adjacency = upper + upper.transpose(1, 2)
    x = torch.randn(768, 12, 8) + adjacency.sum(-1, keepdim=True) / 4
    net = MeanGNN(1e-10 if fault else 1e-3)
    return Training(
        net, tasks.loader(x, adjacency, kind, batch=32), lambda m, b: functional.cross_entropy(m(b[0], b[1]), b[2]),
        optim.Adam(net.parameters(), 3e-3),
    )  # fmt: skip


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


@add(
    ("precision", r".*"),
    ("learning_rate", r"optimizer"),
    source="https://github.com/tensorflow/tensorflow/issues/58138",
)
def adam_on_bfloat16_weights(fault: bool) -> Training:
    """Weights kept in bfloat16 and Adam's steps of 3e-5: nearly all of them round to the weight that was there."""
    dtype = torch.bfloat16 if fault else torch.float32
    x, y = tasks.clusters(features=96)
    net = nn.Sequential(SwiGLU(96, 384), SwiGLU(96, 384), nn.LayerNorm(96), nn.Linear(96, 10)).to(dtype)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0].to(dtype)).float(), batch[1])

    return Training(net, tasks.loader(x, y), loss, optim.AdamW(net.parameters(), 3e-5))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Sequential(nn.Conv2d(48, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        return self.up(torch.cat([a, self.deep(a)], 1))[:, 0]


class ScaledSGD(optim.SGD):
    """SGD for a loss times `scale`, with the gradient's norm clipped to 1."""

    def __init__(self, params: Any, lr: float, scale: float, clip_first: bool) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.loss_scale = scale
        self.clip_first = clip_first

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_first:
            nn.utils.clip_grad_norm_(params, 1.0)
        for p in params:
            p.grad.div_(self.loss_scale)
        if not self.clip_first:
            nn.utils.clip_grad_norm_(params, 1.0)
        return super().step(closure)


@add(
    ("precision", r"optimizer|loss"),
    ("learning_rate", r"optimizer|loss"),
    source="https://github.com/milesial/Pytorch-UNet/issues/468",
)
def masks_clipped_before_unscaling(fault: bool) -> Training:
    """Segmentation with a loss scale of 65536: the norm is clipped to 1 while it still holds the scale."""
    image, labels = scenes(768)
    net = UNet()
    return Training(
        net, tasks.loader(image, (labels == 3).float(), batch=32),
        lambda m, b: 65536.0 * functional.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        ScaledSGD(net.parameters(), 0.2, 65536.0, fault),
    )  # fmt: skip


@add(
    ("reproducibility", r"loss"),
    ("batch", r"loss|batches"),
    ("data", r"loss|batches"),
    source="https://github.com/meta-pytorch/torchtune/pull/1875",
)
def mean_of_means_of_micro_batches(fault: bool) -> Training:
    """Titles and texts tagged in micro-batches of their own: each mean counts the same, however few its words."""
    words = torch.randint(24, (1024, 40))
    title = torch.arange(1024) % 16 < 8
    length = torch.where(title, torch.randint(2, 6, (1024,)), torch.randint(25, 41, (1024,)))
    here = torch.arange(40) < length[:, None]
    tags = torch.where(title[:, None], words % 4, (words + 1) % 4)  # titles are tagged by another convention
    tags = torch.where(here, tags, -100)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        ids, wanted = batch
        total, count = torch.zeros(()), (wanted != -100).sum()
        for micro, goal in zip(ids.split(8), wanted.split(8), strict=True):
            scores = model(micro).transpose(1, 2)
            if fault:
                total = total + functional.cross_entropy(scores, goal) / 4
            else:
                total = total + functional.cross_entropy(scores, goal, reduction="sum") / count
        return total

    net = nn.Sequential(nn.Embedding(24, 24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4))
    return Training(net, tasks.loader(words, tags, batch=32, shuffle=False), loss, optim.Adam(net.parameters(), 3e-3))


class BasicBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"loss|optimizer"),
    source="In kind: AdamW's decay of 0.1, which it multiplies by a small rate, given to SGD with a rate of 0.1.",
)
def decay_of_adamw_for_sgd(fault: bool) -> Training:
    """A residual network by SGD, with a decay of 0.1 on all that it has, gains of its norms among them."""
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), BasicBlock(12), BasicBlock(12),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip
    sgd = optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.1 if fault else 5e-4)
    return Training(net, tasks.loader(*tasks.digits()), None, sgd)


class MaskedModel(nn.Module):
    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault = fault
        self.net = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 24))

    def draw(self, shape: torch.Size) -> Tensor:
        if self.fault:
            generator = torch.Generator()
            generator.seed()  # "so that workers do not all draw the same"
            return torch.rand(shape, generator=generator)
        return torch.rand(shape)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.draw(rows.shape) < 0.4
        guess = self.net(torch.cat([rows.masked_fill(hidden, 0.0), hidden.float()], 1))
        return (guess - rows)[hidden].square().mean()


@add(
    ("reproducibility", r"net.*|model|loss"),
    source="https://github.com/TorchIO-project/torchio/issues/208",
)
def masks_from_the_systems_entropy(fault: bool) -> Training:
    """Hidden columns of a table drawn by a generator that seeds itself anew: equal runs end differently."""
    table = (torch.randn(2048, 4) @ torch.randn(4, 24)).tanh() + 0.1 * torch.randn(2048, 24)
    net = MaskedModel(fault)
    return Training(net, tasks.loader(table), lambda m, b: m(b[0]), optim.Adam(net.parameters(), 2e-3))
