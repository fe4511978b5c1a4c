"""Weights that turn under decay: the law by a random walk, the rising rate by hand, and verdicts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from depthgauge import replicas, theory
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization import equilibrium
from depthgauge.studies.regularization.invariant import Invariant
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize(("rule", "momentum"), [("sgd", 0.0), ("sgd", 0.8), ("adamw", 0.8)])
def test_the_angle_is_that_of_a_random_walk_at_right_angles(rule: str, momentum: float) -> None:
    draws, lr, decay = generator(0, Purpose.INPUTS), 0.1, 0.05
    weight, buffer, squares = torch.ones(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64), []
    for step in range(1500):
        gradient = torch.randn(400, generator=draws, dtype=torch.float64)
        gradient -= weight * (weight @ gradient) / (weight @ weight)
        was = weight
        if rule == "sgd":
            buffer = momentum * buffer + gradient + decay * weight
            weight = weight - lr * buffer
        else:
            buffer = momentum * buffer + (1 - momentum) * gradient
            weight = (1 - lr * decay) * weight - lr * buffer
        if step > 700:
            squares.append(2 - 2 * float(torch.cosine_similarity(was, weight, dim=0)))
    law = theory.equilibrium_angle(lr, decay, momentum=momentum, optimizer=rule)  # type: ignore[arg-type]  # one of them
    assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(law, rel=0.03)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="sgd or adamw"):
        theory.equilibrium_angle(0.1, 0.1, optimizer="lion")  # type: ignore[arg-type]  # it is the test
    with pytest.raises(ValueError, match="from 0 to below 1"):
        theory.equilibrium_angle(0.1, 0.1, momentum=1.0)


def test_sgd_at_the_rising_rate_computes_what_it_does_with_decay() -> None:
    product, lr = 0.02, 0.5
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3
    stack = replicas.stack(Invariant((6, 8, 3)).double(), [0, 1])
    loop = replicas.Loop(batch=8, steps=60)
    decayed = replicas.train(stack, x, y, replicas.SGD(lr, weight_decay=product / lr), loop)
    rising = equilibrium.rising(2, product)
    free = replicas.train(stack, x, y, replicas.SGD(lr), loop, schedule=rising)
    assert free.loss == pytest.approx(decayed.loss, rel=1e-6)
    assert replicas.train(stack, x, y, replicas.SGD(lr), loop).loss[-1] != pytest.approx(decayed.loss[-1], rel=1e-3)


def made_up(
    turn: float, matched: float, *, names: tuple[str, ...] = ("SGD", "AdamW"), outward: float = 0.0, error: float = 0.0
) -> Iterator[Rows]:
    """Angles and ends of some optimizers over six seeds; `matched` is AdamW's and SGD's alone.

    Errors are as losses, or `error` times those with decay.
    """
    for name, kind in ((name, equilibrium.KINDS[name]) for name in names):
        law = theory.equilibrium_angle(kind.lr, 0.01 / kind.lr, momentum=kind.momentum, optimizer=kind.rule)
        for arm, seed in ((arm, seed) for arm in equilibrium.ARMS for seed in range(6)):
            case = Case.of({"part": "equilibrium", "optimizer": name, "product": 0.01, "arm": arm, "seed": seed})
            ends = matched if name in {"SGD", "AdamW"} else 1.0
            ratio = {"decay": 1.0, "matched": ends, "constant": 0.5}[arm] * (1 + 1e-3 * seed * (arm != "decay"))
            yield case.rows("train_loss", 0.3 * ratio)
            yield case.rows("test_error", 0.3 * (ratio if not error or arm == "decay" else error * (1 + 1e-3 * seed)))
            for layer in (1, 2):
                yield case.rows("square", (turn * law * (1 + 1e-3 * seed)) ** 2, layer_index=layer)
                yield case.rows("outward", 0.01 * outward, layer_index=layer)


def test_angles_and_ends_are_held_against_theory_and_decay(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    right = analysed(equilibrium.PART, made_up(1.0, 1.0))
    assert right.statuses == {"equilibrium": Status.HOLDS, "rate_matched": Status.HOLDS}
    assert any("rises exponentially" in text for text in right.sentences)
    wrong = analysed(equilibrium.PART, made_up(0.7, 1.3))
    assert wrong.statuses == {"equilibrium": Status.FAILS, "rate_matched": Status.FAILS}
    assert not wrong.sentences


def test_what_steps_lengthen_the_weight_by_is_told_where_there_is_no_momentum(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    names = ("AdamW", "AdamW, beta1 0")
    answers = analysed(equilibrium.PART, made_up(0.8, 1.0, names=names, outward=0.36))
    (text,) = (text for text in answers.sentences if "right angles" in text)
    assert text.startswith("AdamW, beta1 0, at lr x lambda 0.01, turns the weights of layer 1 by 0.80")
    assert "sqrt(1 - 0.36) = 0.80" in text
    assert set(answers.tables["angles"].groupby("optimizer")["left"].mean().round(6)) == {1.0, 0.8}


@pytest.mark.parametrize(
    ("error", "told"), [(1.0, "the test error is the same, but the training loss is 0.70"), (0.0, "0.999 the training")]
)
def test_a_rising_rate_is_said_to_miss_what_it_misses(error: float, told: str, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    names = ("AdamW", "AdamW, beta2 0.95")
    answers = analysed(equilibrium.PART, made_up(1.0, 0.7, names=names, error=error))
    assert any("beta2 0.95" in text and told in text for text in answers.sentences)
