"""Augmentation: images by hand, input noise in a linear and a quadratic map, and verdicts both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from depthgauge.studies.regularization import augmentation, images
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def _case(**params: str | int | float) -> Case:
    return Case.of({"part": "augmentation", "dataset": "digits", "seed": 0, "width": 8, **params})


def test_shifts_move_whole_pixels_and_rotations_keep_the_middle() -> None:
    dot = torch.full((200, 1, 9, 9), -1.0)
    dot[:, :, 4, 4] = 2.0
    draws = torch.Generator().manual_seed(3)
    moved = images.shifted(dot, draws)
    assert moved.shape == dot.shape
    places = {tuple(place) for place in (moved == 2.0).nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert set(moved.flatten().tolist()) == {-1.0, 2.0}
    turned = images.rotated(dot, draws)
    assert torch.allclose(turned[:, :, 4, 4], dot[:, :, 4, 4])
    assert float(turned.min()) == pytest.approx(-1.0)
    spread = (images.noisy(dot, draws) - dot).std()
    assert float(spread) == pytest.approx(images.NOISE, rel=0.05)


class _Square(nn.Module):
    """Sum of squares of two inputs, and nothing: its second derivative is the identity, twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.square().sum(1), torch.zeros(len(x), dtype=x.dtype)], 1)


def test_noise_adds_what_is_known_in_a_linear_and_in_a_quadratic_map() -> None:
    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.ones(3000, dtype=torch.int64)  # targets 0 and 1
    linear = dict(images.noise_ratios(nn.Linear(2, 2), x, labels, torch.Generator().manual_seed(2)))
    assert list(linear.values()) == pytest.approx([1.0] * 3, rel=0.05)
    square = dict(images.noise_ratios(_Square(), x, labels, torch.Generator().manual_seed(2)))
    r2 = float(x.square().sum(1).mean())
    for s, ratio in square.items():  # E (r2 + 2 x.e + e2)^2 - r2^2 = 4 s^2 r2 + 4 s^2 r2 + 8 s^4
        assert ratio == pytest.approx((8 * r2 + 8 * s**2) / (4 * r2), rel=0.08)


def _made_up(ratio: float, accuracies: Mapping[str, float], small: float = 0.3) -> list[Rows]:
    """Small batches are best at the rate `small`, all others at 0.3."""
    rows = []
    for seed in range(-3, 8):
        for name in augmentation.VARIANTS:
            for lr in (0.1, 0.3, 1.0):
                case = _case(seed=seed, asked="variants", variant=name, lr=lr, steps=9)
                value = accuracies.get(name, 0.9) - 0.1 * (lr != (small if name == "batch 8" else 0.3)) + 1e-4 * seed
                ends = dict.fromkeys(augmentation.METRICS[:3], value) | {"diverged": 0.0}
                rows += [case.rows(metric, figure) for metric, figure in ends.items()]
        for network in augmentation.NETWORKS if seed >= 0 else ():
            case = _case(seed=seed, asked="noise", network=network, steps=9)
            value = 1.0 if network == "linear" else ratio
            rows += [case.rows("ratio", value + 1e-3 * seed, layer=f"{s:g}") for s in images.NOISES]
    return rows


def test_verdicts_go_both_ways(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    helped = {"shifts": 0.95, "rotations": 0.94, "noise 0.5": 0.93, "batch 8": 0.95}
    good = analysed(augmentation.PART, _made_up(1.0, helped))
    assert set(good.statuses.values()) == {Status.HOLDS}
    assert "rates at the end" not in " ".join(good.sentences)
    bad = analysed(augmentation.PART, _made_up(0.7, {"batch 8": 0.8}))
    assert bad.statuses == {
        "input_noise": Status.DEPENDS, "augmentation": Status.FAILS, "batch_noise": Status.FAILS,
    }  # fmt: skip


def test_a_rate_at_the_end_of_the_grid_is_told(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    edge = analysed(augmentation.PART, _made_up(1.0, {"batch 8": 0.8}, small=0.1))  # far below, but perhaps not at 0.03
    verdict = edge.verdicts["batch_noise"]
    assert (verdict.status, verdict.at_edge) == (Status.INCONCLUSIVE, "all 3 conditions")
    assert "a learning rate at the end of its grid" in verdict.why
    assert "which may not be the best: batch 8)" in " ".join(edge.sentences)


@pytest.mark.parametrize("variant", ["dropout 0.3", "shifts"])
def test_a_variant_is_trained_and_rated(variant: str) -> None:
    cases = [_case(seed=seed, asked="variants", variant=variant, lr=0.1, steps=2) for seed in range(2)]
    rows = list(augmentation.run(cases, Context()))
    assert {row.metric for row in rows} == set(augmentation.METRICS)
    assert all(0 <= float(row.value) <= 1 for row in rows)


def test_a_network_that_diverged_leaves_its_ratio_undecided(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = [
        replace(row, value=math.nan)
        if row.metric == "ratio" and (row.case["network"], row.case["seed"]) == ("tanh", 3) else row
        for row in _made_up(1.0, {"batch 8": 0.95})
    ]  # fmt: skip
    table = analysed(augmentation.PART, rows).tables["input_noise"].set_index("network")
    assert set(table.loc["tanh", "answer"]) == {"inconclusive"}
    assert set(table["n"]) == {8}
