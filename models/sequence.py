"""Parts that the models of sequences share: reading the steps, and placing the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Reader(nn.Module):
    """A batch as steps: (N, T) tokens through an embedding, (N, T, F) as it is, images (N, 1, T, F) row by row."""

    def __init__(self, input_shape: Sequence[int], vocabulary: int | None, width: int) -> None:
        super().__init__()
        shape = tuple(input_shape)
        if vocabulary is not None and len(shape) == 1:
            self.embedding: nn.Embedding | None = nn.Embedding(vocabulary, width)
            self.features = width
        elif vocabulary is None and (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)):
            self.embedding = None
            self.features = shape[-1]
        else:
            raise ValueError(
                "a sequence model takes (steps,) with a vocabulary, or (steps, features) or (1, rows, columns) "
                f"without one, not {shape} with vocabulary={vocabulary}"
            )
        self.steps = shape[0] if len(shape) < 3 else shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """To (N, T, features)."""
        if self.embedding is not None:
            out: torch.Tensor = self.embedding(x)
            return out
        return x.squeeze(1) if x.dim() == 4 else x


def answer(steps: torch.Tensor, *, each_step: bool) -> torch.Tensor:
    """(N, T, C) as it is, or the last step's (N, C)."""
    return steps if each_step else steps[:, -1]
