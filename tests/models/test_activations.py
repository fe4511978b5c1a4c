"""Activations by name: which there are, which are one function, and where they have kinks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depthgauge.models import activations, slots


def test_every_elementwise_activation_of_torch_is_there_or_known_to_be_none() -> None:
    """Each class of torch.nn's activation module is compared, or mixes elements, or draws at random."""
    made = {type(activations.make(name)) for name in activations.names()} - {nn.Identity}
    every = {getattr(nn, name) for name in nn.modules.activation.__all__}
    assert made | slots._LEFT_OUT == every
    assert not made & slots._LEFT_OUT


def test_any_callable_joins_by_where_it_is_defined() -> None:
    x = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(activations.make("torch.nn.functional:softplus")(x), nn.functional.softplus(x))
    torch.testing.assert_close(activations.make("torch.nn:Tanh")(x), torch.tanh(x))
    with pytest.raises(ValueError, match="no activation 'rleu'"):
        activations.make("rleu")
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        activations.make("nowhere:phi")
    with pytest.raises(ValueError, match="of type float"):
        activations.make("math:pi")


def test_one_function_counts_once() -> None:
    """CELU is ELU at its defaults; PReLU is trained, and no LeakyReLU; a timed function of one's own stays."""
    names = activations.distinct(activations.names())
    assert names["celu"] == "celu = elu"
    assert set(activations.names()) - set(names) == {"elu"}
    mine = ("torch.nn.functional:relu", "relu", "prelu")
    assert activations.distinct(mine) == {"relu": "relu", "prelu": "prelu"}
    assert activations.distinct(mine, timed=True) == {"relu": "relu", "prelu": "prelu", mine[0]: mine[0]}


def test_kinks_are_where_a_slope_jumps_and_nowhere_else() -> None:
    """ELU and CELU have one slope at 0, SELU two; Softsign's is 1 on both sides."""
    known = {
        "relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "prelu": (0.0,), "selu": (0.0,), "threshold": (0.0,),
        "hardtanh": (-1.0, 1.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0), "hardshrink": (-0.5, 0.5),
        "softshrink": (-0.5, 0.5),
    }  # fmt: skip
    assert {name: activations.kinks(name) for name in activations.names() if activations.kinks(name)} == known
