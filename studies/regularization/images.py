"""Images made more, shifted, rotated and noisy; and the error that noise on them adds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

FITTED = 512  # training images, at most
COPIES = 16
DEGREES = 15.0
NOISE = 0.5  # standard deviation; that of the pixels is 1
NOISES = (0.1, 0.3, 1.0)  # standard deviations; that of the pixels is 1
DRAWN = 8  # noises an image, each with its opposite


def noisy(x: Tensor, draws: torch.Generator) -> Tensor:
    """Images with independent normal noise on each pixel."""
    return x + NOISE * torch.randn(x.shape, generator=draws).to(x)


def shifted(x: Tensor, draws: torch.Generator) -> Tensor:
    """Images (N, C, H, W) moved by whole pixels, up to an eighth of the side, on background (the smallest value)."""
    most = max(1, round(x.shape[-1] / 8))
    moves = torch.randint(-most, most + 1, (len(x), 2), generator=draws).tolist()
    background = x.min().item()
    height, width = x.shape[-2:]
    wide = functional.pad(x, (most,) * 4, value=background)
    parts = [
        image[:, most - down : most - down + height, most - right : most - right + width]
        for image, (down, right) in zip(wide, moves, strict=True)
    ]
    return torch.stack(parts)


def rotated(x: Tensor, draws: torch.Generator) -> Tensor:
    """Images (N, C, H, W) turned about their centre, by linear interpolation, on background."""
    angles = (2 * torch.rand(len(x), generator=draws) - 1) * math.radians(DEGREES)
    sine, cosine, zero = angles.sin(), angles.cos(), torch.zeros_like(angles)
    turns = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3).to(x)
    background = x.min()
    grid = functional.affine_grid(turns, list(x.shape), align_corners=False)
    return functional.grid_sample(x - background, grid, align_corners=False) + background


def noise_ratios(module: nn.Module, x: Tensor, labels: Tensor, draws: torch.Generator) -> Iterator[tuple[float, float]]:
    """(s, squared error that noise adds over s^2 times the squared Jacobian), means over images, in float64."""
    module = module.double()
    given = x.double().requires_grad_()
    outputs = module(given)
    slopes = [torch.autograd.grad(each.sum(), given, retain_graph=True)[0] for each in outputs.unbind(1)]
    squares = torch.stack(slopes).square().sum()
    targets = functional.one_hot(labels, outputs.shape[1]).double()
    with torch.no_grad():
        clean = (outputs - targets).square().sum()
        noise = torch.randn(DRAWN, *x.shape, generator=draws, dtype=torch.float64).to(x.device)
        for size in NOISES:
            moved = [given + sign * size * each for each in noise for sign in (1, -1)]
            noisy = torch.stack([(module(each) - targets).square().sum() for each in moved]).mean()
            yield size, float((noisy - clean) / (size**2 * squares))
