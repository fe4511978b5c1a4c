"""The coordinate check: exponents of known trainings, its verdicts, and what a user can get wrong."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import depthgauge
from depthgauge import Training, coordinates
from depthgauge.workload import WorkloadError

WIDTHS = (256, 512, 1024)


def factory(readout_rate: Callable[[int], float], rate: float = 1e-4) -> Callable[[int], Training]:
    """A network whose last layer has a rate of its own, fed Gaussian numbers, trained to any targets."""

    def make(width: int) -> Training:
        model = nn.Sequential(nn.Linear(16, width, bias=False), nn.ReLU(), nn.Linear(width, 2, bias=False))
        groups = [
            {"params": model[0].parameters(), "lr": rate}, {"params": model[2].parameters(), "lr": readout_rate(width)}
        ]  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        batch = torch.randn(32, 16, generator=generator), torch.randn(32, 2, generator=generator)

        def loss(model: nn.Module, batch: Any) -> torch.Tensor:
            return (model(batch[0]) - batch[1]).square().mean()

        return Training(model, [batch], loss, torch.optim.SGD(groups, lr=rate))

    return make


def test_a_rate_that_does_not_know_the_width_moves_the_output_with_it() -> None:
    """One SGD step changes the scores by rate x |h|^2, in proportion to the width, and the first layer by its root."""
    found = depthgauge.coordinate_check(factory(lambda _: 1e-4), WIDTHS, steps=1)
    assert found.layers == ("0", "2")
    assert found.verdicts == {"0": "shrinks", "2": "grows"}
    assert found.flat is False
    assert found.slopes["2"].effect.value == pytest.approx(1.0, abs=0.1)
    assert found.slopes["0"].effect.value == pytest.approx(-0.5, abs=0.1)
    assert str(found).startswith("0: shrinks (slope -0.")


def test_rates_that_know_it_are_flat() -> None:
    def make(width: int) -> Training:
        """The first layer's rate grows with the width, and scores that begin at 0 stay near it."""
        training = factory(lambda width: 0.1 / width, 1e-4 * width)(width)
        with torch.no_grad():
            training.model[2].weight.div_(width**0.5)  # type: ignore[index, union-attr]  # a Sequential
        return training

    found = depthgauge.coordinate_check(make, WIDTHS, steps=2)
    assert found.verdicts == {"0": "flat", "2": "flat"}
    assert found.flat is True
    frame = found.to_frame()
    assert frame["verdict"].tolist() == ["flat", "flat"]
    assert (frame["low_95"] <= frame["slope"]).all()
    assert len(found.change_frame()) == 2 * 8 * 3


def test_models_are_let_go_one_after_another() -> None:
    given: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def make(width: int) -> Training:
        alive.append(sum(each() is not None for each in given))
        training = factory(lambda _: 1e-4)(width)
        given.append(weakref.ref(training.model))
        return training

    depthgauge.coordinate_check(make, (4, 8, 16), steps=1, seeds=5)
    assert len(given) == 15
    assert max(alive) <= 1  # the last, at most: all were held before


def test_a_model_that_is_given_twice_is_refused() -> None:
    training = factory(lambda _: 1e-4)(8)
    with pytest.raises(WorkloadError, match="gave a model that it had given before"):
        depthgauge.coordinate_check(lambda _: training, (4, 8, 16), steps=1, seeds=5)


def test_exponents_of_powers_are_exact() -> None:
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal((1, 6, 3)))
    for power, word in ((0.0, "flat"), (0.5, "grows"), (-1.0, "shrinks")):
        change = np.array(WIDTHS, dtype=float) ** power * noise
        slopes = coordinates.exponents(("a",), WIDTHS, change, 0.15)
        found = coordinates.Coordinates(("a",), WIDTHS, 1, change, slopes, 0.15)
        assert found.verdicts == {"a": word}
        assert slopes["a"].effect.value == pytest.approx(power, abs=0.02)


def test_a_layer_that_does_not_move_is_undecided() -> None:
    slopes = coordinates.exponents(("a",), WIDTHS, np.zeros((1, 6, 3)), 0.15)
    found = coordinates.Coordinates(("a",), WIDTHS, 1, np.zeros((1, 6, 3)), slopes, 0.15)
    assert found.verdicts == {"a": "undecided"}
    assert found.flat is None


def test_torch_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    coordinates.changes(factory(lambda _: 1e-4), 8, seed=0, steps=1)
    assert torch.equal(before, torch.get_rng_state())
    first, again = (coordinates.changes(factory(lambda _: 1e-4), 8, seed=3, steps=2) for _ in range(2))
    assert first == again
    assert all(math.isfinite(value) and value > 0 for value in first.values())


@pytest.mark.parametrize(
    ("make", "arguments", "told"),
    [
        (factory(lambda _: 0.1), {"widths": (8, 16)}, "takes 3 widths or more"),
        (factory(lambda _: 0.1), {"widths": (4, 8, 16), "seeds": 4}, "seeds is 4, where a whole number >= 5"),
        (lambda width: nn.Linear(width, 1), {"widths": (4, 8, 16)}, "make(4) gave a Linear, where a Training with an"),
        (
            lambda width: Training(nn.Linear(width, 1), [torch.ones(2, width)]), {"widths": (4, 8, 16)},
            "make(4) gave a Training without an optimizer",
        ),
    ],
)  # fmt: skip
def test_what_a_user_can_get_wrong_is_one_sentence(make: Any, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(WorkloadError) as raised:
        depthgauge.coordinate_check(make, **arguments)
    assert told in str(raised.value)


def test_an_optimizer_that_takes_a_closure_is_stepped() -> None:
    def make(width: int) -> Training:
        plain = factory(lambda _: 1e-3)(width)
        return Training(plain.model, plain.batches, plain.loss, torch.optim.LBFGS(plain.model.parameters(), max_iter=1))

    assert all(value > 0 for value in coordinates.changes(make, 16, seed=0, steps=1).values())
