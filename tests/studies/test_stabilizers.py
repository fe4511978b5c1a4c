"""Shattered gradients: the measurement against autograd and theory, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from depthgauge import theory
from depthgauge.studies.stabilizers import shattering
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize("block", ["plain", "skip", "skip-norm"])
def test_jacobians_are_those_of_autograd(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shattering, "PAIRED", 2)
    x, seed = torch.randn(2, 6, dtype=torch.float64), 3
    measured = dict(shattering._correlations(x, block, torch.Generator().manual_seed(seed)))

    def network(one: torch.Tensor) -> torch.Tensor:
        draws = torch.Generator().manual_seed(seed)
        for _ in range(4):
            weight = torch.randn(6, 6, generator=draws, dtype=torch.float64) * math.sqrt(2 / 6)
            normed = (one - one.mean()) / one.std(correction=0) if block == "skip-norm" else one
            one = (one if block.startswith("skip") else 0) + weight @ torch.relu(normed)
        return one

    jacobians = [torch.autograd.functional.jacobian(network, each).flatten() for each in x]  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert measured[4] == pytest.approx(float(torch.cosine_similarity(*jacobians, dim=0)), rel=1e-9)


def test_theory_is_the_arc_cosine_kernel_s_product() -> None:
    c, expected = 0.3, [1.0]
    for _ in range(5):
        expected.append(expected[-1] * (1 - math.acos(c) / math.pi))
        c = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    assert theory.gradient_correlation("relu", math.sqrt(2), depth=5, c_0=0.3) == pytest.approx(np.array(expected))


def test_same_inputs_have_the_same_gradient_and_wrong_arguments_are_named() -> None:
    for block in ("plain", "skip", "skip-norm"):
        assert theory.gradient_correlation("tanh", 1.3, depth=6, block=block, c_0=1.0) == pytest.approx(np.ones(7))
    with pytest.raises(ValueError, match="a block is plain, batch-norm, skip, skip-norm"):
        theory.gradient_correlation("relu", 1.0, depth=2, block="post")  # type: ignore[arg-type]  # it is the test
    with pytest.raises(ValueError, match="between -1 and 1"):
        theory.gradient_correlation("relu", 1.0, depth=2, c_0=1.1)


@pytest.mark.parametrize("block", ["plain", "batch-norm", "skip", "skip-norm"])
def test_a_wide_network_is_as_theory_says(block: str) -> None:
    cases = [Case.of({"part": "shattering", "block": block, "width": 160, "inputs": 200, "seed": s}) for s in range(3)]
    rows = [(row.layer_index, row.value) for row in shattering.run(cases, Context())]
    law = theory.gradient_correlation("relu", math.sqrt(2), depth=4, block=block)  # type: ignore[arg-type]  # as listed
    for depth in (1, 2, 4):
        assert np.mean([value for at, value in rows if at == depth]) == pytest.approx(law[depth], rel=0.15)


def made_up(halving: dict[str, float]) -> Iterator[Rows]:
    """Correlations that fall as `d ** -power`, or as 2 ** -d at power 0."""
    for block, power in halving.items():
        for seed in range(12):
            case = Case.of({"part": "shattering", "block": block, "width": 640, "inputs": 20, "seed": seed})
            for depth in shattering.DEPTHS:
                value = (1 + 1e-3 * seed) * (2.0**-depth if power == 0 else depth**-power)
                yield case.rows("correlation", value, layer_index=depth)


def test_an_exponential_law_is_told_from_a_power(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    powers = {"plain": 3.0, "batch-norm": 0.0, "skip": 2.0, "skip-norm": 0.5}
    answers = analysed(shattering.PART, made_up(powers))
    assert answers.statuses["shattering"] is Status.DEPENDS
    assert "false for plain" in answers.verdicts["shattering"].says
    assert any("batch normalization, which keeps inputs apart" in text for text in answers.sentences)
    everywhere = analysed(shattering.PART, made_up({"plain": 0.0, "batch-norm": 0.0, "skip": 2.0, "skip-norm": 0.5}))
    assert everywhere.statuses["shattering"] is Status.HOLDS


def test_the_ratio_to_a_measured_square_has_its_error_too(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    """Networks whose correlation at twice the depth is the square of that at the depth, however they scatter."""
    rows = []
    for row in made_up({"plain": 3.0, "batch-norm": 0.0, "skip": 2.0, "skip-norm": 0.5}):
        scattered = 1 + 0.05 * math.sin(row.case.integer("seed"))
        rows.append(replace(row, value=row.value * scattered ** (row.layer_index / shattering.PROBED)))
    law = analysed(shattering.PART, rows).tables["shattering_law"].set_index("block").loc["batch norm"]
    assert law["high_95"] - law["low_95"] < 0.01  # 0.1 with the mean at the depth taken for known
    assert law["answer"] in {"equivalent", "different, inside the margin"}
