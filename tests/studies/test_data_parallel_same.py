"""The table of same trainings: shards and weights by hand, predictions against a split in one process, real ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import parallel
from depthgauge.studies.data_parallel import gradients, same, shards
from depthgauge.studies.data_parallel.gradients import flat, losses, predicted
from depthgauge.studies.data_parallel.shards import (
    DROPOUT,
    EXACT,
    LOCAL_FEW,
    OWN_SEED,
    ROUNDING,
    ROWS,
    SEEDINGS,
    SUM,
    SUM_ALONE,
    SYNC,
)
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

WEIGHED = [name for name, row in ROWS.items() if row.kind == EXACT and not row.norm]


def places(task: shards.Task, rank: int) -> list[int]:
    """Where in the whole batch the examples of a rank stand."""
    return [int((task.whole[0] == x).all(1).nonzero()[0]) for x in task.shards[rank][0]]


def test_samplers_by_hand() -> None:
    """17 digits for two ranks: one is repeated, or one is dropped; 16 are shuffled and shared."""
    pads, drops, shuffled = shards.sampled(3, 2, more=1), shards.sampled(3, 2, more=1, drop=True), shards.sampled(3, 2)
    assert places(pads, 0) == [*range(0, 17, 2)]
    assert places(pads, 1) == [*range(1, 17, 2), 0]
    assert pads.weights is not None
    assert pads.weights.tolist() == [pytest.approx(34 / 18), *[pytest.approx(17 / 18)] * 16]
    assert sorted(places(drops, 0) + places(drops, 1)) == [*range(16)]
    assert drops.weights is not None
    assert drops.weights.tolist() == [*[17 / 16] * 16, 0]
    both = places(shuffled, 0) + places(shuffled, 1)
    assert sorted(both) == [*range(16)]
    assert both != [*range(16)]


def test_uneven_shards_by_hand() -> None:
    ragged, stairs = shards.ragged(1, 4), shards.stairs(1, 3)
    assert [len(shard[0]) for shard in ragged.shards] == [3, 2, 2, 2]
    assert ragged.weights is not None
    assert ragged.weights.tolist() == [*[9 / 12] * 3, *[9 / 8] * 6]
    assert [len(shard[0]) for shard in stairs.shards] == [4, 8, 12]
    assert torch.equal(torch.cat([shard[0] for shard in stairs.shards]), stairs.whole[0])


def test_a_token_weighs_by_the_tokens_of_its_rank() -> None:
    task = shards.tokens(5, 2)
    counts = [int((shard[1] != shards.IGNORED).sum()) for shard in task.shards]
    assert counts[0] != counts[1]
    expected = [sum(counts) / (2 * count) for count in counts for _ in range(count)]
    assert task.weights is not None
    np.testing.assert_allclose(task.weights, expected, rtol=1e-12)
    assert len(losses(task.model, task.whole)) == sum(counts)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", WEIGHED)
def test_weighted_losses_are_the_mean_over_shards(name: str, ranks: int) -> None:
    """The prediction from counts alone, against a split in this process, in float64."""
    row = ROWS[name]
    task = row.task(7, ranks)
    model, total = task.model.double(), torch.zeros(())
    for x, y in task.shards:
        if len(x):
            own = losses(model, (x.double() if x.is_floating_point() else x, y))
            total = total + (own.sum() if row.loss == "sum" else own.mean()) / ranks
    split = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    torch.testing.assert_close(flat(predicted(row, task)), split, rtol=1e-11, atol=1e-14)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """All rows of one seed, on two real ranks."""
    asked = [(name, 11) for name in (*ROWS, *SEEDINGS)]
    outcome = parallel.launch(gradients.work, asked, 30, limit=60)
    assert outcome.well, outcome.why
    assert outcome.answers[1] is None
    return {name: answer for (name, _), answer in zip(asked, outcome.answers[0], strict=True)}


def test_rows_are_inside_the_band_or_as_predicted(found: dict[str, dict[str, Any]]) -> None:
    for name, row in ROWS.items():
        band = same.TIMES * found[name]["rounding"]
        assert 1e-9 < band < 1e-4
        assert (found[name]["distance"] <= band) == (row.kind == ROUNDING and name != DROPOUT), name
        if name != DROPOUT:
            assert abs(found[name]["factor"] - found[name]["predicted"]) <= band, name
        assert (found[name]["ulps"] < 100) == (found[name]["distance"] <= band), name


def test_weights_are_solved_for(found: dict[str, dict[str, Any]]) -> None:
    assert set(WEIGHED) == {name for name in ROWS if "weights" in found[name]}
    for name in WEIGHED:
        measured, theory = np.array(found[name]["weights"]).T
        np.testing.assert_allclose(measured, theory, atol=1e-5)


def test_what_is_behind_batch_norm_and_dropout(found: dict[str, dict[str, Any]]) -> None:
    assert found[LOCAL_FEW]["variance"] == pytest.approx(2 / 3, abs=0.1)  # one batch, three splits, 32 channels
    assert found[LOCAL_FEW]["below"] < 0.02
    one, own = (found[name] for name in SEEDINGS)
    assert one["alike"] == 1
    assert own["alike"] == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(1000))
    assert one["noise"] > 1.4 > own["noise"]
    if not torch.cuda.is_available():
        assert found[SYNC]["torch_sync"] == 0


# -- verdicts ----------------------------------------------------------------------------------------------------------

Change = Callable[[str], dict[str, float]]


def rows(change: Change) -> Iterator[Rows]:
    """Rows as theory has them, but for what is changed."""
    for name in (*ROWS, *SEEDINGS):
        for seed in range(12):
            case = Case.of({"row": name, "ranks": 2, "draws": 9, "seed": seed})
            tiny = 1e-8 * math.sin(seed)
            if name in ROWS:
                exact = ROWS[name].kind == EXACT or name == DROPOUT
                factor = 0.5 if name == SUM else 0.9 if exact else 1.0
                values = {"factor": factor + tiny, "predicted": 1.0 if name == DROPOUT else factor, "rounding": 1e-7}
                values |= {"distance": 0.3 if exact else 1e-7 + tiny, "ulps": 1.0}
                if ROWS[name].norm == "local":
                    few = name == LOCAL_FEW
                    values |= {"variance": (2 / 3 if few else 14 / 15) + tiny, "below": 1e-4 if few else 1.0}
                    values |= {"below_all": 1.0}
                if name in WEIGHED:
                    yield case.rows("weight", 0.8 + tiny + change(name).get("weight", 0.0), layer_index=0)
                    yield case.rows("weight_predicted", 0.8, layer_index=0)
            else:
                values = {"alike": 1.0, "noise": (1.0 if name == OWN_SEED else 2.0) + tiny}
            for metric, value in values.items():
                yield case.rows(metric, value + change(name).get(metric, 0.0))


def only(where: str, **by: float) -> Change:
    return lambda name: by if name == where else {}


@pytest.mark.parametrize(
    ("change", "claim", "status"),
    [
        (only(""), "same", "holds"),
        (only("equal shards", distance=1e-3), "same", "depends"),
        (only(""), "factor", "holds"),
        (only("token mean", factor=1e-3), "factor", "depends"),
        (only(""), "weight", "holds"),
        (only("join", weight=0.01), "weight", "depends"),
        (only(""), "N20", "depends"),
        (only(SUM, factor=0.5, distance=-0.3), "N20", "holds"),
        (only(SUM_ALONE, factor=0.5), "N20", "fails"),
        (only(""), "shard_bias", "holds"),
        (only(LOCAL_FEW, variance=0.1), "shard_bias", "depends"),
        (only(""), "collapse", "holds"),
        (only(LOCAL_FEW, below=0.5), "collapse", "fails"),
        (only(""), "masks", "depends"),
        (only(SEEDINGS[0], noise=-1.0), "masks", "holds"),
    ],
)
def test_verdicts(analysed: Callable[..., Any], change: Change, claim: str, status: str) -> None:
    assert str(analysed(same.PART, rows(change)).statuses[claim]) == status


def test_less_noise_is_told_as_no_more(analysed: Callable[..., Any]) -> None:
    said = analysed(same.PART, rows(only(SEEDINGS[0], noise=-1.5))).verdicts["masks"]
    assert str(said.status) == "holds"
    assert "noisier for" not in said.why.replace("no noisier than one device for", "")


def test_every_row_has_a_sentence_of_its_own(analysed: Callable[..., Any]) -> None:
    table = analysed(same.PART, rows(only(""))).tables["same"].set_index("row")
    assert list(table.index) == list(ROWS)
    assert table["sentence"].is_unique
    for name, row in table.iterrows():
        sound = ROWS[str(name)].kind == ROUNDING and name != DROPOUT
        assert ("the same training" in row["sentence"]) == sound
        assert ("another training" in row["sentence"]) != sound
    assert "0.5 times that of one device in its direction (0.5 predicted)" in table.loc[SUM, "sentence"]


def test_a_seed_beyond_the_band_parts_no_sentence_from_its_verdict(analysed: Callable[..., Any]) -> None:
    """One seed of twelve, and all of them."""

    def odd(seeds: range) -> Iterator[Rows]:
        for row in rows(only("")):
            beyond = row.metric == "distance" and row.case["row"] == "equal shards" and row.case["seed"] in seeds
            yield replace(row, value=1e-5) if beyond else row

    for seeds, status, word in (
        (range(1), Status.INCONCLUSIVE, "undecided by 12 seeds"), (range(12), Status.DEPENDS, "another training"),
    ):  # fmt: skip
        said = analysed(same.PART, odd(seeds))
        assert said.statuses["same"] is status
        assert word in said.tables["same"].set_index("row").loc["equal shards", "sentence"]


def test_the_figure_has_a_line_for_each_row(analysed: Callable[..., Any]) -> None:
    tables = analysed(same.PART, rows(only(""))).tables
    (figure,) = same.draw_table(tables)
    assert len(figure.canvas.axes[0].get_yticks()) == len(ROWS)  # type: ignore[attr-defined]
    (missing,) = same.draw_table({})
    assert missing.canvas is None
