"""Noise scales of modules, held against all gradients of all examples, and against closed forms."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import noise
from depthgauge.noise import gradients as engine
from depthgauge.noise.ratio import NoiseError, of_products
from depthgauge.seeding import Purpose, generator, seed_torch
from depthgauge.workload import Inputs

N = 12


@pytest.fixture(autouse=True)
def weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        seed_torch(0, Purpose.MODULES)
        yield


def floats(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(1, Purpose.INPUTS, key), dtype=torch.float64)


def classes(count: int = N, of: int = 5) -> Tensor:
    return torch.randint(of, (count,), generator=generator(1, Purpose.LABELS))


def entropy(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs), targets)


def by_hand(model: nn.Module, loss: Any, inputs: list[Any], targets: list[Any]) -> noise.NoiseScale:
    """From the whole matrix of gradients, one backward pass an example."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        found = torch.autograd.grad(loss(model, x, y), parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found, strict=True)]
        parts = [torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in parts]
        rows.append(torch.cat([each.double().flatten() for each in parts]))
    matrix = torch.stack(rows).detach().numpy()
    return of_products((matrix**2).sum(1), matrix @ matrix.sum(0))


class Named(nn.Module):
    """Takes a mapping, returns one with more than the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, *, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        hidden = (self.table(ids) * mask.unsqueeze(2)).sum(1)
        return {"hidden": hidden, "logits": self.head(hidden), "aux": (hidden, None)}


class Tied(nn.Module):
    """One matrix in two places, and one parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(8, 8)
        self.up = nn.Linear(8, 8)
        self.up.weight = self.down.weight
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.down(x)))


class Force(nn.Module):
    """Returns the gradient of an energy, as models of molecules do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return force[:, :5]


class Branching(nn.Module):
    """Decides by the numbers that it sees, one example at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(row) if float(row.detach().sum()) > 0 else self.b(row) for row in x])


class Wave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, 8, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex128) @ self.filter.T).abs()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    model[0].weight.requires_grad_(False)
    return model


@dataclass(frozen=True)
class Kind:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (8,)


KINDS = {
    "plain": Kind(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))),
    "convolutional": Kind(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)), (1, 8, 8)
    ),
    "normalized": Kind(lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)).eval()),
    "by layer": Kind(lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 5))),
    "weight norm": Kind(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 5))),
    "attention": Kind(
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True), nn.Flatten(), nn.Linear(24, 5)
        ),
        (3, 8),
    ),
    "recurrent": Kind(Recurrent, (6, 4)),
    "tied": Kind(Tied),
    "frozen": Kind(frozen),
    "force": Kind(Force),
    "branching": Kind(Branching),
    "complex": Kind(Wave),
    "lazy": Kind(lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(5))),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_scale_is_that_of_all_gradients(kind: str) -> None:
    model, x, y = KINDS[kind].make().double(), floats(N, *KINDS[kind].shape), classes()
    found = noise.scale(model, entropy, x, y)
    truth = by_hand(model, entropy, list(x.split(1)), list(y.split(1)))
    for name in ("signal", "noise", "value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-8), name
    assert found.n == N


def test_what_cannot_be_mapped_is_run_alone_and_the_rest_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    mapped = engine._Task.vectorized
    monkeypatch.setattr(engine._Task, "vectorized", lambda task, rows: (calls.append(len(rows)), mapped(task, rows))[1])
    for kind, together in (("plain", [2, N]), ("branching", [2])):
        calls.clear()
        noise.scale(KINDS[kind].make().double(), entropy, floats(N, 8), classes())
        assert calls == together


@pytest.mark.parametrize(
    ("name", "value"), [("HELD_BYTES", 0), ("CALL_BYTES", 3000), ("CALL_BYTES", 0), ("MOST_TOGETHER", 5)]
)
def test_bounds_of_memory_do_not_change_the_scale(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = KINDS["plain"].make().double(), floats(N, 8), classes()
    before = noise.scale(model, entropy, x, y)
    monkeypatch.setattr(engine, name, value)
    again = noise.scale(model, entropy, x, y)
    assert again.value == pytest.approx(before.value, rel=1e-10)
    assert again.high == pytest.approx(before.high, rel=1e-10)


def test_draws_are_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout each example has a mask of its own; held gradients and gradients computed anew agree."""
    model = nn.Sequential(nn.Linear(8, 60), nn.Dropout(0.5), nn.Linear(60, 5)).double()
    x, y = floats(N, 8)[:1].repeat(N, 1), classes()[:1].repeat(N)
    with torch.random.fork_rng(devices=[]):
        held = noise.scale(model, entropy, x, y)
        monkeypatch.setattr(engine, "HELD_BYTES", 0)
        assert noise.scale(model, entropy, x, y) == held
    assert held.noise > 0.01  # of equal examples: the masks differ
    assert noise.scale(model.eval(), entropy, x, y).noise == pytest.approx(0.0, abs=1e-12)


# -- what inputs come in -----------------------------------------------------------------------------------------------


def test_mappings_tuples_lists_and_sparse_gradients() -> None:
    model = Named().double()
    ids, y = torch.randint(9, (N, 4), generator=generator(2, Purpose.INPUTS)), classes()
    mask = (floats(N, 4) > 0).double()
    truth = by_hand(
        model, lambda model, x, y: functional.cross_entropy(model(ids=x[0], mask=x[1])["logits"], y),
        list(zip(ids.split(1), mask.split(1), strict=True)), list(y.split(1)),
    )  # fmt: skip
    for sparse in (False, True):
        model.table.sparse = sparse
        forms: list[tuple[Any, Callable[[nn.Module, Any], Any]]] = [
            ({"ids": ids, "mask": mask}, lambda model, x: model(**x)),
            ((ids, mask), lambda model, x: model(ids=x[0], mask=x[1])),
            (Inputs((), {"ids": ids, "mask": mask}), lambda model, x: x.call(model)),
            ([{"ids": a, "mask": b, "name": "one"}.items() for a, b in zip(ids, mask, strict=True)], collated),
        ]
        for inputs, call in forms:
            found = noise.scale(
                model, lambda model, x, y, call=call: functional.cross_entropy(call(model, x)["logits"], y), inputs, y
            )
            assert found.value == pytest.approx(truth.value, rel=1e-9)


def collated(model: nn.Module, examples: list[Any]) -> Any:
    """As a loader's collating function: from a list of objects, one an example."""
    found = [dict(each) for each in examples]
    return model(ids=torch.stack([each["ids"] for each in found]), mask=torch.stack([each["mask"] for each in found]))


def test_targets_may_be_none_or_in_the_loss() -> None:
    model, x = nn.Linear(8, 8).double(), floats(N, 8)
    found = noise.scale(model, lambda model, x, _: (model(x) - x).square().mean(), x, None)
    again = noise.scale(model, lambda model, x, y: (model(x) - y).square().mean(), x, x)
    assert found == again


def test_16_bits_are_added_in_64() -> None:
    model, x, y = KINDS["plain"].make(), floats(64, 8), classes(64)
    wide = noise.scale(model.double(), entropy, x, y)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = noise.scale(copy.deepcopy(model).to(dtype), entropy, x.to(dtype), y)
        assert narrow.noise == pytest.approx(wide.noise, rel=0.02)
        assert narrow.signal == pytest.approx(wide.signal, rel=0.02, abs=0.02 * wide.noise / 64)


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_linear_regression_on_gaussian_inputs() -> None:
    """|G|^2 = 4 |e|^2 and tr(Sigma) = 4 ((d + 1) |e|^2 + d s^2), for weights off by e and noise of variance s^2."""
    d, n, s = 6, 4000, 0.5
    x, off = floats(n, d), torch.full((d,), 0.3, dtype=torch.float64)
    y = x @ torch.ones(d, dtype=torch.float64) + s * floats(n, key="errors")
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(1 + off)
    found = noise.scale(model, lambda model, x, y: (model(x).squeeze(1) - y).square().mean(), x, y)
    e2 = float(off.square().sum())
    trace, norm = 4 * ((d + 1) * e2 + d * s**2), 4 * e2
    assert found.low < trace / norm < found.high
    assert found.high / found.low < 1.35
    fourth = 3 * trace  # the standard deviation of |g|^2, no more than this for products of normal numbers
    assert abs(found.noise - trace) < 4 * fourth / math.sqrt(n)
    assert abs(found.signal - norm) < 4 * 2 * math.sqrt(norm * trace / n)


def test_quadratics_are_exact() -> None:
    """Of |w - c|^2 / 2 the gradient is w - c: the noise is the variance of the centres."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64))

        def forward(self, c: Tensor) -> Tensor:
            return (self.place - c).square().sum(1).mean() / 2

    c = floats(50, 4)
    found = noise.scale(Point(), lambda model, c, _: model(c), c, None, population=50)
    assert found.noise == pytest.approx(float(c.var(0, unbiased=False).sum()), rel=1e-12)
    assert found.signal == pytest.approx(float((0.5 - c.mean(0)).square().sum()), rel=1e-12)
    assert found.low == found.high == found.value
    sample = noise.scale(Point(), lambda model, c, _: model(c), c, None)
    assert sample.noise == pytest.approx(float(c.var(0).sum()), rel=1e-12)


def test_batches_estimate_the_same_noise() -> None:
    """Gradients of 100 batches of 8 examples: the same noise and signal as of 800, within 4 standard errors."""
    model, x, y = KINDS["plain"].make().double(), floats(800, 8), classes(800)
    one, eight = (noise.scale(model, entropy, x, y, batch=batch) for batch in (1, 8))
    assert eight.n == 100
    assert abs(eight.noise / one.noise - 1) < 4 * math.sqrt(2 / 100)
    assert abs(eight.signal - one.signal) < 4 * eight.noise / 800
    whole = noise.scale(model, entropy, x, y, batch=8, population=800)
    assert whole.signal == pytest.approx(noise.scale(model, entropy, x, y, population=800).signal, rel=1e-9)


# -- what cannot be had ------------------------------------------------------------------------------------------------


def test_batch_normalization_has_no_gradient_of_an_example() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)).double()
    x, y = floats(64, 8), classes(64)
    with pytest.raises(NoiseError, match=r"'1' normalizes by the batch's own statistics.*eval mode.*batch=32"):
        noise.scale(model, entropy, x, y)
    found = noise.scale(model, entropy, x, y, batch=8)
    assert found.n == 8
    assert found.noise > 0
    assert int(model[1].num_batches_tracked) == 0
    assert noise.scale(model.eval(), entropy, x, y).n == 64


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        return out - 0.5 * out.mean(0)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (nn.Linear(8, 5), lambda model, x, y: functional.cross_entropy(model(x), y, reduction="sum")),
        (Centred(), entropy),
        (nn.Linear(8, 5), lambda model, x, y: functional.cross_entropy(model(x), y, ignore_index=0)),
    ],
)  # fmt: skip
def test_a_loss_that_is_no_mean_of_examples_is_refused(model: nn.Module, loss: Any) -> None:
    with pytest.raises(NoiseError, match="no mean that weighs every example alike, or they depend on each other"):
        noise.scale(model.double(), loss, floats(N, 8), classes())


def test_a_sum_is_refused_of_batches_too() -> None:
    with pytest.raises(NoiseError, match="of the same batch twice over"):
        noise.scale(
            nn.Linear(8, 5).double(), lambda model, x, y: functional.cross_entropy(model(x), y, reduction="sum"),
            floats(N, 8), classes(), batch=3,
        )  # fmt: skip


def test_errors_are_a_sentence() -> None:
    model, x, y = nn.Linear(8, 5).double(), floats(N, 8), classes()
    with pytest.raises(NoiseError, match=r"no number of examples in common.*11, 12"):
        noise.scale(model, entropy, x, y[:11])
    with pytest.raises(NoiseError, match=r"the loss is \(1, 5\), where a scalar was expected"):
        noise.scale(model, lambda model, x, _: model(x), x, y)
    with pytest.raises(NoiseError, match="1 examples make 1 of 1"):
        noise.scale(model, entropy, x[:1], y[:1])
    with pytest.raises(NoiseError, match="no parameter of the model takes a gradient"):
        noise.scale(nn.Linear(8, 5).requires_grad_(False), entropy, x.float(), y)
    with pytest.raises(NoiseError, match="depends on no parameter"):
        noise.scale(model, lambda _, x, __: x.sum() * 0 + 1, x, y)
    with pytest.raises(NoiseError, match="the loss of one example raised RuntimeError"):
        noise.scale(model, entropy, floats(N, 7), y)


def test_gradients_that_are_not_finite_are_a_result() -> None:
    x = floats(N, 8)
    x[3] = math.inf
    found = noise.scale(nn.Linear(8, 5).double(), entropy, x, classes())
    assert math.isnan(found.value)


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5)).double()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    seen: list[int] = []
    model[3].register_forward_hook(lambda *_: seen.append(1))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    modes = [each.training for each in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - the user's own
    with torch.no_grad():  # whatever the caller has chosen
        noise.scale(model, entropy, floats(N, 8), classes())
        assert not torch.is_grad_enabled()
    assert seen
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(each.grad is None for name, each in model.named_parameters() if name != "0.weight")
    assert [each.training for each in model.modules()] == modes
    assert len(model[3]._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002 - as above
    assert random.getstate() == states[2]


def test_arrays_are_refused_with_what_makes_tensors_of_them() -> None:
    model, y = nn.Linear(3, 1), torch.zeros(20, 1)
    with pytest.raises(NoiseError, match=r"examples are tensors, not a ndarray: torch\.as_tensor"):
        noise.scale(model, lambda model, x, y: (model(x) - y).square().mean(), np.zeros((20, 3)), y)
