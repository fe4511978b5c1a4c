"""How heavy the noise of gradients is: per-example gradients, norms, and the verdicts on both sides of 2."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import stats
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers import noise_tails, noises
from depthgauge.verdict import Sentence, Status, Verdict


def test_gradients_of_examples_are_those_of_one_backward_pass_each():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    found = noises.gradients(model, x, y, together=2)
    for i in range(5):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        one = torch.cat([each.grad.flatten() for each in model.parameters()])
        torch.testing.assert_close(found[i], one)


def test_noise_is_the_distance_from_the_mean_and_shrinks_as_batches_grow():
    each = torch.randn(300, 7)
    alone = noises.noise(each, 1, generator(0, Purpose.DATA))
    np.testing.assert_allclose(alone, (each - each.mean(0)).norm(dim=1).numpy(), rtol=1e-5)
    together = noises.noise(each, 16, generator(0, Purpose.DATA))
    assert (together**2).mean() * 16 == pytest.approx((alone**2).mean(), rel=0.15)


@pytest.mark.parametrize("index", [1.5, 3.0])
def test_the_index_of_a_linear_models_gradients_is_that_of_the_noise(index):
    norms = noises.linear(index, 4000, generator(3, Purpose.DATA))
    assert stats.tail_index(norms, 0.05).contains(index)


def test_batches_read_above_2_though_the_examples_have_no_variance():
    read = {1: [], 16: []}
    for seed in range(24):
        draws = generator(seed, Purpose.DATA)
        each = torch.randn(300, 16, generator=draws) * torch.rand(300, 1, generator=draws) ** (-1 / 1.5)
        for batch, indices in read.items():
            indices.append(stats.tail_index(noises.noise(each, batch, draws), noise_tails.SHARE).value)
    assert np.median(read[1]) < 2 < np.median(read[16])  # the reason that batches are not judged


def test_a_lognormal_law_reads_below_2_though_all_its_moments_are_finite():
    draw = torch.randn(100_000, generator=generator(5, Purpose.DATA)).mul(1.5).exp().numpy()
    assert stats.tail_index(draw, 0.05).value == pytest.approx(noises.lognormal_index(1.5, 0.05), rel=0.05)
    assert noises.lognormal_index(1.5, 0.05) == pytest.approx(1.596, abs=1e-3)


def rows(indices: dict[str, float], batches: float = 9.0, bend: float = 1.0) -> pd.DataFrame:
    """Tails of examples with these indices, steeper by `bend` beyond 2 %; those of batches have another."""
    lines = []
    for seed in range(8):
        for place, (name, index) in enumerate(indices.items()):
            for step in (0, 100):
                at = {
                    "case": f"{place}-{seed}", "seed": seed, "network": name, "law": None, "step": step,
                    "steps": 100, "status": "ok",
                }  # fmt: skip
                for of in noise_tails.BATCHES:
                    own = index if of == "examples" else batches
                    lines.append({**at, "metric": f"index {of}", "value": own * 1.01**seed})
                    for level in noise_tails.LEVELS:
                        far = max(level, 0.02) ** (-1 / own) * (max(level, 0.02) / level) ** (1 / own / bend)
                        lines.append({**at, "metric": f"above {level} {of}", "value": far})
    return pd.DataFrame(lines)


def answers(indices: dict[str, float], **more: float) -> list[object]:
    return list(noise_tails.analyse(rows(indices, **more)))


@pytest.mark.parametrize(
    ("indices", "status"),
    [((4.0, 5.0), Status.HOLDS), ((1.2, 1.4), Status.FAILS), ((1.2, 5.0), Status.DEPENDS)],
)
def test_the_verdict_follows_the_indices_of_examples_alone(indices, status):
    given = answers(dict(zip(noise_tails.NETWORKS, indices, strict=True)))
    (verdict,) = [each for each in given if isinstance(each, Verdict)]
    assert verdict.status is status
    said = [each.text for each in given if isinstance(each, Sentence)]
    assert len(said) == 2
    shown = indices[0] * 1.01**3.5  # the geometric mean, in sentence and table
    assert f"a tail index of {shown:.1f} at the start and of {shown:.1f} after 100 steps for single" in said[0]
    tables = dict(each for each in given if isinstance(each, tuple))
    judged = tables["noise_indices"].loc[lambda table: table["judged"]]
    np.testing.assert_allclose(judged["index"], tables["noise_tail"]["value"])
    assert set(tables["noise_indices"]["of"]) == set(noise_tails.BATCHES)
    quantiles = tables["noise_quantiles"]
    one = quantiles[(quantiles["network"] == noise_tails.NETWORKS[0]) & (quantiles["share"] == 0.005)]
    one = one[one["noise"].str.startswith("examples")]
    np.testing.assert_allclose(one["times"], 100 ** (1 / indices[0]), rtol=1e-9)


def test_a_tail_that_bends_is_told_from_a_power_law():
    straight, bent = (answers({noise_tails.NETWORKS[0]: 3.0}, bend=bend) for bend in (1.0, 2.0))
    said = [next(each.text for each in given if isinstance(each, Sentence)) for given in (straight, bent)]
    assert "its power 3.0 from 5% to 2% and 3.0 from 2% to 0.5%" in said[0]
    assert "its power 3.0 from 5% to 2% and 6.0 from 2% to 0.5%" in said[1]


def test_a_network_that_diverged_is_counted_and_told_of_no_more() -> None:
    made = rows(dict(zip(noise_tails.NETWORKS, (4.0, 5.0), strict=True)))
    made.loc[(made["network"] == noise_tails.NETWORKS[1]) & (made["seed"] == 3) & (made["step"] > 0), "value"] = np.nan
    given = list(noise_tails.analyse(made))
    tables = dict(each for each in given if isinstance(each, tuple))
    table = tables["noise_tail"].set_index(["network", "when"])
    assert set(table["n"]) == {8}
    assert table.loc[(noise_tails.NETWORKS[1], "after training"), "answer"] == "inconclusive"
    quantiles = tables["noise_quantiles"]
    lost = quantiles[
        (quantiles["network"] == noise_tails.NETWORKS[1]) & quantiles["noise"].str.endswith("after training")
    ]
    assert lost["times"].isna().all()
    (said,) = [each.text for each in given if isinstance(each, Sentence)]
    assert noise_tails.NETWORKS[0] in said
