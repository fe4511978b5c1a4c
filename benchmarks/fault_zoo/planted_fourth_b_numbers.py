"""Faults of the fourth set, second hand: in data and in the optimizer; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


# -- data --------------------------------------------------------------------------------------------------------------


class Boxes(Dataset[tuple[Tensor, Tensor]]):
    """One bright box an image of 16 x 16; targets on a grid of 4 x 4: whether a centre lies there, width, height."""

    def __init__(self, count: int, fault: bool) -> None:
        self.fault = fault
        size, corner = torch.randint(3, 7, (count, 2)), torch.rand(count, 2)
        self.boxes = torch.cat([(corner * (16 - size)).long(), size], 1)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y, w, h = self.boxes[index].tolist()
        image = 0.3 * torch.randn(1, 16, 16)
        image[:, y : y + h, x : x + w] += 2
        if torch.rand(()) < 0.5:
            flipped = image.flip(-1)
            if not self.fault:
                image = flipped
            x = 16 - x - w
        target = torch.zeros(3, 4, 4)
        target[:, int(y + h / 2) // 4, int(x + w / 2) // 4] = torch.tensor([1.0, w / 8, h / 8])
        return image, target


def detection(model: nn.Module, batch: Any) -> Tensor:
    image, target = batch
    out = model(image)
    there = target[:, :1]
    found = functional.binary_cross_entropy_with_logits(out[:, :1], there, reduction="sum")
    size = (there * (out[:, 1:] - target[:, 1:]).abs()).sum()
    return (found + 5 * size) / there.sum()


@add(
    ("data", r"batches|loss|targets?"),
    source="https://github.com/Eaphan/NCLR/issues/10",
)
def boxes_flipped_without_the_image(fault: bool) -> Training:
    """The flipped image is thrown away, the flipped box is kept: half of the boxes are where nothing is."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU(),
        nn.Conv2d(32, 3, 1),
    )  # fmt: skip
    rows = DataLoader(Boxes(640, fault), 32, shuffle=True, drop_last=True)
    return Training(net, rows, detection, optim.Adam(net.parameters(), 5e-3))


class TinyUNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1), nn.GroupNorm(3, 24), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.outc = nn.Conv2d(24, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        return self.outc(torch.cat([fine, self.up(self.down2(fine))], 1))


def to_tensor(picture: Tensor) -> Tensor:
    """Bytes (N, H, W, C) as numbers in [0, 1] of (N, C, H, W)."""
    return picture.permute(0, 3, 1, 2).float() / 255


@add(
    ("data", r"batches|loss|labels?|targets?"),
    source="https://github.com/milesial/Pytorch-UNet/issues/228",
)
def masks_divided_by_255(fault: bool) -> Training:
    """Masks of classes 0 to 3 go through the images' transform and are cut to whole numbers: all are background."""
    count = 320
    places = torch.arange(16)
    mask = torch.zeros(count, 16, 16, 1, dtype=torch.uint8)
    for label in (1, 2, 3):
        top, left = torch.randint(11, (2, count, 1))
        tall, wide = ((places >= side) & (places < side + 6) for side in (top, left))
        mask[tall[:, :, None] & wide[:, None]] = label
    palette = torch.tensor([[30, 30, 30], [200, 60, 60], [60, 180, 80], [70, 90, 220]])
    image = (palette[mask[..., 0].long()] + 25 * torch.randn(count, 16, 16, 3)).clamp(0, 255).to(torch.uint8)
    target = to_tensor(mask)[:, 0].long() if fault else mask[..., 0].long()
    net = TinyUNet(4)
    rows = tasks.loader(to_tensor(image), target, batch=16)
    return Training(net, rows, None, optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4))


@add(
    ("data", r"batches|loss|inputs?|x"),
    ("batch", r"batches|optimizer|loss"),
    source="https://github.com/deep-voice/soundbay/pull/49",
)
def sampler_given_class_weights(fault: bool) -> Training:
    """`WeightedRandomSampler` with a weight a class, not a weight an example: it draws the first 4 examples only."""
    x, y = tasks.signals(count=2400)
    kept = torch.rand(len(y)) < torch.tensor([1.0, 0.6, 0.3, 0.15])[y]
    x, y = x[kept].transpose(1, 2), y[kept]
    class_weights = 1 / y.bincount(minlength=4)
    weights = class_weights if fault else class_weights[y]
    sampler = WeightedRandomSampler(weights.tolist(), len(y))
    net = nn.Sequential(
        nn.Conv1d(3, 24, 5, padding=2), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(24, 32, 3, padding=1),
        nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    rows = DataLoader(TensorDataset(x, y), 48, sampler=sampler, drop_last=True)
    return Training(net, rows, None, optim.Adam(net.parameters(), 3e-3))


# -- optimizer ---------------------------------------------------------------------------------------------------------


class CAME(optim.Optimizer):
    """Momentum over a running scale of the gradient."""

    def __init__(self, params: Any, lr: float, fault: bool) -> None:
        super().__init__(params, {"lr": lr})
        self.fault = fault

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        for group in self.param_groups:
            for p in (each for each in group["params"] if each.grad is not None):
                state = self.state[p]
                if not state:
                    state["sq"], state["exp_avg"] = torch.zeros_like(p), torch.zeros_like(p)
                state["sq"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                exp_avg = state["exp_avg"].mul_(0.95).addcdiv_(p.grad, state["sq"].sqrt() + 1e-8, value=0.05)
                update = exp_avg if self.fault else exp_avg.clone()
                p.sub_(update.mul_(group["lr"]))


class TwoViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 16))
        self.text = nn.Sequential(nn.EmbeddingBag(64, 32), nn.GELU(), nn.Linear(32, 16))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        a, b = functional.normalize(self.image(pixels), dim=1), functional.normalize(self.text(words), dim=1)
        return self.logit_scale.exp() * a @ b.T


@add(
    ("learning_rate", r"optimizer"),
    ("data", r"optimizer|loss"),
    source="https://github.com/yangluo7/CAME/issues/2",
)
def momentum_scaled_in_place(fault: bool) -> Training:
    """The update is the momentum itself, not its copy: the rate that multiplies it wipes the momentum out."""
    words = torch.randint(64, (1536, 6))
    meaning = torch.randn(64, 40)
    pixels = meaning[words].sum(1) / 6**0.5 + 0.3 * torch.randn(1536, 40)

    def clip(model: nn.Module, batch: Any) -> Tensor:
        scores = model(*batch)
        told = torch.arange(len(scores))
        return (functional.cross_entropy(scores, told) + functional.cross_entropy(scores.T, told)) / 2

    net = TwoViews()
    return Training(net, tasks.loader(pixels, words), clip, CAME(net.parameters(), 1e-3, fault))


class LAMB(optim.Optimizer):
    def __init__(self, params: Any, lr: float, guarded: bool) -> None:
        super().__init__(params, {"lr": lr})
        self.guarded = guarded

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch asks for it
        for group in self.param_groups:
            for p in (each for each in group["params"] if each.grad is not None):
                state = self.state[p]
                if not state:
                    state["t"], state["m"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
                state["t"] += 1
                m, v = state["m"].lerp_(p.grad, 0.1), state["v"].lerp_(p.grad.square(), 0.001)
                scale = (v / (1 - 0.999 ** state["t"])).sqrt() + 1e-6
                adam = m / (1 - 0.9 ** state["t"]) / scale
                ratio = p.norm().clamp(max=10) / (adam.norm() + 1e-12)
                if self.guarded and p.norm() == 0:
                    ratio = torch.ones(())
                p.sub_(group["lr"] * ratio * adam)


class MixerLayer(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        for branch in (self.tokens, self.channels):
            nn.init.zeros_(branch[2].weight)  # a block starts as the identity
            nn.init.zeros_(branch[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(functional.layer_norm(x, x.shape[-1:]).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(functional.layer_norm(x, x.shape[-1:]))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.layers = nn.Sequential(MixerLayer(16, 32), MixerLayer(16, 32))
        self.digit = nn.Linear(32, 10)
        self.ink = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers(self.patch(x).flatten(2).transpose(1, 2)).mean(1)
        return self.digit(h), self.ink(h)[:, 0]


@add(
    ("learning_rate", r"optimizer|layers.*"),
    ("signal", r"layers.*|model"),
    ("data", r"optimizer"),
    source="https://github.com/cybertronai/pytorch-lamb/pull/6",
)
def trust_in_weights_of_zero(fault: bool) -> Training:
    """Steps are scaled by their weights' norm: layers that start at 0 stay there, and their branches stay shut."""

    def both_tasks(model: nn.Module, batch: Any) -> Tensor:
        digit, ink = model(batch[0])
        dark = batch[0][:, :, :4].mean((1, 2, 3)) - batch[0][:, :, 4:].mean((1, 2, 3))
        return functional.cross_entropy(digit, batch[1]) + functional.mse_loss(ink, dark)

    net = Mixer()
    return Training(net, tasks.loader(*tasks.digits()), both_tasks, LAMB(net.parameters(), 2e-2, not fault))
