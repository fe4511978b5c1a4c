"""How heavy the noise of gradients is: per-example gradients, norms, and the verdicts on both sides of 2."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import stats
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers import noise_tails
from depthgauge.verdict import Sentence, Status, Verdict


def test_gradients_of_examples_are_those_of_one_backward_pass_each():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    found = noise_tails.gradients(model, x, y, together=2)
    for i in range(5):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        one = torch.cat([each.grad.flatten() for each in model.parameters()])
        torch.testing.assert_close(found[i], one)


def test_noise_is_the_distance_from_the_mean_and_shrinks_as_batches_grow():
    each = torch.randn(300, 7)
    alone = noise_tails.noise(each, 1, generator(0, Purpose.DATA))
    np.testing.assert_allclose(alone, (each - each.mean(0)).norm(dim=1).numpy(), rtol=1e-5)
    together = noise_tails.noise(each, 16, generator(0, Purpose.DATA))
    assert (together**2).mean() * 16 == pytest.approx((alone**2).mean(), rel=0.15)


@pytest.mark.parametrize("index", [1.5, 3.0])
def test_the_index_of_a_linear_models_gradients_is_that_of_the_noise(index):
    norms = noise_tails.linear(index, 4000, generator(3, Purpose.DATA))
    assert stats.tail_index(norms, 0.05).contains(index)


def rows(indices: dict[str, float]) -> pd.DataFrame:
    lines = []
    for seed in range(8):
        for place, (name, index) in enumerate(indices.items()):
            for step in (0, 100):
                at = {
                    "case": f"{place}-{seed}", "seed": seed, "network": name, "law": None, "step": step,
                    "steps": 100, "status": "ok",
                }  # fmt: skip
                for of in noise_tails.BATCHES:
                    lines.append({**at, "metric": f"index {of}", "value": index * 1.01**seed})
                    lines.extend(
                        {**at, "metric": f"above {level} {of}", "value": level ** (-1 / index)}
                        for level in noise_tails.LEVELS
                    )
    return pd.DataFrame(lines)


def answers(indices: dict[str, float]) -> list[object]:
    return list(noise_tails.analyse(rows(indices)))


@pytest.mark.parametrize(
    ("indices", "status"),
    [((4.0, 5.0), Status.HOLDS), ((1.2, 1.4), Status.FAILS), ((1.2, 5.0), Status.DEPENDS)],
)
def test_the_verdict_follows_the_indices(indices, status):
    given = answers(dict(zip(noise_tails.NETWORKS, indices, strict=True)))
    (verdict,) = [each for each in given if isinstance(each, Verdict)]
    assert verdict.status is status
    said = [each for each in given if isinstance(each, Sentence)]
    assert len(said) == 2
    tables = dict(each for each in given if isinstance(each, tuple))
    quantiles = tables["noise_quantiles"]
    one = quantiles[(quantiles["network"] == noise_tails.NETWORKS[0]) & (quantiles["share"] == 0.005)]
    np.testing.assert_allclose(one["times"], 100 ** (1 / indices[0]), rtol=1e-9)
