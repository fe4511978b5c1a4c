"""Two versions of a computation: inside the band, and beyond it at the layer that is at fault."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthgauge import precision, stats
from depthgauge.precision import calibration


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(inplace=True), nn.LayerNorm(32), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    )


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
    )


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def changed(module: nn.Module, change: Callable[[Any], object]) -> Any:
    other = copy.deepcopy(module)
    with torch.no_grad():
        change(other)
    return other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("make", "shape"), [(net, (32, 16)), (convolutional, (8, 3, 8, 8))])
def test_another_dtype_is_the_same_within_rounding(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    comparison = precision.compare(make(), make().to(dtype), batch(*shape))
    assert comparison.same is True
    assert comparison.first is None
    frame = comparison.to_frame()
    assert (frame["error"] <= frame["band"]).all()
    assert (frame["error"] > 0).any()  # it does see them
    assert set(frame["direction"]) == {"forward", "backward"}


@pytest.mark.parametrize("order", calibration.ORDERS)
def test_another_order_of_the_same_sums_is_the_same(order: str) -> None:
    assert precision.compare(net(), calibration.reordered(net(), order), batch(32, 16)).same is True


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_fault_is_found_where_it_is(place: int) -> None:
    faulty = changed(net(), lambda other: other[place].weight[1].mul_(1.001))
    for sides in ((net(), faulty), (faulty, net())):
        comparison = precision.compare(*sides, batch(32, 16))
        assert comparison.same is False
        assert comparison.first == str(place)
        beyond = comparison.to_frame().query("size > 1")
        assert set(beyond["layer"]) == {str(place)}  # no layer inherits it
        assert set(beyond["direction"]) == {"forward", "backward"}
        assert str(comparison).startswith(f"{place} differs forward: ")


def test_rounding_of_weights_to_a_coarser_format_is_a_fault_in_a_finer_one() -> None:
    rounded = changed(net(), lambda other: other[3].weight.copy_(other[3].weight.bfloat16()))
    assert precision.compare(net(), rounded, batch(32, 16)).first == "3"
    assert precision.compare(net(), rounded.bfloat16(), batch(32, 16)).same is True


def test_one_weight_that_results_cannot_show() -> None:
    """8 ulps of a weight among a thousand; but not weights in another order, which results judge."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1000, 10), nn.Tanh(), nn.Linear(10, 3))
    faulty, name = calibration.faulty(module, ulps=8, seed=1)
    comparison = precision.compare(module, faulty, batch(2, 1000))
    assert comparison.first == name
    assert comparison.to_frame()["ulps"].max() == 8
    assert precision.compare(module, faulty, batch(2, 1000), parameters=False).same is True
    assert precision.compare(module, calibration.faulty(module, ulps=2, seed=1)[0], batch(2, 1000)).same is True
    turned = changed(module, lambda other: other[0].weight.copy_(other[0].weight.flip(1)))
    turned[0].forward = lambda x: nn.functional.linear(x.flip(1), turned[0].weight, turned[0].bias)
    assert precision.compare(module, turned, batch(2, 1000)).same is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_are_subnormal_in_the_coarser_format(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4096, 8)  # weights up to 1 / 64: some below 2^-14
    comparison = precision.compare(module, copy.deepcopy(module).to(dtype), batch(8, 4096))
    assert comparison.same is True
    assert comparison.to_frame()["ulps"].max() < 10


class WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (1 - torch.tanh(ctx.saved_tensors[0]).square()) * 1.0001


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = WrongSlope.apply(x)  # type: ignore[no-untyped-call]
        return result


def test_a_wrong_gradient_is_found_at_the_layer_that_makes_it() -> None:
    other = net()
    other[4] = Wrong()
    comparison = precision.compare(net(), other, batch(32, 16))
    assert comparison.first == "4"
    assert comparison.to_frame().query("size > 1")[["layer", "direction"]].values.tolist() == [["4", "backward"]]


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave, self.kind = nn.Linear(16, 48), nn.Linear(16, 16), kind

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Any]:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.enter(x + shift).chunk(3, -1))
        if self.kind == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            scale = {"plain": 8.0, "wrong": 8.01}[self.kind] ** 0.5
            mixed = torch.softmax(q @ k.transpose(-1, -2) / scale, -1) @ v
        return {"hidden": self.leave(mixed.transpose(1, 2).flatten(2)), "kind": self.kind}


def test_a_composite_answers_for_its_own_operations() -> None:
    inputs = {"x": batch(4, 10, 16), "shift": torch.ones(16)}
    assert precision.compare(Attention("plain"), Attention("fused"), inputs).same is True
    comparison = precision.compare(Attention("wrong"), Attention("fused"), inputs)
    assert comparison.first == ""
    assert set(comparison.to_frame().query("size > 1")["layer"]) == {""}


def offset(h: Tensor) -> Tensor:
    return (h + 100) - (h + 100).mean(-1, keepdim=True)


def variance(h: Tensor) -> Tensor:
    return (h + 10).square().mean(-1) - (h + 10).mean(-1).square()


def ratio(h: Tensor) -> Tensor:
    return h / (h.abs() + 1e-3)


def sharp(h: Tensor) -> Tensor:
    return torch.softmax(50 * h, -1)


class Plain(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("function", [offset, variance, ratio, sharp])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, "parts"])
def test_operators_that_cancel_are_no_alarm(function: Callable[[Tensor], Tensor], dtype: torch.dtype | str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        module, x = nn.Sequential(nn.Linear(32, 32), Plain(function)), torch.randn(16, 32)
        a, b = copy.deepcopy(module), copy.deepcopy(module)
        sides = (Halves(a, 1), Halves(b, 3)) if isinstance(dtype, str) else (a, b.to(dtype))
        assert precision.compare(*sides, x, seed=seed).same is True


def test_a_layer_that_amplifies_rounding_says_so_by_its_band() -> None:
    """(h + 1e4) - mean: roundings of 1e4 * 2^-24 are 1e-3 of the result, those of 512 terms up to 13 times as large."""
    sides = [Plain(lambda h, f=f: ((h + 1e4) - (h + 1e4).mean()) * f) for f in (1.0, 1.0, 1.0 + 1e-4, 1.5)]
    x = batch(16, 32)
    frames = [precision.compare(sides[0], other, x).to_frame() for other in sides[1:]]
    forward = [frame.query("direction == 'forward'").iloc[0] for frame in frames]
    assert 1e-3 < forward[0]["band"] < 1e-1
    assert [row["size"] > 1 for row in forward] == [False, False, True]
    steady = precision.compare(Plain(lambda h: h * 2 + 1), Plain(lambda h: h * 2 + 1), x).to_frame()
    assert steady["band"].max() < 1e-5


def test_one_operator_against_several_on_a_batch_in_parts() -> None:
    single, several = Plain(lambda h: h * 2), Plain(lambda h: (h + 1) + (h - 1))
    for sides in ((Halves(single, 1), Halves(several, 2)), (Halves(several, 2), Halves(single, 1))):
        assert precision.compare(*sides, batch(8, 4)).same is True


def test_a_kink_is_no_alarm_and_a_wrong_slope_is() -> None:
    x = batch(64, 64)
    kink = Plain(lambda h: torch.relu((h + 3) - (h + 3).mean(-1, keepdim=True)))
    assert precision.compare(kink, copy.deepcopy(kink).bfloat16(), x.bfloat16().float()).same is True
    leaky = Plain(lambda h: nn.functional.leaky_relu((h + 3) - (h + 3).mean(-1, keepdim=True), 1e-4))
    assert precision.compare(kink, leaky, x).same is False


def test_a_result_that_overflows_is_an_alarm_whatever_cancels() -> None:
    module = Plain(lambda h: (h + 300).square() - 1)
    assert precision.compare(nn.Sequential(module), nn.Sequential(module).half(), batch(4, 4).half()).same is True
    model = nn.Sequential(nn.Linear(4, 4), module)
    assert precision.compare(model, copy.deepcopy(model).half(), batch(4, 4)).first == "1"


class Turned(nn.Module):
    """Hands its inputs to a layer in reverse order, which has its weights so."""

    def __init__(self, turn: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.turn = nn.Linear(40, 20), nn.Linear(20, 5), turn
        if turn:
            self.inner.weight.data = self.inner.weight.data.flip(1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outer(torch.tanh(self.inner(x.flip(-1) if self.turn else x)))
        return result


def test_features_in_another_order_are_the_same() -> None:
    assert precision.compare(Turned(False), Turned(True), batch(16, 40)).same is True
    assert precision.compare(Turned(True), Turned(False).bfloat16(), batch(16, 40)).same is True
    faulty = changed(Turned(True), lambda other: other.inner.weight[3].mul_(1.01))
    assert precision.compare(Turned(False), faulty, batch(16, 40)).same is False
    elsewhere = changed(Turned(False), lambda other: other.outer.weight[3].mul_(1.01))
    assert precision.compare(Turned(False), elsewhere, batch(16, 40)).first == "outer"


class Halves(nn.Module):
    def __init__(self, inner: nn.Module, parts: int) -> None:
        super().__init__()
        self.inner, self.parts = inner, parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(part) for part in x.chunk(self.parts)])


def test_calls_are_joined_where_the_batch_is_split() -> None:
    whole, split = Halves(convolutional().eval(), 1), Halves(convolutional().eval(), 2)
    assert precision.compare(whole, split, batch(8, 3, 8, 8)).same is True
    faulty = changed(split, lambda other: other.inner[5].weight[0, 0].add_(1e-3))
    for sides in ((whole, faulty), (faulty, whole)):
        assert precision.compare(*sides, batch(8, 3, 8, 8)).first == "inner.5"
    in_training = Halves(convolutional(), 1), Halves(convolutional(), 2)
    assert precision.compare(*in_training, batch(8, 3, 8, 8)).first == "inner.1"  # statistics of other batches


def test_a_layer_that_is_called_twice_has_a_row_for_each_call() -> None:
    shared = nn.Linear(8, 8)
    module = nn.Sequential(shared, nn.Tanh(), shared)
    frame = precision.compare(module, copy.deepcopy(module).bfloat16(), batch(4, 8)).to_frame()
    assert frame.query("layer == '0' and direction == 'forward'")["call"].tolist() == [0, 1]


def test_rows_are_in_order_of_execution() -> None:
    frame = precision.compare(net(), net(), batch(4, 16)).to_frame()
    assert frame["direction"].tolist() == ["forward"] * 7 + ["backward"] * 6
    assert frame["layer"].tolist() == ["0", "1", "2", "3", "4", "5", "", "5", "4", "3", "2", "0", ""]
    assert (frame["error"] == 0).all()
    assert (frame["ulps"] == 0).all()


def test_a_module_that_one_side_lacks_belongs_to_the_one_around_it() -> None:
    plain, wrapped = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    wrapped.load_state_dict(plain.state_dict())
    wrapped.append(nn.Identity())
    assert precision.compare(plain, wrapped, batch(4, 8)).same is True
    wrapped[2] = nn.Dropout(0.5)
    assert precision.compare(plain, wrapped, batch(4, 8)).first == ""


@pytest.mark.slow
def test_compiled_against_eager() -> None:
    compiled = torch.compile(net(), backend="aot_eager")
    comparison = precision.compare(net(), compiled, batch(8, 16))
    assert comparison.same is True
    assert len(comparison.to_frame()) > 2  # gradients of the parameters too
    faulty = changed(net(), lambda other: other[3].weight[0, 0].add_(1e-3))
    assert precision.compare(faulty, compiled, batch(8, 16), parameters=False).first == ""
    assert precision.compare(faulty, compiled, batch(8, 16)).first == "3"
    part = net()
    part[3] = torch.compile(part[3], backend="aot_eager")  # type: ignore[assignment]
    assert precision.compare(faulty, part, batch(8, 16), parameters=False).first == "3"


def test_what_is_not_finite() -> None:
    broken = changed(net(), lambda other: other[3].weight[0, 0].fill_(math.nan))
    assert precision.compare(broken, copy.deepcopy(broken), batch(4, 16)).same is True
    comparison = precision.compare(net(), broken, batch(4, 16))
    assert comparison.first == "3"
    assert comparison.to_frame()["size"].max() == math.inf
    large = changed(net(), lambda other: other[0].weight.mul_(1e6))
    assert precision.compare(large, copy.deepcopy(large).half(), batch(4, 16)).first == "0"  # it overflows


@dataclass
class Output:
    value: Tensor | None = None


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Output:
        return Output(self.inner(self.table(tokens)))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Structured()

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        value = self.inner(tokens).value  # of the dataclass that the inner module returns
        return value.square(), None


def test_structured_outputs_keep_their_types() -> None:
    tokens = torch.randint(10, (4, 5))
    comparison = precision.compare(Outer(), Outer().bfloat16(), tokens)
    assert comparison.same is True
    assert {"inner.table", "inner.inner", "inner", ""} == set(comparison.to_frame()["layer"])


@pytest.mark.parametrize("bag", [False, True])
def test_sparse_gradients(bag: bool) -> None:
    torch.manual_seed(0)
    table = nn.EmbeddingBag(20, 8, sparse=True, mode="sum") if bag else nn.Embedding(20, 8, sparse=True)
    module, tokens = nn.Sequential(table, nn.Linear(8, 3)), torch.randint(20, (4, 5))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        comparison = precision.compare(module, copy.deepcopy(module).to(dtype), tokens)
        assert comparison.same is True
    assert "weight" in set(comparison.to_frame().query("layer == '0' and direction == 'backward'")["tensor"])
    faulty = changed(module, lambda other: other[0].weight[tokens[0, 0]].mul_(1.001))
    assert precision.compare(module, faulty, tokens, parameters=False).first == "0"


class Sparse(nn.Module):
    def __init__(self, layout: torch.layout, scale: float = 1.0) -> None:
        super().__init__()
        self.layout, self.scale = layout, scale

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(x) * self.scale).to_sparse(layout=self.layout)


class Dense(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_dense()


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize("end", [False, True])
def test_sparse_outputs(layout: torch.layout, end: bool) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 6), nn.Linear(6, 3)

    def model(scale: float) -> nn.Module:
        return nn.Sequential(first, Sparse(layout, scale), *(() if end else (Dense(), last)))

    x = batch(8, 6)
    assert precision.compare(model(1.0), copy.deepcopy(model(1.0)).double(), x).same is True
    assert precision.compare(model(1.0), model(1.001), x).first == "1"
    invariance = precision.batch_invariance(model(1.0), x)
    assert (invariance["largest_ulp"] < 1000).all()


class Spectral(nn.Module):
    """Multiplies the spectrum of its input."""

    def __init__(self, factor: complex = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.factor = nn.Parameter(torch.randn(5, dtype=torch.complex64)), factor

    def forward(self, spectrum: Tensor) -> Tensor:
        return spectrum * self.weight * self.factor


def test_complex_numbers_are_compared_by_their_parts() -> None:
    def model(factor: complex = 1.0) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), Plain(torch.fft.rfft), Spectral(factor), Plain(torch.fft.irfft))

    x = batch(16, 8)
    for other in (model(), model().double()):
        comparison = precision.compare(model(), other, x)
        assert comparison.same is True
        assert set(comparison.to_frame()["layer"]) == {"0", "1", "2", "3", ""}
    assert precision.compare(model(), model(complex(1, 1e-4)), x).first == "2"  # the phase alone
    faulty = changed(model(), lambda other: other[2].weight[2].mul_(1 + 1e-4))
    assert precision.compare(model(), faulty, x, parameters=False).first == "2"
    slight = changed(model(), lambda other: other[2].weight[2].mul_(1 + 1e-6))
    assert precision.compare(model(), slight, x).first == "2"  # by the parameters
    assert precision.compare(model()[:2], model()[:2].double(), x).same is True  # a complex output
    assert (precision.batch_invariance(model()[:2], x)["largest_ulp"] < 1000).all()


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        """Returns nothing."""


def test_nothing_to_compare() -> None:
    comparison = precision.compare(Silent(), Silent(), batch(2, 2))
    assert comparison.same is None
    assert comparison.first is None
    assert comparison.to_frame().empty
    assert str(comparison) == "nothing could be compared"


def test_everything_is_left_as_it_was() -> None:
    a, b = convolutional(), convolutional().bfloat16()
    a[5].eval()
    a(batch(8, 3, 8, 8)).sum().backward()
    state, grads = copy.deepcopy(a.state_dict()), [each.grad for each in a.parameters()]
    values = [grad.clone() for grad in grads if grad is not None]
    random = torch.get_rng_state()
    with torch.no_grad():
        precision.compare(a, b, batch(8, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in a.state_dict().items())
    assert [each.grad for each in a.parameters()] == grads or all(
        x is y for x, y in zip([each.grad for each in a.parameters()], grads, strict=True)
    )
    assert all(torch.equal(x, y) for x, y in zip(values, [g for g in grads if g is not None], strict=True))
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in (*a.modules(), *b.modules()))
    assert [each.training for each in a] == [True, True, True, True, True, False]
    assert all(each.grad is None for each in b.parameters())


class Remembering(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last: Tensor = super().forward(x)
        return self.last


def test_attributes_are_put_back() -> None:
    module = nn.Sequential(Remembering(8, 8), nn.Tanh())
    kept = module(batch(2, 8)), module[0].last
    fresh = copy.deepcopy(nn.Sequential(Remembering(8, 8), nn.Tanh()))
    precision.compare(module, fresh, batch(4, 8))
    assert module[0].last is kept[1]
    assert module[0].calls == 1
    assert not {"last", "calls"} & vars(fresh[0]).keys()


def test_hooks_go_where_a_module_raises() -> None:
    module = net()
    with pytest.raises(RuntimeError):
        precision.compare(module, net(), batch(4, 3))
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_dropout_draws_the_same_on_both_sides() -> None:
    module = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    assert precision.compare(module, copy.deepcopy(module), batch(16, 8)).same is True


@pytest.mark.slow
def test_false_alarms_are_rare_and_faults_are_found() -> None:
    """The benchmark does this with 1,000 modules; here a dozen."""
    alarms = calibration.trials(12, "order")
    assert stats.coverage(int(alarms["beyond"].sum()), len(alarms), 0.01).effect.low < 0.01
    faults = calibration.trials(6, "fault")
    assert faults["found"].all()
    assert not calibration.trials(6, "cancelling")["beyond"].any()
    large = calibration.trials(3, "fault", ulps=8000)
    assert large["results_found"].all()


def test_a_caller_without_gradients_has_the_backward_pass_compared() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(8, 4)
    with torch.inference_mode():
        frame = precision.compare(model, copy.deepcopy(model), x.clone()).to_frame()
    assert set(frame["direction"]) == {"forward", "backward"}


class Then(nn.Module):
    """A layer, and what is done with its output."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.last(self.layer(x)))


@pytest.mark.parametrize(
    "then",
    [lambda h: h[:3], lambda _: None, lambda h: {"y": h}, lambda h: h.T, lambda h: h.sum(), lambda h: (h, h)],
    ids=["rows", "none", "mapping", "transposed", "sum", "two"],
)
def test_outputs_of_another_structure_differ(then: Callable[[Tensor], Any]) -> None:
    for sides in ((Then(lambda h: h), Then(then)), (Then(then), Then(lambda h: h))):
        found = precision.compare(*sides, batch(6, 8))
        assert (found.same, found.first) == (False, "")
        assert "outputs differ in structure or shape: " in str(found)


class Detached(nn.Module):
    def __init__(self, detach: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.detach = nn.Linear(8, 8), nn.Linear(8, 8), detach

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.detach() if self.detach else h)


def test_a_gradient_that_one_side_alone_has_is_a_difference() -> None:
    for sides in ((Detached(False), Detached(True)), (Detached(True), Detached(False))):
        found = precision.compare(*sides, batch(6, 8))
        assert (found.same, found.first) == (False, "a")
        assert str(found).startswith("a differs backward: inf times the band, inf ulps (gradient of ")
    frozen = Detached(False).requires_grad_(False)  # asks for none
    assert precision.compare(Detached(False), frozen, batch(6, 8)).same is True
    assert precision.compare(Detached(True), Detached(True), batch(6, 8)).same is True


class InFloat32(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def test_an_overflow_of_one_side_alone_is_a_difference_whichever_comes_first() -> None:
    def net(last: type[nn.Linear]) -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), last(8, 16))
        model[1].weight.data.mul_(1e5)
        return model

    sides = net(nn.Linear), net(InFloat32)
    with torch.autocast("cpu", torch.float16):
        for a, b in (sides, sides[::-1]):
            found = precision.compare(a, b, batch(16, 8))
            assert (found.same, found.first) == (False, "1")
        assert precision.compare(sides[0], sides[0], batch(16, 8)).same is True


class Scaled(nn.Linear):
    """A linear layer, its result times a factor."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(8, 8), Scaled(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(-1)
        out = torch.zeros_like(x, dtype=share.dtype)
        chosen = share[:, 0] > 0.125
        out[chosen] = self.expert(x[chosen])
        return out


def test_routing_that_rounding_decides_raises_nothing() -> None:
    torch.manual_seed(0)
    model = Routed()
    assert precision.compare(model, copy.deepcopy(model), batch(64, 8)).same is True
    assert precision.compare(model, copy.deepcopy(model).bfloat16(), batch(64, 8)).rows


def test_routing_that_rounding_decides_hides_no_fault_of_a_layer() -> None:
    torch.manual_seed(0)
    model = Routed()
    other = copy.deepcopy(model).bfloat16()
    other.expert.factor = 1.1
    assert precision.compare(model, other, batch(64, 8)).first == "expert"
