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
    assert passage.spread(backward, backward).tolist() == pytest.approx([3.0])
    assert passage.spread(backward, backward[["b", "c"]]).tolist() == pytest.approx([1.0])


def scale_of(*gradients: float, lost: float = 0.01) -> float:
    """The loss scale for a layer whose output's gradients are these."""
    model = nn.Linear(1, len(gradients))
    with probe.track(model, directions=("activation_gradient",)) as record:
        (model(torch.ones(1, 1)) * torch.tensor(gradients)).sum().backward()
    return record.loss_scale("float16", lost=lost)


def test_the_smallest_loss_scale_is_the_first_that_leaves_nothing_at_zero() -> None:
    """Up to 2^-25 float16 rounds to zero, so that 2^-30 needs 2^6; 65520 and more overflows."""
    assert scale_of(1.0) == 1.0
    assert scale_of(2.0**-30, 1.0) == 2.0**6
    assert scale_of(2.0**-30, 2.0**10) == math.inf  # 2^6 times 2^10 is more than 65504
    assert scale_of(2.0**-30, 2.0**10, lost=0.5) == 1.0
    assert scale_of(0.0, 0.0) == math.inf  # nothing but zeros is left


def test_a_record_without_gradients_has_no_loss_scale() -> None:
    model = nn.Linear(1, 1)
    with probe.track(model, directions=("activation",)) as record:
        model(torch.ones(1, 1))
    with pytest.raises(ValueError, match="holds no gradients"):
        record.loss_scale("float16")
