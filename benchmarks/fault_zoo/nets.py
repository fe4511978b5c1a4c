"""Small networks of the zoo's trainings, soundly initialized where nothing else is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def he(model: nn.Module, gain: float = math.sqrt(2)) -> nn.Module:
    """The model, each weight of a linear layer or a convolution drawn as N(0, gain^2 / fan-in), biases 0."""
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.normal_(part.weight, std=gain / math.sqrt(part.weight[0].numel()))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return model


def mlp(
    features: int,
    width: int,
    depth: int,
    outputs: int,
    *,
    act: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """`depth` hidden layers and a linear head; of torch's own initialization."""
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in range(depth):
        parts.append(nn.Linear(width if layer else features, width))
        parts += [norm(width)] if norm else []
        parts.append(act())
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def convnet(channels: int = 16, outputs: int = 10, *, norm: bool = True) -> nn.Sequential:
    """Three convolutions over 8 x 8 images, pooling, a linear head."""
    parts: list[nn.Module] = []
    for layer in range(3):
        wide = channels * 2**layer
        parts.append(nn.Conv2d(wide // 2 if layer else 1, wide, 3, stride=2 if layer else 1, padding=1, bias=not norm))
        parts += [nn.BatchNorm2d(wide)] if norm else []
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels * 4, outputs))


class Residual(nn.Module):
    """skip * x + scale * branch(x)."""

    def __init__(self, branch: nn.Module, *, skip: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.branch = branch
        self.skip = skip
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the input's shape."""
        return self.skip * x + self.scale * self.branch(x)


class Attention(nn.Module):
    """Attention of several heads over (N, length, width)."""

    def __init__(self, width: int, heads: int = 4, *, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.mixed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.causal = causal
        self.scale = 1 / math.sqrt(width // heads) if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the input's shape."""
        rows, length, width = x.shape
        parts = self.mixed(x).reshape(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = self.scale * query @ key.transpose(-2, -1)
        if self.causal:
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, width))


class Block(nn.Module):
    """A block of a transformer, normalized before its branches."""

    def __init__(self, width: int, heads: int = 4, *, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal, scale=scale)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input's shape."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Language(nn.Module):
    """A small language model over (N, length) tokens: scores (N, length, vocabulary) of what follows each."""

    def __init__(self, vocabulary: int = 32, width: int = 32, depth: int = 2, *, causal: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.1 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Block(width, causal=causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores."""
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Recurrent(nn.Module):
    """A GRU over (N, length, features), and a linear head on its last state."""

    def __init__(self, features: int = 3, width: int = 32, outputs: int = 4) -> None:
        super().__init__()
        self.rnn = nn.GRU(features, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs)."""
        return self.head(self.rnn(x)[0][:, -1])
