"""Data of the zoo's trainings: small, and learnt by a small network within 200 steps."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def loader(*tensors: Tensor, batch: int = 64, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of rows of the tensors, in an order of its own generator."""
    generator = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
    return DataLoader(TensorDataset(*tensors), batch, shuffle=shuffle, drop_last=True, generator=generator)


def clusters(classes: int = 10, features: int = 32, count: int = 2048, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """(count, features) standardized, and their classes: Gaussian clouds around two centres a class."""
    centres = torch.randn(2, classes, features)
    labels = torch.randint(classes, (count,))
    rows = centres[torch.randint(2, (count,)), labels] + spread * torch.randn(count, features)
    return standardized(rows), labels


def digits(count: int = 1792) -> tuple[Tensor, Tensor]:
    """(count, 1, 8, 8) standardized, and their classes: scikit-learn's handwritten digits in a drawn order."""
    images, labels = _digits()
    order = torch.randperm(len(labels))[:count]
    return standardized(images[order].reshape(-1, 64)).reshape(-1, 1, 8, 8), labels[order]


def pixels(count: int = 1792) -> tuple[Tensor, Tensor]:
    """(count, 1, 8, 8) of whole numbers 0 to 255, and their classes: the digits as files hold them."""
    images, labels = _digits()
    order = torch.randperm(len(labels))[:count]
    return (images[order] * 255 / 16).round(), labels[order]


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    return images, torch.tensor(bunch.target, dtype=torch.int64)


def curves(features: int = 8, count: int = 2048, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """(count, features) and (count, 1), both standardized: a smooth function of three directions, and noise."""
    rows = torch.randn(count, features)
    directions = torch.randn(features, 3) / features**0.5
    seen = rows @ directions
    values = seen[:, :1].sin() + seen[:, 1:2] * seen[:, 2:].tanh() + seen[:, 2:]
    return rows, standardized(values) + noise * torch.randn(count, 1)


def text(vocabulary: int = 32, length: int = 24, count: int = 768, following: int = 3) -> Tensor:
    """(count, length) tokens of a Markov chain in which each token has so many that may follow."""
    allowed = torch.stack([torch.randperm(vocabulary)[:following] for _ in range(vocabulary)])
    tokens = torch.empty(count, length, dtype=torch.int64)
    tokens[:, 0] = torch.randint(vocabulary, (count,))
    for place in range(1, length):
        tokens[:, place] = allowed[tokens[:, place - 1], torch.randint(following, (count,))]
    return tokens


def signals(classes: int = 4, length: int = 20, features: int = 3, count: int = 1536) -> tuple[Tensor, Tensor]:
    """(count, length, features) and their classes: waves whose frequency tells the class."""
    labels = torch.randint(classes, (count,))
    times = torch.arange(length) / length
    phase = 6.28 * torch.rand(count, 1, features)
    waves = (6.28 * (1 + labels)[:, None, None] * times[None, :, None] + phase).sin()
    return standardized(waves + 0.3 * torch.randn_like(waves)), labels


def standardized(rows: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all its numbers."""
    return (rows - rows.mean()) / rows.std()
