"""MNIST-1D: ten strokes of a pen as signals, stretched, moved, sheared and drowned in noise.

After Greydanus and Kobak, "Scaling Down Deep Learning with MNIST-1D" (2020, arXiv 2011.14439): small, and hard enough
to tell models apart, where MNIST is not. On the authors' own draws logistic regression gets 32 % of the test set, an
MLP 68 %, a convolutional network 94 %, a person 96 %.

The same as theirs: the templates, the order of what is done to them, every distribution, every default. Ours: the code,
the stream of random numbers, hence each single example; classes in turn, so that any leading piece is balanced; and
mean and standard deviation from the training part alone, where theirs are from both.
"""

from __future__ import annotations

import torch
from scipy.ndimage import gaussian_filter1d
from torch.nn.functional import interpolate, pad

from depthgauge import seeding
from depthgauge.data import Dataset, Examples
from depthgauge.data.synthetic import split
from depthgauge.seeding import Purpose

# fmt: off
# Height of the pen in twelve steps, for each digit as the authors draw it (package mnist1d, Apache License 2.0).
_STROKES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
# fmt: on
_STROKE = 12
_PADDING = (36, 60)  # empty steps after the stroke, fewest and most
_STEPS = _STROKE + _PADDING[1]  # of a signal, before it is sampled
_SHIFTS = 48  # a signal is moved by 0 to 47 steps, round the end
_SMOOTHING = 2.0  # standard deviation, in steps, of the kernel that correlates noise


def templates() -> torch.Tensor:
    """(10, 12) float32: each stroke at unit variance, over 6, from 0 at its first step to 0 at its last."""
    strokes = torch.tensor(_STROKES, dtype=torch.float64)
    scaled = strokes / strokes.std(1, correction=0, keepdim=True)
    return ((scaled - scaled[:, :1]) / 6).float()


def mnist1d(
    *,
    n: int = 4000,
    n_test: int = 1000,
    length: int = 40,
    scale: float = 0.4,
    shear: float = 0.75,
    smooth_noise: float = 0.25,
    noise: float = 0.02,
    seed: int = 0,
) -> Dataset:
    """Signals of ten classes: (N, length, 1), as sequence models and MLPs take them, -> (N,).

    Example i is of class i mod 10. `truth` has `templates`, (10, 12), and the training part's `mean` and `std`: std x +
    mean is the signal in the units of the templates.

    Args:
        n: examples to train.
        n_test: examples to test.
        length: samples a signal, at least 2.
        scale: a signal is multiplied by a factor uniform in 1 -+ scale / 2.
        shear: and tilted, from end to end, by a height uniform in -+ shear / 2.
        smooth_noise: standard deviation of the noise outside the stroke, before it is smoothed.
        noise: standard deviation of independent noise everywhere.
        seed: seed of every draw.

    Raises:
        ValueError: there are no examples, or fewer than two samples.
    """
    if length < 2:
        raise ValueError(f"a signal has at least two samples, not {length}")
    generator = seeding.generator(seed, Purpose.DATA, "mnist1d")
    strokes = templates()

    def draw(count: int) -> Examples:
        label = torch.arange(count) % 10
        signal, silent = _stretched(strokes[label], generator)
        signal = signal * (1 + scale * (_uniform(count, generator) - 0.5))
        signal, silent = _moved(signal, silent, generator)
        signal = signal + silent * _smooth(smooth_noise * torch.randn(signal.shape, generator=generator))
        signal = signal + noise * torch.randn(signal.shape, generator=generator)
        signal = signal - shear * (_uniform(count, generator) - 0.5) * torch.linspace(-0.5, 0.5, _STEPS)
        return Examples(interpolate(signal[:, None], length, mode="linear", align_corners=True).mT, label)

    train, test = split(draw, n, n_test)
    mean, std = train.x.mean(), train.x.std(correction=0)
    train, test = (Examples((part.x - mean) / std, part.y) for part in (train, test))
    return Dataset("mnist1d", train, test, classes=10, truth={"templates": strokes, "mean": mean, "std": std})


def _uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, generator=generator)


def _stretched(strokes: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Strokes and their empty steps, few or many, over all the steps: (N, 12) -> (N, 72), and where there is no stroke.

    The fewer the empty steps, the wider the stroke becomes.
    """
    fewest, most = _PADDING
    empty = torch.randint(fewest, most + 1, (len(strokes), 1), generator=generator)
    place = torch.arange(_STEPS) * (_STROKE - 1 + empty) / (_STEPS - 1)  # in steps of the stroke
    left = place.long()
    heights = pad(strokes, (0, _STEPS + 1 - _STROKE))
    return torch.lerp(heights.gather(1, left), heights.gather(1, left + 1), place - left), place >= _STROKE


def _moved(signal: torch.Tensor, silent: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    shift = torch.randint(_SHIFTS, (len(signal), 1), generator=generator)
    origin = (torch.arange(_STEPS) - shift) % _STEPS
    return signal.gather(1, origin), silent.gather(1, origin)


def _smooth(noise: torch.Tensor) -> torch.Tensor:
    smoothed: torch.Tensor = torch.from_numpy(gaussian_filter1d(noise.numpy(), _SMOOTHING, axis=1))
    return smoothed
