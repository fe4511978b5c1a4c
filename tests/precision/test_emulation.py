"""Emulated arithmetic: bit for bit against the device's own, in both directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from depthgauge import formats, precision

DTYPES = [torch.float16, torch.bfloat16]

# Left out is what torch's kernels for float16 or bfloat16 compute otherwise: erf and GELU round on the way, a number
# that is added is rounded first, and MKL's square root in float32 is not always the nearest number.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "ceil": torch.ceil, "clamp": lambda x: x.clamp(-1, 1), "cos": torch.cos, "exp": torch.exp,
    "expm1": torch.expm1, "leaky_relu": nn.functional.leaky_relu, "log": lambda x: x.abs().log(), "neg": torch.neg,
    "reciprocal": torch.reciprocal, "relu": torch.relu, "scaled": lambda x: x * 0.1, "sigmoid": torch.sigmoid,
    "sign": torch.sign, "silu": nn.functional.silu, "sin": torch.sin, "softplus": nn.functional.softplus,
    "square": torch.square, "tanh": torch.tanh, "where": lambda x: torch.where(x > 0, x, 0.5),
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum,
    "hypot": torch.hypot, "atan2": torch.atan2,
}  # fmt: skip


def numbers(dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of many binades, subnormals and overflowing ones among them, all of them numbers of the dtype."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.randn(4000, generator=draw) * torch.exp2(torch.randint(-24, 10, (4000,), generator=draw))
    return spread.to(dtype)


def same(emulated: Tensor, real: Tensor) -> None:
    assert emulated.dtype == torch.float32
    assert torch.equal(emulated.nan_to_num(7.0), real.float().nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_elementwise_operators_agree_bit_for_bit(name, dtype):
    real = numbers(dtype)
    with precision.emulated(str(dtype)):
        out = UNARY[name](real.float())
    same(out, UNARY[name](real))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BINARY)
def test_elementwise_operators_of_two_agree_bit_for_bit(name, dtype):
    one, other = numbers(dtype), numbers(dtype, 1)
    with precision.emulated(str(dtype)):
        out = BINARY[name](one.float(), other.float())
    same(out, BINARY[name](one, other))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["square", "scaled", "relu", "tanh", "exp", "leaky_relu"])
def test_a_backward_pass_agrees_bit_for_bit(name, dtype):
    gradients = []
    for x in (numbers(dtype).float(), numbers(dtype)):
        x.requires_grad_()
        slope = numbers(dtype, 2).to(x.dtype)
        if x.dtype == torch.float32:
            with precision.emulated(str(dtype)):
                UNARY[name](x).backward(slope)
        else:
            UNARY[name](x).backward(slope)
        gradients.append(x.grad)
    same(*gradients)


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "tf32"])
def test_sums_and_products_are_rounded_once(fmt):
    draw = torch.Generator().manual_seed(0)
    a, b = (formats.round(torch.randn(32, 48, generator=draw), fmt) for _ in range(2))
    with precision.emulated(fmt):
        product, total, softmax = a @ b.T, a.sum(1), a.softmax(1)
    assert torch.equal(product, formats.round(a @ b.T, fmt))
    assert torch.equal(total, formats.round(a.sum(1), fmt))
    assert torch.equal(softmax, formats.round(a.softmax(1), fmt))


def test_changes_in_place_and_through_views_are_rounded_where_they_lie():
    x = torch.ones(4, 4)
    part, column = x[1:3], x.T[0]
    with precision.emulated("bfloat16"):
        part.add_(0.001)  # 1.001 is 1 in bfloat16
        assert torch.equal(x, torch.ones(4, 4))
        column.mul_(1.01)
        x[3].copy_(torch.full((4,), 0.1))
        torch.add(x[0], 0.1, out=x[0])
        x.view(-1)[5:7] = 0.3
    assert torch.equal(x, x.bfloat16().float())
    assert torch.equal(x[1:3, 0], torch.full((2,), 1.0078125))
    assert x[3, 3] == torch.tensor(0.1).bfloat16()
    assert x[0, 3] == torch.tensor(1.1).bfloat16()
    assert torch.equal(x[1, 1:3], torch.tensor([0.3, 0.3]).bfloat16().float())
    assert part.data_ptr() == x[1].data_ptr()


def test_strides_and_aliases_stay():
    x = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    with precision.emulated("float16"):
        out, view = x.exp(), x.transpose(0, 1)
    assert out.stride() == x.exp().stride()
    assert view.data_ptr() == x.data_ptr()
    assert torch.equal(view, x.transpose(0, 1))


@pytest.mark.parametrize(("fmt", "adam"), [("bfloat16", True), ("tf32", False)])
def test_a_training_stays_within_the_format(fmt, adam):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = precision.cast(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)), fmt)
        x, y = torch.randn(32, 8), torch.arange(32) % 2
    before = [each.detach().clone() for each in model.parameters()]
    weights = model.parameters()
    optimizer = torch.optim.Adam(weights, lr=0.1) if adam else torch.optim.SGD(weights, lr=0.5, momentum=0.5)
    losses = []
    with precision.emulated(fmt):
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    for each, old in zip(model.parameters(), before, strict=True):
        state = [value for key, value in optimizer.state[each].items() if key != "step"]
        assert state
        for tensor in (each.detach(), each.grad, *state):
            assert torch.equal(tensor, formats.round(tensor, fmt))
        assert not torch.equal(each, old)
    assert losses[-1] < losses[0]


def test_stochastic_rounding_keeps_the_mean():
    x, n = torch.ones(40_000), 40_000
    generator = torch.Generator().manual_seed(0)
    with precision.emulated("bfloat16", stochastic=generator):
        out = x + 0.001
    assert set(out.tolist()) == {1.0, 1.0078125}
    share = 0.001 / 2**-7
    assert abs((out > 1).float().mean() - share) < 5 * (share * (1 - share) / n) ** 0.5


def test_nothing_is_rounded_beside_the_block_and_integers_never():
    x = torch.tensor([0.1])
    with precision.emulated("bfloat16"):
        assert torch.equal(torch.arange(300) + 1, torch.arange(1, 301))
        assert torch.equal((x.double() + 0).float(), x.bfloat16().float())
    assert (x + 0).item() == pytest.approx(0.1, abs=1e-8)
    with pytest.raises(ValueError, match="no floating-point format"), precision.emulated("float17"):
        pass
    with precision.emulated("bfloat16"), precision.emulated("float8_e5m2"):
        assert (x + 0).item() == formats.round(0.1, "float8_e5m2")


def test_lists_of_tensors():
    x = torch.randn(6, generator=torch.Generator().manual_seed(0))
    with precision.emulated("bfloat16"):
        halves = torch.unbind(x.reshape(2, 3) + 0)
        torch._foreach_mul_([x], 1.1)
    for each in (*halves, x):
        assert torch.equal(each, each.bfloat16().float())


def test_complex_numbers_are_rounded_by_their_parts() -> None:
    z = torch.view_as_complex(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    with precision.emulated("bfloat16"):
        found = z * 1.0
    assert torch.equal(torch.view_as_real(found), torch.view_as_real(z).bfloat16().float())


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "Adagrad"])
def test_optimizers_count_their_steps_as_ever(name: str, foreach: bool) -> None:
    def stepped(weight: nn.Parameter) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)([weight], 1e-3, foreach=foreach)
        for _ in range(12):
            weight.grad = torch.ones(1)
            optimizer.step()
        return optimizer

    plain, rounded = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    wanted = stepped(plain).state[plain]
    with precision.emulated("float8_e5m2"):  # which has no 9
        found = stepped(rounded).state[rounded]
    counters = {"step", "mu_product"} & wanted.keys()
    assert {key: found[key] for key in counters} == {key: wanted[key] for key in counters}
    rest = [each for key, each in found.items() if key not in counters]
    assert all(torch.equal(each, formats.round(each, "float8_e5m2")) for each in rest)


def test_views_in_place_leave_numbers_alone() -> None:
    x, y = torch.tensor([[1.1, 2.3]]), torch.tensor([1.7])
    with precision.emulated("float8_e5m2"):
        x.t_().unsqueeze_(0)
        z = torch.empty(0).set_(y.untyped_storage())
        y.resize_(1)
    assert x.flatten().tolist() == torch.tensor([1.1, 2.3]).tolist()
    assert torch.equal(z, y)
    assert torch.equal(y, torch.tensor([1.7]))
