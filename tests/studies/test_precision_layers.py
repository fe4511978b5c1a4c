"""The part on layers: what its analysis says of errors that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from depthgauge.studies.precision.layers import FORMATS, GRADIENTS, NORMS, RATIO, analyse, measured, tidy
from depthgauge.verdict import Status, Verdict

LAYERS = [" Sequential", "0 Linear", "1 LayerNorm", "2 Linear"]


def rows(ratio: Callable[[np.random.Generator], float], norm: float = 0.1, overflows: bool = False) -> pd.DataFrame:
    """Rows of eight networks: errors near 1e-4 in float16, so many times that in bfloat16; norms by a factor."""
    draw, found = np.random.default_rng(0), []
    for seed in range(8):
        for direction in ("forward", "backward"):
            for place, layer in enumerate(LAYERS, start=1):
                for column in ("own", "inherited", "total"):
                    low = 1e-4 * math.exp(draw.normal(0, 0.05)) * (norm if "Norm" in layer and column == "own" else 1)
                    if layer.startswith(" ") and column == "own":
                        low = 0.0
                    values = {"float16": low, "bfloat16": low * ratio(draw)}
                    if overflows and place == 3:
                        values["float16"] = math.inf
                    at = {"case": f"seed={seed}", "network": "mlp", "steps": 0, "direction": direction}
                    where = {"layer": layer, "layer_index": place}
                    found += [{**at, **where, "metric": f"{f}_{column}", "value": values[f]} for f in FORMATS]
    return pd.DataFrame(found)


def status(frame: pd.DataFrame) -> dict[str, Status]:
    return {answer.id: answer.status for answer in analyse(frame) if isinstance(answer, Verdict)}


def near(value: float) -> Callable[[np.random.Generator], float]:
    return lambda draw: value * math.exp(draw.normal(0, 0.05))


@pytest.mark.parametrize(("value", "expected"), [(8.0, Status.HOLDS), (4.0, Status.FAILS)])
def test_the_ratio_is_found(value, expected):
    found = status(rows(near(value)))
    assert found[RATIO.id] == found[GRADIENTS.id] == expected


def test_layers_beyond_float16_are_left_out():
    frame = rows(near(8.0), overflows=True)
    assert np.isfinite(measured(tidy(frame))["ratio"]).all()
    assert status(frame)[RATIO.id] == Status.HOLDS


@pytest.mark.parametrize(("norm", "expected"), [(0.1, Status.FAILS), (1.0, Status.FAILS), (3.0, Status.HOLDS)])
def test_norms_are_held_against_matrix_products(norm, expected):
    assert status(rows(near(8.0), norm))[NORMS.id] == expected
