"""Targets: the linear classifier against autograd, calibration by hand, and verdicts both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional

from depthgauge import theory
from depthgauge.studies.regularization import softmax, targets
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def _case(**params: str | int | float) -> Case:
    return Case.of({"part": "targets", "seed": 0, "smoothing": 0.1, **params})


def test_gaps_and_calibration_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    assert softmax.gaps(logits, torch.tensor([0, 1])).tolist() == [[2.0, 3.0], [2.0, -3.0]]
    chances = torch.tensor([[0.95, 0.05], [0.98, 0.02], [0.35, 0.65], [0.38, 0.62]])
    wrong = softmax.calibration_error(chances, torch.tensor([0, 1, 1, 1]))  # 1 of 2 right at 0.965, 2 of 2 at 0.635
    assert wrong == pytest.approx((0.465 + 0.365) / 2)
    chances[1] = torch.nan
    assert math.isnan(softmax.calibration_error(chances, torch.tensor([0, 1, 1, 1])))


def test_the_linear_classifier_descends_as_torch_s_does() -> None:
    [(_, first, _), (_, second, _)] = softmax.linear([7], 0.1, 2, "cpu")
    train = softmax.data.load("digits").train
    own = torch.randperm(len(train), generator=softmax.generator(7, softmax.Purpose.SAMPLE))[: softmax.IMAGES]
    layer = torch.nn.Linear(64, 10, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    x, y = train.x[own].flatten(1).double(), train.y[own]
    rate = 2 * softmax.IMAGES / float(torch.linalg.matrix_norm(torch.cat([x, torch.ones(len(x), 1)], 1), 2)) ** 2
    sgd = torch.optim.SGD(layer.parameters(), rate, momentum=softmax.MOMENTUM)
    for expected in (first, second):
        sgd.zero_grad()
        functional.cross_entropy(layer(x), y, label_smoothing=0.1).backward()
        sgd.step()
        with torch.no_grad():
            assert float(expected) == pytest.approx(float(softmax.smoothed(layer(x), y, 0.1)), rel=1e-9)


def test_the_smoothed_gap_is_where_the_loss_is_least() -> None:
    logits = torch.zeros(1, 5)
    logits[0, 2] = theory.smoothed_gap(0.2, 5)
    logits.requires_grad_()
    softmax.smoothed(logits, torch.tensor([2]), 0.2).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7


def _made_up(loss: float, gap: float, network: Mapping[float, tuple[float, float]]) -> list[Rows]:
    """A power of the loss, a share of the predicted gap, and (accuracy, calibration error) by smoothing."""
    rows = []
    for seed in range(-3, 8):
        small = 1e-4 * seed
        for e, (accuracy, calibration) in network.items():
            for lr in (0.1, 0.3, 1.0):
                worse = 0.1 * (lr != 0.3)
                ends = dict.fromkeys(targets.METRICS, 0.0) | {
                    "validation_accuracy": accuracy - worse, "test_accuracy": accuracy - worse + small,
                    "calibration": calibration + small, "fitted": 1.0,
                }  # fmt: skip
                case = _case(seed=seed, network="mlp", smoothing=e, lr=lr, steps=100, width=8)
                rows += [case.rows(metric, value) for metric, value in ends.items()]
        for e in network if seed >= 0 else ():
            case = _case(seed=seed, network="linear", smoothing=e, steps=64)
            for step in (1, 2, 4, 8, 16, 32, 64):
                value = theory.smoothed_gap(e, 10) * (gap + small) if e else 1.0
                rows += [case.rows("gap", value, step=step), case.rows("loss", step ** (-loss - small), step=step)]
                rows.append(case.rows("least_gap", (loss + small) * torch.tensor(step).log().item(), step=step))
    return rows


def test_verdicts_go_both_ways(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    expected = analysed(targets.PART, _made_up(1.0, 1.0, {0.0: (0.96, 0.02), 0.1: (0.96, 0.09)}))
    assert expected.statuses == {
        "N41": Status.FAILS, "one_hot_growth": Status.HOLDS, "smoothing_gap": Status.HOLDS,
        "smoothing_calibration": Status.FAILS,
    }  # fmt: skip
    other = analysed(targets.PART, _made_up(0.5, 1.3, {0.0: (0.9, 0.09), 0.1: (0.96, 0.02)}))
    assert other.statuses == {
        "N41": Status.DEPENDS, "one_hot_growth": Status.FAILS, "smoothing_gap": Status.FAILS,
        "smoothing_calibration": Status.HOLDS,
    }  # fmt: skip


def test_a_linear_classifier_nears_the_predicted_gap() -> None:
    cases = [_case(seed=seed, network="linear", steps=256, smoothing=0.3) for seed in range(2)]
    last = [row.value for row in targets.run(cases, Context()) if (row.metric, row.step) == ("gap", 256)]
    assert last == pytest.approx([theory.smoothed_gap(0.3, 10)] * 2, rel=0.05)
