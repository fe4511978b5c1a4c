"""Replicas of models with code of their own: what it keeps, draws, or differentiates by itself is each replica's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import replicas
from depthgauge.replicas.engine import Strategy
from depthgauge.replicas.objective import IGNORED, Objective
from depthgauge.replicas.optimizers import clip, wide
from depthgauge.seeding import Purpose, generator

X = torch.randn(32, 6, generator=generator(0, Purpose.INPUTS))
Y = torch.randint(3, (32,), generator=generator(0, Purpose.LABELS))


class Net(nn.Module):
    """Two layers around a normalization, so that it is no chain; `between` is what a subclass does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.norm(self.first(x))))

    def between(self, h: Tensor) -> Tensor:
        return h.relu()


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class StraightThrough(Net):
    def between(self, h: Tensor) -> Tensor:
        return Sign.apply(h) * 1.0


class Remembers(Net):
    def between(self, h: Tensor) -> Tensor:
        self.seen = h.relu()
        return self.seen


class Counts(Net):
    calls = 0

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * min(1.0, self.calls / 10)


class MovesItsMean(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def between(self, h: Tensor) -> Tensor:
        centred = (h - self.mean).relu()
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return centred


class Draws(Net):
    def between(self, h: Tensor) -> Tensor:
        noise = torch.randn(8) + random.random() + float(np.random.rand())  # noqa: NPY002 - as users do
        return functional.dropout(h, 0.5, self.training) + noise


class Forks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(8, 8)

    def between(self, h: Tensor) -> Tensor:
        return self.extra(h) if self.first.bias.sum() > 0 else h


def trained(model: nn.Module, strategy: Strategy | None = None, seeds: Any = range(6), **settings: Any) -> replicas.Run:
    stack = replicas.stack(model, seeds)
    chosen = {"batch": 8, "steps": 6, "strategy": strategy, **settings}
    return replicas.train(stack, X, Y, replicas.SGD(0.1, momentum=0.9), **chosen)


@pytest.mark.parametrize("kind", [StraightThrough, Remembers, Counts, MovesItsMean])
def test_each_ends_as_the_loop_ends_it(kind: type[Net]) -> None:
    chosen, looped = trained(kind()), trained(kind(), "loop")
    assert chosen.strategy == ("loop" if kind is StraightThrough else "vmap")
    for held, expected in (
        (chosen.stack.parameters, looped.stack.parameters),
        (chosen.stack.buffers, looped.stack.buffers),
    ):
        for name, tensor in expected.items():
            torch.testing.assert_close(held[name], tensor, rtol=1e-4, atol=1e-6)
            assert len({float(each.sum()) for each in tensor}) > 1 or name.startswith("norm")


def test_a_backward_pass_that_does_not_see_the_replicas_is_refused_in_one_call() -> None:
    with pytest.raises(ValueError, match="in one call for all replicas; use 'loop'"):
        trained(StraightThrough(), "vmap")


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_what_a_model_keeps_comes_from_no_neighbour_and_stays_nowhere(strategy: Strategy) -> None:
    template = Counts()
    alone, among = trained(template, strategy, [4]), trained(template, strategy, [1, 2, 4])
    for name, tensor in alone.stack.parameters.items():
        torch.testing.assert_close(tensor[0], among.stack.parameters[name][2], rtol=1e-5, atol=1e-7)
    assert among.stack.template.calls == template.calls == 0
    for stack in (alone.stack, among.stack):
        replicas.evaluate(stack, X, Y, strategy=strategy)
        replicas.signals(stack, X[:2], torch.ones(2, 3), strategy=strategy)
        assert stack.template.calls == 0
    assert isinstance(trained(Remembers(), strategy).stack.module(0), Remembers)


class Copied(Net):
    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        type(self).copies += 1
        copy = type(self)()
        copy.load_state_dict(self.state_dict())
        return copy


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_an_evaluation_copies_no_model_for_each_batch(strategy: Strategy) -> None:
    counts = []
    stack = replicas.stack(Copied(), range(4))
    for batch in (32, 4):
        Copied.copies = 0
        replicas.evaluate(stack, X, Y, batch=batch, strategy=strategy)
        counts.append(Copied.copies)
    assert counts[0] == counts[1] > 0


def test_draws_are_each_seeds_own_and_the_global_generators_stay() -> None:
    found, template = [], Draws()
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002 - what a model draws from
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].sum()  # noqa: NPY002
        run = trained(template)
        seen = replicas.signals(run.stack, X[:3], torch.ones(3, 3))
        found.append([run.loss, replicas.evaluate(run.stack, X, Y).loss, seen.forward, seen.backward])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].sum()) == before[1:]  # noqa: NPY002
    assert run.strategy == "loop"
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_gradients_are_those_of_the_values_that_were_drawn() -> None:
    """Of a loss of half its output's square the gradient with respect to the output is the output."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3, bias=False))
    run = trained(model, watch=[2], loss=lambda outputs, _: 0.5 * outputs.square().sum())
    seen = run.signals[2]
    np.testing.assert_allclose(seen.forward[1], seen.backward[1], rtol=1e-5)


def test_replicas_that_call_other_layers_have_nan_there() -> None:
    stack = replicas.stack(Forks(), range(8))
    seen = replicas.signals(stack, X[:3], torch.ones(3, 3))
    called = (stack.parameters["first.bias"].sum(1) > 0).numpy()
    assert 0 < called.sum() < 8
    assert (np.isfinite(seen.forward[seen.layers.index("extra"), :, 0]) == called).all()
    assert np.isfinite(seen.backward[seen.layers.index("first")]).all()


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_what_works_in_place_behind_a_layer_does_not_change_its_signal(strategy: Strategy) -> None:
    seen = []
    for inplace in (False, True):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(16, 3))
        image = X[:3, :1, None, None].expand(-1, -1, 4, 4) + torch.linspace(-1, 1, 16).view(4, 4)
        seen.append(replicas.signals(replicas.stack(model, range(3)), image, strategy=strategy).forward)
    np.testing.assert_array_equal(*seen)


def test_attention_starts_as_torch_builds_it() -> None:
    stack = replicas.stack(nn.MultiheadAttention(8, 2), [0])
    assert not stack.parameters["out_proj.bias"].any()
    assert stack.parameters["out_proj.weight"].any()


def test_a_lazy_template_is_refused() -> None:
    with pytest.raises(ValueError, match="lazy layers has no sizes yet; call it once"):
        replicas.stack(nn.Sequential(nn.LazyLinear(3)), [0])


def test_buffers_that_share_memory_are_spread() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    model.register_buffer("shift", torch.ones(1).expand(3))
    stack = replicas.stack(model, range(2))
    assert torch.equal(stack.buffers["shift"], torch.ones(2, 3))
    assert stack.module(0).shift.stride() == (1,)
    assert model.shift.stride() == (0,)


class Scaled(Net):
    """Its first parameters are a whole number that is not trained, and a number without dimensions that is."""

    def __init__(self) -> None:
        super().__init__()
        self.times = nn.Parameter(torch.tensor(2), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def between(self, h: Tensor) -> Tensor:
        return h.relu() * self.times * self.scale


def test_parameters_of_other_types_and_without_dimensions() -> None:
    def draw(model: Scaled, draws: torch.Generator) -> None:
        model.scale.fill_(1.5)
        model.first.weight.normal_(generator=draws)
        model.last.weight.normal_(generator=draws)

    stack = replicas.stack(Scaled(), range(5), draw)
    assert next(iter(stack.parameters)) == "times"
    runs = [
        replicas.train(stack, X, Y, replicas.Adam(0.05), batch=8, steps=4, clip=1.0, strategy=s)
        for s in ("vmap", "loop")
    ]
    for name, tensor in runs[1].stack.parameters.items():
        torch.testing.assert_close(runs[0].stack.parameters[name], tensor, rtol=1e-4, atol=1e-5)
    assert (runs[0].stack.parameters["scale"] != 1.5).all()
    assert (runs[0].diverged_at == -1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("largest", [1.0, None])
def test_16_bits_move_as_64_do(dtype: torch.dtype, largest: float | None) -> None:
    """Whose gradients' squares leave float16, and of whose weights torch's fused kernel moves but the odd ones."""

    def draw(model: nn.Module, draws: torch.Generator) -> None:
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws).mul(0.3).to(dtype))

    moves = []
    for held, strategy in ((torch.float64, "chain"), (dtype, "chain"), (dtype, "loop")):
        stack = replicas.stack(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(held), range(2), draw)
        x = (200 * X).to(dtype).to(held)
        run = replicas.train(stack, x, Y, replicas.SGD(0.1), batch=32, steps=1, clip=largest, strategy=strategy)
        moves.append(run.stack.parameters["0.weight"].double() - stack.parameters["0.weight"].double())
    for moved in moves[1:]:
        assert (moved - moves[0]).norm() < 0.15 * moves[0].norm()


def test_norms_of_16_bits_are_taken_in_32() -> None:
    gradients = [torch.full((1, 4), 300.0, dtype=torch.float16), torch.zeros(1, 2, dtype=torch.float16)]
    clip(gradients, torch.ones(1, dtype=wide(gradients)))
    torch.testing.assert_close(gradients[0], torch.full((1, 4), 0.5, dtype=torch.float16))


def test_accuracy_is_a_share_of_examples_in_any_format() -> None:
    stack = replicas.stack(nn.Sequential(nn.Linear(6, 3)).bfloat16(), range(3))
    x, y = X.repeat(31, 1).bfloat16(), Y.repeat(31)
    x, y = x[:983], y[:983]
    right = [int((stack.module(row)(x).argmax(1) == y).sum()) for row in range(3)]
    np.testing.assert_allclose(replicas.evaluate(stack, x, y, batch=983).accuracy * 983, right, rtol=1e-6)


def test_targets_that_cross_entropy_leaves_out() -> None:
    targets = Y.clone()
    targets[::3] = IGNORED
    outputs = torch.randn(2, 32, 3, generator=generator(1, Purpose.INPUTS), dtype=torch.float64)
    everywhere = torch.stack([targets, torch.full_like(targets, IGNORED)])
    objective = Objective.of("cross_entropy", everywhere)
    loss, gradient = objective.stacked(outputs, everywhere)
    for row in range(2):
        leaf = outputs[row].clone().requires_grad_()
        alone = functional.cross_entropy(leaf, everywhere[row])
        torch.testing.assert_close(loss[row], alone.detach(), equal_nan=True)
        torch.testing.assert_close(gradient[row], torch.autograd.grad(alone, leaf)[0], equal_nan=True)
    kept = targets != IGNORED
    accuracy = objective.correct(outputs, everywhere)
    assert accuracy is not None
    assert float(accuracy[0]) == pytest.approx(float((outputs[0].argmax(1) == targets)[kept].double().mean()))


@pytest.mark.parametrize("strategy", ["chain", "loop"])
def test_a_mean_square_over_all_pairs_is_refused(strategy: Strategy) -> None:
    stack = replicas.stack(nn.Sequential(nn.Linear(6, 1)), range(3))
    with pytest.raises(ValueError, match=r"targets of the outputs' shape \(8, 1\), not \(8,\)"):
        replicas.train(stack, X, X[:, 0], replicas.SGD(0.1), batch=8, steps=1, loss="mse", strategy=strategy)


def test_a_loss_that_looks_at_its_numbers_is_taken_one_by_one() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        large = bool(outputs.abs().max() > 1)
        return functional.cross_entropy(outputs, targets) * (2.0 if large else 1.0)

    model = nn.Sequential(nn.Linear(6, 3))
    np.testing.assert_allclose(
        trained(model, "chain", loss=loss).loss, trained(model, "loop", loss=loss).loss, rtol=1e-5
    )
