"""Dropout's mean over all masks: against PyTorch's own dropout, and verdicts on what was measured."""

from __future__ import annotations

import pytest
import torch

from depthgauge.studies.regularization import expectation
from depthgauge.study import Case, Context
from depthgauge.verdict import Status

CASES = [
    Case.of({"part": "expectation", "p": p, "units": 6, "width": 16, "seed": seed})
    for p in (0.1, 0.5)
    for seed in range(6)
]


def test_all_masks_have_the_chances_of_pytorch_s_dropout() -> None:
    masks, chances = expectation._masks(5, 0.3)
    assert len(masks) == 32
    assert float(chances.sum()) == pytest.approx(1.0)
    assert (chances @ masks).tolist() == pytest.approx([0.7] * 5)
    drawn = torch.nn.functional.dropout(torch.ones(20_000, 5, dtype=torch.float64), 0.3) > 0
    shares = torch.stack([(drawn == mask.bool()).all(1).double().mean() for mask in masks])
    assert (shares - chances).abs().max() < 5 * 0.5 / 20_000**0.5


def test_the_mean_is_kept_where_all_is_linear_and_moves_behind_an_activation(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = list(expectation.run(CASES, Context()))
    answers = analysed(expectation.PART, rows)
    assert answers.statuses == {"N35": Status.DEPENDS, "dropout_variance": Status.HOLDS}
    table = answers.tables["dropout_mean"].set_index(["behind", "p"])["value"]
    assert table[["the layer itself", "a linear layer"]].max() < 1e-12
    assert table["ReLU", 0.5] > table["ReLU", 0.1] > 0.01
