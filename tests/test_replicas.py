"""Replicas: each is the model trained alone; none depends on its neighbours; the memory is what was said."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import replicas
from depthgauge.replicas import memory
from depthgauge.replicas.chain import chain
from depthgauge.replicas.engine import blocks, choose

STEPS, BATCH, EXAMPLES, CLASSES = 50, 8, 40, 3
LR = [0.02, 0.05, 0.1]
DECAY = [0.0, 0.1, 0.01]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp(activation: Callable[[], nn.Module] = nn.Tanh, depth: int = 4, width: int = 8, inputs: int = 6) -> nn.Module:
    widths = [inputs] + [width] * depth
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, CLASSES)).double()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.branch = nn.Linear(8, 8)
        self.read = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.read(h + functional.gelu(self.branch(self.norm(h))))


class Convolutional(nn.Sequential):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(2, 5, batch_first=True)
        self.read = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.cells(x)[0][:, -1])


class Unrolled(nn.Module):
    """A recurrent net whose one cell is called at every time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(2 + 5, 5)
        self.read = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 5)
        for now in x.unbind(1):
            state = torch.tanh(self.cell(torch.cat([now, state], 1)))
        return self.read(state)


class Undecided(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else self.other(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "tanh": (mlp, (6,), ("chain", "vmap", "loop")),
    "relu": (lambda: mlp(nn.ReLU), (2, 3), ("chain", "vmap", "loop")),
    "gelu": (lambda: mlp(nn.GELU), (6,), ("chain",)),
    "residual": (Residual, (6,), ("vmap", "loop")),
    "convolution": (lambda: Convolutional(nn.GroupNorm(2, 4)), (1, 6, 6), ("vmap", "loop")),
    "batch norm": (lambda: Convolutional(nn.BatchNorm2d(4)), (1, 6, 6), ("vmap", "loop")),
    "unrolled": (Unrolled, (4, 2), ("vmap", "loop")),
    "rnn": (lambda: Recurrent(nn.RNN), (4, 2), ("loop",)),
    "lstm": (lambda: Recurrent(nn.LSTM), (4, 2), ("loop",)),
    "undecided": (Undecided, (6,), ("loop",)),
}
OPTIMIZERS: dict[str, tuple[replicas.SGD | replicas.Adam, Callable[[list[nn.Parameter], int], torch.optim.Optimizer]]]
OPTIMIZERS = {
    "momentum": (
        replicas.SGD(LR, momentum=0.9, weight_decay=DECAY),
        lambda p, r: torch.optim.SGD(p, LR[r], momentum=0.9, weight_decay=DECAY[r]),
    ),
    "nesterov": (
        replicas.SGD(0.05, momentum=0.9, nesterov=True),
        lambda p, _: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    ),
    "adam": (
        replicas.Adam(0.01, weight_decay=DECAY),
        lambda p, r: torch.optim.Adam(p, 0.01, weight_decay=DECAY[r]),
    ),
    "adamw": (replicas.AdamW(LR), lambda p, r: torch.optim.AdamW(p, LR[r])),
}


def examples(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)


def alone(
    stack: replicas.Stack, replica: int, data: tuple[Tensor, Tensor], make: Callable, clip: float | None = None
) -> tuple[nn.Module, list[float]]:
    """The plain training of one replica."""
    x, y = data
    model = stack.module(replica)
    optimizer = make(list(model.parameters()), replica)
    losses = []
    for indices in replicas.order(stack.seeds[replica], EXAMPLES, BATCH, STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[indices]), y[indices])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def distance(stack: replicas.Stack, replica: int, model: nn.Module) -> float:
    """Largest distance of a tensor from its like in `model`, relative to that one's norm."""
    pairs = zip(stack.module(replica).state_dict().values(), model.state_dict().values(), strict=True)
    return max(float((a - b).double().norm() / b.double().norm().clamp(min=1e-300)) for a, b in pairs)


# Every optimizer, clipped or not, by hand and by vmap and in a loop; the rest of the models with two of them.
TRAININGS = [
    (name, strategy, optimizer, clip)
    for name, (_, _, strategies) in MODELS.items()
    for strategy in strategies
    for optimizer in OPTIMIZERS
    for clip in (None, 0.2)
    if name == "tanh" or (optimizer, clip) in {("momentum", None), ("adamw", 0.2)}
]


@pytest.mark.parametrize(("name", "strategy", "optimizer", "clip"), TRAININGS)
def test_each_replica_is_the_model_trained_alone(name: str, strategy: str, optimizer: str, clip: float | None) -> None:
    build, shape, _ = MODELS[name]
    data = examples(shape)
    stack = replicas.stack(build().double(), [3, 1, 4])
    spec, make = OPTIMIZERS[optimizer]
    run = replicas.train(stack, *data, spec, batch=BATCH, steps=STEPS, clip=clip, strategy=strategy)
    assert run.strategy == strategy
    for replica in range(3):
        model, losses = alone(stack, replica, data, make, clip)
        # A convolution's bias before batch normalization has no gradient but rounding errors, which Adam scales up:
        # no two orders of summation agree on it, and nothing depends on it.
        if name == "batch norm" and optimizer.startswith("adam"):
            with torch.no_grad():
                model[0].bias.copy_(run.stack.parameters["0.bias"][replica])
                model[1].running_mean.copy_(run.stack.buffers["1.running_mean"][replica])
        assert distance(run.stack, replica, model) < 1e-9
        np.testing.assert_allclose(run.loss[:, replica], losses, rtol=1e-9)
    assert (run.diverged_at == -1).all()


@pytest.mark.parametrize("name", MODELS)
def test_the_rule_chooses_what_gives_the_same_result(name: str) -> None:
    build, shape, strategies = MODELS[name]
    x, _ = examples(shape)
    stack = replicas.stack(build().double(), range(12))
    chosen = replicas.strategy(stack, x, batch=BATCH)
    assert chosen == strategies[0]


def test_the_loop_is_taken_where_vmap_has_too_few_replicas_a_call() -> None:
    x, _ = examples((6,))
    assert replicas.strategy(replicas.stack(Residual().double(), range(2)), x, batch=BATCH) == "loop"


@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_a_replica_does_not_notice_its_neighbours(strategy: str) -> None:
    x, y = examples((6,))
    optimizer = replicas.SGD(lr=[0.1, 1e300, 0.1], momentum=0.9)
    stack = replicas.stack(mlp(nn.ReLU), [7, 8, 9])
    run = replicas.train(stack, x, y, optimizer, batch=BATCH, steps=STEPS, clip=[1.0, math.inf, 1.0], strategy=strategy)
    bad = int(run.diverged_at[1])
    assert 0 < bad < STEPS
    assert np.isfinite(run.loss[:bad, 1]).all()
    assert not np.isfinite(run.loss[bad, 1])
    assert run.diverged_at.tolist() == [-1, bad, -1]
    for replica, seed in ((0, 7), (2, 9)):
        single = replicas.train(
            replicas.stack(mlp(nn.ReLU), [seed]),
            x, y, replicas.SGD(lr=0.1, momentum=0.9), batch=BATCH, steps=STEPS, clip=1.0, strategy=strategy,
        )  # fmt: skip
        assert distance(run.stack, replica, single.stack.module(0)) < 1e-9


@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_twice_the_same_bits(strategy: str) -> None:
    x, y = examples((6,))
    x = x.float()
    runs = [
        replicas.train(
            replicas.stack(mlp().float(), range(5)), x, y, replicas.Adam(), batch=BATCH, steps=STEPS, strategy=strategy
        )
        for _ in range(2)
    ]
    assert np.array_equal(runs[0].loss, runs[1].loss)
    assert all(torch.equal(a, runs[1].stack.parameters[name]) for name, a in runs[0].stack.parameters.items())


def test_blocks_change_no_bit_of_what_is_drawn_and_little_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), range(7))
    whole = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=STEPS, watch=[3])
    monkeypatch.setattr("depthgauge.replicas.engine.BLOCK_BYTES", 22_000)
    # A replica has 299 parameters, and 73 activations for each of 8 examples, of 8 bytes each: 7,064 bytes.
    cuts = blocks(stack, choose(stack, x[:BATCH]), moments=0)
    assert [(cut.start, cut.stop) for cut in cuts] == [(0, 3), (3, 6), (6, 7)]
    parts = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=STEPS, watch=[3])
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-9)
    np.testing.assert_allclose(parts.signals[3].backward, whole.signals[3].backward, rtol=1e-9)


def test_dropout_depends_on_the_replicas_own_seed() -> None:
    x, y = examples((6,))
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, CLASSES)).double()
    before = torch.random.get_rng_state()
    train = {"batch": BATCH, "steps": 5}
    three = replicas.train(replicas.stack(model, [1, 2, 3]), x, y, replicas.SGD(0.1), watch=[1, 2], **train)
    one = replicas.train(replicas.stack(model, [3]), x, y, replicas.SGD(0.1), **train)
    assert three.strategy == "loop"
    assert np.array_equal(three.loss[:, 2], one.loss[:, 0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_depend_on_the_replicas_own_parameters() -> None:
    def draw(module: nn.Module, generator: torch.Generator, gain: float) -> None:
        nn.init.normal_(module[1].weight, 0.0, gain, generator=generator)

    template = mlp()
    before = torch.random.get_rng_state()
    many = replicas.stack(template, [4, 5, 6], draw, gain=[1.0, 2.0, 3.0])
    one = replicas.stack(template, [6], draw, gain=[3.0])
    twice = replicas.stack(template, [6], draw, gain=[6.0])
    assert torch.equal(many.parameters["1.weight"][2], one.parameters["1.weight"][0])
    torch.testing.assert_close(twice.parameters["1.weight"], 2 * one.parameters["1.weight"])
    default = replicas.stack(template, [4, 6])
    assert not torch.equal(default.parameters["1.weight"][0], default.parameters["1.weight"][1])
    assert torch.equal(default.parameters["1.weight"][1], replicas.stack(template, [6]).parameters["1.weight"][0])
    assert len(many) == 3
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_initialize_leaves_alone_is_the_templates() -> None:
    def shift(module: nn.Module, generator: torch.Generator) -> None:
        module.weight += torch.randn((), generator=generator)

    template = nn.Linear(2, 2)
    weight = template.weight.detach().clone()
    stack = replicas.stack(template, [1, 1, 2], shift)
    assert torch.equal(stack.parameters["weight"][0], stack.parameters["weight"][1])
    assert torch.equal(stack.parameters["bias"], template.bias.detach().expand(3, 2))
    assert torch.equal(template.weight, weight)


def test_training_leaves_the_stack_as_it_was() -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), range(3))
    before = stack.clone()
    replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=3)
    assert all(torch.equal(a, before.parameters[name]) for name, a in stack.parameters.items())


def test_an_epoch_shows_every_example_once() -> None:
    epochs = replicas.order(3, examples=12, batch=4, steps=6).view(2, 12)
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    # The leftover of an epoch that no whole batch can be cut of is not seen, and the next epoch is whole again.
    assert all(len(set(epoch.tolist())) == 8 for epoch in replicas.order(3, 11, 4, 6).view(3, 8))
    assert replicas.order(3, 5, 9, 2).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert torch.equal(replicas.order(3, 12, 4, 2), replicas.order(3, 12, 4, 6)[:2])


def test_order_seeds_and_schedule() -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), [1, 1])
    same = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=5)
    assert np.array_equal(same.loss[:, 0], same.loss[:, 1])
    other = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=5, order_seeds=[1, 2])
    assert np.array_equal(other.loss[:, 0], same.loss[:, 0])
    assert not np.array_equal(other.loss[:, 1], same.loss[:, 1])
    for strategy in ("chain", "vmap", "loop"):
        run = replicas.train(
            stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=5, schedule=lambda t: float(t < 2), strategy=strategy
        )
        until = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=2)
        assert distance(run.stack, 0, until.stack.module(0)) < 1e-12


@pytest.mark.parametrize("loss", ["mse", lambda out, target: (out - target).abs().sum()])
@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_other_losses(loss: str | Callable, strategy: str) -> None:
    x, _ = examples((6,))
    target = x[:, :CLASSES].sin()
    stack = replicas.stack(mlp(), [1, 2])
    run = replicas.train(stack, x, target, replicas.SGD(0.01), batch=BATCH, steps=20, loss=loss, strategy=strategy)
    assert np.isnan(run.accuracy).all()
    function = functional.mse_loss if loss == "mse" else loss
    model = stack.module(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for indices in replicas.order(2, EXAMPLES, BATCH, 20):
        optimizer.zero_grad()
        function(model(x[indices]), target[indices]).backward()
        optimizer.step()
    assert distance(run.stack, 1, model) < 1e-9
    evaluation = replicas.evaluate(run.stack, x, target, loss=loss, batch=EXAMPLES, strategy=strategy)
    np.testing.assert_allclose(evaluation.loss[1], function(model(x), target).item(), rtol=1e-9)


@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_evaluation_is_over_all_examples(strategy: str) -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), range(3))
    found = replicas.evaluate(stack, x, y, batch=7, strategy=strategy)
    for replica in range(3):
        out = stack.module(replica)(x)
        np.testing.assert_allclose(found.loss[replica], functional.cross_entropy(out, y).item(), rtol=1e-12)
        assert found.accuracy[replica] == pytest.approx((out.argmax(1) == y).double().mean().item(), rel=1e-12)


def test_what_an_evaluation_draws_is_each_replicas_own_and_the_programs_generator_stays() -> None:
    x, y = examples((6,))
    stack = replicas.stack(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)).double(), range(3))
    state = torch.get_rng_state()
    found = replicas.evaluate(stack, x, y, batch=7).loss
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    np.testing.assert_array_equal(replicas.evaluate(stack.part(slice(1, 3)), x, y, batch=7).loss, found[1:])
    halves = [replicas.evaluate(stack, x[:1].expand(4, -1), y[:1].expand(4), batch=size).loss for size in (4, 1)]
    assert not np.array_equal(*halves)  # each batch has draws of its own


def test_accuracy_is_that_of_the_mini_batch() -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), range(2))
    run = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=1)
    indices = replicas.order(1, EXAMPLES, BATCH, 1)[0]
    assert run.accuracy[0, 1] == (stack.module(1)(x[indices]).argmax(1) == y[indices]).double().mean().item()


@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_signals_of_a_linear_chain_against_matrix_products(strategy: str) -> None:
    x, _ = examples((6,))
    cotangent = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]])
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Identity(), nn.Linear(5, CLASSES, bias=False)).double()
    stack = replicas.stack(model, range(2))
    found = replicas.signals(stack, x[:2], cotangent, strategy=strategy)
    assert found.layers == ("0", "2")
    assert found.sizes == (5, CLASSES)
    for replica in range(2):
        w0, w2 = stack.parameters["0.weight"][replica], stack.parameters["2.weight"][replica]
        z = [x[:2] @ w0.T, x[:2] @ w0.T @ w2.T]
        g = [cotangent.double() @ w2, cotangent.double()]
        for signals, second, mean, overlap in (
            (z, found.forward, found.forward_mean, found.forward_overlap),
            (g, found.backward, found.backward_mean, found.backward_overlap),
        ):
            for layer, signal in enumerate(signals):
                np.testing.assert_allclose(second[layer, replica], signal.square().mean(1), rtol=1e-12)
                np.testing.assert_allclose(mean[layer, replica], signal.mean(1), rtol=1e-12)
                np.testing.assert_allclose(overlap[layer, replica], signal @ signal.T / signal.shape[1], rtol=1e-12)
        cosine = functional.cosine_similarity(z[1][0], z[1][1], dim=0).item()
        np.testing.assert_allclose(found.correlation[1, replica, 0, 1], cosine, rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_signals_that_leave_the_range_are_recorded(activation: str) -> None:
    """In float32, 1e20^3 is out of range and stays infinite; what tanh saturates comes back with a zero gradient."""
    model = mlp({"relu": nn.ReLU, "tanh": nn.Tanh}[activation], depth=3, width=1, inputs=1).float()
    stack = replicas.stack(model, [0], lambda module, _: [nn.init.constant_(p, 1e20) for p in module.parameters()])
    found = replicas.signals(stack, torch.ones(1, 1), torch.ones(1, CLASSES))
    if activation == "relu":
        assert found.forward[0, 0, 0] == pytest.approx(4e40, rel=1e-6)
        assert np.isinf(found.forward[2:]).all()
    else:
        assert (found.backward[:3] == 0).all()


@pytest.mark.parametrize("name", ["tanh", "residual", "batch norm", "undecided"])
def test_watched_signals_are_those_of_the_mini_batch(name: str) -> None:
    build, shape, strategies = MODELS[name]
    x, y = examples(shape)
    stack = replicas.stack(build().double(), [5, 6, 7])
    train = {"batch": BATCH, "steps": 4, "strategy": strategies[0]}
    run = replicas.train(stack, x, y, replicas.SGD(0.1), watch=[0, 3], **train)
    bare = replicas.train(stack, x, y, replicas.SGD(0.1), **train)
    assert sorted(run.signals) == [0, 3]
    assert np.array_equal(run.loss, bare.loss)
    module = stack.module(1)
    seen: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            out.retain_grad()
            seen[layer] = out

        return hook

    for layer, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(keep(layer))
    indices = replicas.order(6, EXAMPLES, BATCH, 1)[0]
    functional.cross_entropy(module(x[indices]), y[indices]).backward()
    for place, layer in enumerate(run.signals[0].layers):
        if layer not in seen:  # the weights of another replica sent it there
            assert np.isnan(run.signals[0].forward[place, 1]).all()
            assert np.isnan(run.signals[0].backward[place, 1]).all()
            continue
        out = seen[layer].flatten(1).detach()
        gradient = seen[layer].grad.flatten(1)
        np.testing.assert_allclose(run.signals[0].forward[place, 1], out.square().mean(1), rtol=1e-9)
        np.testing.assert_allclose(run.signals[0].backward[place, 1], gradient.square().mean(1), rtol=1e-9)
        assert run.signals[0].forward_overlap.shape[2:] == (0, 0)
    assert set(seen) <= set(run.signals[0].layers)


@pytest.mark.parametrize("name", [name for name in nn.modules.activation.__all__ if name != "MultiheadAttention"])
def test_every_activation_of_torch_gives_the_gradient_of_autograd(name: str) -> None:
    kind = getattr(nn, name)
    try:
        module = kind() if name != "Threshold" else kind(0.1, 0.2)
    except TypeError:
        pytest.skip("needs arguments")
    model = nn.Sequential(nn.Linear(6, 8), module, nn.Linear(4 if name == "GLU" else 8, CLASSES)).double()
    found = chain(model)
    across = name in {"GLU", "LogSoftmax", "PReLU", "RReLU", "Softmax", "Softmax2d", "Softmin"}
    assert (found is None) == across
    if found is None:
        return
    x, _ = examples((6,))
    stack = replicas.stack(model, [1, 2])
    cotangent = torch.ones(EXAMPLES, CLASSES)
    by_hand, reference = (replicas.signals(stack, x, cotangent, strategy=s) for s in ("chain", "loop"))
    np.testing.assert_allclose(by_hand.backward, reference.backward, rtol=1e-12)
    np.testing.assert_allclose(by_hand.forward, reference.forward, rtol=1e-12)


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


def shared() -> nn.Module:
    linear = nn.Linear(3, 3)
    return nn.Sequential(linear, nn.Tanh(), linear)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(requires_grad=False)
    return model


def draw_all(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.5, generator=generator)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(lambda _m, _i, out: 2 * out)
    return model


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("build", [Shortcut, shared, tied, frozen, hooked, parametrized])
def test_what_is_no_chain_is_trained_right_all_the_same(build: Callable[[], nn.Module]) -> None:
    model = build().double()
    assert chain(model) is None
    x, y = examples((3,))
    stack = replicas.stack(model, [1, 2], draw_all)
    assert not torch.equal(*next(iter(stack.parameters.values())))
    results = []
    for strategy in ("vmap", "loop"):
        run = replicas.train(stack, x, y, replicas.SGD(0.1, momentum=0.9), batch=BATCH, steps=20, strategy=strategy)
        results.append(run)
        expected, _ = alone(stack, 1, (x, y), lambda p, _: torch.optim.SGD(p, 0.1, momentum=0.9))
        whole = replicas.train(
            stack, x, y, replicas.SGD(0.1, momentum=0.9), batch=BATCH, steps=STEPS, strategy=strategy
        )
        assert distance(whole.stack, 1, expected) < 1e-9
    np.testing.assert_allclose(results[0].loss, results[1].loss, rtol=1e-9)


def test_dropout_that_drops_nothing_vanishes_from_a_chain() -> None:
    assert chain(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.Tanh())) is not None
    assert chain(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Tanh())) is None
    assert chain(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Tanh()).eval()) is not None


def test_in_place_activations_do_not_spoil_the_signals() -> None:
    x, _ = examples((6,))
    stacks = [replicas.stack(mlp(lambda flag=flag: nn.ELU(inplace=flag)), [3]) for flag in (False, True)]
    plain, in_place = (replicas.signals(stack, x, torch.ones(EXAMPLES, CLASSES)) for stack in stacks)
    assert np.array_equal(plain.forward, in_place.forward)
    assert np.array_equal(plain.backward, in_place.backward)


def test_tokens() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, CLASSES)).double()
    x = torch.randint(0, 7, (EXAMPLES, 3), generator=torch.Generator().manual_seed(0))
    y = x[:, 0] % CLASSES
    stack = replicas.stack(model, range(8))
    run = replicas.train(stack, x, y, replicas.Adam(0.02), batch=BATCH, steps=STEPS)
    assert run.strategy == "vmap"
    expected, _ = alone(stack, 5, (x, y), lambda p, _: torch.optim.Adam(p, 0.02))
    assert distance(run.stack, 5, expected) < 1e-9


def test_memory_follows_from_sizes() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    parameters, batch = 6 * 8 + 8 + 8 * 3 + 3, 16
    activations = batch * (8 + 8 + 3)
    each = 4 * (4 * parameters + 3 * activations + 2 * batch * 6)
    for count in (1, 2, 50):
        assert replicas.most(model, count * each, shape=(6,), batch=batch) == count
        assert replicas.most(model, count * each + each - 1, shape=(6,), batch=batch) == count
    assert replicas.most(model, 1, shape=(6,), batch=batch) == 1
    assert replicas.most(model.to("meta"), 9 * each, shape=(6,), batch=batch) == 9
    adam = replicas.most(model, 10 * (each + 4 * parameters), shape=(6,), batch=batch, optimizer=replicas.Adam())
    assert adam == 10
    # A model that asks for values, and one whose running statistics must not move.
    assert replicas.most(Undecided(), 10**6, shape=(6,), batch=batch) > 1
    norm = Convolutional(nn.BatchNorm2d(4))
    replicas.most(norm, 10**6, shape=(1, 6, 6), batch=batch)
    assert int(norm[1].num_batches_tracked) == 0


def test_a_training_runs_the_model_for_its_sizes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples((1, 6, 6))
    asked, calls = [], memory._calls
    monkeypatch.setattr(memory, "_calls", lambda *arguments: asked.append(1) or calls(*arguments))
    stack = replicas.stack(Convolutional(nn.Identity()).double(), range(2))
    run = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=1)
    assert (run.strategy, len(asked)) == ("vmap", 1)  # whether that pays, by two sizes, and how many fit into a block


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, x, y: replicas.train(s, x, y, replicas.SGD([0.1] * 3), batch=4, steps=1), "lr has 3 values for 2"),
        (lambda s, x, y: replicas.train(s, x, y[:9], replicas.SGD(0.1), batch=4, steps=1), "40 inputs and 9 targets"),
        (lambda s, x, y: replicas.train(s, x, y, replicas.SGD(0.1), batch=0, steps=1), "at least one example"),
        (
            lambda s, x, y: replicas.train(s, x, y, replicas.SGD(0.1), batch=4, steps=1, order_seeds=[1]),
            "1 seeds for 2 replicas",
        ),
        (
            lambda s, x, y: replicas.train(s, x, y, replicas.SGD(0.1), batch=4, steps=1, strategy="fast"),
            "no strategy 'fast'; there is chain, vmap, loop",
        ),
        (lambda s, x, y: replicas.evaluate(s, x, y, loss="hinge"), "no loss 'hinge'; there is cross_entropy, mse"),
        (lambda s, x, _: replicas.signals(s, x, torch.ones(5, 5)), r"is \(40, 3\) or \(2, 40, 3\), not \(5, 5\)"),
        (lambda *_: replicas.stack(mlp(), []), "at least one replica"),
        (
            lambda *_: replicas.stack(mlp(), [1], lambda *_, **__: None, gain=[1, 2]),
            "'gain' has 2 values for 1 replicas",
        ),
        (lambda *_: replicas.stack(mlp(), [1], gain=[1]), "of which there is none"),
        (lambda *_: replicas.stack(parametrized(), [1]), "no module's reset_parameters draws"),
        (lambda *_: replicas.stack(mlp().to("meta"), [1]), "build it on the CPU"),
        (lambda *_: replicas.SGD(0.1, nesterov=True), "momentum above zero"),
        (
            lambda _s, x, y: replicas.train(
                replicas.stack(Residual().double(), [1]), x, y, replicas.SGD(0.1), batch=4, steps=1, strategy="chain"
            ),
            "not a chain",
        ),
        (
            lambda _s, x, y: replicas.train(
                replicas.stack(nn.Flatten(), [1]), x, y, replicas.SGD(0.1), batch=4, steps=1
            ),
            "without parameters",
        ),
    ],
)
def test_errors_say_what_would_work(call: Callable, says: str) -> None:
    x, y = examples((6,))
    with pytest.raises(ValueError, match=says):
        call(replicas.stack(mlp(), [1, 2]), x, y)


def test_a_loop_and_its_fields_by_name_are_the_same() -> None:
    x, y = examples((6,))
    stack, loop = replicas.stack(mlp(), [1, 2]), replicas.Loop(batch=BATCH, steps=9, clip=[0.1, 1.0])
    named = replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=3, clip=[0.1, 1.0])
    assert np.array_equal(replicas.train(stack, x, y, replicas.SGD(0.1), loop, steps=3).loss, named.loss)
    assert np.array_equal(replicas.train(stack, x, y, replicas.SGD(0.1), loop).loss[:3], named.loss)
    with pytest.raises(TypeError, match="'momentum'"):
        replicas.train(stack, x, y, replicas.SGD(0.1), loop, momentum=0.9)
    with pytest.raises(TypeError, match="'steps'"):
        replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH)


def test_nothing_is_warned_of() -> None:
    x, y = examples((1, 6, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack = replicas.stack(Convolutional(nn.BatchNorm2d(4)).double(), range(8))
        replicas.train(stack, x, y, replicas.SGD(0.1), batch=BATCH, steps=1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_as_on_the_processor(name: str) -> None:
    build, shape, strategies = MODELS[name]
    x, y = examples(shape)
    results = [
        replicas.train(
            replicas.stack(build().double(), range(3), device=device),
            x, y, replicas.SGD(LR, momentum=0.9), batch=BATCH, steps=STEPS, clip=1.0, strategy=strategies[0],
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    np.testing.assert_allclose(results[1].loss, results[0].loss, rtol=1e-7)


# -- looking at replicas while they train ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_inspected_replicas_are_those_of_a_shorter_training(strategy: Any) -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), seeds=range(3))
    seen: dict[int, dict[int, Tensor]] = {}

    def inspect(step: int, rows: slice, part: replicas.Stack) -> None:
        weights = next(iter(part.parameters.values()))
        seen.setdefault(step, {}).update(zip(range(3)[rows], weights.clone(), strict=True))

    settings: dict[str, Any] = {"batch": 4, "strategy": strategy}
    sgd = replicas.SGD(LR[:3], momentum=0.9)
    run = replicas.train(stack, x, y, sgd, steps=6, checkpoints=(0, 2, 6), inspect=inspect, **settings)
    assert sorted(seen) == [0, 2, 6]
    for step, weights in seen.items():
        short = replicas.train(stack, x, y, sgd, steps=step, **settings)
        for replica in range(3):
            assert torch.equal(weights[replica], next(iter(short.stack.parameters.values()))[replica])
    assert run.taken.tolist() == [6, 6, 6]


@pytest.mark.parametrize("strategy", ["chain", "vmap", "loop"])
def test_a_training_ends_where_its_inspection_says_so(strategy: Any) -> None:
    x, y = examples((6,))
    stack = replicas.stack(mlp(), seeds=range(3))
    run = replicas.train(
        stack, x, y, replicas.SGD([0.1, 0.1, float("nan")]), batch=4, steps=9, checkpoints=range(10),
        inspect=lambda step, _rows, _part: step == 5, strategy=strategy,
    )  # fmt: skip
    assert run.taken.tolist() == [5, 5, 5]
    assert np.isfinite(run.loss[:5, :2]).all()
    assert np.isnan(run.loss[5:]).all()
    assert run.diverged_at.tolist() == [-1, -1, 1]
    short = replicas.train(stack, x, y, replicas.SGD(0.1), batch=4, steps=5, strategy=strategy)
    assert torch.equal(*(next(iter(each.stack.parameters.values()))[:2] for each in (run, short)))


def test_replicas_of_one_seed_and_one_scheme_are_drawn_once() -> None:
    calls = []

    def initialize(module: nn.Module, generator: torch.Generator, scale: object) -> None:
        calls.append(scale)
        factor = scale[0] if isinstance(scale, list) else scale
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * factor + torch.randn(1))

    made = replicas.stack(nn.Linear(3, 2), [0, 1, 0, 0, 0], initialize, scale=[1.0, 1.0, 1.0, 2.0, 1])
    assert calls == [1.0, 1.0, 2.0, 1]
    for rows in made.parameters.values():
        assert torch.equal(rows[2], rows[0])
        assert not torch.equal(rows[1], rows[0])
        assert not torch.equal(rows[3], rows[0])
        assert torch.equal(rows[4], rows[0])  # of another type, drawn by itself
    calls.clear()
    replicas.stack(nn.Linear(3, 2), [0, 0], initialize, scale=[[1.0], [1.0]])  # what cannot be compared
    assert calls == [[1.0], [1.0]]
