"""A probe leaves nothing in copies, files and other processes, and nothing writes to a record that is closed."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import probe
from depthgauge.probe import hooks


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def hooks_on(model):
    return [
        name
        for part in model.modules()
        for name, value in vars(part).items()
        if "hook" in name and hasattr(value, "__len__") and len(value)
    ] + [name for name, p in model.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]


def reloaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def joblib_copy(model):
    joblib = pytest.importorskip("joblib")
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": reloaded,
    "joblib": joblib_copy,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "__dict__": lambda model: nn.Sequential(*(copy.deepcopy(part) for part in model)),
}


@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_the_model_has_no_hook_and_writes_nothing(how, with_optimizer):
    model, x = net(), torch.randn(8, 10)
    with probe.track(model, optimizer=sgd(model) if with_optimizer else None) as record:
        model(x).sum().backward()
        assert not hooks_on(model) or not with_optimizer
        twin = COPIES[how](model)
        rows = len(record)
        if how != "copy":  # which shares its parts with the model
            twin(x).sum().backward()
            assert len(record) == rows
            assert not hooks_on(twin)
    rows = len(record)
    twin(x).sum().backward()
    assert len(record) == rows
    assert not hooks_on(twin)
    assert not hooks_on(model)


def test_a_finished_record_that_is_gone_is_not_written_to():
    model, x = net(), torch.randn(8, 10)
    with probe.track(model) as record:
        out = model(x)
        twin = copy.deepcopy(model)
    del record
    gc.collect()
    others = [np.zeros(n, np.int64) for n in (1 << 10, 1 << 14, 1 << 18) for _ in range(20)]
    for _ in range(50):
        twin(x)
    out.sum().backward()
    assert not any(other.any() for other in others)


def test_a_graph_that_outlives_the_block_holds_none_of_the_records_memory():
    model = net()
    with probe.track(model) as record:
        out = model(torch.randn(8, 10))
    kernels = [weakref.ref(kernel) for kernel in record._kernels]
    del record
    gc.collect()
    assert [kernel() for kernel in kernels] == [None]
    out.sum().backward()


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_of_the_optimizer_steps_alone(how):
    model = net()
    optimizer = sgd(model)
    with probe.track(model, optimizer=optimizer) as record:
        model(torch.randn(8, 10)).sum().backward()
        twin = how(optimizer)
        rows = len(record)
        twin.step()
        assert len(record) == rows
        optimizer.step()
        assert len(record) > rows
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_hook_is_a_no_op_in_a_copy():
    calls = []
    hook = hooks.Hook(calls.append)
    for twin in (copy.copy(hook), copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
        assert twin(1, 2, 3) is None
        assert b"depthgauge" not in pickle.dumps(twin)
    assert b"depthgauge" not in pickle.dumps(hook)
    assert not calls


def test_tensors_that_carry_a_hook_are_saved_without_a_word():
    model = nn.Sequential(nn.Identity())
    x = torch.randn(3, requires_grad=True)
    with probe.track(model):
        model(x)
        assert x._backward_hooks
        assert torch.equal(reloaded(x), x)
        assert not copy.deepcopy(x)._backward_hooks
    assert not x._backward_hooks


CHILD = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
assert not any(part._forward_hooks for part in model.modules())
model(torch.ones(2, 10)).sum().backward()
assert "depthgauge" not in sys.modules
"""


def test_a_saved_model_runs_in_another_process(tmp_path):
    model = net()
    with probe.track(model):
        model(torch.ones(2, 10)).sum().backward()
        torch.save(model, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 20_000
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "model.pt")], check=True, timeout=120)


def _forward(model, queue):
    queue.put(model(torch.ones(2, 10)).detach().sum().item())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_model_that_is_sent_to_another_process(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    if method == "spawn":
        # A test module is not importable by name in a new process: what spawn does with arguments is to pickle them.
        model = net()
        with probe.track(model):
            model(torch.ones(2, 10))
            assert pickle.loads(pickle.dumps(model))(torch.ones(2, 10)).shape == (2, 5)
        return
    context, model = multiprocessing.get_context(method), net()
    with probe.track(model) as record:
        expected = model(torch.ones(2, 10)).detach().sum().item()
        rows = len(record)
        queue = context.Queue()
        process = context.Process(target=_forward, args=(model, queue))
        process.start()
        assert queue.get(timeout=60) == expected
        process.join(timeout=60)
        assert process.exitcode == 0
        assert len(record) == rows


def clean():
    return not (torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks)


def test_blocks_inside_of_each_other_see_the_same():
    model, x = net(), torch.randn(8, 10)
    optimizer = sgd(model)
    with probe.track(model, optimizer=optimizer) as outer:
        with probe.track(model, optimizer=optimizer) as inner:
            model(x).sum().backward()
            optimizer.step()
        model(x).sum().backward()
        optimizer.step()
    assert set(outer.to_frame().step) == {0, 1}
    first = outer.to_frame()
    assert first[first.step == 0].equals(inner.to_frame())
    assert clean()
    assert not hooks_on(model)


def test_models_that_share_a_module():
    shared = nn.Linear(4, 4)
    one, other = nn.Sequential(shared, nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 4), shared)
    with probe.track(one, directions="activation") as a, probe.track(other, directions="activation") as b:
        one(torch.randn(3, 4))
        other(torch.randn(3, 4))
    # The shared layer's run in the other model is seen by both, as a call in the step that is open.
    assert a.to_frame().layer.tolist() == ["0", "1", "0"]
    assert b.to_frame().layer.tolist() == ["1", "0", "1"] or len(b) == 3


def test_a_generator_that_is_given_up_lets_go():
    model = net()

    def steps():
        with probe.track(model) as record:
            while True:
                model(torch.randn(2, 10))
                yield record

    running = steps()
    record = next(running)
    del running
    gc.collect()
    assert clean()
    rows = len(record)
    model(torch.randn(2, 10))
    assert len(record) == rows


def test_an_exception_is_the_users_own_also_where_something_was_not_read():
    model = net()

    def body(record):
        torch.vmap(model)(torch.randn(3, 10))
        raise ArithmeticError(len(record))

    with pytest.raises(ArithmeticError), probe.track(model) as record:
        body(record)
    assert clean()
    assert {each.layer for each in record.unread} == {"0", "1", "2"}


def test_the_warning_comes_when_all_is_as_before():
    model = net()
    optimizer = sgd(model)
    with pytest.raises(probe.UnreadWarning), probe.track(model, optimizer=optimizer) as record:
        torch.vmap(model)(torch.randn(3, 10))
    assert clean()
    assert not optimizer._optimizer_step_pre_hooks
    assert len(record) == 0


def test_threads_that_run_the_model_at_once():
    model = net()
    x = torch.randn(64, 10)

    def work():
        for _ in range(50):
            with torch.no_grad():
                model(x)

    with probe.track(model, directions="activation", optimizer=sgd(model)) as record:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    frame = record.to_frame()
    assert len(frame) == 4 * 50 * 3
    assert sorted(frame[frame.layer == "1"].call) == list(range(200))


RACES = """
import sys, threading, time, torch
from torch import nn
from depthgauge import probe

torch.set_num_threads(1)
sys.setswitchinterval(1e-6)
net, other = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
x, errors, over = torch.randn(2, 4), [], False

def work(model):
    while not over:
        try:
            model(x).sum().backward()
        except BaseException as error:
            errors.append(error)

with probe.track(net):  # what is compiled is compiled
    net(x).sum().backward()
threads = [threading.Thread(target=work, args=(model,)) for model in (net, net, other)]
for thread in threads:
    thread.start()
end = time.monotonic() + 3
while time.monotonic() < end:
    with probe.track(net), probe.track(other, directions="weight"):
        net(x).sum().backward()
over = True
for thread in threads:
    thread.join()
print(len(errors), errors[:1])
"""


@pytest.mark.alone
@pytest.mark.slow
def test_blocks_that_begin_and_end_while_other_threads_train():
    command = [sys.executable, "-W", "ignore", "-c", RACES]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "0 []", "")


def test_data_parallel_on_a_processor():
    model = nn.DataParallel(net())
    with probe.track(model) as record:
        model(torch.randn(8, 10)).sum().backward()
    assert set(record.to_frame().direction) == {"activation", "activation_gradient", "weight", "weight_gradient"}


def test_replicas_of_data_parallel_carry_nothing():
    """As torch makes them for several devices: by their __dict__, not by copying."""
    model = net()
    with probe.track(model, directions="activation") as record:
        model(torch.ones(1, 10))
        replica = model[0]._replicate_for_data_parallel()
        replica.weight, replica.bias = model[0].weight, model[0].bias
        rows = len(record)
        replica(torch.ones(1, 10))
        assert len(record) == rows


def test_a_submodule_that_is_replaced_inside_of_the_block():
    model = net()
    told = pytest.warns(
        probe.UnreadWarning, match="40 tensors of '2' were left out .taken out of .* '2' were left out .joined"
    )
    with told, probe.track(model) as record:
        model(torch.ones(1, 10)).sum().backward()
        for _ in range(20):
            model[2] = nn.Linear(16, 5)
            model(torch.ones(1, 10)).sum().backward()
        gc.collect()
    frame = record.to_frame()
    assert len(frame[(frame.layer == "2") & (frame.direction == "activation")]) == 1


def test_weights_are_those_that_the_model_has_now():
    model = net()
    optimizer = sgd(model)
    told = pytest.warns(
        probe.UnreadWarning, match="2 tensors of '0' were left out .taken out of .* '0' were left out .joined"
    )
    with told, probe.track(model, optimizer=optimizer) as record:
        model[2].weight = nn.Parameter(torch.full((5, 16), 7.0))
        model[0] = nn.Linear(10, 16)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        model(torch.ones(1, 10)).sum().backward()
        before = model[2].weight.detach().clone()
        optimizer.step()
        update = model[2].weight.detach() - before
    frame = record.to_frame()
    of_weights = frame[frame.parameter == "weight"].set_index(["layer", "direction"])
    assert of_weights["mean"]["2", "weight"] == 7
    assert of_weights["mean"]["2", "update"] == pytest.approx(update.double().mean().item())
    assert "0" not in of_weights.index.get_level_values("layer")


def test_what_the_user_calls_in_on_step_may_raise():
    model = net()
    optimizer = sgd(model)

    def on_step(_record):
        raise ArithmeticError

    raises = pytest.raises(ArithmeticError)
    with raises, probe.track(model, optimizer=optimizer, on_step=on_step):
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
    assert clean()


def test_an_output_of_any_kind_is_left_in_peace():
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __len__(self):
            raise RuntimeError

    class Odd(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"out": out, "odd": Hostile(), "module": self, "type": Hostile, 3: types.SimpleNamespace(x=out)}

    model = Odd(10, 2)
    with probe.track(model) as record:
        model(torch.ones(1, 10))["out"].sum().backward()
    frame = record.to_frame()
    assert frame[frame.direction == "activation"].output.tolist() == ["out"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_in_the_middle_of_a_step():
    model = net()
    optimizer = sgd(model)
    with probe.track(model, optimizer=optimizer) as record:
        out = model(torch.ones(1, 10))
        if (child := os.fork()) == 0:
            out.sum().backward()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        out.sum().backward()
        optimizer.step()
    assert set(record.to_frame().step) == {0}
