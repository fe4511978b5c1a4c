"""Decoder-only transformer: GPT-2 (Radford et al. 2019), in the orders of Vaswani et al. 2017 and Xiong et al. 2020."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from depthgauge.initialization import Stacked
from depthgauge.models.sequence import Reader, answer
from depthgauge.models.slots import Activation, Norm, Residual, Slots

Order = Literal["post", "pre"]
BRANCH_ENDS = ("attention.project", "feed_forward.project")


class Attention(nn.Module):
    """Causal self-attention with several heads, by PyTorch's fused operator or written out.

    On the CPU the fused operator cannot be differentiated twice. With `qk_norm` each
    head's queries and keys pass through a layer norm before their product (Dehghani et al. 2023; Wortsman et al. 2023,
    section 3.1.1).
    """

    def __init__(self, width: int, heads: int, *, fused: bool, qk_norm: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} is not divided by {heads} heads")
        self.heads = heads
        self.fused = fused
        self.qkv = Stacked(width, width, 3)
        self.norm_q = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.norm_k = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.project = nn.Linear(width, width)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.norm_q(q), self.norm_k(k), v

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the softmax: (N, T, C) -> (N, heads, T, T), -inf where a step lies in the future."""
        q, k, _ = self._heads(x)
        return self._masked(q, k)

    def _masked(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(later, -math.inf)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, T, C); step t sees steps 1 to t."""
        q, k, v = self._heads(x)
        if self.fused:
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = self._masked(q, k).softmax(-1) @ v
        out: torch.Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """`W_2 act(W_1 x)`, four times as wide inside."""

    def __init__(self, slots: Slots, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.activation = slots.activation()
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, T, C)."""
        out: torch.Tensor = self.project(self.activation(self.expand(x)))
        return out


class PreLN(nn.Module):
    """`x = join(x, f(norm(x)))`, for attention and then for feed-forward."""

    def __init__(self, slots: Slots, width: int, attention: Attention) -> None:
        super().__init__()
        self.norm1 = slots.norm(width)
        self.attention = attention
        self.join1 = slots.join()
        self.norm2 = slots.norm(width)
        self.feed_forward = FeedForward(slots, width)
        self.join2 = slots.join()
        self.branch_ends = BRANCH_ENDS if slots.residual else ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, T, C)."""
        x = self.join1(x, self.attention(self.norm1(x)))
        out: torch.Tensor = self.join2(x, self.feed_forward(self.norm2(x)))
        return out


class PostLN(nn.Module):
    """`x = norm(join(x, f(x)))`, for attention and then for feed-forward."""

    def __init__(self, slots: Slots, width: int, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.join1 = slots.join()
        self.norm1 = slots.norm(width)
        self.feed_forward = FeedForward(slots, width)
        self.join2 = slots.join()
        self.branch_ends = BRANCH_ENDS if slots.residual else ()
        self.norm2 = slots.norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, T, C)."""
        x = self.norm1(self.join1(x, self.attention(x)))
        out: torch.Tensor = self.norm2(self.join2(x, self.feed_forward(x)))
        return out


@dataclass(frozen=True, kw_only=True)
class TransformerSettings:
    """Decoder-only transformer, by default GPT-2's smallest; `init="gpt2"` is its initialization.

    `order="post"` normalizes after each sum (Vaswani et al. 2017), `norm="rms"` by the root mean square alone
    (Zhang and Sennrich 2019); `fused=False` writes attention out, `qk_norm` normalizes queries and keys. With
    `vocabulary=None` it reads rows of numbers, and images row by row.
    """

    input_shape: Sequence[int] = (1024,)
    classes: int = 50257
    activation: Activation = "gelu"
    norm: Norm = "layer"
    residual: Residual = True
    order: Order = "pre"
    vocabulary: int | None = 50257
    depth: int = 12
    width: int = 768
    heads: int = 12
    fused: bool = True
    qk_norm: bool = False
    each_step: bool = True

    def attention(self) -> Attention:
        """One block's attention."""
        return Attention(self.width, self.heads, fused=self.fused, qk_norm=self.qk_norm)

    def build(self) -> Transformer:
        """The model of these settings."""
        return Transformer(self)


class Transformer(nn.Module):
    """Embedding and positions, `depth` blocks, a last norm in pre order, and the output, at each step or the last.

    Where the output's classes are the vocabulary, the embedding is the output's weight (Press and Wolf 2017).
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        if settings.order not in ("post", "pre"):
            raise ValueError(f"order is 'post' or 'pre', not {settings.order!r}")
        slots = Slots.over("tokens", activation=settings.activation, norm=settings.norm, residual=settings.residual)
        self.each_step = settings.each_step
        self.reader = Reader(settings.input_shape, settings.vocabulary, settings.width)
        embeds = settings.vocabulary is not None
        self.embedding = nn.Identity() if embeds else nn.Linear(self.reader.features, settings.width)
        self.position = nn.Embedding(self.reader.steps, settings.width)
        block = PreLN if settings.order == "pre" else PostLN
        self.blocks = nn.Sequential(
            *(block(slots, settings.width, settings.attention()) for _ in range(settings.depth))
        )
        self.norm = slots.norm(settings.width) if settings.order == "pre" else nn.Identity()
        tied = settings.vocabulary == settings.classes and settings.each_step
        self.output = nn.Linear(settings.width, settings.classes, bias=not tied)
        if tied:
            assert self.reader.embedding is not None
            self.reader.embedding.weight = self.output.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T), (N, T, F) or (N, 1, T, F) -> (N, T, classes), or (N, classes) without `each_step`."""
        steps = self.embedding(self.reader(x))
        steps = steps + self.position(torch.arange(steps.shape[1], device=steps.device))
        steps = self.norm(self.blocks(steps))
        out: torch.Tensor = self.output(answer(steps, each_step=self.each_step))
        return out
