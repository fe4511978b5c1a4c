"""Steps of real ranks, against gradients and delays that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

from depthgauge import Training, parallel

NAP = 0.1


@pytest.fixture(scope="module")
def ranks() -> tuple[dict[str, Any], ...]:
    outcome = parallel.launch(f"{Path(__file__).with_name('stepping.py')}:measured", ranks=2, limit=60)
    assert outcome.well, outcome.why
    return outcome.answers


pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("warm_ranks")]


def test_gradients_are_the_mean_of_the_ranks_where_they_are_reduced(ranks: tuple[dict[str, Any], ...]) -> None:
    for rank, answer in enumerate(ranks):
        alone = 1.0 if rank == 0 else None  # the second rank takes no part
        assert answer["gradients"] == [alone, rank + 1.0, 1.5, 1.5, 1.5]


def test_every_rank_has_the_seconds_of_the_slowest(ranks: tuple[dict[str, Any], ...]) -> None:
    first, second = (answer["seconds"] for answer in ranks)
    assert first.shape == (3, 5)
    assert np.array_equal(first, second)
    assert (first > 0).all()
    for naps in (answer["naps"][0] for answer in ranks):
        assert naps[0] > NAP  # rank 0 sleeps, alone
        assert naps[1] < NAP  # rank 1 would, and takes no part
        assert naps[2] > NAP  # rank 1 sleeps beside rank 0


def test_layouts_that_cannot_be_are_refused(ranks: tuple[dict[str, Any], ...]) -> None:
    for answer in ranks:
        many, twice, unknown = answer["errors"]
        assert "no layout on 2 ranks" in many
        assert "one model" in twice
        assert "overlapped, waited, none" in unknown


def test_room_is_a_core_or_a_device_each() -> None:
    assert parallel.room("cpu") >= 1


def test_a_traced_step_has_a_collective_a_bucket(ranks: tuple[dict[str, Any], ...]) -> None:
    for rank, answer in enumerate(ranks):
        splits = answer["splits"]
        counts = {name: {step.collectives for step in steps} for name, steps in splits.items() if steps}
        assert counts == {"three": {3}, "two": {2}, "waited": {3}, **({"none": {0}} if rank == 0 else {})}
        assert all(len(steps) == 3 for steps in splits.values() if steps)


def test_what_is_waited_for_is_exposed(ranks: tuple[dict[str, Any], ...]) -> None:
    for answer in ranks:
        hidden = {name: sum(step.hidden for step in steps) for name, steps in answer["splits"].items() if steps}
        exposed = sum(step.exposed for step in answer["splits"]["waited"])
        assert exposed > 0
        assert hidden["waited"] < 0.2 * exposed


def test_a_part_of_the_ranks_is_as_patient_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[list[int], float]] = []
    monkeypatch.setattr(distributed, "new_group", lambda ranks, timeout: made.append((ranks, timeout.total_seconds())))
    training = Training(nn.Linear(2, 2), [(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))])
    layout = parallel.Layout(ranks=1, reduction="none")
    parallel.ddp_steps(parallel.Group(0, 3, torch.device("cpu"), patience=2.5), [(training, layout)])
    assert made == [([0], 2.5)]
