"""Wrong use of noise, curvature, learning_rate, coordinate_check, theory, timing: one sentence, or the right figure."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from depthgauge import Training, coordinate_check, curvature, learning_rate, noise, plan, theory, timing
from depthgauge.workload import WorkloadError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def squares(model, inputs, targets):
    return model(inputs).square().mean()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def made(width, dropout=0.0, rate=1e-3):
    model = nn.Sequential(nn.Linear(3, width), nn.Dropout(dropout), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Training(model, [X], lambda model, x: squares(model, x, None), optimizer)


def test_small_steps_on_a_quadratic_are_exact():
    for curvature_ in (1e-12, 1e-17, 1e-300):  # ten equal terms of noise, whose sum does not decay yet
        loss = theory.noisy_quadratic(curvature_, 0.5, 1, 10, noise=1.0, start=0.0)
        assert loss == pytest.approx(curvature_ / 2 * 0.25 * 10, rel=1e-10, abs=0)
    assert theory.noisy_quadratic(1.0, 1e200, 1, 3) == float("inf")
    with pytest.raises(ValueError, match=r"curvature has the shape \(2, 3\)"):
        theory.noisy_quadratic(torch.ones(2, 3), 0.1, 1, 3)


def test_a_risk_that_stays_is_found_without_the_steps():
    assert theory.regression_risk([1.0], 0.5, 1, [3, 10**12], start=0.0, label_noise=0.0).tolist() == [0.0, 0.0]
    assert theory.regression_risk([1.0], 3.0, 1, 10**12) == float("inf")


def test_no_example_is_no_flat_loss():
    assert str(curvature.sharpness(nn.Linear(3, 1), squares, X[:0], None).value) == "nan"


def test_a_marked_backward_pass_is_refused_under_a_constant_gradient():
    with pytest.raises(curvature.NoHessianError, match="once_differentiable"):
        curvature.sharpness(nn.Linear(3, 1), lambda model, x, _: Once.apply(model(x)).mean(), X, None)


@pytest.mark.parametrize("make", [torch.optim.NAdam, torch.optim.RAdam, partial(torch.optim.Adam, amsgrad=True)])
def test_other_preconditioners_are_refused(make):
    model = nn.Linear(3, 1)
    optimizer = make(model.parameters())
    squares(model, X, None).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"Adam's"):
        curvature.adam_preconditioner(optimizer, model)


def test_a_preconditioner_has_the_shapes_of_the_parameters():
    with pytest.raises(ValueError, match="shapes"):
        curvature.sharpness(nn.Linear(3, 2), squares, X, None, preconditioner=[torch.ones(3, 2), torch.ones(2)])


def test_noise_of_wrong_arguments():
    for wrong in ({"batch": 1.5}, {"batch": "2"}, {"population": float("nan")}, {"population": 41.5}):
        with pytest.raises(noise.NoiseError, match="whole number"):
            noise.scale(nn.Linear(3, 1), squares, X, None, **wrong)
    for call in ((None, squares), (nn.Linear(3, 1), "mse"), (nn.Linear(3, 1, device="meta"), squares)):
        with pytest.raises(noise.NoiseError):
            noise.scale(*call, X, None)
    same = noise.from_batches(16, [1.0] * 6, 256, [1.0] * 6)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    huge = noise.from_batches(16, [1e308] * 6, 256, [1e307] * 6)
    assert huge.value == pytest.approx(noise.from_batches(16, [10.0] * 6, 256, [1.0] * 6).value)


@pytest.mark.parametrize("call", [learning_rate.find, plan])
def test_trainings_that_are_none(call):
    model, other = nn.Linear(3, 1), nn.Linear(3, 1)
    batches = [(X, X[:, :1])] * 6
    loss = lambda model, batch: mse_loss(model(batch[0]), batch[1])  # noqa: E731 - short
    with pytest.raises(WorkloadError, match="Training was expected"):
        call(model)
    with pytest.raises(WorkloadError, match="no parameter of the model"):
        call(Training(model, batches, loss, torch.optim.SGD(other.parameters(), lr=0.1)))
    with pytest.raises(WorkloadError, match="ZeroDivisionError"):
        call(Training(model, batches, lambda *_: 1 / 0, torch.optim.SGD(model.parameters(), lr=0.1)))


def test_the_coordinate_check_of_dropout_sees_no_masks():
    changes = coordinate_check(partial(made, dropout=0.5), (8, 16, 32), seeds=5).change
    assert changes.max() < 0.1  # other masks would change outputs by their own size
    with pytest.raises(WorkloadError, match="no layer's output changes"):
        coordinate_check(partial(made, dropout=0.5, rate=0.0), (8, 16, 32))
    with pytest.raises(WorkloadError, match="same shapes"):
        coordinate_check(lambda _: made(8), (8, 16, 32))


def test_timing_of_wrong_arguments():
    for wrong in ({"rounds": 0}, {"batches": (1.5,)}):
        with pytest.raises(ValueError, match="whole number"):
            timing.batch_curve(lambda _: lambda: None, **{"batches": (1,), **wrong})
    with pytest.raises(ValueError, match="ratio"):
        timing.largest_batch(lambda _: lambda: None, 8, ratio=float("nan"))
