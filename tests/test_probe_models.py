"""What real models do, one case each; docs/probe.md shows the same list as its table."""

import contextlib
import datetime
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from depthgauge import probe

STEPS = 3


@dataclass(frozen=True)
class Tried:
    """A model, how it is trained, and what the probe makes of it.

    Attributes:
        what: the first column of the table.
        outcome: the second.
        model: builds the model.
        loss: its loss for one batch of random numbers.
        check: takes the frame of a run of STEPS steps (with an optimizer), and the model after it.
        train: the training loop; returns the losses.
        warns: a context in which the warning that is due is expected.
    """

    what: str
    outcome: str
    model: Callable
    loss: Callable
    check: Callable
    train: Callable | None = None
    warns: Callable = contextlib.nullcontext


def plain_training(model, optimizer, loss):
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def batch(*shape):
    return torch.randn(*shape)


def size(frame, direction, layer, **more):
    chosen = (frame.direction == direction) & (frame.layer == layer) & (frame.step == 0)
    for column, value in more.items():
        chosen &= frame[column] == value
    return int(chosen.sum())


def one(frame, direction, layer, **more):
    chosen = (frame.direction == direction) & (frame.layer == layer) & (frame.step == 0)
    for column, value in more.items():
        chosen &= frame[column] == value
    (row,) = frame[chosen].to_dict("records")
    return row


# In-place activations.


def inplace_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4), nn.ReLU(inplace=True))


def check_inplace(frame, _model):
    before, after = one(frame, "activation", "0"), one(frame, "activation", "1")
    assert before["min"] < 0 == after["min"]
    assert one(frame, "activation_gradient", "0")["zeros"] >= after["zeros"] > 0
    # The gradient of the linear layer's output is that of the activation's, where the activation is not zero.
    assert one(frame, "activation_gradient", "0")["zeros"] > one(frame, "activation_gradient", "1")["zeros"]


class InPlaceResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.inner(x)
        y += x
        return self.head(y.mul_(2))


# Modules that are called several times, or not at all.


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.never = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        for _ in range(4):
            x = torch.tanh(self.cell(x))
        return x


def check_recurrent(frame, _model):
    calls = frame[(frame.layer == "cell") & (frame.step == 1)]
    for direction in ("activation", "activation_gradient"):
        assert sorted(calls[calls.direction == direction].call) == [0, 1, 2, 3]
    assert size(frame, "weight_gradient", "cell") == 2
    assert size(frame, "activation", "never") == size(frame, "weight_gradient", "never") == 0
    assert size(frame, "weight", "never") == 2
    assert set(frame[frame.layer == "never"].layer_index) == {-1}
    assert size(frame, "activation", "") == 1


# Parameters.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def tied_loss(model):
    tokens = torch.randint(0, 12, (5, 7))
    return functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def check_tied(frame, _model):
    parameters = frame[frame.direction.isin(["weight", "weight_gradient", "update"])]
    assert set(parameters.layer) == {"embedding"}
    assert len(parameters) == 3 * STEPS
    assert size(frame, "activation", "head") == 1


def frozen_model():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model[0].requires_grad_(requires_grad=False)
    return model


def check_frozen(frame, model):
    assert not model[0].weight.requires_grad
    assert size(frame, "weight", "0") == 2
    assert size(frame, "weight_gradient", "0") == size(frame, "update", "0") == 0
    assert size(frame, "activation_gradient", "0") == 0
    assert size(frame, "activation", "0") == size(frame, "activation_gradient", "2") == 1


class NoParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.activation = nn.Tanh()

    def forward(self, x):
        return self.activation(x)


def no_parameters_training(model, _optimizer, loss):
    losses = []
    for _ in range(STEPS):
        x = batch(4, 8).requires_grad_()
        value = model(x).square().mean()
        value.backward()
        losses.append(value.item())
    return losses


def check_no_parameters(frame, _model):
    assert set(frame.direction) == {"activation", "activation_gradient"}
    assert size(frame, "activation", "activation") == 1


# Outputs.


class Pair(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: tuple
    note: str = "not a tensor"


class Structured(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.inner, self.head = form, Split(form), nn.Linear(8, 2)

    def forward(self, x):
        out = self.inner(x)
        if self.form == "tuple":
            first, (second, _) = out
        elif self.form == "dict":
            first, second = out["first"], out["more"]["second"]
        elif self.form == "dataclass":
            first, second = out.logits, out.hidden[0]
        else:
            first, second = out
        return self.head(first + second)


class Split(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.a, self.b = form, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        first, second = self.a(x) * 2, self.b(x) * 2
        if self.form == "tuple":
            return first, (second, None)
        if self.form == "dict":
            return {"first": first, "more": {"second": second}, "n": 3}
        if self.form == "dataclass":
            return Answer(first, (second,))
        return Pair(first, second)


def structured(form, places):
    def check(frame, _model):
        for direction in ("activation", "activation_gradient"):
            found = frame[(frame.layer == "inner") & (frame.direction == direction) & (frame.step == 0)]
            assert sorted(found.output) == places

    return (lambda: Structured(form)), mean(4, 8), check


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        packed = rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True)
        out, (hidden, _) = self.lstm(packed)
        return self.head(hidden[-1]).mean() + rnn.pad_packed_sequence(out, batch_first=True)[0].mean()


def check_packed(frame, _model):
    assert one(frame, "activation", "lstm", output="0.data")["count"] == (5 + 3 + 2) * 6  # no padding
    assert one(frame, "activation", "lstm", output="1.0")["count"] == 3 * 6
    assert size(frame, "activation_gradient", "lstm", output="0.data") == 1
    assert size(frame, "activation", "lstm", output="0.batch_sizes") == 0


class HandsOn(nn.Module):
    """Returns what its submodule returned, and the same after a change."""

    def __init__(self):
        super().__init__()
        self.wrapped = Wrapper()
        self.block = Block()

    def forward(self, x):
        return self.block(self.wrapped(x))


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x).relu_()


def check_hands_on(frame, _model):
    assert size(frame, "activation", "wrapped.inner") == 1
    assert size(frame, "activation", "wrapped") == 0
    assert one(frame, "activation", "block.inner")["min"] < 0 == one(frame, "activation", "block")["min"]


# Inputs and gradients.


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.position, self.embedding = Position(), nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12)

    def forward(self, tokens):
        return self.head(self.embedding(self.position(tokens)))


class Position(nn.Module):
    def forward(self, tokens):
        return (tokens + 1) % 12


def check_integer(frame, _model):
    assert size(frame, "activation", "position") == 0
    assert size(frame, "activation", "embedding") == size(frame, "activation_gradient", "embedding") == 1


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Identity()

    def forward(self, x):
        self.unused(x)
        return self.last(self.used(x))


def check_unused(frame, _model):
    assert size(frame, "activation", "unused") == 1
    assert size(frame, "activation_gradient", "unused") == size(frame, "weight_gradient", "unused") == 0
    assert one(frame, "update", "unused", parameter="weight")["zeros"] == 64
    assert size(frame, "activation_gradient", "last") == size(frame, "activation_gradient", "used") == 1


def sparse_model():
    return nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))


def check_sparse(frame, _model):
    assert one(frame, "weight_gradient", "0")["count"] == 4 * 4  # four distinct rows of fifty
    assert one(frame, "update", "0")["zeros"] == 46 * 4


# Number types.


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.spectrum, self.weight = Spectrum(), nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft(self.spectrum(x) * self.weight)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).conj()


def check_complex(frame, _model):
    assert one(frame, "activation", "spectrum")["count"] == 2 * 4 * 5
    assert one(frame, "weight", "", parameter="weight")["count"] == 10
    assert size(frame, "weight_gradient", "") == size(frame, "update", "") == 1


def half(dtype):
    def check(frame, _model):
        assert set(frame.direction) == set(probe.DIRECTIONS)
        assert one(frame, "weight", "0", parameter="weight")["count"] == 8 * 16

    return (lambda: three_layers().to(dtype)), half_loss, check


def half_loss(model):
    return model(batch(4, 8).to(next(model.parameters()).dtype)).square().mean()


SCALE = 2.0**10


def amp_training(model, optimizer, loss):
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model).float()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(value.item())
    return losses


def check_amp(frame, model):
    """The gradient of a mean of 16 numbers is 1/16: scaled on the way back, unscaled at the optimizer."""
    assert one(frame, "activation_gradient", "2")["mean"] == SCALE / 16
    assert one(frame, "weight_gradient", "2", parameter="bias")["mean"] == 4 / 16


def accumulating_training(model, optimizer, loss):
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(2):
            value = loss(model)
            value.backward()
            losses.append(value.item())
        optimizer.step()
    return losses


def check_accumulation(frame, _model):
    assert sorted(frame[(frame.direction == "activation") & (frame.layer == "0") & (frame.step == 0)].call) == [0, 1]
    assert one(frame, "weight_gradient", "2", parameter="bias")["mean"] == 2 * 4 / 16
    assert frame.step.max() == STEPS - 1


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.reentrant = nn.Linear(8, 8), reentrant
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        for _ in range(2):
            x = torch.utils.checkpoint.checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant)
        return x


def check_checkpoint(frame, _model):
    for layer in ("first", "inner.0", "inner.1", "inner.2"):
        for direction in ("activation", "activation_gradient"):
            assert size(frame, direction, layer) == 2
            assert {one(frame, direction, layer, call=call)["step"] for call in (0, 1)} == {0}


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).to(memory_format=torch.channels_last)


def transformer():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)


def check_transformer(frame, _model):
    assert size(frame, "activation", "self_attn") == 1
    assert size(frame, "activation", "self_attn.out_proj") == 0  # used as a function, never called as a module
    assert size(frame, "weight_gradient", "self_attn.out_proj") == 2


def mean(*shape):
    return lambda model: model(batch(*shape)).square().mean()


def linear_mean(model):
    return model(batch(4, 8)).mean()


def three_layers():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


TRIED = (
    Tried(
        "in-place activation, `ReLU(inplace=True)`",
        "values before and after it, and the gradient of each",
        inplace_model,
        mean(4, 8),
        check_inplace,
    ),
    Tried(
        "in-place arithmetic on a module's output",
        "value and gradient are those of the output as returned",
        InPlaceResidual,
        mean(4, 8),
        lambda frame, _: size(frame, "activation_gradient", "inner") == 1 or pytest.fail("no gradient"),
    ),
    Tried(
        "a module called several times, and one never called",
        "a row for each call (`call`); no activations, `layer_index` -1, and a warning names it",
        Recurrent,
        mean(4, 8),
        check_recurrent,
        warns=lambda: pytest.warns(probe.UnreadWarning, match="^'never' holds weights and never ran as a module"),
    ),
    Tried("shared parameters", "one row, under the first name", Tied, tied_loss, check_tied),
    Tried("frozen parameters", "weights only; still frozen afterwards", frozen_model, mean(4, 8), check_frozen),
    Tried(
        "no parameters at all",
        "activations and their gradients",
        NoParameters,
        mean(4, 8),
        check_no_parameters,
        no_parameters_training,
    ),
    Tried("tuple, nested", 'a row for each tensor (`output` "0", "1.0")', *structured("tuple", ["0", "1.0"])),
    Tried(
        "dict, nested", 'a row for each tensor ("first", "more.second")', *structured("dict", ["first", "more.second"])
    ),
    Tried(
        "dataclass",
        'a row for each field that holds tensors ("logits", "hidden.0")',
        *structured("dataclass", ["hidden.0", "logits"]),
    ),
    Tried("named tuple", 'a row for each field ("mean", "spread")', *structured("named tuple", ["mean", "spread"])),
    Tried(
        "packed sequence",
        'the packed values without padding ("0.data")',
        Packed,
        lambda m: m(batch(3, 5, 4)),
        check_packed,
    ),
    Tried(
        "a module that returns its submodule's output",
        "reported once, for the submodule; twice if it was changed in between",
        HandsOn,
        mean(4, 8),
        check_hands_on,
    ),
    Tried("integer inputs and outputs", "no row for integers", Tokens, tied_loss, check_integer),
    Tried(
        "`None` gradients",
        "no gradient row; the update is all zeros",
        Unused,
        mean(4, 8),
        check_unused,
    ),
    Tried(
        "sparse gradients",
        "the values that are stored, once for each index",
        sparse_model,
        lambda m: m(torch.tensor([[1, 2, 3], [3, 2, 7]])).square().mean(),
        check_sparse,
    ),
    Tried("complex numbers", "real and imaginary parts, two numbers each", Complex, mean(4, 8), check_complex),
    Tried("float64", "read as they are", *half(torch.float64)),
    Tried("float16", "widened to float32, which is exact", *half(torch.float16)),
    Tried("bfloat16", "widened to float32, which is exact", *half(torch.bfloat16)),
    Tried(
        "mixed precision: autocast and `GradScaler`",
        "activation gradients scaled, as they flow; weight gradients unscaled, as `optimizer.step()` finds them",
        three_layers,
        linear_mean,
        check_amp,
        amp_training,
    ),
    Tried(
        "gradient accumulation",
        "one step, activations once for each pass (`call`), the accumulated weight gradient once",
        three_layers,
        linear_mean,
        check_accumulation,
        accumulating_training,
    ),
    Tried(
        "activation checkpointing",
        "activations once, as first computed, and their gradients",
        lambda: Checkpointed(reentrant=False),
        mean(4, 8),
        check_checkpoint,
    ),
    Tried(
        "activation checkpointing, reentrant",
        "activations once, as first computed, and their gradients",
        lambda: Checkpointed(reentrant=True),
        mean(4, 8),
        check_checkpoint,
    ),
    Tried(
        "channels-last convolutions",
        "read in the order in which they lie",
        convolutional,
        lambda m: m(batch(2, 1, 8, 8).to(memory_format=torch.channels_last)).square().mean(),
        lambda frame, _: None if size(frame, "activation", "0") == 1 else pytest.fail("no activation"),
    ),
    Tried(
        "attention (`TransformerEncoderLayer`, with dropout)",
        "modules that are used as functions show their weights only, and a warning names them",
        transformer,
        mean(2, 5, 8),
        check_transformer,
        warns=lambda: pytest.warns(probe.UnreadWarning, match="^'self_attn.out_proj' holds weights and never ran"),
    ),
)


def run(tried, with_probe):
    torch.manual_seed(5)
    model = tried.model()
    parameters = [p for p in model.parameters() if p.requires_grad] or [torch.zeros(1, requires_grad=True)]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    training = tried.train or plain_training
    if not with_probe:
        return training(model, optimizer, tried.loss), model, None
    has_parameters = next(model.parameters(), None) is not None
    with tried.warns(), probe.track(model, optimizer=optimizer if has_parameters else None) as record:
        losses = training(model, optimizer, tried.loss)
    return losses, model, record


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("tried", TRIED, ids=lambda tried: tried.what)
def test_tried(tried):
    losses, model, _ = run(tried, with_probe=False)
    probed_losses, probed_model, record = run(tried, with_probe=True)
    assert losses == probed_losses
    for a, b in zip(model.state_dict().values(), probed_model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in probed_model.modules())
    tried.check(record.to_frame(), probed_model)


# What surrounds a model: each test's docstring is a row of the table, "what: outcome".


def try_compile_inside():
    """`torch.compile` inside the block: compiled as without the probe; parameters, and a warning at the end"""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = three_layers(), batch(4, 8)
    expected = model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    silence = pytest.warns(probe.UnreadWarning, match="no call of the tracked modules was seen")
    with silence, probe.track(model, optimizer=optimizer) as record:
        compiled = torch.compile(model, backend="aot_eager")
        out = compiled(x)
        out.mean().backward()
        optimizer.step()
    torch.testing.assert_close(out, expected)
    assert set(record.to_frame().direction) == {"weight", "weight_gradient", "update"}
    seen = len(record)
    compiled(x).mean().backward()
    assert len(record) == seen


def try_compiled_module():
    """a module that `torch.compile` returned: one sentence, as its activations are fused away; parameters work"""
    torch._dynamo.reset()
    model = three_layers()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"torch\.compile fuses"), probe.track(compiled):
        pass
    model.compile(backend="aot_eager")
    with pytest.raises(ValueError, match=r"torch\.compile fuses"), probe.track(model):
        pass
    chosen = ("weight", "weight_gradient", "update")
    with probe.track(compiled, optimizer=optimizer, directions=chosen) as record:
        compiled(batch(4, 8)).mean().backward()
        optimizer.step()
    assert (record.to_frame().direction.value_counts()[list(chosen)] == 4).all()


def try_compiled_earlier():
    """the inner module of one that has been compiled and run: a warning at the end, as its hooks never run"""
    torch._dynamo.reset()
    model = three_layers()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(batch(4, 8))
    with pytest.warns(UserWarning, match="no call of the tracked modules was seen"), probe.track(model):
        compiled(batch(4, 8))


def try_closure():
    """an optimizer that takes a closure (LBFGS): weight gradients are those of its last evaluation"""
    torch.manual_seed(0)
    model, x = three_layers(), batch(4, 8)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    with probe.track(model, optimizer=optimizer) as record:
        for _ in range(2):
            optimizer.step(closure)
    frame = record.to_frame()
    gradient = frame[(frame.direction == "weight_gradient") & (frame.step == 1) & (frame.layer == "2")]
    assert gradient["max"].tolist() == [p.grad.max().item() for p in model[2].parameters()]
    assert frame.step.max() == 1


def try_skipped_step():
    """a step that `GradScaler` skips: a step of its own (`skipped`), with neither weights nor updates"""
    torch.manual_seed(0)
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with probe.track(model, optimizer=optimizer) as record:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(batch(4, 8)).mean() * 64).backward()
            scaler.step(optimizer)
            scaler.update(2.0**10)
    frame = record.to_frame()
    last = frame[(frame.layer == "2") & (frame.direction == "activation_gradient")]
    assert last.positive_infinities.tolist() == [16, 0]
    assert last.step.tolist() == [0, 1]
    assert last.skipped.tolist() == [True, False]
    assert last.call.tolist() == [0, 0]
    parameters = frame[frame.direction.isin(["weight", "weight_gradient", "update"])]
    assert set(parameters.step) == {1}
    assert set(parameters.nans) == {0}


def try_distributed():
    """`DistributedDataParallel`: activations of this process; weight gradients after the all-reduce"""
    with tempfile.TemporaryDirectory() as folder:
        # By path: a test module is not importable by name in a new process.
        code = f"import runpy; runpy.run_path({__file__!r})['distributed_worker'](RANK, {folder + '/meeting'!r})"
        workers = [subprocess.Popen([sys.executable, "-c", code.replace("RANK", str(rank))]) for rank in range(2)]
        try:
            assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.kill()


def distributed_worker(rank, meeting):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    try:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(three_layers())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with probe.track(model, optimizer=optimizer) as record:
            for _ in range(2):
                optimizer.zero_grad()
                # The gradient of the last bias is rank + 1 in this process, and 1.5 after averaging.
                (model(torch.full((4, 8), float(rank))).sum() * (rank + 1) / 4).backward()
                optimizer.step()
        frame = record.to_frame()
        frame = frame[frame.step == 1]
        last = frame[frame.layer == "module.2"]
        assert last[last.direction == "activation_gradient"]["mean"].tolist() == [(rank + 1) / 4]
        bias = last[last.parameter == "bias"]
        assert bias[bias.direction == "weight_gradient"]["mean"].tolist() == [1.5]
        assert (frame.direction == "activation").sum() == 3
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_whose_parameters_take_no_arguments():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(2))

        def parameters(self):
            return [self.scale, *self.layer.parameters()]

        def forward(self, x):
            return self.layer(x) * self.scale

    model = Listed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer) as record:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    frame = record.to_frame()
    assert set(frame[frame.direction == "update"].parameter) == {"scale", "weight", "bias"}
    assert not record.unread


SURROUNDINGS = (
    try_skipped_step,
    try_closure,
    try_compile_inside,
    try_compiled_module,
    try_compiled_earlier,
    try_distributed,
)
SLOW = pytest.param(try_distributed, marks=pytest.mark.slow)


@pytest.mark.parametrize("tried", [*SURROUNDINGS[:-1], SLOW], ids=lambda tried: tried.__name__)
@pytest.mark.filterwarnings("default::DeprecationWarning")  # torch.compile's own
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile hides where warnings are no errors
def test_surroundings(tried):
    tried()


def table():
    rows = [(tried.what, tried.outcome) for tried in TRIED]
    rows += [tuple(tried.__doc__.split(": ", 1)) for tried in SURROUNDINGS]
    return "\n".join(f"| {what} | {outcome} |" for what, outcome in rows)


def test_the_documented_table_is_this_list():
    text = (pathlib.Path(__file__).parent.parent / "docs" / "probe.md").read_text(encoding="utf-8")
    assert table() in text
