"""Softmax classifiers and what is read off them: gaps between logits, and how far chances are from accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from depthgauge import data
from depthgauge.seeding import Purpose, generator

IMAGES = 40  # of the linear classifier: fewer than its weights a class, so that any targets can be reached
MOMENTUM = 0.9
BINS = 10


def linear(seeds: Sequence[int], smoothing: float, steps: int, device: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Train a linear classifier a seed: full-batch descent from zero in float64, on images of its own.

    The rate is the inverse of the largest curvature that a softmax can have there. Yields (step, losses (R,),
    `gaps` (R, IMAGES, 9)) at each power of two.
    """
    train = data.load("digits").train
    draws = [generator(seed, Purpose.SAMPLE) for seed in seeds]
    own = torch.stack([torch.randperm(len(train), generator=each)[:IMAGES] for each in draws])
    pixels, labels = train.x.flatten(1).double()[own].to(device), train.y[own].to(device)
    x = torch.cat([pixels, torch.ones_like(pixels[..., :1])], 2)
    targets = (1 - smoothing) * functional.one_hot(labels, 10).double() + smoothing / 10
    rate = (2 * IMAGES / torch.linalg.matrix_norm(x, 2).square())[:, None, None]  # softmax bends by 1/2 at most
    weights = torch.zeros(len(seeds), x.shape[2], 10, dtype=x.dtype, device=x.device)
    velocity = torch.zeros_like(weights)
    for step in range(1, steps + 1):
        velocity = MOMENTUM * velocity + x.mT @ ((x @ weights).softmax(2) - targets) / IMAGES
        weights = weights - rate * velocity
        if step & (step - 1) == 0:
            logits = x @ weights
            yield step, -(targets * logits.log_softmax(2)).sum(2).mean(1), gaps(logits, labels)


def gaps(logits: Tensor, labels: Tensor) -> Tensor:
    """Right logit less each other one, (..., K - 1)."""
    right = functional.one_hot(labels, logits.shape[-1]).bool()
    others = logits[~right].view(*logits.shape[:-1], -1)
    return logits[right].view(*logits.shape[:-1], 1) - others


def smoothed(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with smoothed targets, of one network's batch."""
    return functional.cross_entropy(outputs, targets, label_smoothing=smoothing)


def calibration_error(chances: Tensor, labels: Tensor) -> float:
    """Expected calibration error over bins of equal width of the largest chance, (N, K) and (N,); NaN of a NaN."""
    confidence, answer = chances.double().max(1)
    if confidence.isnan().any():
        return math.nan
    places = (confidence * BINS).long().clamp(max=BINS - 1)
    off = (answer == labels).double() - confidence
    sums = torch.zeros(BINS, dtype=off.dtype, device=off.device).index_add_(0, places, off)
    return float(sums.abs().sum() / len(labels))
