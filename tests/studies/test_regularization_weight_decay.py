"""Weight decay: the shrinkage of torch's optimizers, and verdicts on made-up maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from depthgauge import data
from depthgauge.studies.regularization import decays, product, weight_decay
from depthgauge.studies.regularization.invariant import Invariant
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def test_sgd_and_adamw_shrink_the_weight_first_and_the_others_do_not() -> None:
    off = {name: decays.off(name, seed=3) for name in decays.OPTIMIZERS}
    assert off["SGD"] < 1e-12 > off["AdamW"]
    assert min(off["SGD with momentum"], off["Adam with L2"]) > 0.05


def test_momentum_carries_the_shrinkage_on() -> None:
    weight = torch.ones(1, dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    for expected in (0.99, 0.99 - 0.01 * (0.9 + 0.99)):  # the buffer holds the first step's decay too
        weight.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        assert float(weight) == pytest.approx(expected)


def test_a_fifth_of_the_noisy_labels_is_wrong() -> None:
    fit = data.load("digits").train
    noisy = decays.examples(fit, "noisy")
    assert len(noisy) == 300
    assert int((noisy.y != fit.y[:300]).sum()) == 60
    assert len(decays.examples(fit, "few")) == 100


def test_no_weight_of_the_invariant_network_has_a_size() -> None:
    net = Invariant((6, 5, 4)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.rand(len(parameter), 1, dtype=torch.float64) + 0.5)  # each unit by itself
    assert torch.allclose(net(x), before)


def made_up(accuracy: dict[str, str], *, noise: float = 1e-3, collapsed: float = np.inf) -> Iterator[Rows]:
    """Accuracy that depends on one coordinate of AdamW's map; from the lambda `collapsed` on nothing is learned."""
    draws = np.random.default_rng(0)
    adamw = decays.OPTIMIZERS["AdamW"]
    for net, by in accuracy.items():
        for lr, decay, seed in ((lr, d, s) for lr in adamw.rates for d in adamw.decays for s in range(-3, 8)):
            at = {"lr": lr, "decay": decay, "product": lr * decay}[by]
            value = 0.5 + 0.01 * np.log2(max(at, 2**-10)) + draws.normal(0, noise)
            value = 0.1 + draws.uniform(0, 0.1) if decay >= collapsed else value
            case = Case.of({
                "part": "weight_decay", "stage": "training", "optimizer": "AdamW", "net": net, "task": "noisy",
                "lr": lr, "decay": decay, "steps": 1000, "seed": seed,
            })  # fmt: skip
            yield from (case.rows(metric, float(value)) for metric in weight_decay.METRICS)
    for name in decays.OPTIMIZERS:
        case = Case.of({"part": "weight_decay", "stage": "shrinkage", "optimizer": name, "seed": 0})
        yield case.rows("off", 0.0 if name in {"SGD", "AdamW"} else 0.3)


def test_the_coordinate_along_which_accuracies_agree_is_found(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(weight_decay.PART, made_up({"plain": "decay", "normalized": "product"}))
    assert answers.statuses == {"N37": Status.DEPENDS, "product": Status.DEPENDS}
    assert any("where all weights are normalized" in text and "without" in text for text in answers.sentences)
    spreads = answers.tables["decay_spreads"].query("reached == '50% of the best'").set_index(["map", "equal"])["value"]
    assert spreads["AdamW, plain", product.AXES["decay"]] < 0.01 < spreads["AdamW, plain", product.AXES["product"]]
    everywhere = analysed(weight_decay.PART, made_up({"plain": "product", "normalized": "product"}))
    assert everywhere.statuses["product"] is Status.HOLDS
    nowhere = analysed(weight_decay.PART, made_up({"plain": "lr"}))
    assert nowhere.statuses["product"] is Status.FAILS


def test_cells_that_learned_nothing_are_left_out_and_counted(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(weight_decay.PART, made_up({"plain": "product"}, collapsed=16.0))
    assert answers.statuses["product"] is Status.HOLDS
    spreads = answers.tables["decay_spreads"].query("equal == 'equal product'")
    assert list(spreads["value"] < 0.002) == [True, True]
    counts = spreads[["cells", "left_out"]].to_numpy().tolist()
    assert all(left == 9 for _, left in counts)  # lambda 16 and 64, where the product is from 1 / steps to below 2
    assert f"9 of {counts[0][0] + 9} (AdamW, plain, 50% of the best)" in answers.verdicts["product"].why


def test_without_trained_networks_the_shrinkage_answers(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    case = Case.of({"part": "weight_decay", "stage": "shrinkage", "optimizer": "SGD", "seed": 0})
    answers = analysed(weight_decay.PART, weight_decay.run([case], Context()))
    assert answers.statuses == {"N37": Status.HOLDS}
    assert answers.tables["decay_map"].empty


def gains(best_rate: float, gain: float) -> Iterator[Rows]:
    """AdamW on noisy labels: `best_rate` is best without decay and one further up with it, which gains."""
    adamw, draws = decays.OPTIMIZERS["AdamW"], np.random.default_rng(0)
    for lr, decay, seed in ((lr, d, s) for lr in adamw.rates for d in adamw.decays for s in range(-3, 8)):
        best, top = (adamw.rates[2], 0.7 + gain) if decay == 4.0 else (best_rate, 0.7)
        value = top - 0.03 * abs(np.log2(lr / best)) + draws.normal(0, 1e-3)
        case = Case.of({
            "part": "weight_decay", "stage": "training", "optimizer": "AdamW", "net": "plain", "task": "noisy",
            "lr": lr, "decay": decay, "steps": 1000, "seed": seed,
        })  # fmt: skip
        yield from (case.rows(metric, float(value)) for metric in weight_decay.METRICS)
    yield Case.of({"part": "weight_decay", "stage": "shrinkage", "optimizer": "SGD", "seed": 0}).rows("off", 0.0)


@pytest.mark.parametrize("place", [0, 1])
def test_a_gain_over_a_rate_at_the_end_of_the_grid_decides_nothing(place: int, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(weight_decay.PART, gains(decays.OPTIMIZERS["AdamW"].rates[place], 0.1))
    row = answers.tables["decay_gains"].set_index("decay").loc["the best"]
    assert (row["none_open_ended"], row["open_ended"]) == (place == 0, False)
    assert (row["answer"] == "inconclusive") == (place == 0)
    assert answers.statuses["N37"] is (Status.INCONCLUSIVE if place == 0 else Status.HOLDS)
    assert ("beyond the grid" in answers.verdicts["N37"].why) == (place == 0)
    assert any("lifts test accuracy from 70.0% to 80.0%" in text for text in answers.sentences) == (place == 1)
