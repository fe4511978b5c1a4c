"""Planted faults on which the checks' thresholds may be set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import next_token, square
from benchmarks.fault_zoo.nets import Language, Recurrent, Residual, convnet, he, mlp
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, signals, text
from depthgauge import Training

FAULTS = Faults()


# -- signal ------------------------------------------------------------------------------------------------------------


@FAULTS.add(("signal", r"\d+|model"), source="https://github.com/VinceShieh/spark-ffm/issues/12")
def gain_large(fault: bool) -> Training:
    """Weights of N(0, 1) in place of N(0, 2 / fan-in)."""
    batches = loader(*clusters())
    model = he(mlp(32, 64, 5, 10))
    if fault:
        for part in model.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.05))


@FAULTS.add(("signal", r"\d+|model"), source="https://github.com/guojunq/lsgan/issues/3")
def deep_sigmoid(fault: bool) -> Training:
    """Ten hidden layers of sigmoids, where the twin has ReLUs."""
    batches = loader(*digits())
    model = mlp(64, 64, 10, 10, act=nn.Sigmoid if fault else nn.ReLU)
    if not fault:
        he(model)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))


@FAULTS.add(("signal", r"\d+(\.branch.*)?|model"), source="https://github.com/znxlwm/UGATIT-pytorch/issues/32")
def missing_skip(fault: bool) -> Training:
    """24 residual blocks whose skip is forgotten."""

    def block() -> nn.Module:
        branch = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48))
        return Residual(branch, skip=0.0 if fault else 1.0, scale=1.0 if fault else 0.5)

    batches = loader(*clusters(features=24))
    model = nn.Sequential(nn.Linear(24, 48), *(block() for _ in range(24)), nn.LayerNorm(48), nn.Linear(48, 10))
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


@FAULTS.add(("signal", r"[37](\.bias)?"), source="https://github.com/facebookresearch/dlrm/pull/358")
def dead_units(fault: bool) -> Training:
    """Biases of one ReLU layer so far below zero that all of its units are zero."""
    batches = loader(*clusters(classes=6))
    model = he(mlp(32, 64, 4, 6))
    if fault:
        nn.init.constant_(model[3].bias, -20.0)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


class _Listed(nn.Module):
    """Hidden layers in a plain list."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        layers = [nn.Linear(32, 32) for _ in range(3)]
        self.entry = nn.Linear(16, 32)
        self.layers = layers if fault else nn.ModuleList(layers)
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x).relu()
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


@FAULTS.add(("signal", r"layers.*"), source="https://github.com/pytorch/pytorch/issues/715")
def unregistered_layers(fault: bool) -> Training:
    """Layers in a list that the module does not know."""
    batches = loader(*clusters(classes=8, features=16))
    model = _Listed(fault)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(("signal", r"12.*|head.*|optimizer"), source="https://github.com/microsoft/nni/issues/4521")
def head_replaced(fault: bool) -> Training:
    """A head that is replaced after the optimizer was built, so that nothing updates the new one."""
    batches = loader(*digits())
    model = convnet()
    before = torch.optim.AdamW(model.parameters(), lr=3e-3)
    last = len(model) - 1
    model[last] = nn.Linear(64, 10)
    optimizer = before if fault else torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, batches, optimizer=optimizer)


class _Detached(nn.Module):
    """An encoder, and a head on its features."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 10)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        return self.head(features.detach() if self.fault else features)


@FAULTS.add(("signal", r"encoder.*"), source="https://github.com/lucidrains/CoCa-pytorch/issues/6")
def detached_encoder(fault: bool) -> Training:
    """Features taken out of the graph before the head: the encoder's parameters never get a gradient."""
    batches = loader(*clusters(features=24))
    model = _Detached(fault)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


class _Tied(Language):
    """A language model whose head is to have the embedding's weights."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        nn.init.normal_(self.embedding.weight, std=32**-0.5)
        self.head.weight = nn.Parameter(self.embedding.weight.detach().clone()) if fault else self.embedding.weight


@FAULTS.add(("signal", r"embedding.*|head.*"), source="https://github.com/dhansmair/flamingo-mini/issues/4")
def tied_by_copy(fault: bool) -> Training:
    """A head that is tied to the embedding by a copy of its values."""
    batches = loader(text(), batch=32)
    model = _Tied(fault)
    return Training(model, batches, next_token, torch.optim.AdamW(model.parameters(), lr=3e-3))


# -- data and loss -----------------------------------------------------------------------------------------------------


@FAULTS.add(("data", r"loss|model|13.*"), source="https://github.com/bkitano/llama-from-scratch/issues/5")
def double_softmax(fault: bool) -> Training:
    """Probabilities handed to the cross-entropy, which takes their softmax again."""
    batches = loader(*digits())
    model = convnet()
    if fault:
        model.append(nn.Softmax(-1))
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(("data", r"loss"), ("reproducibility", r"loss"), source="https://github.com/jax-ml/jax/pull/3113")
def summed_loss(fault: bool) -> Training:
    """A sum over the batch where the rate was chosen for a mean."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum" if fault else "mean")

    batches = loader(*clusters(), batch=128)
    model = he(mlp(32, 96, 2, 10))
    return Training(model, batches, loss, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


@FAULTS.add(("data", r"loss|batches"), source="https://github.com/tensorflow/models/issues/15")
def labels_off_by_one(fault: bool) -> Training:
    """Classes counted from 1, so that the last is out of range."""
    images, labels = digits()
    batches = loader(images, labels + 1 if fault else labels)
    model = he(mlp(64, 64, 2, 10))
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


@FAULTS.add(("data", r"batches"), source="https://github.com/jaredleekatzman/DeepSurv/issues/14")
def unscaled_inputs(fault: bool) -> Training:
    """A table with two columns in units a million and ten thousand times as large as the others'."""
    rows, values = curves()
    if fault:
        rows = rows * torch.tensor([1e6, 1e4, *[1.0] * 6]) + torch.tensor([3e6, 0.0, *[0.0] * 6])
    model = mlp(8, 64, 2, 1, act=nn.Tanh)
    return Training(model, loader(rows, values), square, torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(
    ("data", r"batches"),
    ("signal", r"batches|1"),
    ("precision", r"batches|1"),
    source="https://github.com/Nixtla/neuralforecast/issues/186",
)
def missing_values(fault: bool) -> Training:
    """A table in which a missing number is NaN."""
    rows, labels = clusters(features=12)
    if fault:
        rows[torch.rand(len(rows)) < 0.1, 5] = math.nan
    model = mlp(12, 48, 2, 10)
    return Training(model, loader(rows, labels), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(("data", r"loss"), source="https://github.com/yudi-mars/daisyRec/pull/15")
def sigmoid_twice(fault: bool) -> Training:
    """Probabilities handed to the binary cross-entropy of scores, which takes their sigmoid again."""
    rows, labels = clusters(classes=2, features=10, spread=0.7)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0]).squeeze(1)
        return functional.binary_cross_entropy_with_logits(scores.sigmoid() if fault else scores, batch[1])

    model = mlp(10, 32, 2, 1)
    return Training(model, loader(rows, labels.float()), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(("data", r"loss"), ("reproducibility", r"loss"), source="https://github.com/deepset-ai/FARM/issues/229")
def broadcast_targets(fault: bool) -> Training:
    """Outputs (N, 1) less targets (N,): every output is held against every target."""
    rows, values = curves()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch[0])
        return (outputs - batch[1] if fault else outputs.squeeze(1) - batch[1]).square().mean()

    model = mlp(8, 64, 2, 1, act=nn.Tanh)
    return Training(model, loader(rows, values.squeeze(1)), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(("data", r"model|\d+"), source="https://github.com/ThilinaRajapakse/simpletransformers/issues/941")
def eval_mode(fault: bool) -> Training:
    """A model that an evaluation left in eval mode: batch norm and dropout do not do what they do in training."""
    batches = loader(*digits())
    net = convnet()
    model = nn.Sequential(*net[:-1], nn.Dropout(0.2), net[-1]).train(not fault)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


@FAULTS.add(("data", r"3|6|model"), ("signal", r"3|6"), source="https://github.com/piergiaj/pytorch-i3d/issues/58")
def dropout_for_keep(fault: bool) -> Training:
    """A share to keep of 0.99 handed on as the share to drop."""
    drop = 0.99 if fault else 0.01
    parts = [nn.Linear(32, 128), nn.ReLU(), nn.Dropout(drop), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(drop)]
    batches = loader(*clusters())
    model = nn.Sequential(nn.Identity(), *parts, nn.Linear(128, 10))
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


@FAULTS.add(
    ("batch", r"\d+|batches|model"),
    ("data", r"\d+|batches|model"),
    source="https://github.com/dbolya/yolact/issues/325",
)
def batch_norm_of_two(fault: bool) -> Training:
    """Batch normalization over batches of two examples."""
    batches = loader(*clusters(features=16, count=2048), batch=2 if fault else 32)
    model = mlp(16, 64, 3, 10, norm=nn.BatchNorm1d)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


@FAULTS.add(("batch", r"batches"), ("data", r"batches"), source="https://github.com/wandb/examples/issues/444")
def same_batch(fault: bool) -> Training:
    """A loader that is begun anew for every step, so that each step gets the same batch."""
    images, labels = digits()
    pairs = list(zip(images.split(64), labels.split(64), strict=True))
    model = he(mlp(64, 64, 2, 10))
    batches = [pairs[0]] * len(pairs) if fault else pairs
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


# -- rate --------------------------------------------------------------------------------------------------------------


@FAULTS.add(("learning_rate", r"optimizer"), source="https://github.com/OpenNMT/OpenNMT-tf/issues/744")
def rate_too_large(fault: bool) -> Training:
    """A rate 30 times that at which it trains well."""
    batches = loader(*digits())
    model = he(mlp(64, 96, 3, 10))
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.05 * (30 if fault else 1)))


@FAULTS.add(("learning_rate", r"optimizer"), source="https://github.com/Smadx/USTC-ML24-Fall/issues/47")
def rate_too_small(fault: bool) -> Training:
    """A rate a hundredth of that at which it trains well."""
    batches = loader(*signals())
    model = Recurrent()
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3 / (100 if fault else 1)))
