"""Losses of the zoo's trainings, where they are not the default cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def next_token(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of each token given those before it."""
    tokens = batch[0]
    scores = model(tokens)[:, :-1]
    return functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


def square(model: nn.Module, batch: Any) -> Tensor:
    """Mean square of what the model says less the target, of one shape."""
    inputs, targets = batch
    return functional.mse_loss(model(inputs), targets)


def reconstruction(model: nn.Module, batch: Any) -> Tensor:
    """Mean square of what the model makes of its input less the input."""
    return functional.mse_loss(model(batch[0]), batch[0])


def own(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a Hugging Face model takes of a mapping with labels."""
    value: Tensor = model(**batch).loss
    return value
