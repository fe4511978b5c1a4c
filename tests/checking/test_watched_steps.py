"""What a pass does beside its gradient: seeds, writes, derivatives, formats, joined graphs, rows that are alike."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import depthgauge
from depthgauge import Training
from depthgauge.checking import observing
from depthgauge.checking.questions import signal
from depthgauge.checking.questions.data import called, derivatives, evaluated, joined, labels, smallest, stored, values
from depthgauge.checking.questions.data.batches import read
from depthgauge.checking.questions.precision import coarse
from depthgauge.checking.questions.reproducibility import reseeding
from depthgauge.checking.questions.signal import alike, copies, depth, own_backward, passed_by, remedies
from depthgauge.checking.subject import Clock, Subject


def asked(part: Any, training: Training) -> dict[str, tuple[str, ...]]:
    """What one part finds, and where, with time enough."""
    subject = Subject(training, observing.look(training), Clock(1e6))
    return {each.kind: each.where for each in part.findings(subject)}


def linear(features: int = 6, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, outputs))


def table(count: int = 64) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.randn(count, 6).split(16), torch.randint(3, (count,)).split(16), strict=True))


@pytest.mark.parametrize("seeds", ["torch", "numpy", "python", "by step", "aside", "not at all"])
def test_a_loss_that_seeds_a_generator(seeds: str) -> None:
    steps = iter(range(1000))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.random.fork_rng(enabled=seeds == "aside"):
            if seeds in {"torch", "aside"}:
                torch.manual_seed(0)
            noise = torch.randn_like(batch[0])
        if seeds == "by step":
            torch.manual_seed(next(steps))
        if seeds == "numpy":
            np.random.seed(0)  # noqa: NPY002 - what is found
            noise = noise + np.random.randn()  # noqa: NPY002 - as above
        if seeds == "python":
            random.seed(0)
            noise = noise + random.random()
        return functional.cross_entropy(model(batch[0] + noise), batch[1])

    found = asked(reseeding, Training(linear(), table(), loss))
    assert set(found) == ({"seeded_in_step"} if seeds in {"torch", "numpy", "python"} else set())


class _Dropping(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.lift, self.head = how, nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x).relu()
        if self.how == "forgotten":
            h = functional.dropout(h, 0.4)
        elif self.how == "handed on":
            h = functional.dropout(h, 0.4, training=self.training)
        elif self.how == "meant":
            h = functional.dropout(h, 0.4, training=True)
        else:
            q = h.view(len(h), 1, 4, 4)
            p = 0.4 if self.how == "attention" else 0.4 * self.training
            h = functional.scaled_dot_product_attention(q, q, q, dropout_p=p).flatten(1)
        return self.head(h)


@pytest.mark.parametrize("how", ["forgotten", "handed on", "meant", "attention", "attention in training"])
def test_dropout_that_goes_on_in_evaluation(how: str) -> None:
    found = asked(evaluated, Training(_Dropping(how), table()))
    assert found == ({"drops_in_eval": ("model",)} if how in {"forgotten", "attention"} else {})


class _Stored(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, how: str) -> None:
        self.how, self.x, self.y = how, torch.randn(32, 6), torch.randint(3, (32,))
        self.known, self.read = torch.zeros(32, 6), torch.zeros(32, 1)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        if self.how == "cached":
            self.known[place] = self.x[place].tanh()
            return self.known[place], self.y[place]
        x = self.x[place] if self.how == "in place" else self.x[place].clone()
        x += 0.1 * torch.randn(6)
        return x, self.y[place]


@pytest.mark.parametrize("how", ["in place", "of a copy", "cached"])
def test_a_data_set_that_is_written_to(how: str) -> None:
    rows = _Stored(how)
    loader = DataLoader(rows, 16)
    training = Training(linear(), loader)
    subject = Subject(training, observing.look(training), Clock(1e6))
    kept = rows.x.clone()
    found = {each.kind for each in stored.findings(subject)}
    assert found == ({"written_over"} if how == "in place" else set())
    assert torch.equal(rows.x, kept)


@pytest.mark.parametrize("how", ["in place", "in place, of a loader's copy", "once for all", "of a copy"])
def test_a_loss_that_writes_to_its_batch(how: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        if how == "once for all":
            x.clamp_(-1, 1)
        elif how == "of a copy":
            x = x * 2
        else:
            x.mul_(2)
        return functional.cross_entropy(model(x), y)

    rows = [(x, y) for part in table() for x, y in zip(*part, strict=True)]
    batches: Any = DataLoader(rows, 16) if "loader" in how else table()  # type: ignore[arg-type]  # a list will do
    assert set(asked(stored, Training(linear(), batches, loss))) == ({"written_over"} if how == "in place" else set())


@pytest.mark.parametrize("graph", [True, False])
def test_a_derivative_in_the_loss_needs_its_graph(graph: bool) -> None:
    def penalty(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=graph, retain_graph=True)
        return functional.cross_entropy(out, batch[1]) + 10 * (slope.norm(dim=1) - 1).square().mean()

    assert set(asked(derivatives, Training(linear(), table(), penalty))) == (
        set() if graph else {"constant_derivative"}
    )


def _moved_inputs(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(model(x), batch[1]), x)
    return functional.cross_entropy(model(x + 0.1 * slope.sign()), batch[1])


def _moved_weights(model: nn.Module, batch: Any) -> Tensor:
    now = {name: each.clone() for name, each in model.named_parameters()}
    for _ in range(2):
        inner = functional.cross_entropy(torch.func.functional_call(model, now, (batch[0],)), batch[1])
        slopes = torch.autograd.grad(inner, list(now.values()), retain_graph=True)
        now = {name: each - 0.1 * slope for (name, each), slope in zip(now.items(), slopes, strict=True)}
    return functional.cross_entropy(torch.func.functional_call(model, now, (batch[0],)), batch[1])


def _weighed(model: nn.Module, batch: Any) -> Tensor:
    out = model(batch[0])
    one, other = functional.cross_entropy(out, batch[1]), out.square().mean()
    weight = [torch.autograd.grad(each, model[2].weight, retain_graph=True)[0].norm() for each in (one, other)]
    return one + weight[0] / weight[1] * other


@pytest.mark.parametrize("loss", [_moved_inputs, _moved_weights, _weighed])
def test_a_derivative_that_moves_inputs_weights_or_shares_is_sound(loss: Any) -> None:
    assert asked(derivatives, Training(linear(), table(), loss)) == {}


class _Times(nn.Module):
    def __init__(self, dtype: torch.dtype, start: float) -> None:
        super().__init__()
        self.dtype, self.start, self.net = dtype, start, linear(15)

    def forward(self, times: Tensor) -> Tensor:
        return self.net((times - self.start).to(self.dtype).float().diff(dim=1))


@pytest.mark.parametrize(("dtype", "start"), [(torch.bfloat16, 0.0), (torch.bfloat16, 5e4), (torch.float64, 0.0)])
def test_times_that_a_format_does_not_tell_apart(dtype: torch.dtype, start: float) -> None:
    times = 5e4 + 4 * torch.rand(64, 16, dtype=torch.float64).cumsum(1)
    batches = list(zip(times.split(16), torch.randint(3, (64,)).split(16), strict=True))
    merged = dtype is torch.bfloat16 and not start
    assert set(asked(coarse, Training(_Times(dtype, start), batches))) == ({"coarse_numbers"} if merged else set())


class _Users(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(50, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(ids.long() % 50)


@pytest.mark.parametrize(("start", "dtype"), [(1e9, torch.float32), (1e9, torch.float64), (1e6, torch.float32)])
def test_identities_beyond_a_format_s_whole_numbers(start: float, dtype: torch.dtype) -> None:
    ids = (start + 97 * torch.arange(64, dtype=torch.float64)).to(dtype)
    batches = list(zip(ids.split(16), torch.randint(3, (64,)).split(16), strict=True))
    lost = start == 1e9 and dtype is torch.float32
    assert set(asked(coarse, Training(_Users(), batches))) == ({"coarse_numbers"} if lost else set())


@pytest.mark.parametrize("moved", ["rightly", "by one graph", "not at all"])
def test_edges_of_graphs_that_were_joined(moved: str) -> None:
    sizes = torch.tensor([5, 6, 4, 7, 5, 6])
    shift = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[:-1].cumsum(0) if moved == "rightly" else sizes[:-1]])
    shift = shift * (moved != "not at all")
    edges = torch.cat([torch.randint(3, (2, 8)) + each for each in shift], 1)
    batch = (torch.randn(33, 6), edges, torch.arange(6).repeat_interleave(sizes), torch.randint(3, (6,)))

    def loss(model: nn.Module, b: Any) -> Tensor:
        x = b[0].index_add(0, b[1][1], b[0][b[1][0]])
        return functional.cross_entropy(torch.zeros(6, 3).index_add(0, b[2], model(x)), b[3])

    assert set(asked(joined, Training(linear(), [batch], loss))) == (set() if moved == "rightly" else {"edges_across"})


@pytest.mark.parametrize(("frames", "wrong"), [(4, True), (12, False)])
def test_sequences_too_short_to_be_aligned(frames: int, wrong: bool) -> None:
    def ctc(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0]).log_softmax(-1).transpose(0, 1)
        held = torch.full((len(batch[0]),), frames)
        return functional.ctc_loss(scores, batch[1], held, torch.full((len(batch[0]),), 5), zero_infinity=True)

    batch = (torch.randn(8, frames, 6), torch.randint(1, 3, (8, 5)))
    assert set(asked(called, Training(linear(), [batch], ctc))) == ({"too_few_frames"} if wrong else set())


@pytest.mark.parametrize("how", ["moved down", "as they are", "unknown at random"])
def test_a_class_that_was_made_one_that_does_not_count(how: str) -> None:
    y = torch.randint(4, (256, 5, 5))
    x = functional.one_hot(y, 4).movedim(-1, 1) + 0.3 * torch.randn(256, 4, 5, 5)
    given = torch.where(y == 0, 255, y - 1) if how == "moved down" else y.clone()
    if how == "unknown at random":
        given[torch.rand(given.shape) < 0.3] = 255
    training = Training(
        nn.Conv2d(4, 4, 1), list(zip(x.split(64), given.split(64), strict=True)),
        lambda m, b: functional.cross_entropy(m(b[0]), b[1], ignore_index=255),
    )  # fmt: skip
    subject = Subject(training, observing.look(training), Clock(1e6))
    found = {each.kind for each in labels.findings(read(subject), subject.seen.graph.terms)}
    assert ("class_left_out" in found) == (how == "moved down")


class _Reader(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.embed, self.rnn, self.head = (
            last,
            nn.Embedding(20, 8),
            nn.GRU(8, 12, batch_first=True),
            nn.Linear(12, 3),
        )

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        out, state = self.rnn(packed)
        return self.head(pad_packed_sequence(out, batch_first=True)[0][:, -1] if self.last else state[-1])


@pytest.mark.parametrize("last", [True, False])
def test_the_last_place_of_padded_sequences(last: bool) -> None:
    ids, lengths = torch.randint(1, 20, (32, 10)), torch.arange(32) % 9 + 2
    batch = (ids * (torch.arange(10) < lengths[:, None]), lengths, torch.randint(3, (32,)))
    training = Training(_Reader(last), [batch], lambda m, b: functional.cross_entropy(m(*b[:2]), b[2]))
    found = asked(alike, training)
    assert set(found) == ({"examples_alike"} if last else set())
    assert not last or "head" in found["examples_alike"]


def test_examples_of_equal_inputs_may_be_alike() -> None:
    x = torch.randn(32, 6)
    x[:16] = x[0]
    assert asked(alike, Training(linear(), [(x, torch.randint(3, (32,)))])) == {}


class _Towers(nn.Module):
    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.left, self.right = linear(6, 4), linear(6, 4)
        if copied:
            self.right.load_state_dict(self.left.state_dict())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.left(a) * self.right(b)).sum(1)


@pytest.mark.parametrize("how", ["copied", "drawn anew", "of one input", "frozen"])
def test_towers_that_are_copies(how: str) -> None:
    model = _Towers(copied=how != "drawn anew")
    model.right.requires_grad_(how != "frozen")
    a = torch.randn(16, 6)
    batch = (a, a if how == "of one input" else torch.randn(16, 6), torch.rand(16).round())
    adam = optim.Adam(each for each in model.parameters() if each.requires_grad)
    training = Training(model, [batch], lambda m, b: functional.mse_loss(m(*b[:2]), b[2]), adam)
    assert asked(copies, training) == ({"copied_towers": ("left", "right")} if how == "copied" else {})


class _Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:  # noqa: ARG004 - as above
        return -given[0]


class _Turning(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return {"method": lambda: x, "function": lambda: _Negated.apply(x), "inverse": lambda: 2 * x}[self.how]()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def backward(self, given: Tensor) -> Tensor:
        return -given


@pytest.mark.parametrize("how", ["method", "function", "inverse"])
def test_a_method_that_autograd_never_calls(how: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), _Turning(how), nn.Linear(8, 3))
    assert asked(own_backward, Training(model, table())) == (
        {"unused_backward": ("1", "model")} if how == "method" else {}
    )


class _Sines(nn.Sequential):
    def __init__(self, bound: float) -> None:
        super().__init__(nn.Linear(2, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 1))
        nn.init.uniform_(self[0].weight, -0.5, 0.5)
        for layer in (self[1], self[2]):
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = (30 * layer(x)).sin()
        return self[-1](x)


@pytest.mark.parametrize(("bound", "told"), [(0.5, True), (0.5 / 30, False)])
def test_a_gradient_that_grows_by_degrees(bound: float, told: bool) -> None:
    x = 2 * torch.rand(256, 2) - 1
    y = (5 * x[:, :1]).sin() * (4 * x[:, 1:]).cos()
    model = _Sines(bound)
    training = Training(
        model, list(zip(x.split(64), y.split(64), strict=True)), lambda m, b: functional.mse_loss(m(b[0]), b[1]),
        optim.Adam(model.parameters(), 2e-3),
    )  # fmt: skip
    batches = training.first(4)
    with training.untouched():
        seen = depth.passage(training, batches)
    found = passed_by.examine(training, seen, batches, remedies.STEPS, going=lambda: True)
    assert found.held == told
    assert not told or (found.best is not None and found.best.name == remedies.EVEN)


@pytest.mark.parametrize("each", [True, False])
def test_a_sampler_with_a_weight_a_class_draws_the_first_examples_alone(each: bool) -> None:
    x, y = torch.randn(256, 12), torch.randint(4, (256,))
    weights = torch.tensor([1.0, 1, 2, 40])
    sampler = WeightedRandomSampler((weights[y] if each else weights).tolist(), 256)
    training = Training(linear(12, 4), DataLoader(TensorDataset(x, y), 32, sampler=sampler))
    subject = Subject(training, observing.look(training), Clock(1e6))
    found = {one.kind for one in values.findings(read(subject), training)}
    assert ("repeated_examples" in found) != each


@pytest.mark.parametrize(("count", "wrong"), [(97, True), (98, False), (96, False)])
def test_a_last_batch_of_one_has_no_standard_deviation(count: int, wrong: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0] - batch[0].mean(0)
        variance = x.square().sum(0) / torch.tensor(len(x) - 1)
        return functional.cross_entropy(model(x / (variance.sqrt() + 1e-8)), batch[1])

    batches = list(zip(torch.randn(count, 6).split(16), torch.randint(3, (count,)).split(16), strict=True))
    assert set(asked(smallest, Training(linear(), batches, loss))) == ({"nonfinite_loss"} if wrong else set())


def test_what_begins_at_zero_is_no_fault_where_there_is_no_time_for_steps() -> None:
    model = linear()
    nn.init.zeros_(model[2].weight)
    training = Training(model, table(), None, optim.Adam(model.parameters()))
    slow = dataclasses.replace(observing.look(training), seconds=100.0)
    found = signal.ask(Subject(training, slow, Clock(150.0))).findings
    assert "no_gradient" not in {each.kind for each in found}


def test_one_fact_is_told_once() -> None:
    y = torch.arange(3).repeat_interleave(64)
    x = torch.randn(192, 6) + y[:, None]
    training = Training(linear(), list(zip(x.split(16), y.split(16), strict=True)))
    found = depthgauge.check(training, only=["batch", "data"])
    assert "sorted" in {each.kind for each in found.answers["data"].findings}
    assert "sorted" not in {each.kind for each in found.answers["batch"].findings}
