"""What is read of one pass: signals of each weight layer, and the smallest loss scale, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import probe
from depthgauge.probe import passage


def total(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(batch).sum())


def test_moments_are_those_that_autograd_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))
    outputs: list[torch.Tensor] = []
    hooks = [model[i].register_forward_hook(lambda _m, _x, output: outputs.append(output)) for i in (0, 4)]
    x = torch.randn(4, 1, 8, 8)
    gradients = torch.autograd.grad(total(model, x), outputs)
    for hook in hooks:
        hook.remove()
    frame = probe.weight_layers(model, x, total)
    for direction, tensors in (("forward", outputs), ("backward", gradients)):
        own = frame[frame["direction"] == direction]
        assert own["layer"].tolist() == ["0", "4"]
        assert own["layer_index"].tolist() == [1, 2]
        assert own["elements"].tolist() == [3 * 36, 5]
        expected = [float(tensor.detach().double().square().mean()) for tensor in tensors]
        np.testing.assert_allclose(own["second_moment"], expected, rtol=1e-5)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Linear(3, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.out(self.state(self.state(x))))


def test_a_layer_that_is_called_again_is_followed_through_its_calls() -> None:
    frame = probe.weight_layers(Twice(), torch.randn(2, 3), total)
    forward = frame[frame["direction"] == "forward"]
    assert forward["layer"].tolist() == ["state", "state:1", "out"]
    assert forward["layer_index"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinity_and_nan_are_not_averaged_away(value: float) -> None:
    frame = probe.weight_layers(nn.Linear(2, 2, bias=False), torch.tensor([[value, 1.0], [1.0, 1.0]]), total)
    assert not np.isfinite(frame.loc[frame["direction"] == "forward", "second_moment"]).any()


def test_what_is_furthest_from_the_output_is_said_in_decades_of_the_norm() -> None:
    """Squared norms of 4e4, 4e-2 and 4 at the last layer: 2 decades above, 1 below, 3 between them."""
    at = {"case": "one", "seed": 0, "layer": ["a", "b", "c"], "layer_index": [1, 2, 3], "elements": [10.0, 1.0, 2.0]}
    rows = pd.DataFrame({**at, "direction": "backward", "second_moment": [4e3, 4e-2, 2.0]})
    backward = passage.by_seed(passage.log_signals(rows), "backward")
    np.testing.assert_allclose(backward, np.log([[1e4, 1e-2, 1.0]]), atol=1e-12)
    (far,) = passage.furthest(backward).itertuples()
    assert (far.layer, far.decades) == ("a", pytest.approx(2.0))
    assert passage.middle(passage.furthest(backward)) == (far.decades, "a")
    assert passage.spread(backward, backward).tolist() == pytest.approx([3.0])
    assert passage.spread(backward, backward[["b", "c"]]).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("decades", "middle"),
    [
        ([-6.0, -6.1, -math.inf, -math.inf, -math.inf], (-math.inf, "c")),
        ([5.0, -4.0, 1.0], (-4.0, "b")),
        ([1.0, -2.0], (-2.0, "b")),
        ([math.nan, 1.0, math.nan], (math.nan, "a")),
    ],
)
def test_the_middle_seed_has_its_own_layer(decades: list[float], middle: tuple[float, str]) -> None:
    off = pd.DataFrame({"layer": list("abcde")[: len(decades)], "decades": decades})
    found = passage.middle(off)
    np.testing.assert_equal(found, middle)
