"""Sharpness, against closed forms, full Hessians and hessian-eigenthings."""

from __future__ import annotations

import contextlib
import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from depthgauge import curvature, replicas
from depthgauge.curvature import lanczos
from depthgauge.seeding import Purpose, generator

TIGHT = 1e-9


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64).to(dtype)


def symmetric(spectrum, seed=0):
    q, _ = torch.linalg.qr(normal(seed, len(spectrum), len(spectrum)))
    return q @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ q.T


class Point(nn.Module):
    """A point in the space in which a loss is a quadratic."""

    def __init__(self, size, dtype=torch.float64):
        super().__init__()
        self.x = nn.Parameter(torch.ones(size, dtype=dtype))


def quadratic(model, matrix, _):
    return 0.5 * model.x @ matrix.to(model.x) @ model.x


def entropy(model, x, y):
    return functional.cross_entropy(model(x), y)


def squared(model, x, y):
    return functional.mse_loss(model(x), y)


def drawn(module, seed=0):
    with torch.no_grad():
        for place, each in enumerate(module.parameters()):
            each.copy_(0.4 * normal(1000 * seed + place, *each.shape))
    return module


def small(dtype=torch.float64):
    return drawn(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).to(dtype)


def digits(n=20, dtype=torch.float64):
    return normal(77, n, 4, dtype=dtype), torch.arange(n) % 3


def full(model, loss, *data):
    """The whole Hessian, by torch.autograd.functional."""
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    values = [each.detach() for each in model.parameters() if each.requires_grad]
    sizes = [each.numel() for each in values]

    class Moved(nn.Module):
        def __init__(self, given):
            super().__init__()
            self.given = given

        def forward(self, x):
            return functional_call(model, self.given, (x,))

    def value(flat):
        pieces = [piece.view(each.shape) for piece, each in zip(flat.split(sizes), values, strict=True)]
        return loss(Moved(dict(zip(names, pieces, strict=True))), *data)

    return torch.autograd.functional.hessian(value, torch.cat([each.flatten() for each in values]))


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", [(5.0, 1.0, 0.5, -7.0), (-1.0, -2.0, -3.0), (3.0, 3.0, 3.0), (2.0,), (0.0, -1.0)])
def test_a_quadratic_has_its_spectrum(spectrum):
    found = curvature.sharpness(Point(len(spectrum)), quadratic, symmetric(spectrum), None, tolerance=TIGHT)
    assert found.value == pytest.approx(max(spectrum), abs=1e-8)
    assert found.residual <= 1e-8
    assert found.converged
    least = curvature.sharpness(Point(len(spectrum)), quadratic, symmetric(spectrum), None, smallest=True)
    assert least.value == pytest.approx(min(spectrum), abs=1e-6)


def test_the_largest_are_counted_and_their_vectors_are_eigenvectors():
    matrix = symmetric(range(-20, 21))
    found = curvature.sharpness(Point(41), quadratic, matrix, None, count=4, tolerance=TIGHT)
    assert found.values == pytest.approx((20, 19, 18, 17), abs=1e-8)
    for value, residual, (vector,) in zip(found.values, found.residuals, found.vectors, strict=True):
        assert vector.norm() == pytest.approx(1.0)
        assert (matrix @ vector - value * vector).norm() == pytest.approx(residual, abs=1e-12)


def test_linear_regression_is_as_sharp_as_its_inputs():
    x, y = normal(1, 50, 8), normal(2, 50, 1)
    found = curvature.sharpness(nn.Linear(8, 1, bias=False).double(), squared, x, y, tolerance=TIGHT)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(2 * x.T @ x / 50)[-1]), rel=1e-10)


def test_a_loss_without_curvature_has_none():
    found = curvature.sharpness(nn.Linear(3, 1), lambda model, x, _: model(x).mean(), normal(0, 5, 3).float(), None)
    assert (found.value, found.residual, found.converged) == (0.0, 0.0, True)


@pytest.mark.parametrize("loss", [entropy, lambda model, x, y: squared(model, x, functional.one_hot(y).to(x))])
def test_a_network_against_its_full_hessian(loss):
    model, data = small(), digits()
    spectrum = torch.linalg.eigvalsh(full(model, loss, *data)).flip(0)
    found = curvature.sharpness(model, loss, *data, count=3, tolerance=TIGHT)
    assert found.values == pytest.approx(spectrum[:3].tolist(), rel=1e-8)
    least = curvature.sharpness(model, loss, *data, smallest=True, tolerance=TIGHT)
    assert least.value == pytest.approx(float(spectrum[-1]), rel=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=25), st.integers(1, 6), st.integers(0, 99))
def test_an_eigenvalue_lies_within_the_residual(spectrum, steps, seed):
    found = curvature.sharpness(
        Point(len(spectrum)), quadratic, symmetric(spectrum, seed), None, most_steps=steps, seed=seed
    )
    distance = min(abs(found.value - each) for each in spectrum)
    assert distance <= found.residual + 1e-12
    assert found.value <= max(spectrum) + 1e-9  # a Rayleigh quotient
    assert found.steps <= steps


def test_the_tolerance_holds_and_the_steps_are_bounded():
    matrix = symmetric(np.linspace(-1, 1, 300))
    loose = curvature.sharpness(Point(300), quadratic, matrix, None, tolerance=1e-2)
    tight = curvature.sharpness(Point(300), quadratic, matrix, None, tolerance=1e-6)
    spent = curvature.sharpness(Point(300), quadratic, matrix, None, tolerance=1e-6, most_steps=5)
    assert loose.residual <= 1e-2 * loose.value
    assert tight.residual <= 1e-6 * tight.value
    assert loose.steps < tight.steps
    assert (spent.steps, spent.converged) == (5, False)
    assert spent.residual > 1e-6


def test_a_full_basis_begins_again(monkeypatch):
    matrix = symmetric(np.linspace(-1, 1, 300))
    monkeypatch.setattr(lanczos, "BASIS_BYTES", 0)
    found = curvature.sharpness(Point(300), quadratic, matrix, None, tolerance=1e-6, count=2)
    assert found.values == pytest.approx((1.0, 1 - 2 / 299), rel=1e-9)
    assert found.converged
    assert found.steps > 14  # the rows that there was room for


# -- preconditioned ----------------------------------------------------------------------------------------------------


def test_a_preconditioner_scales_from_both_sides():
    matrix, p = symmetric(range(1, 13)), torch.linspace(0.1, 3.0, 12, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(matrix / (p[:, None] * p).sqrt())[-1]
    for given_as in (p, [p]):
        found = curvature.sharpness(Point(12), quadratic, matrix, None, preconditioner=given_as, tolerance=TIGHT)
        assert found.value == pytest.approx(float(expected), rel=1e-10)
    for wrong, said in ((p[:3], "3 numbers"), (p - 1, "positive"), (p * math.nan, "positive")):
        with pytest.raises(ValueError, match=said):
            curvature.sharpness(Point(12), quadratic, matrix, None, preconditioner=wrong)


def test_the_preconditioner_of_adam_turns_its_step_into_one_of_momentum():
    model, data = small(), digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        entropy(model, *data).backward()
        before = [each.detach().clone() for each in model.parameters()]
        optimizer.step()
    found = curvature.adam_preconditioner(optimizer, model)
    for parameter, was, p in zip(model.parameters(), before, found, strict=True):
        step = -0.01 * optimizer.state[parameter]["exp_avg"] / p
        torch.testing.assert_close(parameter.detach() - was, step, rtol=1e-9, atol=1e-15)
    with pytest.raises(ValueError, match=r"no second moment of '0\.weight'"):
        curvature.adam_preconditioner(torch.optim.SGD(model.parameters(), 0.1), model)


# -- any module --------------------------------------------------------------------------------------------------------


def test_batches_give_the_mean_over_all_examples():
    model, data = small(), digits()
    whole = curvature.sharpness(model, entropy, *data, tolerance=TIGHT)
    parts = curvature.sharpness(model, entropy, *data, tolerance=TIGHT, batch=7)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)

    def by_name(model, x, y):
        return entropy(model, x["x"], y)

    named = curvature.sharpness(model, by_name, {"x": data[0]}, data[1], tolerance=TIGHT, batch=7)
    assert named.value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize(("dtype", "rough"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03), (torch.float16, 0.01)])
def test_narrower_formats_say_how_far_they_are_off(dtype, rough):
    model = small(dtype)
    x, y = digits(dtype=dtype)
    exact = curvature.sharpness(small(dtype).double(), entropy, x.double(), y)
    found = curvature.sharpness(model, entropy, x, y)
    assert found.value == pytest.approx(exact.value, rel=rough)
    assert found.vector[0].dtype is dtype
    assert found.converged
    assert (found.residual > 1e-3) == (dtype is not torch.float32)  # it is rounding, and the residual has it
    assert abs(found.value - exact.value) <= found.residual + exact.residual


def test_frozen_and_shared_parameters():
    model, data = small(), digits()
    model[0].requires_grad_(requires_grad=False)
    expected = torch.linalg.eigvalsh(full(model, entropy, *data))[-1]
    found = curvature.sharpness(model, entropy, *data, tolerance=TIGHT)
    assert found.value == pytest.approx(float(expected), rel=1e-9)
    assert [each.shape for each in found.vector] == [(3, 5), (3,)]
    layer = nn.Linear(4, 4, bias=False).double()
    tied = nn.Sequential(layer, nn.Tanh(), layer)
    expected = torch.linalg.eigvalsh(full(tied, squared, data[0], data[0]))[-1]
    assert curvature.sharpness(tied, squared, data[0], data[0], tolerance=TIGHT).value == pytest.approx(float(expected))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 1, 4).expand(-1, 3, -1) * torch.arange(1.0, 4)[:, None]).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(1, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x[:, :, None])[0][:, -1])


MODULES = {
    "convolution": nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                 nn.Flatten(), nn.Linear(3, 3)),
    "batch norm": nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 3)),
    "dropout": nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)),
    "spectral norm": nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(),
                                   nn.Linear(6, 3)),
    "attention": Attention(), "recurrent": Recurrent(),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("batch", [None, 8])
def test_any_module_stays_as_it_was_and_gives_the_same_again(name, batch):
    model = MODULES[name].float().train()
    if name == "attention":
        model.layer.eval()
    data = digits(dtype=torch.float32)
    entropy(model, *data).backward()
    grads = [each.grad.clone() for each in model.parameters()]
    state = {key: each.clone() for key, each in model.state_dict().items()}
    buffers = {key: id(each) for key, each in model.named_buffers()}
    modes = [each.training for each in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    draws = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is kept
    found = curvature.sharpness(model, entropy, *data, batch=batch)
    assert random.getstate() == draws[0]
    assert (np.random.get_state()[1] == draws[1]).all()  # noqa: NPY002 - as above
    assert torch.equal(torch.rand(2), expected)
    assert found.converged
    assert found.value > 0
    assert curvature.sharpness(model, entropy, *data, batch=batch) == found
    assert all(torch.equal(each.grad, was) for each, was in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(each, state[key]) for key, each in model.state_dict().items())
    assert {key: id(each) for key, each in model.named_buffers()} == buffers
    assert [each.training for each in model.modules()] == modes
    with torch.no_grad():
        assert curvature.sharpness(model, entropy, *data, batch=batch) == found
    with torch.inference_mode():
        assert curvature.sharpness(model, entropy, *data, batch=batch) == found


class Hidden(torch.autograd.Function):
    """A square whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


class Detached(Hidden):
    @staticmethod
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope.detach()


def test_what_has_no_hessian_is_said_in_one_sentence():
    model, data = small(), digits()
    noise = torch.Generator().manual_seed(0)

    def noisy(model, x, y):
        return entropy(model, x + torch.randn(x.shape, generator=noise, dtype=x.dtype), y)

    def through(function):
        return lambda model, x, y: functional.cross_entropy(model[2](function.apply(model[0](x))), y)

    losses = {
        r"the loss is random.*model\.eval": noisy,
        "cannot be differentiated twice.*once_differentiable": through(Hidden),
        "not symmetric": through(Detached),
        "does not depend on any parameter": lambda _model, x, _: x.mean(),
    }
    for said, loss in losses.items():
        with pytest.raises(curvature.NoHessianError, match=said) as caught:
            curvature.sharpness(model, loss, *data)
        assert "\n" not in str(caught.value)


def test_wrong_arguments_are_told():
    model, data = small(), digits()
    with pytest.raises(TypeError, match=r"scalar tensor, the mean over the examples; got \(20, 3\)"):
        curvature.sharpness(model, lambda model, x, _: model(x), *data)
    with pytest.raises(ValueError, match="of 43 parameters"):
        curvature.sharpness(model, entropy, *data, count=44)
    with pytest.raises(ValueError, match="whole number >= 1"):
        curvature.sharpness(model, entropy, *data, count=0)
    with pytest.raises(ValueError, match="no parameter"):
        curvature.sharpness(model.requires_grad_(requires_grad=False), entropy, *data)
    with pytest.raises(ValueError, match="without values"):
        curvature.sharpness(nn.Linear(3, 3, device="meta"), entropy, *data)
    with pytest.raises(ValueError, match="without values"):
        curvature.sharpness(nn.LazyLinear(3), entropy, *data)
    with pytest.raises(ValueError, match="no examples"):
        curvature.sharpness(small(), entropy, data[0][:0], data[1][:0], batch=2)
    with pytest.raises(ValueError, match="first dimension"):
        curvature.sharpness(small(), entropy, data[0], data[1][:3], batch=2)


def test_operations_that_torch_passes_over_are_found():
    model, data = small(), digits()

    def stepped(reentrant):
        def loss(model, x, y):
            hidden = checkpoint(lambda h: torch.tanh(model[0](h)), x.clone().requires_grad_(), use_reentrant=reentrant)
            return functional.cross_entropy(model[2](hidden), y)

        return loss

    whole = curvature.sharpness(model, entropy, *data)
    assert curvature.sharpness(model, stepped(reentrant=False), *data).value == pytest.approx(whole.value)
    with pytest.raises(curvature.NoHessianError, match="use_reentrant=False"):
        curvature.sharpness(model, stepped(reentrant=True), *data)
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("sparse", [False, True])
def test_embeddings(sparse):
    model = drawn(nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(8, 3)).double())
    x, y = torch.arange(20).view(10, 2) % 6, torch.arange(10) % 3
    dense = drawn(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Tanh(), nn.Linear(8, 3)).double())
    expected = float(torch.linalg.eigvalsh(full(dense, entropy, x, y))[-1])
    assert curvature.sharpness(model, entropy, x, y, tolerance=TIGHT).value == pytest.approx(expected)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_very_small_and_very_large_curvature(size):
    model, data = small(), digits()
    ordinary = curvature.sharpness(model, entropy, *data)
    found = curvature.sharpness(model, lambda *args: size * entropy(*args), *data)
    assert found.value / size == pytest.approx(ordinary.value, rel=1e-9)
    assert found.residual / size == pytest.approx(ordinary.residual, rel=1e-3)
    assert found.steps == ordinary.steps


def test_what_is_not_finite_is_a_result():
    model, data = small(), digits()
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = curvature.sharpness(model, entropy, *data)
    assert math.isnan(found.value)
    assert math.isnan(found.residual)
    assert not found.converged


# -- replicas ----------------------------------------------------------------------------------------------------------


def stack_of(model, count):
    return replicas.stack(model, seeds=range(count))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    ],
    ids=["chain", "vmap", "loop"],
)
def test_replicas_are_as_sharp_as_each_alone(model):
    stack, data = stack_of(model.double(), 7), digits()
    positive = [0.1 + each.square() for each in stack.parameters.values()]
    before = {name: each.clone() for name, each in stack.parameters.items()}
    for given_as, kind in ((None, 1), (positive, 2)):
        found = curvature.of_replicas(stack, *data, preconditioner=given_as, count=kind)
        for row in range(7):
            own = None if given_as is None else [each[row] for each in given_as]
            alone = curvature.sharpness(stack.module(row), entropy, *data, preconditioner=own, count=kind)
            assert found[row].values == pytest.approx(alone.values, rel=1e-9)
            assert found[row].steps == alone.steps
            assert [each.shape for each in found[row].vector] == [each.shape for each in alone.vector]
    assert all(torch.equal(each, before[name]) for name, each in stack.parameters.items())


def test_a_replica_does_not_notice_its_neighbours():
    stack, data = stack_of(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), 5), digits()
    before = curvature.of_replicas(stack, *data)
    next(iter(stack.parameters.values()))[2] = math.nan
    after = curvature.of_replicas(stack, *data)
    assert math.isnan(after[2].value)
    for row in (0, 1, 3, 4):
        assert after[row].value == pytest.approx(before[row].value, rel=1e-12)
        assert after[row].steps == before[row].steps


def test_a_named_or_own_loss_of_replicas():
    stack, (x, _) = stack_of(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), 2), digits(dtype=torch.float32)
    y = normal(5, 20, 3, dtype=torch.float32)
    named = curvature.of_replicas(stack, x, y, "mse")
    own = curvature.of_replicas(stack, x, y, lambda out, target: (out - target).square().mean())
    assert [each.value for each in named] == pytest.approx([each.value for each in own], rel=1e-6)


# -- another implementation --------------------------------------------------------------------------------------------


def test_hessian_eigenthings_agrees():
    other = pytest.importorskip("hessian_eigenthings", reason="hessian-eigenthings is not installed")
    model, data = small(), digits()
    operator = other.HessianOperator(model, [data], lambda model, batch: entropy(model, *batch))
    theirs = other.lanczos(operator, k=3, max_iter=40, which="LA", seed=0)
    ours = curvature.sharpness(model, entropy, *data, count=3, tolerance=TIGHT)
    assert ours.values == pytest.approx(sorted(theirs.eigenvalues.tolist(), reverse=True), rel=1e-8)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("batch", [None, 8])
def test_what_a_loss_does_beside_is_undone(batch):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, model, inputs, targets):
            model.train()
            model[0].bias.grad = None
            self.calls += 1
            return entropy(model, inputs.pop("x"), targets)

    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).eval()
    x, y = digits(dtype=torch.float32)
    entropy(model, x, y).backward()
    loss, weight, gradient, inputs = Loss(), model[0].weight, model[0].bias.grad, {"x": x}
    with contextlib.suppress(curvature.NoHessianError):  # of weight norm in torch 2.13
        curvature.sharpness(model, loss, inputs, y, batch=batch, most_steps=3)
    assert not any(each.training for each in model.modules())
    assert model[0].weight is weight
    assert model[0].bias.grad is gradient
    assert loss.calls == 0
    assert inputs == {"x": x}


def test_the_format_of_a_basis_follows_from_its_own_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from how many are searched at once."""
    monkeypatch.setattr(lanczos, "DOUBLE", 10)
    monkeypatch.setattr(lanczos, "BASIS_BYTES", 8 * 10 * 12)
    for rows in (1, 50):
        basis = lanczos._Basis(torch.empty(rows, 10), lanczos.Lanczos(), 1e-7)
        assert (basis.dtype, basis.room) == (torch.float64, 10)
