"""Networks with dropout in batches against PyTorch by hand, searches by brute force, and verdicts on made-up rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import data, replicas, stats
from depthgauge.studies.regularization import dropout, masked, points, searches, variance_shift
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def _module(nets: masked.Nets, row: int) -> nn.Sequential:
    """PyTorch's own modules with a network's weights; no dropout."""
    net, layers = nets.net, list[nn.Module]()
    for layer, follows in enumerate(net.layers):
        weight, bias = nets.weights[layer][row].T, nets.biases[layer][row, 0]
        inputs = weight.shape[1]
        if net.convolutional:
            module: nn.Module = nn.Conv2d(inputs // 9, len(bias), 3, padding=1)
            weight = weight.reshape(len(bias), -1, 3, 3)
        else:
            module = nn.Linear(inputs, len(bias))
        module.load_state_dict({"weight": weight, "bias": bias})
        norm = [nn.BatchNorm1d(len(bias))] if "norm" in follows else []
        layers += [module, *norm, nn.ReLU(), *([nn.MaxPool2d(2)] if net.convolutional else [])]
    last = nn.Linear(*nets.weights[-1][row].shape)
    last.load_state_dict({"weight": nets.weights[-1][row].T, "bias": nets.biases[-1][row, 0]})
    return nn.Sequential(*([] if net.convolutional else [nn.Flatten()]), *layers, nn.Flatten(), last)


@pytest.mark.parametrize(
    ("layers", "convolutional"),
    [(("norm", "act", "drop"), False), (("act", "drop"), True)],
    ids=["dense", "convolution"],
)
def test_a_network_is_trained_as_by_pytorch(layers: tuple[str, ...], convolutional: bool) -> None:
    net, seeds = masked.Net((layers,) * 2, 4, convolutional), [3, 4]
    fit = data.Examples(torch.randn(20, 1, 8, 8), torch.arange(20) % 10)
    nets = masked.Nets.draw(net, seeds, [0.0, 0.0])
    module = _module(nets, 1)
    decayed = [each for name, each in module.named_parameters() if each.dim() > 1]
    others = [each for each in module.parameters() if each.dim() == 1]
    sgd = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others}], lr=0.05, momentum=0.9
    )  # fmt: skip
    for rows in replicas.order(4, 20, 8, 5):
        sgd.zero_grad()
        nn.functional.cross_entropy(module(fit.x[rows]), fit.y[rows]).backward()
        sgd.step()
    masked.train(nets, fit, masked.Recipe([0.1, 0.05], [0.0, 0.01], steps=5, batch=8), seeds)
    module.eval()
    assert torch.allclose(nets(fit.x[None])[1], module(fit.x), rtol=1e-3, atol=1e-4)


def test_masks_drop_the_share_asked_for_and_keep_the_mean() -> None:
    masks, like = masked.Masks([1, 2]), torch.zeros(2, 400, 50)
    p = torch.tensor([0.2, 0.8])
    kept = masks.keep(like, p, one=False)
    assert (kept == 0).double().mean((1, 2)).tolist() == pytest.approx([0.2, 0.8], abs=0.02)
    assert kept.mean((1, 2)).tolist() == pytest.approx([1.0, 1.0], abs=0.06)
    assert masks.keep(like, p, one=True).shape == (2, 1, 50)
    alone = masked.Masks([2]).keep(like[1:], p[1:], one=False)
    assert torch.equal(alone[0], kept[1])  # whatever its neighbours


def test_the_expected_best_is_that_over_all_choices() -> None:
    held, reported = np.array([0.3, 0.9, 0.5, 0.7]), np.array([1.0, 2.0, 4.0, 8.0])
    found = searches.expected_best(held, reported)
    for k in range(1, 5):
        chosen = [max(each, key=lambda i: held[i]) for each in itertools.combinations(range(4), k)]
        assert found[k - 1] == pytest.approx(reported[chosen].mean())


@pytest.mark.parametrize("order", variance_shift.DROPPED_BEFORE)
def test_the_variance_in_front_of_the_first_normalization_behind_dropout_is_the_predicted_one(order: str) -> None:
    net = masked.Net((variance_shift.LAYERS[order],) * 2, 12)
    nets, x = masked.Nets.draw(net, [1, 2], [0.5, 0.2]), torch.randn(1, 3000, 1, 8, 8) + 0.5
    masked.recompute(nets, x)
    inside = nets(x, batch=True)
    masked.recompute(nets, x)
    assert torch.allclose(nets(x), inside, atol=0.02)
    running = list(nets.running)
    found = variance_shift.variances(nets, x, [1, 2])
    assert nets.running == running
    first = min(found)
    assert first == (1 if order == "dropout after norm" else 0)
    measured, predicted = found[first]
    assert measured.tolist() == pytest.approx(predicted.tolist(), rel=0.03)
    assert predicted[0] < predicted[1] < 1


def _trials(gain: float, lost: float) -> list[Rows]:
    """Rows of a search in which dropout is better by `gain`, its best thinned network worse by `lost`."""
    rows: list[Rows] = []
    for network, method, trial, seed in itertools.product(
        ("dense", "convolutional"), ("none", "decay", "dropout"), range(3), range(6)
    ):
        at = {"network": network, "method": method, "trial": trial, "seed": seed, "examples": 100}
        case = Case.of({"part": "dropout", **at})
        score = 0.8 + 0.001 * seed + (gain if method == "dropout" and network == "dense" else -0.1 * (3 - trial))
        ends = {"validation_accuracy": score, "test_accuracy": score, "test_loss": 0.5, "p": 0.5}
        if method == "dropout" and network == "dense":
            ends |= {f"{name}_accuracy": score - lost for name in ("mean", "best", "thinned")}
            ends |= {f"{name}_loss": 0.5 for name in ("mean", "best", "thinned")}
        rows += [
            case.rows(metric, value + 1e-5 * seed * (len(method) + i)) for i, (metric, value) in enumerate(ends.items())
        ]
    return rows


@pytest.mark.parametrize(
    ("gain", "lost", "statuses"),
    [(0.1, 0.1, (Status.HOLDS, Status.FAILS)), (-0.2, 0.0, (Status.DEPENDS, Status.HOLDS))],
)
def test_verdicts_on_dropout(analysed, gain: float, lost: float, statuses: tuple[Status, Status]) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(dropout.PART, _trials(gain, lost))
    assert (answers.statuses["N36"], answers.statuses["N46"]) == statuses


@pytest.mark.parametrize(("gain", "off", "combined", "shift"), [
    (0.0, 1.0, Status.HOLDS, Status.HOLDS), (0.1, 2.0, Status.FAILS, Status.FAILS),
    (-0.01, 1.0, Status.HOLDS, Status.HOLDS),  # inside the margin or below it: not above it in either case
])  # fmt: skip
def test_verdicts_on_variances(analysed, gain: float, off: float, combined: Status, shift: Status) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = []
    for network, seed in itertools.product(("batch norm", "dropout after norm"), range(-3, 6)):
        both = network != "batch norm"
        case = Case.of({"part": "variance_shift", "network": network, "p": 0.5 * both, "lr": 0.1, "seed": seed})
        score = 0.8 + gain * both + 1e-4 * seed + 0.008 * (-1) ** seed * (gain < 0 < both)
        rows += [case.rows(name, score) for name in variance_shift.OUTCOMES]
        if both:
            rows += [
                case.rows(name, value * (1 + 1e-3 * seed), layer="layer 2", layer_index=2)
                for name, value in (("measured", 0.5 * off), ("predicted", 0.5))
            ]
    answers = analysed(variance_shift.PART, rows)
    assert answers.statuses == {"N25": combined, "variance_shift": shift}
    assert "the study stabilizers" in answers.verdicts["N25"].method
    said = " ".join(answers.sentences)
    assert f"by {100 * gain:+.1f} points [".replace("+0.0", "0.0") in said
    assert f"it is {off:.2f} times the predicted share." in said
    assert "is open" not in said  # the recomputed accuracy is the same


def test_later_layers_are_told_beside_the_first(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = []
    for network, seed in itertools.product(("batch norm", "dropout before norm"), range(-3, 6)):
        both = network != "batch norm"
        case = Case.of({"part": "variance_shift", "network": network, "p": 0.5 * both, "lr": 0.1, "seed": seed})
        ends = dict.fromkeys(variance_shift.OUTCOMES, 0.8 + 1e-4 * seed)
        ends["recomputed_accuracy"] += 0.01 + 0.003 * (-1) ** seed
        rows += [case.rows(name, value) for name, value in ends.items()]
        for layer, off in ((1, 1.0), (2, 0.8), (3, 1.05)) if both else ():
            rows += [
                case.rows(name, value * (1 + 1e-4 * seed), layer=f"layer {layer}", layer_index=layer)
                for name, value in (("measured", 0.5 * off), ("predicted", 0.5))
            ]
    said = " ".join(analysed(variance_shift.PART, rows).sentences)
    assert "behind dropout it is 1.00 times the predicted share, in later ones 0.80 to 1.05 times it" in said
    told = "change test accuracy most for the better with dropout before norm, p = 0.5, by +1.0 points [+0.7, +1.3]"
    assert f"{told}; whether by more than 1 point is open." in said


def test_every_trial_has_its_own_rate_shared_by_the_methods() -> None:
    at = {"network": "dense", "examples": 20, "steps": 2, "masks": 2, "width": 4, "seed": 1}
    cases = [
        Case.of({"part": "dropout", **at, "method": method, "trial": 1}) for method in ("none", "decay", "dropout")
    ]
    none, decay, dropped = map(dropout.trial, cases)
    assert none["lr"] == decay["lr"] == dropped["lr"]
    assert none["decay"] == none["p"] == decay["p"] == dropped["decay"] == 0 < decay["decay"] * dropped["p"]
    rows = list(dropout.run(cases, Context()))
    assert {row.metric for row in rows if row.case == cases[2]} == {*dropout.OUTCOMES, "lr", "decay", "p"}
    assert "best_loss" not in {row.metric for row in rows if row.case == cases[0]}


def test_searches_are_paired_by_seed_and_whole_ones_alone_count(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    cut = {("decay", 0), ("dropout", 1)}  # a trial of each is missing, as in a run that was cut short

    def there(row: Rows) -> bool:
        at = row.case
        return at["network"] == "convolutional" or (at["method"], at["seed"]) not in cut or at["trial"] != 2

    rows = [row for row in _trials(0.1, 0.1) if there(row)]
    answers = analysed(dropout.PART, rows)
    best = answers.tables["dropout_decay"].set_index("what").loc[dropout.BETTER]
    assert best["n"] == 4
    assert best["value"] == pytest.approx(0.2 + 2e-5 * 3.5, abs=1e-6)  # what differs by seed alone is no difference
    lone = analysed(dropout.PART, [row for row in rows if row.case["method"] == "dropout"])
    assert "N36" not in lone.verdicts
    assert lone.statuses["N46"] is not None


def test_what_few_trials_lose_is_told_with_its_sign() -> None:
    compared = stats.paired(np.linspace(0.0, 0.01, 8), np.linspace(0.05, 0.055, 8), margin=dropout.MARGIN, test="t")
    said = dropout._said(dropout.EASIER, "dense", compared, 8)
    assert said.startswith("and 2 trials in place of 8, what dropout loses in a dense network minus what weight decay")
    assert "loses is -4.8 points [-" in said


def test_a_network_that_diverged_leaves_its_variances_undecided(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = []
    for network, seed in itertools.product(("batch norm", "dropout after norm"), range(-3, 6)):
        both = network != "batch norm"
        case = Case.of({"part": "variance_shift", "network": network, "p": 0.5 * both, "lr": 0.1, "seed": seed})
        rows += [case.rows(name, 0.8 + 1e-4 * seed) for name in variance_shift.OUTCOMES]
        for name in ("measured", "predicted") if both else ():
            rows.append(case.rows(name, math.nan if seed == 2 else 0.5 + 1e-3 * seed, layer="layer 2", layer_index=2))
    answers = analysed(variance_shift.PART, rows)
    (row,) = answers.tables["variance_shift"].to_dict("records")
    assert (row["n"], row["answer"]) == (6, "inconclusive")
    assert not any("of its variance in evaluation" in text for text in answers.sentences)


def test_few_seeds_have_points_without_an_interval() -> None:
    assert points.spanned(stats.mean([0.01, 0.02])) == "+1.5 points"
