"""Networks whose output does not change with the scale of any weight: every layer is normalized, the last one too."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

TEMPERATURE = 4.0  # size of the normalized scores: with it a network can be sure of a class
EPS = 1e-12  # added to a variance: small, as the invariance is exact at 0 alone


class Invariant(nn.Module):
    """Linear layers without bias, each followed by batch normalization without gain; ReLU between them.

    Args:
        sizes: inputs, hidden widths, classes.
        ghost: examples over which statistics are taken in train mode; 0 for those of the batch.
        reference: (N, inputs) examples whose statistics are taken in eval mode, without which they are the batch's;
            with `ghost` of -1 in train mode too.
    """

    def __init__(self, sizes: tuple[int, ...], ghost: int = 0, reference: Tensor | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*each, bias=False) for each in itertools.pairwise(sizes))
        self.ghost = ghost
        self.reference = reference

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> scores (N, classes)."""
        ahead = self.reference if self.ghost < 0 or not self.training else None
        x = x.flatten(1)
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if ahead is not None:
                ahead = layer(ahead)
                x, ahead = normalized(x, ahead), normalized(ahead, ahead)
            else:
                size = min(self.ghost, len(x)) if self.ghost > 0 and self.training else len(x)
                parts = x.view(-1, size, x.shape[-1])
                x = normalized(parts, parts).view(x.shape)
            if place < len(self.layers) - 1:
                x = torch.relu(x)
                ahead = None if ahead is None else torch.relu(ahead)
        return TEMPERATURE * x


def normalized(x: Tensor, like: Tensor) -> Tensor:
    """`x` (..., N, units), shifted and scaled by the mean and deviation of `like` over its examples."""
    centred = like - like.mean(-2, keepdim=True)
    return (x - like.mean(-2, keepdim=True)) / (centred.square().mean(-2, keepdim=True) + EPS).sqrt()
