import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import theory


def test_every_elementwise_class_of_torch_is_found():
    names = theory.activation_names()
    assert {"relu", "tanh", "leaky_relu", "gelu", "hardshrink", "prelu", "identity", "logsigmoid"} <= set(names)
    assert not {"softmax", "softmin", "logsoftmax", "rrelu", "glu", "threshold", "dropout"} & set(names)


@pytest.mark.parametrize("name", theory.activation_names())
def test_every_name_is_evaluated_as_torch_does(name):
    u = np.linspace(-4.03, 4.03, 50)
    activation = theory.activation(name)
    x = torch.tensor(u, requires_grad=True)
    y = activation.module().double()(x)
    y.sum().backward()
    np.testing.assert_array_equal(activation.value(u), y.detach().numpy())
    np.testing.assert_array_equal(activation.slope(u), x.grad.numpy())


def test_spelling_does_not_matter_and_linear_is_the_identity():
    assert theory.activation("LeakyReLU") is not None
    for spelling in ("LeakyReLU", "leaky_relu", "LEAKYRELU", "leaky-relu"):
        assert theory.activation(spelling).name == "leaky_relu"
    assert theory.activation("Linear").name == "identity"


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"'thanh'.*did you mean 'tanh'"):
        theory.gain("thanh")


@pytest.mark.parametrize("module", [nn.Softmax(dim=0), nn.RReLU(), nn.Dropout(), nn.GLU(), nn.Linear(3, 3)])
def test_what_is_random_or_mixes_elements_is_refused(module):
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="activation"):
        theory.activation(module)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_evaluation_mode_module_may_be_given():
    slope = (1 / 8 + 1 / 3) / 2
    assert theory.gain(nn.RReLU().eval()).backward == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-12)


def test_a_module_is_not_changed():
    module = nn.PReLU()
    theory.gain(module)
    assert module.weight.dtype == torch.float32
    assert module.weight.grad is None


@pytest.mark.parametrize(
    ("array", "tensor", "tolerance"),
    [
        (np.tanh, torch.tanh, 1e-12),
        (lambda u: np.maximum(u, 0), torch.relu, 1e-12),
        # |u| takes complex numbers but answers with a real one: central differences, wrong on 1e-5 around the kink
        (lambda u: np.abs(u) * u, lambda u: u.abs() * u, 1e-7),
    ],
)
def test_a_numpy_callable_does_as_a_torch_one(array, tensor, tolerance):
    ours, theirs = theory.gain(array), theory.gain(tensor)
    assert ours.forward == pytest.approx(theirs.forward, rel=1e-12)
    assert ours.backward == pytest.approx(theirs.backward, rel=tolerance)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_slope_is_there_where_the_caller_needs_none(mode):
    with mode():
        assert theory.gain(nn.Tanh()).backward == theory.gain("tanh").backward


def test_kinks_are_found_to_the_last_bit():
    at = 0.123456789
    _, kinks = theory.activation(nn.Hardtanh(-at, 2.718281828)).mesh(8.0)
    np.testing.assert_allclose(kinks, [-at, 2.718281828], rtol=4e-16)
    assert len(theory.activation("tanh").mesh(8.0)[1]) == 0


def test_importing_theory_imports_no_torch_and_no_scipy():
    code = "import sys, depthgauge.theory; print(sorted({'torch', 'scipy', 'pandas'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
