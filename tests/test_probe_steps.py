"""Which step, backward pass and mode a row belongs to; what people call an optimizer; loss scales."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge import probe

KEY = ["step", "direction", "layer", "call", "pass", "training", "parameter", "output"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(n=5):
    return torch.randn(n, 3)


def unique(frame):
    return not frame.duplicated(KEY).any()


def steps_of(frame, direction="activation", layer="0"):
    return frame[(frame.direction == direction) & (frame.layer == layer)].step.tolist()


# Loops, each as someone writes it: (model, optimizer) -> nothing. What a row says must be said by no other row.


def plain(model, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()


def gradient_penalty(model, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        x = batch().requires_grad_()
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (du.square().mean() + u.square().mean()).backward()
        optimizer.step()


def retained(model, optimizer):
    for _ in range(2):
        loss = model(batch()).square().mean()
        for _ in range(3):
            loss.backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()


def accumulation(model, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(3):
            model(batch()).square().mean().backward()
        optimizer.step()


def clipped_accumulation(model, optimizer):
    """Gradients are written to between two micro-batches, and yet nothing is cleared."""
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(3):
            model(batch()).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def accumulation_with_evaluation(model, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            model(batch()).square().mean().backward()
            model.eval()
            with torch.inference_mode():
                model(batch())
                model(batch())
            model.train()
        optimizer.step()


def alternating_heads(model, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        hidden = model[1](model[0](batch()))
        hidden.sum().backward(retain_graph=True)
        model[2](hidden).sum().backward()
        optimizer.step()


def grad_only_between_forwards(model, optimizer):
    """`torch.autograd.grad` leaves nothing in `.grad`, which hence is not cleared either."""
    for _ in range(2):
        optimizer.zero_grad()
        x = batch().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)
        model(batch()).square().mean().backward()
        optimizer.step()


def residual_of_an_equation(model, optimizer, *, skipped=(), early=False):
    """Gradients of the last step are cleared between `torch.autograd.grad` and the backward pass."""
    for step in range(3):
        x = batch().requires_grad_()
        (du,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        if early:
            optimizer.zero_grad()
        loss = (du - 1).square().mean() + model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step not in skipped:
            optimizer.step()


class Forces(nn.Module):
    """Energies, and their gradient, of which the model's own forward takes `torch.autograd.grad`."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        energy = self.energy(x.requires_grad_())
        return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


def forces(model, optimizer, *, skipped=()):
    for step in range(3):
        energy, force = model(batch())
        optimizer.zero_grad()
        (energy.square().mean() + force.square().mean()).backward()
        if step not in skipped:
            optimizer.step()


def checkpointed(model, optimizer, reentrant):
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            x = batch().requires_grad_()
            out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
            (out + torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)).sum().backward()
        optimizer.step()


def backward_after_the_step(model, optimizer):
    loss = model(batch()).square().mean()
    for _ in range(2):
        loss.backward(retain_graph=True)
        model(batch())
    optimizer.step()
    model[0].weight.data.copy_(model[0].weight.data)  # as it was, so that autograd lets the old graph pass
    loss = model(batch()).square().mean()
    loss.backward()


LOOPS = {
    "plain": (plain, 3),
    "gradient penalty": (gradient_penalty, 2),
    "retained graph": (retained, 2),
    "accumulation": (accumulation, 2),
    "accumulation, clipped at each micro-batch": (clipped_accumulation, 2),
    "accumulation, evaluated in between": (accumulation_with_evaluation, 2),
    "alternating heads": (alternating_heads, 2),
    "autograd.grad between forward passes": (grad_only_between_forwards, 2),
    "residual of an equation": (residual_of_an_equation, 3),
    "checkpointed": (lambda m, o: checkpointed(m, o, reentrant=False), 2),
    "checkpointed, reentrant": (lambda m, o: checkpointed(m, o, reentrant=True), 2),
}


@pytest.mark.parametrize("directions", [None, ("weight", "weight_gradient"), ("activation_gradient",)], ids=str)
@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_two_rows_have_one_key(loop, with_optimizer, directions):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with probe.track(model, optimizer=optimizer if with_optimizer else None, directions=directions) as record:
        LOOPS[loop][0](model, optimizer)
    frame = record.to_frame()
    assert len(frame)
    assert unique(frame)
    if with_optimizer:
        assert set(frame.step) == set(range(LOOPS[loop][1]))
        assert not frame.skipped.any()


def test_backward_passes_are_counted():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    with probe.track(model, optimizer=optimizer) as record:
        gradient_penalty(model, optimizer)
    frame = record.to_frame()
    gradients = frame[frame.direction == "activation_gradient"]
    assert gradients.groupby(["step", "layer"])["pass"].apply(list).tolist() == [[0, 1]] * 6
    # Pass 0 is that of du/dx, which begins with ones; the loss begins with 2 u / 5.
    first = gradients[(gradients.layer == "2") & (gradients["pass"] == 0)]
    assert first.second_moment.tolist() == [1.0, 1.0]
    assert set(frame[frame.direction != "activation_gradient"]["pass"]) == {0}


def test_two_heads_are_two_passes_also_where_one_is_not_reached():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with probe.track(model, optimizer=optimizer) as record:
        alternating_heads(model, optimizer)
    frame = record.to_frame()
    frame = frame[(frame.direction == "activation_gradient") & (frame.step == 0)]
    assert frame.groupby("layer")["pass"].apply(list).to_dict() == {"0": [0, 1], "1": [0, 1], "2": [1]}


def test_reentrant_checkpoints_belong_to_the_pass_that_they_run_in():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with probe.track(model, optimizer=optimizer) as record:
        checkpointed(model, optimizer, reentrant=True)
    frame = record.to_frame()
    frame = frame[(frame.direction == "activation_gradient") & (frame.layer == "2") & (frame.step == 0)]
    # Two checkpoints in each of two micro-batches; which of the two is computed again first, autograd decides.
    assert sorted(zip(frame["pass"], frame.call, strict=True)) == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_training_and_evaluation_are_told_apart_and_counted_apart():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with probe.track(model, optimizer=optimizer) as record:
        accumulation_with_evaluation(model, optimizer)
    frame = record.to_frame()
    own = frame[(frame.direction == "activation") & (frame.layer == "0") & (frame.step == 1)]
    assert own[own.training].call.tolist() == [0, 1]
    assert own[~own.training].call.tolist() == [0, 1, 2, 3]
    assert frame[frame.direction == "weight"].training.all()


# Skipped steps.


def overflowing():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    for layer in model[:2]:
        nn.init.constant_(layer.weight, 60.0)
    return model


def scaled_loop(order, model, optimizer, scaler, *, steps, set_to_none):
    x = torch.ones(3, 16)

    def forward():
        with torch.autocast("cpu", torch.float16):
            return model(x).square().mean()

    for _ in range(steps):
        if order == "first":
            optimizer.zero_grad(set_to_none)
        loss = forward()
        if order == "between":
            optimizer.zero_grad(set_to_none)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if order == "last":
            optimizer.zero_grad(set_to_none)


@pytest.mark.parametrize("directions", [None, ("weight",), ("activation",)], ids=str)
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["scaler given", "scaler not given"])
@pytest.mark.parametrize("order", ["first", "between", "last"])
def test_a_step_that_a_scaler_skips_is_a_step(order, given, set_to_none, directions):
    model = overflowing()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    calls = []

    def on_step(record):
        calls.append(len(record))

    with probe.track(
        model,
        optimizer=optimizer,
        scaler=scaler if given else None,
        on_step=on_step,
        directions=directions,
    ) as record:
        scaled_loop(order, model, optimizer, scaler, steps=10, set_to_none=set_to_none)
    assert len(calls) == 10
    frame = record.to_frame()
    assert unique(frame)
    assert frame.skipped.all()
    if directions is None:
        for direction in ("activation", "activation_gradient"):
            assert steps_of(frame, direction, "1") == list(range(10))


@pytest.mark.parametrize("order", ["first", "between", "last"])
def test_rows_are_there_once_where_each_step_is_written_and_cleared(order):
    model = overflowing()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    frames = []

    def write(record):
        frames.append(record.to_frame())
        record.clear()

    with probe.track(model, optimizer=optimizer, on_step=write, directions="activation") as record:
        scaled_loop(order, model, optimizer, scaler, steps=6, set_to_none=True)
    seen = [step for frame in frames for step in steps_of(frame, "activation", "2")]
    seen += steps_of(record.to_frame(), "activation", "2")
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("skipped", [(), (1,)])
@pytest.mark.parametrize(
    "loop", [residual_of_an_equation, functools.partial(residual_of_an_equation, early=True), forces]
)
def test_a_pass_that_leaves_no_gradients_ends_no_step(loop, skipped, set_to_none):
    model = Forces(net()) if loop is forces else net()
    layer, passes = ("energy.0", 1) if loop is forces else ("0", 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    optimizer.zero_grad = functools.partial(optimizer.zero_grad, set_to_none)
    told = []

    def on_step(record):
        told.append(steps_of(record.to_frame(), layer=layer))
        record.clear()

    with probe.track(model, optimizer=optimizer, on_step=on_step, directions=["activation", "update"]) as record:
        loop(model, optimizer, skipped=skipped)
    assert told == [[step] * passes for step in range(3)]
    assert record._skipped == set(skipped)


def test_no_mode_of_the_program_sees_a_look_at_gradients():
    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.any:
                raise NotImplementedError
            return func(*args, **(kwargs or {}))

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Refuses(), probe.track(model, optimizer=optimizer, directions=["activation"]) as record:
        for _ in range(2):
            model(batch()).sum().backward()
            optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    assert steps_of(record.to_frame()) == [0, 1]


def test_every_second_step_also_where_steps_are_skipped():
    model = overflowing()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    calls = []
    with probe.track(model, optimizer=optimizer, every=2, on_step=calls.append) as record:
        scaled_loop("first", model, optimizer, scaler, steps=7, set_to_none=True)
    assert set(record.to_frame().step) == {0, 2, 4, 6}
    assert len(calls) == 4


@pytest.mark.parametrize("order", ["first", "between", "last"])
def test_a_scaler_that_recovers(order):
    model = net()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with probe.track(model, optimizer=optimizer, scaler=scaler) as record:
        for _ in range(4):
            if order == "first":
                optimizer.zero_grad()
            loss = model(batch()).mean() * 64
            if order == "between":
                optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(2.0**10)
            if order == "last":
                optimizer.zero_grad()
    frame = record.to_frame()
    assert unique(frame)
    assert steps_of(frame) == steps_of(frame, "activation_gradient") == [0, 1, 2, 3]
    assert set(steps_of(frame, "update")) == {1, 2, 3}
    assert set(frame[frame.skipped].step) == {0}


def test_a_fused_optimizer_that_skips_by_itself():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with probe.track(model, optimizer=optimizer, scaler=scaler) as record:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(batch()).mean() * 64).backward()
            scaler.step(optimizer)
            scaler.update(2.0**10)
    frame = record.to_frame()
    assert frame.groupby("step").skipped.agg(["all", "any"]).to_numpy().tolist() == [[True, True], [False, False]]
    update = frame[(frame.direction == "update") & (frame.step == 0)]
    assert (update.zeros == update["count"]).all()
    shares = record.fractions("float32")
    # It unscales by itself, so that step() found scaled gradients.
    assert set(shares[shares.direction == "weight_gradient"].loss_scale) == {2.0**127, 2.0**10}


def test_a_block_that_ends_before_the_step():
    model = net()
    optimizer, calls = torch.optim.SGD(model.parameters(), 0.1), []
    with probe.track(model, optimizer=optimizer, on_step=lambda record: calls.append(len(record))) as record:
        plain(model, optimizer)
        model(batch()).sum().backward()
    assert len(calls) == 4
    frame = record.to_frame()
    assert set(frame[frame.skipped].step) == {3}


def test_a_look_at_forces_after_the_last_step_is_no_step():
    model, calls = Forces(net()), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer, on_step=calls.append) as record:
        forces(model, optimizer)
        model(batch())
    assert len(calls) == 3
    assert not record._skipped


# What people call an optimizer.


class Lookahead(torch.optim.Optimizer):
    """Shares the state of the one inside and does not call `super().__init__`."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class Proper(torch.optim.Optimizer):
    """A wrapper that does call it, and updates twice."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.base_optimizer = optimizer

    def step(self, closure=None):
        self.base_optimizer.step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)


class Wrapper:
    """No Optimizer at all."""

    def __init__(self, optimizer):
        self.optim = optimizer

    def zero_grad(self):
        self.optim.zero_grad()

    def step(self):
        self.optim.step()


class Chain:
    def __init__(self, *optimizers):
        self.chained_optimizers = list(optimizers)

    def zero_grad(self):
        for optimizer in self.chained_optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.chained_optimizers:
            optimizer.step()


def sgd(part):
    return torch.optim.SGD(part.parameters(), 0.1)


WRAPPERS = {
    "Lookahead": lambda model: Lookahead(sgd(model)),
    "Lookahead of Lookahead": lambda model: Lookahead(Lookahead(sgd(model))),
    "no Optimizer": lambda model: Wrapper(sgd(model)),
    "several inside": lambda model: Chain(sgd(model[0]), sgd(model[2])),
    "both wrapped": lambda model: Chain(Lookahead(sgd(model[0])), Wrapper(sgd(model[2]))),
    "plain": sgd,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_is_looked_through(wrap):
    model = net()
    optimizer = wrap(model)
    with probe.track(model, optimizer=optimizer) as record:
        plain(model, optimizer)
    frame = record.to_frame()
    assert unique(frame)
    for direction in ("weight", "weight_gradient", "update"):
        assert sorted(steps_of(frame, direction, "2")) == [0, 0, 1, 1, 2, 2]
    inner = [each for each in vars(optimizer).values() if isinstance(each, torch.optim.Optimizer)]
    assert not any(each._optimizer_step_pre_hooks for each in inner if "_optimizer_step_pre_hooks" in vars(each))


def test_the_outermost_step_is_the_step():
    model = net()
    optimizer = Proper(sgd(model))
    with probe.track(model, optimizer=optimizer, directions="update") as record:
        before = model[0].weight.detach().clone()
        plain(model, optimizer)
    frame = record.to_frame()
    assert len(frame) == 3 * 4
    first = frame[(frame.layer == "0") & (frame.parameter == "weight")]
    assert first["mean"].sum() == pytest.approx((model[0].weight - before).mean().item(), rel=1e-5)


class Shifted(torch.optim.SGD):
    """One that goes on after its parent's step."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(1.0)
        if self.fails:
            raise ArithmeticError


def test_the_step_of_a_subclass_ends_when_that_of_its_parent_and_what_follows_have():
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)  # from now on the parent's runs the hooks, too
    model = nn.Linear(3, 2)
    optimizer = Shifted(model.parameters(), lr=0.0)
    with probe.track(model, optimizer=optimizer, directions=["weight", "update"]) as record:
        for optimizer.fails in (False, True, False):
            model(torch.ones(1, 3)).sum().backward()
            with contextlib.suppress(ArithmeticError):
                optimizer.step()
    frame = record.to_frame()
    update = frame[frame.direction == "update"]
    assert update["step"].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(update["mean"], 1.0, rtol=1e-6)


def test_a_list_is_one_step_each_time_the_last_has_stepped():
    model = net()
    first, last = sgd(model[0]), torch.optim.AdamW(model[2].parameters())
    with probe.track(model, optimizer=[first, last]) as record:
        for _ in range(2):
            for _ in range(3):  # as a critic's
                first.zero_grad()
                model(batch()).square().mean().backward()
                first.step()
            last.zero_grad()
            model(batch()).square().mean().backward()
            last.step()
    frame = record.to_frame()
    assert unique(frame)
    assert not frame.skipped.any()
    update = frame[(frame.direction == "update") & (frame.parameter == "weight")]
    assert update.groupby(["step", "layer"]).call.apply(list).to_dict() == {
        (0, "0"): [0, 1, 2],
        (0, "2"): [3],
        (1, "0"): [0, 1, 2],
        (1, "2"): [3],
    }


def test_a_parameter_outside_of_the_groups_gets_no_update():
    model = net()
    optimizer = sgd(model[2])
    with probe.track(model, optimizer=optimizer) as record:
        plain(model, optimizer)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        plain(model, optimizer)
    frame = record.to_frame()
    assert sorted(set(steps_of(frame, "update", "0"))) == [3, 4, 5]
    assert sorted(set(steps_of(frame, "weight_gradient", "0"))) == list(range(6))


@pytest.mark.parametrize("directions", [None, ("update",)], ids=["all", "updates"])
def test_a_parameter_that_is_frozen_meanwhile_has_no_update_from_before(directions):
    model = net()
    optimizer = sgd(model)
    with probe.track(model, optimizer=optimizer, directions=directions) as record:
        plain(model, optimizer)
        model[0].weight.requires_grad_(requires_grad=False)
        plain(model, optimizer)
        model[0].weight.requires_grad_()
        plain(model, optimizer)
    frame = record.to_frame()
    own = frame[(frame.direction == "update") & (frame.layer == "0") & (frame.parameter == "weight")]
    assert own.step.tolist() == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("directions", [None, "update"])
def test_a_model_that_becomes_float64_within_the_block(directions):
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    x = torch.randn(4, 8)
    with probe.track(model, optimizer=optimizer, directions=directions) as record:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.double()
        with torch.no_grad():
            model.weight += 1e-10  # which float32 does not hold
        before = model.weight.detach().clone()
        model(x.double()).sum().backward()
        optimizer.step()
    frame = record.to_frame()
    update = frame[(frame.direction == "update") & (frame.parameter == "weight") & (frame.step == 1)]
    true = model.weight.detach() - before
    assert update["mean"].item() == pytest.approx(true.mean().item(), rel=1e-12)
    assert update["min"].item() == true.min().item()


@pytest.mark.parametrize("directions", [None, ("update",)], ids=["all", "updates"])
def test_a_parameter_that_is_given_another_shape(directions):
    model = nn.Linear(3, 2)
    optimizer = sgd(model)
    with probe.track(model, optimizer=optimizer, directions=directions) as record:
        for width in (3, 5, 5, 3):
            optimizer.zero_grad()
            model.weight.data = torch.randn(2, width)
            model(torch.randn(4, width)).sum().backward()
            before = model.weight.detach().clone()
            optimizer.step()
    frame = record.to_frame()
    own = frame[(frame.direction == "update") & (frame.parameter == "weight")]
    assert own["count"].tolist() == [6, 10, 10, 6]
    assert own["mean"].iloc[-1] == pytest.approx((model.weight - before).mean().item())


def test_an_exception_inside_of_a_step_leaves_the_next_one_whole():
    model = net()
    optimizer = sgd(model)
    with probe.track(model, optimizer=optimizer) as record:

        def closure():
            raise ArithmeticError

        with pytest.raises(ArithmeticError):
            optimizer.step(closure)
        plain(model, optimizer)
    assert sorted(set(steps_of(record.to_frame(), "update"))) == [0, 1, 2]


def test_an_exception_inside_of_one_of_several_leaves_the_step_of_the_others():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            if next(raises):
                raise ArithmeticError
            return super().step(closure)

    model, raises = net(), iter([False, True, False])
    first, last = Raises(model[0].parameters(), 0.1), torch.optim.SGD(model[2].parameters(), 0.1)
    with probe.track(model, optimizer=[first, last], directions=["update"]) as record:
        for _ in range(3):
            model(batch()).sum().backward()
            with contextlib.suppress(ArithmeticError):
                first.step()
            last.step()
    frame = record.to_frame()
    assert steps_of(frame, "update", "2") == [0, 0, 1, 1, 2, 2]
    assert set(frame[frame["count"] > 0].layer) == {"0", "2"}
    assert steps_of(frame, "update", "0") == [0, 0, 2, 2]


def test_gradients_are_read_before_the_step_that_may_change_them():
    class Eats(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.zero_()

    model = net()
    optimizer = Eats(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer, directions="weight_gradient") as record:
        model(batch()).sum().backward()
        optimizer.step()
    assert (record.to_frame().zeros == 0).all()


class NotOne:
    def step(self):
        pass


@pytest.mark.parametrize(
    "optimizer", [NotOne(), [], {}, "adam", [NotOne()]], ids=["other", "[]", "{}", "adam", "[other]"]
)
def test_what_is_no_optimizer_ends_in_a_sentence(optimizer):
    with (
        pytest.raises(ValueError, match="pass the one that updates the weights"),
        probe.track(net(), optimizer=optimizer),
    ):
        pass


# Loss scales.


def test_a_loss_scale_multiplies_gradients_only():
    model = nn.Linear(4, 4, bias=False)
    nn.init.constant_(model.weight, 25.0)
    with probe.track(model) as record:
        (model(torch.ones(2, 4)).mean() * 1e-3).backward()
    shares = record.fractions("float16", loss_scale=1024).set_index("direction")
    assert shares.over.tolist() == [0.0] * 4
    assert shares.loss_scale.to_dict() == {
        "weight": 1.0,
        "activation": 1.0,
        "activation_gradient": 1024.0,
        "weight_gradient": 1024.0,
    }
    # The gradient is 1e-3 / 8 = 1.25e-4: normal in float16 at any scale up to 2^28, subnormal at 1/4, gone at 2^-13.
    for scale, column in ((1.0, "normal"), (0.25, "subnormal"), (2.0**-13, "under"), (2.0**30, "over")):
        row = record.fractions("float16", loss_scale=scale).set_index("direction").loc["activation_gradient"]
        assert row[column] == 1.0
        assert row.loss_scale == scale


@pytest.mark.parametrize("scaler", ["GradScaler", "number"])
def test_gradients_that_were_seen_scaled_are_known_to_be(scaler):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradscaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with probe.track(model, optimizer=optimizer, scaler=gradscaler if scaler == "GradScaler" else 2.0**12) as scaled:
        gradscaler.scale(model(torch.ones(4, 3)).mean()).backward()
        gradscaler.step(optimizer)
    model = net_again(model, optimizer)
    with probe.track(model, optimizer=optimizer) as bare:
        model(torch.ones(4, 3)).mean().backward()
        optimizer.step()
    as_seen = scaled.fractions("fp8_e5m2")
    assert as_seen[as_seen.direction == "activation_gradient"].loss_scale.unique().tolist() == [2.0**12]
    assert as_seen[as_seen.direction != "activation_gradient"].loss_scale.unique().tolist() == [1.0]
    for scale in (1.0, 2.0**-10, 2.0**20):
        one, other = (record.fractions("fp8_e5m2", loss_scale=scale) for record in (scaled, bare))
        for direction in ("activation_gradient", "weight_gradient"):
            columns = ["layer", "loss_scale", "under", "subnormal", "normal", "over", "n"]
            a, b = (frame[frame.direction == direction][columns].to_numpy().tolist() for frame in (one, other))
            assert a == b


def net_again(model, optimizer):
    """The model as it was before a step of plain SGD with the gradients that it still has."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.grad, alpha=0.1)
    optimizer.zero_grad()
    return model


@pytest.mark.parametrize("loss_scale", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_loss_scale_ends_in_a_sentence(loss_scale):
    model = nn.Identity()
    with probe.track(model) as record:
        model(torch.ones(1))
    with pytest.raises(ValueError, match="loss scale"):
        record.fractions("float16", loss_scale=loss_scale)


@pytest.mark.parametrize("scaler", ["large", float("nan"), -1.0, object()], ids=["large", "nan", "-1", "object"])
def test_what_is_no_scaler_ends_in_a_sentence(scaler):
    with pytest.raises(ValueError, match="is no loss scale"), probe.track(net(), scaler=scaler):
        pass


def test_without_an_optimizer_weight_gradients_have_the_scale_of_their_pass():
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9)
    with probe.track(model, scaler=scaler) as record:
        scaler.scale(model(batch()).mean()).backward()
    shares = record.fractions("float16").groupby("direction").loss_scale.unique().map(list).to_dict()
    assert shares == {
        "activation": [1.0],
        "weight": [1.0],
        "activation_gradient": [2.0**9],
        "weight_gradient": [2.0**9],
    }
