"""Gates and shortcuts: states and gradients against torch's own, theory by hand, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from depthgauge import theory
from depthgauge.studies.stabilizers import gating, gating_laws, recurrent
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status


def network(kind: str, width: int = 5) -> dict[str, torch.Tensor]:
    drawn = [recurrent.draw(kind, (width, 2, 1), 20, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    return recurrent.stacked(drawn, torch.float64)


@pytest.mark.parametrize("kind", ["RNN", "identity RNN", "LSTM, bias 1", "chrono LSTM"])
def test_states_are_those_of_torch(kind: str) -> None:
    weights, x = network(kind), torch.randn(2, 3, 7, 2, dtype=torch.float64)
    _, told = recurrent.states(kind, weights, x)
    like = torch.nn.LSTM(2, 5, batch_first=True) if "LSTM" in kind else torch.nn.RNN(
        2, 5, batch_first=True, nonlinearity="relu" if "identity" in kind else "tanh"
    )  # fmt: skip
    like = like.double()
    with torch.no_grad():
        for mine, theirs in (("input", "weight_ih_l0"), ("state", "weight_hh_l0"), ("bias", "bias_ih_l0")):
            getattr(like, theirs).copy_(weights[mine][1])
        like.bias_hh_l0.zero_()
        assert torch.allclose(torch.stack(told, 2)[1], like(x[1])[0])


def test_gradients_of_a_linear_recurrence_are_its_powers() -> None:
    weights = network("identity RNN")
    weights["state"] = weights["state"] * 0.5
    weights["input"], weights["bias"] = weights["input"].abs(), weights["bias"] + 1  # every unit is on
    found = recurrent.gradients("identity RNN", weights, torch.rand(2, 3, 6, 2).double(), torch.randn(2, 3, 5).double())
    assert found[0].tolist() == pytest.approx([0.25**k for k in range(6)])


def test_the_gates_decay_and_the_reach() -> None:
    assert theory.gate_decay([0.0, math.log(3)], 2).tolist() == pytest.approx([math.sqrt((0.5**4 + 0.75**4) / 2)])
    assert theory.reach(theory.gate_decay(1.0, np.arange(50))) == pytest.approx(-1 / math.log(1 / (1 + math.exp(-1))))
    assert theory.reach([1.0, 0.9]) == math.inf
    assert np.exp(theory.chrono_biases(101)).mean() == pytest.approx(50.5, rel=1e-3)  # of u in 1 .. 100


@pytest.mark.parametrize("task", ["adding", "copying"])
def test_the_tasks_are_learned_by_who_knows_them(task: str) -> None:
    x, y = recurrent.sequences(task, 300, 12, torch.Generator().manual_seed(0))
    if task == "adding":
        assert torch.allclose((x[..., 0] * x[..., 1]).sum(1) - 1, y[:, 0, 0])
        assert float(y.var()) == pytest.approx(recurrent.BASELINES[task], rel=0.2)
        assert x[..., 1].sum(1).unique().tolist() == [2.0]
    else:
        assert torch.equal(x[:, : recurrent.KEPT].argmax(2), y)
        assert x[:, recurrent.KEPT :, : recurrent.SYMBOLS].sum() == 0


@pytest.mark.parametrize("kind", gating_laws.STACKS)
def test_a_wide_stack_grows_as_theory_says(kind: str) -> None:
    case = Case.of({"part": "gating", "stage": "stack", "kind": kind, "gain": 1.1, "depth": 4, "width": 400, "seed": 0})
    assert math.log(gating._passed(case, kind)) / 4 == pytest.approx(gating_laws.growth(kind, 1.1, 4) / 4, abs=0.05)


def made_up(residual: float) -> Iterator[Rows]:
    """Stacks whose gradient is 10 off, with shortcuts `residual`."""
    for gain in gating.GAINS:
        for seed in range(12):
            for kind in gating_laws.STACKS:
                case = Case.of({
                    "part": "gating", "stage": "stack", "kind": kind, "gain": gain, "depth": 8, "width": 16,
                    "seed": seed, "length": None, "task": None, "lr": None,
                })  # fmt: skip
                yield case.rows("growth", (10.0 if kind == "plain" else residual) + 0.01 * seed)


def test_nearer_gradients_hold_the_claim_and_further_ones_refute_it(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    assert analysed(gating.PART, made_up(1.0)).statuses["N06"] is Status.HOLDS
    assert analysed(gating.PART, made_up(30.0)).statuses["N06"] is Status.FAILS


def test_the_growth_of_a_block_is_told_of_sizes_beside_that_of_critical_weights(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    mean = 8 * math.log(1.5**2)  # of the square, over 8 blocks; the seeds add 0.055
    (told,) = analysed(gating.PART, made_up(mean - 0.055)).sentences
    assert "1.50 and 1.50 times with shortcuts" in told
    assert "at He's weights theory has 1.00, 1.41 and 1.06." in told


def reached(left: float) -> Iterator[Rows]:
    """Gradients that fall by a tenth a step through cells and RNNs; in the identity RNN `left` of them at once."""
    for kind in recurrent.KINDS:
        for seed in range(8):
            case = Case.of({
                "part": "gating", "stage": "reach", "kind": kind, "gain": None, "depth": None, "width": 8, "seed": seed,
                "length": 12, "task": None, "lr": None,
            })  # fmt: skip
            root = np.where(np.arange(12) > 0, left, 1.0) if kind == "identity RNN" else 0.9 ** np.arange(12.0)
            yield case.rows("square", root**2 * 1.001 ** (seed * (np.arange(12) > 0)), layer_index=np.arange(12))


def test_the_identity_rnn_is_one_of_the_products(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(gating.PART, reached(0.7))
    table = answers.tables["additive"].set_index(["sum", "product"])["value"]
    assert table["chrono LSTM", "identity RNN"] == pytest.approx(math.log(0.9**11) / math.log(0.7), rel=0.05)
    assert table["chrono LSTM", "RNN"] == pytest.approx(1.0)
    assert answers.statuses["N06"] is Status.FAILS
    assert any("starts at the identity 0.70 is left after 8 steps" in text for text in answers.sentences)


def trained(rnn_gain: float) -> Iterator[Rows]:
    """An RNN that does not learn, best at the highest rate by this much of the loss; LSTMs that do, at the middle one.

    One of the RNNs diverges.
    """
    for kind, lr, seed in ((k, r, s) for k in recurrent.KINDS for r in (3e-3, 1e-2, 3e-2) for s in range(-2, 8)):
        case = Case.of({
            "part": "gating", "stage": "train", "kind": kind, "gain": None, "depth": None, "width": 8, "seed": seed,
            "length": 12, "task": "adding", "lr": lr,
        })  # fmt: skip
        loss = 0.1 + 0.2 * (lr != 1e-2) if "LSTM" in kind else 1.0 - rnn_gain * (lr == 3e-2) + 0.01 * (lr == 3e-3)
        yield case.rows("loss", math.nan if kind == "RNN" and seed > 2 else loss)


@pytest.mark.parametrize(("gain", "learned"), [(0.2, None), (0.01, True)])
def test_a_network_that_may_learn_at_a_rate_beyond_the_grid_is_not_beaten(
    gain: float, learned: bool | None, analysed
) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(gating.PART, [*made_up(1.0), *trained(gain)])
    losses = answers.tables["gate_losses"].set_index("network")
    assert losses["open_ended"].to_dict() == {kind: gain > 0.05 and "LSTM" not in kind for kind in recurrent.KINDS}
    assert losses.loc["RNN", "loss"] == math.inf  # most of them diverged
    assert ("LSTM, bias 1 trained on adding" in answers.verdicts["N06"].why) == bool(learned)
    assert answers.statuses["N06"] is (Status.HOLDS if learned else Status.INCONCLUSIVE)
