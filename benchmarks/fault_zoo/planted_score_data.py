"""Planted faults on which the checks are scored: data and loss. No threshold was set on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Faults
from benchmarks.fault_zoo.losses import reconstruction, square
from benchmarks.fault_zoo.nets import Language, convnet, he, mlp
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, pixels, signals, text
from depthgauge import Training

FAULTS = Faults()
_GIT = "https://github.com/"


@FAULTS.add(("data", r"loss|\d+|model"), source=_GIT + "AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/9")
def probabilities_to_nll(fault: bool) -> Training:
    """Probabilities handed to a loss that takes their logarithms."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        return functional.nll_loss(scores.softmax(1) if fault else scores.log_softmax(1), batch[1])

    model = mlp(32, 64, 2, 10)
    return Training(model, loader(*clusters()), loss, torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(
    ("data", r"loss|\d+|model"),
    ("reproducibility", r"loss|\d+|model"),
    source=_GIT + "MicrosoftDocs/pytorchfundamentals/pull/21",
)
def softmax_over_the_batch(fault: bool) -> Training:
    """Log-probabilities that add up to one over the batch in place of the classes."""
    batches = loader(*digits())
    net = mlp(64, 64, 2, 10)
    model = nn.Sequential(*net, nn.LogSoftmax(0 if fault else 1))
    return Training(
        model, batches, lambda model, batch: functional.nll_loss(model(batch[0]), batch[1]),
        torch.optim.Adam(model.parameters(), lr=2e-3),
    )  # fmt: skip


@FAULTS.add(("data", r"batches"), source=_GIT + "ZhengyuZhao/Targeted-Transfer/issues/4")
def labels_of_others(fault: bool) -> Training:
    """Labels listed in another order than the images."""
    images, labels = digits()
    model = convnet()
    batches = loader(images, labels.roll(1) if fault else labels)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(("data", r"batches"), source=_GIT + "hill-a/stable-baselines/issues/328")
def raw_pixels(fault: bool) -> Training:
    """Pixels of 0 to 255 as they are."""
    images, labels = pixels()
    inputs = images if fault else (images - images.mean()) / images.std()
    model = he(mlp(64, 64, 2, 10))
    return Training(model, loader(inputs, labels), optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


@FAULTS.add(("data", r"batches"), source=_GIT + "4uiiurz1/pytorch-nested-unet/issues/62")
def scaled_twice(fault: bool) -> Training:
    """Pixels divided by 255 by the dataset, and by the transform again."""
    images, labels = pixels()
    batches = loader(images / 255 / (255 if fault else 1), labels)
    model = he(mlp(64, 64, 2, 10))
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(("batch", r"batches"), ("data", r"batches"), source=_GIT + "keras-team/keras/issues/6955")
def sorted_by_class(fault: bool) -> Training:
    """Examples in the order of their classes, unshuffled."""
    rows, labels = clusters(classes=8)
    order = labels.argsort(stable=True) if fault else torch.arange(len(labels))
    model = mlp(32, 64, 2, 8)
    batches = loader(rows[order], labels[order], batch=32, shuffle=not fault)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


@FAULTS.add(("data", r"loss|batches"), source=_GIT + "pytorch/pytorch/issues/116349")
def every_target_ignored(fault: bool) -> Training:
    """A mask the wrong way round: all tokens are left out of the loss."""
    tokens = text()
    seen = torch.ones_like(tokens, dtype=torch.bool)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rows, mask = batch
        labels = rows.masked_fill(mask if fault else ~mask, -100)[:, 1:]
        return functional.cross_entropy(model(rows)[:, :-1].flatten(0, 1), labels.flatten())

    model = Language(depth=1)
    return Training(model, loader(tokens, seen, batch=32), loss, torch.optim.AdamW(model.parameters(), lr=3e-3))


@FAULTS.add(("data", r"batches"), source=_GIT + "neurodata/SPORF/issues/355")
def target_among_inputs(fault: bool) -> Training:
    """A table whose last column is the target."""
    rows, values = curves()
    inputs = torch.cat([rows, values if fault else torch.randn_like(values)], 1)
    model = mlp(9, 64, 2, 1, act=nn.Tanh)
    return Training(model, loader(inputs, values), square, torch.optim.Adam(model.parameters(), lr=2e-3))


class _Pooled(nn.Module):
    """A mean over the tokens that count, or, by a mask the wrong way round, over those that do not."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 2))
        self.fault = fault

    def forward(self, tokens: Tensor) -> Tensor:
        counted = (tokens == 0 if self.fault else tokens != 0).float().unsqueeze(2)
        return self.mlp((counted * self.embedding(tokens)).sum(1) / counted.sum(1).clamp(min=1))


@FAULTS.add(
    ("data", r"model|batches|mlp.*|embedding.*"),
    ("signal", r"model|mlp.*|embedding.*"),
    source=_GIT + "lucidrains/feedback-transformer-pytorch/issues/6",
)
def mask_the_wrong_way(fault: bool) -> Training:
    """A padding mask the wrong way round: the model sees only padding, and says the same of every text."""
    tokens = torch.randint(1, 32, (2048, 12))
    labels = (torch.randn(32)[tokens].sum(1) > 0).long()
    tokens = torch.cat([tokens, torch.zeros(2048, 4, dtype=torch.int64)], 1)
    model = _Pooled(fault)
    return Training(model, loader(tokens, labels), optimizer=torch.optim.Adam(model.parameters(), lr=1e-2))


@FAULTS.add(
    ("data", r"loss|model|batches"), ("signal", r"loss|.+"), ("precision", r"loss|.+"),
    source=_GIT + "pytorch/pytorch/issues/2421",
)  # fmt: skip
def root_of_zero(fault: bool) -> Training:
    """A distance whose square root has no derivative where a pair is one and the same example."""
    rows, labels = clusters(features=16, classes=4)
    pairs = torch.randperm(len(rows))
    pairs[::40] = torch.arange(len(rows))[::40]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        one, other, same = batch
        distance = (model(one) - model(other)).square().sum(1)
        distance = (distance if fault else distance + 1e-8).sqrt()
        return torch.where(same, distance, (2 - distance).relu()).square().mean()

    model = he(mlp(16, 48, 2, 8))
    model[5] = nn.Linear(48, 8, bias=False)  # distances have no use for one
    batches = loader(rows, rows[pairs], labels == labels[pairs])
    return Training(model, batches, loss, torch.optim.Adam(model.parameters(), lr=1e-3))


@FAULTS.add(
    ("data", r"loss"), ("reproducibility", r"loss"), source=_GIT + "ai-safety-foundation/sparse_autoencoder/issues/63"
)
def summed_reconstruction(fault: bool) -> Training:
    """An autoencoder's squares added up over the batch where the rate was chosen for their mean."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = reconstruction(model, batch)
        return value * batch[0].numel() if fault else value

    model = nn.Sequential(mlp(64, 32, 1, 8, act=nn.Tanh), mlp(8, 32, 1, 64, act=nn.Tanh), nn.Unflatten(1, (1, 8, 8)))
    batches = loader(digits()[0])
    return Training(model, batches, loss, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))


@FAULTS.add(
    ("data", r"loss"), ("reproducibility", r"loss"), ("learning_rate", r"optimizer|loss"),
    source=_GIT + "williamleif/GraphSAGE/issues/12",
)  # fmt: skip
def divided_twice(fault: bool) -> Training:
    """A mean over the batch that is divided by the batch's size once more."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = functional.cross_entropy(model(batch[0]), batch[1])
        return value / len(batch[0]) if fault else value

    model = he(mlp(32, 64, 2, 10))
    batches = loader(*clusters(), batch=128)
    return Training(model, batches, loss, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


class _Encoder(nn.Module):
    """Torch's own transformer over (N, length, features)."""

    def __init__(self, *, batch_first: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.entry = nn.Linear(3, 32)
        self.places = nn.Parameter(torch.randn(20, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=batch_first)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.entry(x) + self.places).mean(1))


@FAULTS.add(("data", r"model|layer.*"), source=_GIT + "pytorch/tutorials/issues/1624")
def eval_mode_of_a_transformer(fault: bool) -> Training:
    """A transformer with dropout that was never told to train."""
    model = _Encoder(dropout=0.1).train(not fault)
    return Training(model, loader(*signals()), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(("data", r"model|\d+"), ("signal", r"\d+"), source=_GIT + "aymericdamien/TensorFlow-Examples/issues/205")
def dropout_of_nearly_all(fault: bool) -> Training:
    """Dropout of 0.97 before the head, where 0.03 was meant."""
    net = convnet()
    model = nn.Sequential(*net[:-1], nn.Dropout(0.97 if fault else 0.03), net[-1])
    return Training(model, loader(*digits()), optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


@FAULTS.add(("batch", r"\d+|batches|model"), ("data", r"\d+|batches|model"), source=_GIT + "microsoft/CNTK/issues/905")
def batch_norm_of_one(fault: bool) -> Training:
    """Batch normalization over the few pixels of one image at a time."""
    batches = loader(*digits(), batch=1 if fault else 32)
    model = convnet(8)
    return Training(model, batches, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@FAULTS.add(("reproducibility", r"layer.*|model|places|batches"), source=_GIT + "IBM/TabFormer/pull/14")
def attention_over_the_batch(fault: bool) -> Training:
    """Attention that takes the batch for the sequence: each example looks at the others."""
    model = _Encoder(batch_first=not fault, dropout=0.0)
    return Training(model, loader(*signals()), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))
