"""Bisection of a module's errors in low precision: closed forms, rankings, and any module."""

from __future__ import annotations

import copy
import gc
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from by_hand import ERRORS, error, rows
from hypothesis import strategies
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import formats, models, precision

pytestmark = pytest.mark.usefixtures("one_start")
LOW = [torch.bfloat16, torch.float16]


def total_of(module: nn.Module, _batch: Any) -> Tensor:
    return module(torch.arange(-8.0, 8.0).reshape(2, 8)).sum()


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_numbers_that_the_dtype_holds_have_no_error():
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-2, 3, (4, 8)))
        layer.bias.copy_(torch.randint(-2, 3, (4,)))
    for dtype in LOW:
        frame = precision.bisect(layer, None, dtype, loss=total_of)
        assert list(frame["direction"]) == ["forward", "backward"]
        assert (frame[ERRORS].to_numpy() == 0).all()


@pytest.mark.parametrize("dtype", LOW)
def test_a_linear_layers_own_error_is_that_of_running_it(dtype):
    layer, x = nn.Linear(64, 32), torch.randn(16, 64)
    slope = torch.randn(16, 32)
    frame = precision.bisect(layer, x, dtype, loss=lambda model, batch: (model(batch) * slope).sum())

    def gradients(module: nn.Module, x: Tensor, slope: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = x.detach().clone().requires_grad_()
        out = module(x)
        return out.detach(), list(torch.autograd.grad(out, [x, *module.parameters()], slope))

    out, (to_input, *to_weights) = gradients(layer, x, slope)
    low = copy.deepcopy(layer).to(dtype)
    low_out, (low_input, *low_weights) = gradients(low, x.to(dtype), slope.to(dtype))
    forward, backward = (rows(frame, direction).loc[""] for direction in ("forward", "backward"))
    assert forward["own"] == forward["total"] == pytest.approx(error(low_out, out), rel=1e-12)
    held = [torch.cat([each.flatten().double() for each in group]) for group in (low_weights, to_weights)]
    assert backward["own"] == pytest.approx(max(error(low_input, to_input), error(*held)), rel=1e-12)
    assert forward["inherited"] == pytest.approx(error(layer(x.to(dtype).float()).detach(), out), rel=1e-12)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_a_composites_own_error_has_its_children_replaced():
    block, x = Residual(), torch.randn(32, 8)
    frame = rows(precision.bisect(block, x, torch.bfloat16))
    inner = block.inner(x).detach()
    assert frame.loc["", "own"] == pytest.approx(error(x.bfloat16() + inner.bfloat16(), x + inner), rel=1e-12)


def test_a_composites_backward_pass_has_its_childrens_replaced():
    block, x, slope = Residual(), torch.randn(32, 8), torch.randn(32, 8)
    frame = rows(precision.bisect(block, x, torch.bfloat16, loss=lambda m, b: (m(b) * slope).sum()), "backward")
    inner = (slope @ block.inner.weight).detach()
    low = slope.bfloat16() + inner.bfloat16()
    assert frame.loc["", "own"] == pytest.approx(error(low, slope + inner), rel=1e-6)  # the order of a product's sums


class Exponential(nn.Module):
    """Hands to its child what it has computed itself, and returns what the child returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.exp())


def test_what_a_module_hands_to_a_child_is_its_own():
    module, x = Exponential(), torch.randn(32, 8)
    own = rows(precision.bisect(module, x, torch.bfloat16)).loc["", "own"]
    assert own == pytest.approx(error(x.bfloat16().exp(), x.exp()), rel=1e-12)


def test_containers_and_views_have_no_error_of_their_own():
    module = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Identity(), nn.Unflatten(1, (2, 4))
    )
    frame = precision.bisect(module.eval(), torch.randn(4, 2, 4), torch.bfloat16).set_index("layer")
    assert (frame.loc[["", "0", "1", "2", "3"], "own"] == 0).all()
    assert (frame.loc[["1.0", "1.1"], "own"] > 0).all()
    assert len(frame) == 14


def test_the_total_is_that_of_the_plain_low_precision_run():
    model, x = small("resnet18"), torch.randn(2, 1, 8, 8)
    seen: dict[str, list[Tensor]] = {}
    for module, inputs in ((model, x), (copy.deepcopy(model).bfloat16(), x.bfloat16())):
        for name, part in module.named_modules():
            part.register_forward_hook(
                lambda _m, _i, out, name=name: seen.setdefault(name, []).append(out.detach().clone())
            )
        module(inputs)
    for part in model.modules():
        part._forward_hooks.clear()
    frame = rows(precision.bisect(model, x, torch.bfloat16))
    assert set(frame.index) == set(seen)
    for name, outs in seen.items():
        calls = len(outs) // 2
        norms = [torch.cat([each.flatten().double() for each in half]) for half in (outs[calls:], outs[:calls])]
        assert frame.loc[name, "total"] == pytest.approx(error(*norms), rel=1e-9), name


# -- ranking -----------------------------------------------------------------------------------------------------------


class Cancelling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1000.0) - 1000.0


@pytest.mark.parametrize("dtype", [*LOW, "float8_e4m3fn"])
def test_a_bad_layer_is_ranked_first(dtype):
    layers = [part for _ in range(4) for part in (nn.Linear(32, 32), nn.Tanh())]
    model = nn.Sequential(*layers[:5], Cancelling(), *layers[5:])
    frame = rows(precision.bisect(model, torch.randn(16, 32), dtype))
    assert frame["own"].idxmax() == "5"
    assert frame.loc["5", "own"] > 10 * frame["own"].drop("5").max()
    assert frame.loc["6", "inherited"] > 10 * frame.loc["6", "own"]


def test_a_gradient_that_float16_loses_is_a_backward_error():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    frame = precision.bisect(model, torch.randn(4, 8), torch.float16, loss=lambda m, x: m(x).sum() * 1e-9)
    assert (rows(frame, "backward")["total"] == 1).all()
    assert (rows(frame)["total"] < 1e-2).all()


def test_overflow_is_an_infinite_error_and_zeros_have_none():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1e4)
        model[0].bias.zero_()
    frame = rows(precision.bisect(model, torch.ones(2, 8), torch.float16))
    assert math.isinf(frame.loc["0", "own"])
    assert math.isinf(frame.loc["", "total"])
    silent = rows(precision.bisect(model, -torch.ones(2, 8), torch.bfloat16))
    assert silent.loc["1", "own"] == silent.loc["", "total"] == 0


# -- any module --------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    first: Tensor
    second: tuple[Tensor, Tensor]


class Structured(nn.Module):
    """Keyword arguments and tokens in, a mapping, a dataclass and a tuple within."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell, self.act = nn.Embedding(10, 8), nn.GRUCell(8, 8), nn.ReLU(inplace=True)
        self.wrap, self.norm = Wrapping(), nn.BatchNorm1d(8)

    def forward(self, tokens: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        state = torch.zeros_like(self.words.weight[: len(tokens)])
        for step in tokens.unbind(1):
            state = self.cell(self.words(step), state)
        answer = self.wrap(self.act(state * scale))
        return {"out": self.norm(answer.first + answer.second[1]), "steps": tokens.sum()}


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.drop(x), (x, self.drop(2 * x)))


def encoder() -> tuple[nn.Module, Any]:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), torch.randn(2, 5, 8)


def small(name: str) -> nn.Module:
    """One of the package's models, of few units, for images of 8 x 8."""
    sizes = {"mlp": {"width": 16}, "resnet18": {"width": 2}, "transformer": {"depth": 1, "width": 8, "heads": 2}}
    return models.build(name, preset="small", input_shape=(1, 8, 8), seed=0, **sizes.get(name, {"width": 8}))


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "structured": lambda: (Structured(), {"tokens": torch.randint(10, (4, 3)), "scale": torch.rand(4, 1)}),
    "encoder": encoder,
    "encoder, evaluated": lambda: (encoder()[0].eval(), torch.randn(2, 5, 8)),
    "transformer": lambda: (nn.Transformer(8, 2, 1, 1, 16), (torch.randn(5, 2, 8), torch.randn(3, 2, 8))),
    "attention": lambda: (nn.MultiheadAttention(8, 2), (torch.randn(5, 2, 8),) * 3),
    "lstm": lambda: (nn.LSTM(4, 6, 2, bidirectional=True), torch.randn(5, 3, 4)),
    "frozen": lambda: (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).requires_grad_(False), torch.randn(3, 4)),
    "weight norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), torch.randn(3, 4)),
    **{
        name: lambda name=name: (small(name), torch.randn(4, 1, 8, 8))
        for name in ("mlp", "resnet18", "transformer", "lstm")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_module_that_runs_has_its_rows(case):
    module, batch = CASES[case]()
    ran = set()
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, part in module.named_modules()]
    module(**batch) if isinstance(batch, dict) else module(*batch) if isinstance(batch, tuple) else module(batch)
    for hook in hooks:
        hook.remove()
    for dtype in (torch.bfloat16, "float8_e5m2", torch.float32):
        frame = precision.bisect(module, batch, dtype)
        assert ran <= set(rows(frame).index)  # a fused inference path hides modules from hooks
        assert not frame[ERRORS].isna().any(axis=None)
        assert (frame["error"] == "").all()
        assert (frame.loc[frame["layer"] == "", "total"] > 0).all() == (dtype is not torch.float32)
        assert dtype is not torch.float32 or (frame[ERRORS].to_numpy() == 0).all()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 8),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "norm": lambda: nn.LayerNorm(8),
    "batch norm": lambda: nn.BatchNorm1d(8),
    "dropout": lambda: nn.Dropout(0.3),
    "residual": Residual,
    "exponential": Exponential,
    "block": lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
}


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    strategies.lists(strategies.sampled_from(sorted(LAYERS)), min_size=1, max_size=5), strategies.booleans()
)
def test_random_modules(names, training):
    torch.manual_seed(1)
    model = nn.Sequential(*(LAYERS[name]() for name in names)).train(training)
    x = torch.randn(6, 8)
    frame = precision.bisect(model, x, torch.bfloat16)
    assert not frame[ERRORS].isna().any(axis=None)
    assert len(rows(frame)) == len(rows(frame, "backward")) == len(list(model.modules()))
    assert (frame.loc[frame["kind"] == "Sequential", "own"] == 0).all()
    own = rows(frame)["own"].drop([name for name, part in model.named_modules() if isinstance(part, nn.Sequential)])
    assert (own < 2**-4).all()
    assert (precision.bisect(model, x, torch.float32)[ERRORS].to_numpy() == 0).all()


def test_a_shared_module_counts_its_calls():
    layer = nn.Linear(8, 8)
    frame = rows(precision.bisect(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(4, 8), torch.bfloat16))
    assert frame.loc["0", "calls"] == 2
    assert frame.loc["1", "calls"] == 1


def test_dropout_draws_the_same_mask():
    x = torch.randint(1, 9, (64, 64)).float()
    frame = precision.bisect(
        nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), x, torch.float16, loss=lambda m, b: m(b).sum()
    )
    assert (frame[ERRORS].to_numpy() == 0).all()


def test_labels_and_losses():
    model, x, y = nn.Linear(8, 3), torch.randn(6, 8), torch.arange(6) % 3
    pair = precision.bisect(model, (x, y), torch.bfloat16)
    loss = precision.bisect(model, {"a": x}, torch.bfloat16, loss=lambda m, b: functional.cross_entropy(m(b["a"]), y))
    np.testing.assert_array_equal(pair[ERRORS], loss[ERRORS])


class Constant(nn.Module):
    """Adds numbers that no `to` reaches, and multiplies a matrix with them."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = [torch.randn(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.numbers[0]


def test_a_module_that_raises_in_the_dtype_is_emulated_and_says_so():
    frame = precision.bisect(nn.Sequential(nn.Linear(8, 8), Constant()), torch.randn(4, 8), torch.bfloat16)
    assert np.isfinite(frame[ERRORS].to_numpy()).all()
    told = rows(frame)["error"]
    assert "emulated" in told["1"]
    assert "BFloat16" in told["1"]
    assert told["0"] == ""


def test_everything_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True))
    model(torch.randn(4, 8)).sum().backward()
    model[2].eval()
    x = torch.randn(4, 8)
    there = {name: (each, each.data_ptr(), each.clone()) for name, each in model.state_dict(keep_vars=True).items()}
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    gradients, state, inputs, call = (
        [each.grad for each in model.parameters()],
        torch.get_rng_state(),
        x.clone(),
        nn.Module.__call__,
    )
    precision.bisect(model, x, torch.float16)
    with pytest.raises(ZeroDivisionError):
        precision.bisect(model, x, torch.float16, loss=lambda m, b: m(b).sum() / (1 // 0))
    for name, (tensor, address, values) in there.items():
        now = model.state_dict(keep_vars=True)[name]
        assert now is tensor
        assert now.data_ptr() == address
        assert now.dtype == values.dtype
        assert torch.equal(now, values)
    assert {name: dict(vars(part)) for name, part in model.named_modules()} == before
    assert all(each.grad is gradient for each, gradient in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, inputs)
    assert nn.Module.__call__ is call


def test_an_emulated_layer_rounds_what_it_is_given_and_what_it_returns():
    layer, x = nn.Linear(16, 4, bias=False), torch.randn(8, 16)
    own = rows(precision.bisect(layer, x, "float8_e5m2")).loc["", "own"]
    x8, w8 = (formats.round(each.detach(), "float8_e5m2") for each in (x, layer.weight))
    assert own == pytest.approx(
        error(formats.round(x8 @ w8.T, "float8_e5m2"), (x @ layer.weight.T).detach()), rel=1e-12
    )


@pytest.mark.parametrize("fmt", ["mxfp8_e4m3", "nvfp4"])
def test_block_formats_are_emulated_along_the_last_dimension(fmt):
    layer, x = nn.Linear(64, 32, bias=False), torch.randn(8, 64)
    own = rows(precision.bisect(layer, x, fmt)).loc["", "own"]
    x_low, w_low = (formats.round(each.detach(), fmt) for each in (x, layer.weight))
    assert own == pytest.approx(error(formats.round(x_low @ w_low.T, fmt), (x @ layer.weight.T).detach()), rel=1e-12)


def test_a_loss_of_several_calls():
    model = nn.ModuleDict({"encode": nn.Linear(8, 8), "decode": nn.Sequential(nn.ReLU(), nn.Linear(8, 8))})
    frame = precision.bisect(
        model, torch.randn(4, 8), torch.bfloat16, loss=lambda m, x: (m["decode"](m["encode"](x)) - x).square().mean()
    )
    assert set(rows(frame).index) == set(rows(frame, "backward").index) == {"encode", "decode", "decode.0", "decode.1"}
    assert (frame.loc[frame["layer"] != "decode", "own"] > 0).all()


def test_a_lazy_layer_and_an_unknown_format_are_refused():
    with pytest.raises(ValueError, match="call the module once"):
        precision.bisect(nn.LazyLinear(3), torch.randn(2, 4), torch.float16)
    with pytest.raises(ValueError, match="no floating-point format"):
        precision.bisect(nn.Linear(4, 3), torch.randn(2, 4), "float17")


def test_nothing_of_a_bisection_is_left() -> None:
    """Circles through autograd's graph, which lies in C++, are never collected."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))), torch.randn(3, 4)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    precision.bisect(model, x, "bfloat16")
    before = tensors()
    precision.bisect(model, x, "bfloat16")
    assert tensors() <= before  # fewer where what an earlier test left behind goes


def test_bisections_in_threads_wait_for_each_other() -> None:
    plain, errors = nn.Module.__call__, []

    def work() -> None:
        try:
            precision.bisect(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4), "bfloat16")
        except Exception as error:  # noqa: BLE001 - whichever it is
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert nn.Module.__call__ is plain


def test_a_format_that_is_emulated_around_is_not_that_of_a_bisection() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    alone = precision.bisect(model, x, "bfloat16")
    with precision.emulated("float8_e5m2"):
        inside = precision.bisect(model, x, "bfloat16")
    pd.testing.assert_frame_equal(inside, alone)


class Gain(nn.Module):
    """Multiplies complex numbers by weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.weight


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e5m2"])
def test_a_complex_layer_has_an_error_of_its_own(dtype: str) -> None:
    """A product rounds its result and has rounded factors: errors of 2^-p, up to the mean over significands."""
    z = torch.view_as_complex(torch.randn(64, 8, 2, generator=torch.Generator().manual_seed(1)))
    frame = precision.bisect(nn.Sequential(Gain(), Gain()), z, dtype)
    own = frame[frame["layer"] != ""]["own"] / (formats.get("float32" if dtype == "float64" else dtype).epsilon / 2)
    assert len(own) == 4  # backward too
    assert own.between(0.3, 2.0).all()
    assert (frame[frame["layer"] == ""]["own"] == 0).all()
    told = frame["error"].str.contains("bfloat16 has no complex numbers")
    assert told.any() == (dtype == "bfloat16")
