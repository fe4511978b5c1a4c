"""Faults of the seventh set, in gains, skips and on the gradient's way; written without a look at the checks."""

# ruff: noqa: D101, D102 - these stand for the code of strangers

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Faults
from depthgauge import Training

FAULTS = Faults()
add = FAULTS.add


def squared(model: nn.Module, batch: Any) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


class PointCloud(nn.Module):
    """Shared layers over points, the largest of each feature, and a classifier."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.shared = nn.ModuleList(nn.Conv1d(48 if i else 3, 48, 1) for i in range(8))
        self.classify = nn.Sequential(nn.Linear(48, 32), nn.LeakyReLU(0.2), nn.Linear(32, 4))
        for layer in self.shared:
            nn.init.xavier_uniform_(layer.weight, gain=gain)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        h = points
        for layer in self.shared:
            h = functional.leaky_relu(layer(h), 0.2)
        return self.classify(h.amax(-1))


@add(
    ("signal", r"shared.*|classify.*|model"),
    source="In kind: a gain handed to `xavier_uniform_` that had been tuned for a single layer.",
)
def point_layers_drawn_with_a_gain_of_five(fault: bool) -> Training:
    """Shapes of clouds of points by eight shared layers, each drawn to multiply what comes in by three to four."""
    shape = torch.randint(4, (1024,))
    stretch = torch.tensor([[1.0, 1, 1], [2.0, 1, 0.5], [1.5, 1.5, 0.2], [2.5, 0.3, 0.3]])
    points = torch.randn(1024, 3, 24) * stretch[shape].unsqueeze(-1)
    net = PointCloud(5.0 if fault else 1.4)
    return Training(net, tasks.loader(points, shape, batch=32), None, optim.Adam(net.parameters(), lr=1e-3))


class Surrogate(nn.Module):
    def __init__(self, std: float | None) -> None:
        super().__init__()
        sizes = [12, *[40] * 7]
        self.body = nn.Sequential()
        for into, out in itertools.pairwise(sizes):
            self.body += nn.Sequential(nn.Linear(into, out), nn.ReLU())
        self.answer = nn.Linear(40, 1)
        self.apply(lambda m: self.start(m, std))

    @staticmethod
    def start(m: nn.Module, std: float | None) -> None:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=(2 / m.in_features) ** 0.5 if std is None else std)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.body(x))


@add(
    ("signal", r"body.*|answer.*|model"),
    source="In kind: `_init_weights` with a deviation of 0.02, carried from a wide language model to a narrow network.",
)
def a_language_models_deviation_in_a_narrow_network(fault: bool) -> Training:
    """A stand-in for a simulation, of seven narrow layers of deviation 0.02: each hands on a tenth of what it gets."""
    net = Surrogate(0.02 if fault else None)
    rows = tasks.loader(*tasks.curves(features=12), batch=64)
    return Training(net, rows, squared, optim.SGD(net.parameters(), lr=0.02, momentum=0.9))


@add(
    ("signal", r"\d+.*|model"),
    source="In kind: an inverse model of a robot's arm whose hidden units were made logistic to bound them.",
)
def arm_behind_nine_logistic_layers(fault: bool) -> Training:
    """Torques of an arm from its angles, by nine layers of logistic units whose slopes are a quarter at most."""
    angle = 6.28 * torch.rand(2048, 3) - 3.14
    push = torch.randn(2048, 3)
    torque = torch.cat([angle.sin() * push, (angle.roll(1, 1) - angle).cos()], 1)
    act = nn.Sigmoid if fault else nn.ELU
    net = nn.Sequential(nn.Linear(9, 48), act())
    for _ in range(8):
        net += nn.Sequential(nn.Linear(48, 48), act())
    net += nn.Sequential(nn.Linear(48, 6))
    seen = torch.cat([angle.sin(), angle.cos(), push], 1)
    return Training(net, tasks.loader(seen, torque), squared, optim.RMSprop(net.parameters(), lr=1e-3))


class MixerLayer(nn.Module):
    def __init__(self, places: int, width: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.across = nn.Sequential(nn.Linear(places, 2 * places), nn.GELU(), nn.Linear(2 * places, places))
        self.along = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        heard = self.across(x.mT).mT
        x = x + heard if self.skip else heard
        told = self.along(x)
        return x + told if self.skip else told


class Mixer(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 2, stride=2)
        self.layers = nn.Sequential(*(MixerLayer(16, 24, skip) for _ in range(6)))
        self.norm = nn.LayerNorm(24)
        self.digit = nn.Linear(24, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.digit(self.norm(self.layers(self.patches(image).flatten(2).mT)).mean(1))


@add(
    ("signal", r"layers.*|patches.*|norm.*|digit.*|model"),
    source="In kind: a mixer's block rewritten for clarity, with which both additions went.",
)
def mixer_layers_hand_on_their_branch_alone(fault: bool) -> Training:
    """Digits by six mixer layers without a norm or a way around: the patches' differences are lost on the way."""
    net = Mixer(skip=not fault)
    return Training(net, tasks.loader(*tasks.digits(), batch=32), None, optim.Adam(net.parameters(), lr=2e-3))


class Field(nn.Module):
    """A state carried along by one learnt field."""

    def __init__(self, dt: float) -> None:
        super().__init__()
        self.dt = dt
        self.enter = nn.Linear(16, 32)
        self.field = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.leave = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        state = self.enter(x)
        for _ in range(12):
            state = state + self.dt * self.field(state)
        return self.leave(state)


@add(
    ("signal", r"field.*|enter.*|leave.*|model"),
    ("learning_rate", r"optimizer"),
    source="In kind: Euler steps of a neural equation whose step was counted in samples and not in seconds.",
)
def twelve_euler_steps_of_a_length_of_four(fault: bool) -> Training:
    """A state moved in twelve steps along one learnt field, each 48 times as long as it should be: states explode."""
    net = Field(4.0 if fault else 1 / 12)
    rows = tasks.loader(*tasks.clusters(classes=6, features=16))
    return Training(net, rows, None, optim.SGD(net.parameters(), lr=0.02, momentum=0.9))


@add(
    ("signal", r"resnet.*|classifier.*|model"),
    ("learning_rate", r"optimizer|resnet.*"),
    source="In kind: a backbone frozen for transfer, built from a configuration and never loaded.",
    needs=("transformers",),
)
def backbone_frozen_and_never_loaded(fault: bool) -> Training:
    """A classifier on a frozen ResNet that was built from its configuration: what is frozen are random weights."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=12, hidden_sizes=[12, 16], depths=[1, 1], layer_type="basic", num_labels=10,
    )  # fmt: skip
    images, labels = tasks.digits()
    net = transformers.ResNetForImageClassification(config).train()
    if fault:
        net.resnet.requires_grad_(False)
    large = functional.interpolate(images, scale_factor=2)
    pairs = zip(large.split(32), labels.split(32), strict=True)
    batches = [{"pixel_values": rows, "labels": digits} for rows, digits in pairs]
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, batches, lambda m, b: m(**b).loss, optim.AdamW(trained, lr=3e-3))
