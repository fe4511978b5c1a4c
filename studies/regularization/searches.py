"""Random search for a setting, and thinned networks: what each would report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from depthgauge import data
from depthgauge.studies.regularization import masked


def expected_best(chosen_by: ArrayLike, reported: ArrayLike) -> NDArray[np.float64]:
    """Expected figure of the best of k trials, for every k from 1 to all: over all choices of k of them.

    The best is that of the highest validation score, the first among equals, and its test score is reported (Dodge et
    al. 2019); drawn without replacement, which has no bias (Tang et al. 2020): C(i - 1, k - 1) / C(T, k) for the i-th.

    Args:
        chosen_by: (T,) validation scores.
        reported: (T,) what is reported of the chosen one.
    """
    held, figures = np.asarray(chosen_by, dtype=float), np.asarray(reported, dtype=float)
    total = len(held)
    ranked = figures[np.lexsort((-np.arange(total), held))]
    return np.array([
        sum(math.comb(i, k - 1) * value for i, value in enumerate(ranked)) / math.comb(total, k)
        for k in range(1, total + 1)
    ])  # fmt: skip


def thinned(
    nets: masked.Nets, parts: tuple[data.Examples, data.Examples], count: int, seeds: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Test accuracy and loss of thinned networks: of the best in validation, of their mean chances, and their means.

    Args:
        nets: trained ones.
        parts: validation and test examples.
        count: thinned networks drawn, each by one mask for all examples.
        seeds: of the masks, one a network.
    """
    validation, test = parts
    both, cut, masks = torch.cat([validation.x, test.x])[None], len(validation), masked.Masks(seeds, "thinned")
    found, chances = [], torch.zeros(())
    for _ in range(count):
        out = nets(both, masks, one=True)
        found.append([masked.scores(out[:, :cut], validation.y)[0], *masked.scores(out[:, cut:], test.y)])
        chances = chances + out[:, cut:].softmax(-1) / count
    held, accuracy, loss = (torch.stack([each[i] for each in found]) for i in range(3))
    best = held.argmax(0, keepdim=True)
    mean = masked.scores(chances.log(), test.y)
    return {
        "best_accuracy": accuracy.gather(0, best)[0], "best_loss": loss.gather(0, best)[0], "mean_accuracy": mean[0],
        "mean_loss": mean[1], "thinned_accuracy": accuracy.mean(0), "thinned_loss": loss.mean(0),
    }  # fmt: skip
