"""State that a forward pass changes: each run begins from what the module had at that call, and nothing of it stays."""

from __future__ import annotations

import copy
import operator
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from by_hand import ERRORS, error, rows
from torch import Tensor, nn

from depthgauge import precision, probe

pytestmark = pytest.mark.usefixtures("one_start")


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Cache:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.counts = Slotted()


class Stateful(nn.Module):
    """Multiplies with a number that depends on all that it keeps, which its `change` changes."""

    def __init__(self, change: Callable[[Any, Tensor], object] | None) -> None:
        super().__init__()
        self.change = change
        self.register_buffer("average", torch.ones(4))
        self.register_buffer("also", self.average)
        self.register_buffer("front", self.average[:2])
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.weight = nn.Parameter(torch.ones(4))
        self.step = torch.zeros((), dtype=torch.float64)
        self.count = 0
        self.items: list[Any] = []
        self.nested: dict[str, Any] = {"list": [], "pair": (torch.zeros(4), [])}
        self.last: deque[int] = deque(maxlen=2)
        self.seen: set[int] = set()
        self.array = np.zeros(2)
        self.cache = Cache()
        self.torch_draws = torch.Generator().manual_seed(1)
        self.numpy_draws = np.random.default_rng(1)  # a module's own
        self.python_draws = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        kept = (
            self.average, self.also, self.front, self.frozen, self.weight, self.step, self.nested["pair"][0],
            *self.cache.tensors.values(),
        )  # fmt: skip
        counts = self.count, len(self.items), len(self.nested["list"]), sum(self.last), len(self.seen)
        drawn = (
            torch.rand(4, generator=self.torch_draws.clone_state() if self.change is None else self.torch_draws).sum(),
            (copy.deepcopy(self.numpy_draws) if self.change is None else self.numpy_draws).random(),
            (copy.deepcopy(self.python_draws) if self.change is None else self.python_draws).random(),
        )
        scale = sum(float(each.detach().double().sum()) for each in kept) + sum(counts) + self.cache.counts.count
        out = x * ((scale + sum(map(float, drawn)) + float(self.array.sum())) / 16) * self.weight.clone()
        if self.change is not None:
            self.change(self, x.detach())
        return out


def rebind(self: Any, x: Tensor) -> None:
    self.average = self.average + x.mean()
    self.step = self.step + 1
    self.nested["pair"] = (self.nested["pair"][0] + 1, [])


def in_place(self: Any, x: Tensor) -> None:
    self.average.add_(x.mean())
    self.step += 1
    self.nested["pair"][0].add_(1)
    self.array += 1


def by_data(self: Any, x: Tensor) -> None:
    self.average.data.add_(x.mean())
    self.weight.data.add_(1)
    self.frozen.data = self.frozen.data + 1


def weights(self: Any, x: Tensor) -> None:
    with torch.no_grad():
        self.frozen.add_(x.mean())
    self.weight = nn.Parameter(self.weight.detach() + 1)


def containers(self: Any, x: Tensor) -> None:
    self.items.append(x)
    self.nested["list"].append(x)
    self.nested["more"] = x
    self.last.append(3)
    self.seen.add(len(self.seen))
    self.count += 1


def objects(self: Any, x: Tensor) -> None:
    self.cache.tensors["keys"] = torch.cat([self.cache.tensors.get("keys", x[:0]), x])
    self.cache.counts.count += 1
    self.new = x


def draws(self: Any, _: Tensor) -> None:
    torch.rand(3, generator=self.torch_draws)


CHANGES = [rebind, in_place, by_data, weights, containers, objects, draws]


def everything(module: nn.Module) -> dict[str, Any]:
    """What a module holds, spelled out; its tensors are themselves and have their memory."""
    spelled: dict[str, Any] = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            text = value.get_state().tolist() if isinstance(value, torch.Generator) else repr(value)
            spelled[f"{name}.{key}"] = text
        if isinstance(part, Stateful):
            tensors = part.average, part.also, part.front, part.frozen, part.weight, part.step
            spelled[f"{name}: tensors"] = [
                (id(each), each.data_ptr(), each.dtype, each.is_leaf, each.requires_grad) for each in tensors
            ]
            spelled[f"{name}: cache"] = dict(part.cache.tensors), part.cache.counts.count
            spelled[f"{name}: draws"] = part.numpy_draws.bit_generator.state, part.python_draws.getstate()
    return spelled


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_replay_begins_from_the_state_that_the_call_had(change: Callable[[Any, Tensor], object]) -> None:
    x = torch.randn(6, 4)
    model, twin = (nn.Sequential(nn.Linear(4, 4), Stateful(each)) for each in (change, None))
    twin[0].load_state_dict(model[0].state_dict())
    before = everything(model)
    for fmt in ("bfloat16", "float8_e5m2"):
        found, wanted = precision.bisect(model, x, fmt), precision.bisect(twin, x, fmt)
        pd.testing.assert_frame_equal(found, wanted)
    assert precision.compare(model, twin, x).same is True
    pd.testing.assert_frame_equal(precision.batch_invariance(model, x), precision.batch_invariance(twin, x))
    assert everything(model) == before


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x / (2 * self.calls[0] + 1)


class Again(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


def test_the_second_call_in_a_pass_begins_where_the_first_ended() -> None:
    x = torch.randn(32, 8)
    frame = rows(precision.bisect(Again(Counting()), x, torch.bfloat16))
    wanted = torch.stack([x / 3, x / 3 / 5])
    low = torch.stack([x.bfloat16() / 3, (x / 3).bfloat16() / 5])
    assert frame.loc["inner", "own"] == pytest.approx(error(low, wanted), rel=1e-12)
    assert frame.loc["inner", "total"] == pytest.approx(error(torch.stack([low[0], low[0] / 5]), wanted), rel=1e-12)


class Sharing(nn.Module):
    """Sets what a child reads, reads what it has left, and keeps the sum of all calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.child = nn.Linear(4, 4)
        self.total: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.child.given = x
        for _ in range(2):
            x = self.child(self.inner(x)) + self.child.given
            self.child.given = self.child.given * 0.5
            self.total = self.total + x
        return self.total


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_float32_run_has_no_error_against_itself(change: Callable[[Any, Tensor], object]) -> None:
    model = Again(Sharing(nn.Sequential(nn.Linear(4, 4), Stateful(change), nn.Tanh())))
    before = everything(model)
    frame = precision.bisect(model, torch.randn(6, 4), torch.float32)
    assert (frame[ERRORS].to_numpy() == 0).all()
    assert (frame["error"] == "").all()
    assert everything(model) == before


class Implicit(nn.Module):
    """A recurrence whose hidden state is an attribute, through which gradients pass."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 4)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.cell(x, self.hidden)
        return self.hidden


class Explicit(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        return self.cell(x, hidden)


class Unrolled(nn.Module):
    def __init__(self, inner: Implicit | Explicit) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        hidden = None
        for row in x:
            hidden = self.inner(row) if isinstance(self.inner, Implicit) else self.inner(row, hidden)
        return hidden


def test_gradients_pass_through_what_a_module_keeps() -> None:
    implicit, x = Implicit(), torch.randn(3, 6, 4)
    found, wanted = (
        precision.bisect(Unrolled(each), x, torch.bfloat16) for each in (implicit, Explicit(implicit.cell))
    )
    pd.testing.assert_frame_equal(found.drop(columns="kind"), wanted.drop(columns="kind"))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(4, 3)
        self.register_buffer("load", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.scores(x).softmax(-1)
        self.balance = shares.mean(0).square().sum()
        self.load += shares.detach().sum(0)
        return shares


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x)
        return sum(share[:, None] * expert(x) for share, expert in zip(shares.T, self.experts, strict=True))


def test_a_loss_that_reads_what_a_module_has_kept() -> None:
    """The router's balance is an attribute: gradients reach the router through it alone."""
    model, x = Mixture(), torch.randn(8, 4)
    frame = precision.bisect(
        model, x, torch.float64, loss=lambda m, batch: m(batch).detach().sum() + m.gate.balance.float()
    )
    backward = rows(frame, "backward")
    assert {"gate", "gate.scores"} <= set(backward.index)
    assert backward.loc["gate.scores", "total"] < 1e-5
    assert (frame["error"] == "").all()
    assert not hasattr(model.gate, "balance")
    assert not model.gate.load.any()


class Noting(nn.Module):
    """Appends to a list that it is given, or returns what it would append."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, noted: list[Tensor] | None = None) -> Any:
        out = self.inner(x)
        if noted is None:
            return out, out.square().mean()
        noted.append(out.square().mean())
        return out


class Collecting(nn.Module):
    def __init__(self, inner: Noting, *, given: bool) -> None:
        super().__init__()
        self.inner = inner
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        noted: list[Tensor] = []
        if self.given:
            out = self.inner(x, noted)
        else:
            out, loss = self.inner(x)
            noted.append(loss)
        return out * torch.stack(noted).sum()


def test_a_list_that_a_module_is_given_and_appends_to() -> None:
    inner, x = Noting(), torch.randn(6, 4)
    found, wanted = (precision.bisect(Collecting(inner, given=given), x, torch.bfloat16) for given in (True, False))
    pd.testing.assert_frame_equal(found, wanted)
    noted: list[Tensor] = []
    assert precision.compare(inner, copy.deepcopy(inner), (x, noted)).same is True
    assert precision.batch_invariance(inner, (x, noted))["equal"].iloc[-1]
    found = precision.bisect(inner, (x, noted), torch.bfloat16, loss=lambda m, b: m(*b).sum() * 0 + b[1][-1])
    wanted = precision.bisect(inner, x, torch.bfloat16, loss=lambda m, b: m(b)[1])
    assert rows(found, "backward").loc["inner", "own"] == rows(wanted, "backward").loc["inner", "own"]
    assert not noted


@pytest.mark.parametrize("wrapped", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_power_iterations_are_those_of_one_run(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    """Its vectors change in place at each call in training mode; a float32 run against itself has no error."""
    model, x = nn.Sequential(wrapped(nn.Linear(6, 5)), nn.Tanh()), torch.randn(4, 6)
    state = copy.deepcopy(model.state_dict())
    assert (precision.bisect(model, x, torch.float32)[ERRORS].to_numpy() == 0).all()
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())


# -- other blocks around or inside of a run ----------------------------------------------------------------------------


def tracked(model: nn.Module, x: Tensor, *, disturbed: bool, **how: Any) -> tuple[Any, Any]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def disturb() -> None:
        if disturbed:
            precision.bisect(model, x * 1e6, "float16")
            precision.compare(model, copy.deepcopy(model), x)
            precision.batch_invariance(model, x)

    with probe.track(model, optimizer=optimizer if how.pop("steps") else None, **how) as record:
        for _ in range(2):
            disturb()
            optimizer.zero_grad()
            loss = model(x).square().mean()
            disturb()
            loss.backward()
            disturb()
            optimizer.step()
        disturb()
    return record.to_frame(), record.first_nonfinite()


@pytest.mark.parametrize(
    "how",
    [
        {"steps": False},
        {"steps": True},
        {"steps": True, "last": 20},
        {"steps": True, "directions": ("weight_gradient", "update")},
    ],
    ids=["calls", "steps", "last", "gradients"],
)
def test_an_open_record_sees_nothing_of_the_runs(how: dict[str, Any]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.randn(6, 4)
    plain, first = tracked(model, x, disturbed=False, **how)
    disturbed, also_first = tracked(model, x, disturbed=True, **how)
    pd.testing.assert_frame_equal(disturbed, plain)
    assert first is also_first is None


class Mixed(nn.Module):
    """Turns autocast on for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(self.first(x).relu()).float()


def test_a_layer_runs_again_in_the_autocast_that_it_ran_in() -> None:
    model, x = Mixed(), torch.randn(8, 8)
    for outer in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            frame = precision.bisect(model, x, torch.float32)
        assert (frame[ERRORS].to_numpy() == 0).all()


def test_inference_mode_around_a_bisection_changes_nothing() -> None:
    model, tokens = nn.Sequential(nn.Embedding(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), torch.arange(6)
    labels = tokens % 3
    outside = precision.bisect(model, (tokens, labels), torch.bfloat16)
    with torch.inference_mode():
        inside = precision.bisect(model, (tokens.clone(), labels.clone()), torch.bfloat16)
        born = copy.deepcopy(model)
        of_its_own = precision.bisect(born, (tokens.clone(), labels.clone()), torch.bfloat16)
        assert precision.compare(born, model, tokens.clone()).same is True
        assert precision.batch_invariance(model, tokens.clone())["equal"].iloc[-1]
    pd.testing.assert_frame_equal(inside, outside)
    pd.testing.assert_frame_equal(of_its_own, outside)
    assert born[0].weight.is_inference()
    assert not any(each.is_inference() for each in (*model.parameters(), *model.buffers()))
    model(tokens).sum().backward()


def test_a_gradient_penalty_alone_has_the_backward_pass_that_it_takes() -> None:
    model, slope = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(6, 2)

    def penalty(module: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((module(x) * slope).sum(), x, create_graph=True)
        return gradient.square().sum()

    x = torch.randn(6, 4)
    found = precision.bisect(model, x, torch.bfloat16, loss=penalty)
    plain = precision.bisect(model, x.clone().requires_grad_(), torch.bfloat16, loss=lambda m, b: (m(b) * slope).sum())
    pd.testing.assert_frame_equal(found, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2"])
def test_what_hooks_the_node_that_adds_to_a_gradient_stays(dtype: str) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 1))

    hooked, x = made(), torch.ones(3, 4)
    fired: list[int] = []
    nodes = [each.view_as(each).grad_fn.next_functions[0][0] for each in hooked.parameters()]  # type: ignore[union-attr]
    for node in nodes:
        node.register_hook(lambda *_: fired.append(1))  # type: ignore[union-attr]
    parameters = list(hooked.parameters())
    frame = precision.bisect(hooked, x, dtype)
    assert not fired  # nobody's reducer is told of what these runs do
    pd.testing.assert_frame_equal(frame, precision.bisect(made(), x, dtype))
    assert all(map(operator.is_, hooked.parameters(), parameters))
    hooked(x).sum().backward()
    assert len(fired) == len(parameters)
