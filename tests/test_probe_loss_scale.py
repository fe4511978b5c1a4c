"""Loss scales of a record: against rounding in torch, closed forms, and backward passes that really run at them."""

from __future__ import annotations

import copy
import math
import warnings
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from depthgauge import formats, probe

GRADIENTS = ("activation_gradient", "weight_gradient")
LIMITED = 464.0  # float8_e4m3fn: a tie, which goes to 448, while a conversion may saturate beyond


pytestmark = pytest.mark.usefixtures("one_thread")


def plain(activation: type[nn.Module], depth: int, width: int) -> nn.Module:
    hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(nn.Linear(6, width), *hidden, nn.Linear(width, 4))


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.out(self.block(self.embed(x)[None])[0]))


def convolutional(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, width, 3), nn.BatchNorm1d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * width, 4),
    )  # fmt: skip


ARCHITECTURES = {
    "tanh": lambda depth, width: plain(nn.Tanh, depth, width),
    "relu": lambda depth, width: plain(nn.ReLU, depth, width),
    "sigmoid": lambda depth, width: plain(nn.Sigmoid, depth, width),
    "attention": lambda _depth, width: Attending(width),
    "convolution": lambda _depth, width: convolutional(width),
}


def backward(model: nn.Module, magnitude: float, seed: int = 0) -> tuple[probe.Record, dict[tuple, torch.Tensor]]:
    """A record of one pass, and the gradients themselves, by layer, direction and parameter."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(9, 6, generator=generator).to(dtype).requires_grad_()
    y = torch.randint(0, 4, (9,), generator=generator)
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        output = output[0] if isinstance(output, tuple) else output
        output.retain_grad()
        outputs[name] = output

    for name, part in model.named_modules():
        part.register_forward_hook(lambda _m, _x, output, name=name: keep(name, output))
    with probe.track(model, directions=GRADIENTS) as record:
        (nn.functional.cross_entropy(model(x), y) * magnitude).backward()
    tensors = {(name, GRADIENTS[0], ""): output.grad for name, output in outputs.items()}
    for name, parameter in model.named_parameters():
        layer, _, own = name.rpartition(".")
        tensors[layer, GRADIENTS[1], own] = parameter.grad
    return record, tensors


def rounded(gradient: torch.Tensor, scales: list[float], fmt: formats.Format) -> dict[str, np.ndarray]:
    """What torch makes of a gradient at each scale: shares of its nonzero values. The product is exact in float64.

    torch casts float64 by way of float32: what that cannot hold would be rounded twice, and is rounded by `formats`.
    """
    own = gradient[gradient != 0].double().flatten()
    exact = own * torch.tensor(scales, dtype=torch.float64)[:, None]
    once = exact.to(torch.float32) == exact
    values = torch.where(once, exact.to(getattr(torch, fmt.dtype)).double(), formats.round(exact, fmt))
    over = exact.abs() > LIMITED if fmt.name == "float8_e4m3fn" else values.isinf()
    subnormal = (values != 0) & (values.abs() < fmt.smallest_normal)
    shares = {"under": values == 0, "subnormal": subnormal, "over": over}
    return {name: share.sum(1).numpy() / np.float64(len(own) or math.nan) for name, share in shares.items()}


def key_of(row: pd.Series) -> tuple[str, str, str]:
    return row["layer"], row["direction"], row["parameter"] if isinstance(row["parameter"], str) else ""


@settings(max_examples=20, deadline=None)
@given(
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    fmt=st.sampled_from(["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"]),
    depth=st.integers(0, 6),
    width=st.sampled_from([2, 8]),
    magnitude=st.floats(-14, 8),
    lost=st.sampled_from([0.0, 0.01, 0.3]),
    seed=st.integers(0, 1000),
)
def test_the_map_is_what_rounding_in_torch_gives(architecture, fmt, depth, width, magnitude, lost, seed):  # noqa: PLR0917 # hypothesis names them
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probe.UnreadWarning)  # attention uses modules as functions
        record, tensors = backward(ARCHITECTURES[architecture](depth, width), 10.0**magnitude, seed)
    scale, fmt = record.loss_scale(fmt, lost=lost), formats.get(fmt)
    frame = scale.to_frame()
    scales = frame["loss_scale"].unique().tolist()
    own = frame[frame["loss_scale"] == 1.0]
    assert len(own) * len(scales) == len(frame)
    safe = np.ones(len(scales), bool)
    for at in range(len(own)):
        found, gradient = frame.iloc[at :: len(own)], tensors[key_of(own.iloc[at])]
        expected = rounded(gradient, scales, fmt)
        for name, share in expected.items():
            np.testing.assert_array_equal(found[name], share)
        assert (found["n"] == int((gradient != 0).sum())).all()
        inside = ~(expected["under"] > lost) & ~(expected["over"] > 0)
        np.testing.assert_array_equal(found["safe"], inside)
        safe &= inside
    np.testing.assert_array_equal(scale.by_scale()["safe"], safe)
    assert not safe[0]
    assert not safe[-1]
    kept = [at for at, is_safe in zip(scales, safe, strict=True) if is_safe] or [math.nan]
    np.testing.assert_equal([scale.least, scale.greatest], [kept[0], kept[-1]])
    if safe.any():  # the two limits are those that fail one power of two beyond
        low, high = (tensors[limit.layer, limit.direction, limit.parameter or ""] for limit in scale.limits)
        assert rounded(low, [scale.least / 2], fmt)["under"] > lost
        assert rounded(high, [scale.greatest * 2], fmt)["over"] > 0


def test_float32_of_a_model_in_float64() -> None:
    torch.manual_seed(0)
    record, tensors = backward(plain(nn.Tanh, 4, 8).double(), 1e-43)
    frame = record.loss_scale("float32").to_frame()
    tensors_there = int((frame["loss_scale"] == 1.0).sum())
    assert tensors_there == 22
    for at in range(tensors_there):
        own = frame.iloc[at::tensors_there]
        expected = rounded(tensors[key_of(own.iloc[0])], own["loss_scale"].tolist(), formats.get("float32"))
        for name, share in expected.items():
            np.testing.assert_array_equal(own[name], share)


def record_of(*gradients: float, scaler: float | None = None) -> probe.Record:
    """The record of a layer whose output's gradients are these."""
    model = nn.Linear(1, len(gradients))
    with probe.track(model, directions="activation_gradient", scaler=scaler) as record:
        (model(torch.ones(1, 1)) * torch.tensor(gradients) * (scaler or 1)).sum().backward()
    return record


@pytest.mark.parametrize(
    ("gradients", "lost", "least", "greatest"),
    [
        # float16 rounds 2^-25 to zero, and takes 65520 for infinity.
        ([1.0], 0.01, -24, 15),
        ([65520.0], 0.01, -40, -1),
        ([2.0**-30, 1.0], 0.01, 6, 15),
        ([2.0**-30, 2.0**10], 0.01, None, None),
        ([2.0**-30, 2.0**10], 0.5, -34, 5),
        ([2.0**-30] + [1.0] * 99, 0.01, -24, 15),
        ([2.0**-30] + [1.0] * 98, 0.01, 6, 15),
        ([2.0**-30, 1.0, 0.0, 0.0], 0.5, -24, 15),
    ],
)
def test_limits_are_those_of_the_format(gradients, lost, least, greatest):
    scale = record_of(*gradients).loss_scale("float16", lost=lost)
    expected = [math.nan if power is None else 2.0**power for power in (least, greatest)]
    np.testing.assert_equal([scale.least, scale.greatest], expected)
    own = ("", "activation_gradient", None, None, 0)
    assert scale.limits == (own, own)
    kept = "no loss scale keeps" if least is None else f"loss scales from 2^{least} to 2^{greatest} keep"
    assert str(scale).startswith(f"float16: {kept} every gradient; ")
    assert str(scale).endswith("the activation gradient of (module) in step 0")
    if least is not None:
        costs = scale.by_scale().set_index("loss_scale")
        assert costs.loc[scale.least / 2, ["losing", "overflowing"]].tolist() == [1, 0]
        assert costs.loc[scale.greatest * 2, ["losing", "overflowing"]].tolist() == [0, 1]


def test_zeros_lose_nothing() -> None:
    scale = record_of(0.0, 0.0).loss_scale("float16")
    assert str(scale) == "float16: loss scales from 2^-1022 to 2^1023 keep every gradient"
    assert (scale.least, scale.greatest, scale.limits) == (2.0**-1022, 2.0**1023, (None, None))
    assert scale.to_frame()["n"].tolist() == [0, 0, 0]
    assert scale.to_frame()["safe"].all()
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    nn.init.constant_(model[0].weight, -1.0)
    with probe.track(model, directions="activation_gradient") as record:
        model(torch.ones(1, 1) * 9).sum().backward()
    scale = record.loss_scale("float16")
    assert (scale.least, scale.greatest, scale.limits.least.layer) == (2.0**-24, 2.0**15, "1")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_was_not_finite_is_safe_at_no_scale(value: float) -> None:
    scale = record_of(1.0, value).loss_scale("float16")
    assert math.isnan(scale.least)
    assert math.isnan(scale.greatest)
    assert scale.limits.least == scale.limits.greatest == ("", "activation_gradient", None, None, 0)
    assert not scale.to_frame()["safe"].any()


@pytest.mark.parametrize("scaler", [2.0**12, 1000.0, 3e-5])
def test_gradients_that_were_seen_scaled_are_unscaled_first(scaler: float) -> None:
    torch.manual_seed(0)
    values = (torch.randn(300) * 1e-6).tolist()
    record = record_of(*values, scaler=scaler)
    scale = record.loss_scale("float16")
    for at, frame in scale.to_frame().groupby("loss_scale"):
        own = record.fractions("float16", at)
        for name in ("under", "subnormal", "over"):
            np.testing.assert_allclose(frame[name], own[name], atol=1e-12)
    bare = record_of(*values).loss_scale("float16")
    assert bare.least <= scale.least <= 2 * bare.least  # on the safe side, where a limit cuts a segment
    assert bare.greatest / 2 <= scale.greatest <= bare.greatest


def test_each_step_and_each_tensor_counts() -> None:
    """The weight's gradient is 2^-10 of the output's, and the second step's 2^-8 of the first."""
    model = nn.Linear(1, 1, bias=False)
    with probe.track(model, directions=GRADIENTS) as record:
        for factor in (1.0, 2.0**-8):
            model.zero_grad()
            (model(torch.full((1, 1), 2.0**-10)) * factor).sum().backward()
    scale = record.loss_scale("float16")
    assert (scale.least, scale.greatest) == (2.0**-6, 2.0**15)
    assert scale.limits.least == ("", "weight_gradient", "weight", None, 1)
    assert scale.limits.greatest == ("", "activation_gradient", None, None, 0)


def test_of_several_limits_the_one_that_loses_most_is_named() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x = torch.tensor([2.0**-30, 1.0, 1.0], requires_grad=True)
    with probe.track(model, directions="activation_gradient") as record:
        # Both have gradients of 2^-30, one of three at the second and two of three at the first.
        middle = model[0](x)
        (model[1](middle * torch.tensor([1.0, 2.0**-30, 1.0])) * torch.tensor([2.0**-30, 1.0, 1.0])).sum().backward()
    scale = record.loss_scale("float16")
    assert (scale.least, scale.limits.least.layer) == (2.0**6, "0")


@pytest.mark.parametrize(
    "lost", [-0.1, 1.0, 1.5, math.nan, math.inf, True, "a", "0.1", None, 1j, [0.1], np.ones(2), torch.ones(2), 10**400]
)
def test_what_is_no_share_ends_in_a_sentence(lost: Any) -> None:
    record = record_of(1.0)
    for ask in (partial(record.loss_scale, "float16"), record.fits):
        with pytest.raises(ValueError, match="no share that may be lost; it takes a number from 0, below 1"):
            ask(lost=lost)


@pytest.mark.parametrize("lost", [torch.tensor(0.25), np.float32(0.25), Fraction(1, 4), Decimal("0.25")])
def test_any_kind_of_number_is_a_share(lost: Any) -> None:
    assert record_of(1.0).loss_scale("float16", lost=lost).lost == 0.25


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda record: record.loss_scale("float17"), "no floating-point format is called 'float17'"),
        (lambda record: record.loss_scale(None), "no floating-point format is called None"),
        (lambda record: record.loss_scale(torch.int8), "no floating-point format is called torch.int8"),
        (lambda record: record.loss_scale("nvfp4"), "nvfp4 is a block format"),
        (lambda record: record.fractions("fp16", "2"), "a loss scale is a positive finite number, not '2'"),
        (lambda record: record.fractions("fp16", [1, 2]), "a loss scale is a positive finite number"),
        (lambda record: record.histogram(3), "no direction 3; the nearest is"),
        (lambda record: record.histogram(layer=3), "no layer 3; the nearest is"),
    ],
)
def test_a_wrong_argument_of_a_record_ends_in_a_sentence(ask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(record_of(1.0))


def test_a_record_without_gradients_has_no_loss_scale() -> None:
    model = nn.Linear(1, 1)
    with probe.track(model, directions="activation") as record:
        model(torch.ones(1, 1))
    with pytest.raises(ValueError, match="holds no gradients"):
        record.loss_scale("float16")


# Backward passes that really run.


def gradients_of(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, scale: float, *, halve: bool
) -> list[torch.Tensor]:
    """The gradients of all outputs and weights; with `halve`, each is rounded to float16 before it flows on."""
    found: list[torch.Tensor] = []

    def pass_on(gradient: torch.Tensor) -> torch.Tensor:
        found.append(gradient.half().float() if halve else gradient.clone())
        return found[-1]

    def watch(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.register_hook(pass_on)

    model.zero_grad()
    handles = [part.register_forward_hook(watch) for part in model]
    (nn.functional.cross_entropy(model(x).float(), y) * scale).backward()
    for handle in handles:
        handle.remove()
    for parameter in model.parameters():
        pass_on(parameter.grad)
    return found


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
def test_the_limits_hold_where_the_scale_is_really_run(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = plain(activation, 6, 32)
    x, y = torch.randn(64, 6), torch.randint(0, 4, (64,))
    with probe.track(model, directions=GRADIENTS) as record:
        nn.functional.cross_entropy(model(x), y).backward()
    scale = record.loss_scale("float16")
    assert scale.least < scale.greatest
    exact = gradients_of(model, x, y, 1.0, halve=False)

    def run(at: float) -> tuple[bool, float]:
        """Whether anything overflows, and the largest share of a tensor that is lost."""
        run = gradients_of(model, x, y, at, halve=True)
        lost = [((a == 0) & (b != 0)).sum() / (b != 0).sum() for a, b in zip(run, exact, strict=True) if b.any()]
        return any(not gradient.isfinite().all() for gradient in run), float(max(lost))

    assert run(scale.greatest)[0] is False
    assert run(2 * scale.greatest)[0] is True
    # What is lost on the way back is lost below as well, which the map of an exact pass does not know.
    assert run(scale.least)[1] <= 1.5 * 0.01
    assert run(scale.least / 2)[1] > 0.01
    half = copy.deepcopy(model).half()
    for at, finite in ((scale.least, True), (scale.greatest, True), (2 * scale.greatest, False)):
        own = gradients_of(half, x.half(), y, at, halve=False)
        assert all(gradient.isfinite().all() for gradient in own) is finite


# The format that each layer needs.


class Constants(nn.Module):
    """An output of given values, whose gradient is given, too."""

    def __init__(self, values: list[float], gradients: list[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.values = torch.tensor(values, dtype=dtype, requires_grad=True)
        self.gradients = torch.tensor(gradients, dtype=dtype)

    def forward(self) -> torch.Tensor:
        return (self.inner(self.values) * self.gradients).sum()


@pytest.mark.parametrize(
    ("activations", "gradients", "expected"),
    [
        ([1.0, 2.0], [1e-3, 1.0], ["fits float16", "fits float16"]),
        ([1e5, 1.0], [1e-9, 1e-8], ["needs bfloat16", "needs scaling"]),
        ([1e-9, 1.0], [1e-12, 1e5], ["needs bfloat16", "needs bfloat16"]),
        ([1e-42, 1.0], [1e-42, 1.0], ["needs float32", "needs float32"]),
        ([1e-60, 1.0], [1e-60, 1.0], ["needs float64", "needs float64"]),
        ([-math.inf, 1.0], [1.0, 1e7], ["fits float16", "needs scaling"]),
        ([math.nan, 1.0], [math.inf, 1.0], ["not finite", "not finite"]),
        ([0.0, 0.0], [0.0, 0.0], ["fits float16", "fits float16"]),
    ],
)
def test_the_narrowest_format_of_each_tensor(activations, gradients, expected):
    wide = 1e-60 in activations
    model = Constants(activations, gradients, torch.float64 if wide else torch.float32)
    with probe.track(model, layers="inner", directions=("activation", "activation_gradient")) as record:
        model().backward()
    table = record.fits()
    assert table["direction"].tolist() == ["activation", "activation_gradient"]
    assert table["answer"].tolist() == expected
    assert table["least"].isna().tolist() == [True, expected[1] not in {"fits float16", "needs scaling"}]


def test_scales_of_each_layer_meet_in_those_of_the_record() -> None:
    torch.manual_seed(0)
    record, _ = backward(plain(nn.Sigmoid, 5, 8), 1e-4)
    table, scale = record.fits(), record.loss_scale("float16")
    assert set(table["answer"]) >= {"needs scaling"}
    assert (table["least"].max(), table["greatest"].min()) == (scale.least, scale.greatest)


def test_a_record_without_rows_needs_no_format() -> None:
    model = nn.Linear(1, 1)
    with probe.track(model, directions="activation") as record:
        model(torch.ones(1, 1))
        record.clear()
    assert record.fits().empty


@pytest.mark.parametrize("loss_scale", [None, 1.0, 8.0])
def test_gradients_seen_at_loss_scale_0_are_drawn(loss_scale: float | None) -> None:
    model = nn.Linear(1, 1, bias=False)
    with probe.track(model, directions="activation_gradient", scaler=0.0) as record:
        (model(torch.ones(1, 1)) * 0).sum().backward()
    record.plot("float16", loss_scale)
