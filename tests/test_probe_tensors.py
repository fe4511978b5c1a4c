"""Tensors of every kind: read as they are, or left out and counted; never an exception, never a wrong address."""

import contextlib
import os
import subprocess
import sys
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge import probe
from depthgauge.formats import ExponentHistogram
from depthgauge.probe import compiled, tensors
from depthgauge.probe.plain import PlainKernel


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Silent(torch.Tensor):
    """A subclass that adds nothing."""


class Loud(torch.Tensor):
    """A subclass that lets nobody call it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(func)


class Wrapped(torch.Tensor):
    """A subclass without memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(func)


def freed(offset):
    tensor = torch.randn(20)[offset:]
    tensor.untyped_storage().resize_(0)
    return tensor


def holes():
    return torch.nested.narrow(torch.randn(2, 6, 3), 1, torch.tensor([0, 1]), torch.tensor([3, 2]), torch.jagged)


def fake():
    with FakeTensorMode():
        return torch.randn(3, 4)


def quantized():
    return torch.quantize_per_tensor(torch.randn(5), 0.1, 0, torch.qint8)


def inference():
    with torch.inference_mode():
        return torch.randn(7)


# What is read, with the numbers that a row is of.
READ = {
    "requires_grad False": (lambda: torch.randn(5), lambda t: t),
    "parameter": (lambda: nn.Parameter(torch.randn(5)), lambda t: t.detach()),
    "subclass": (lambda: torch.randn(5).as_subclass(Silent), lambda t: t.as_subclass(torch.Tensor)),
    "subclass with __torch_function__": (
        lambda: torch.arange(1.0, 6.0).as_subclass(Loud),
        lambda _: torch.arange(1.0, 6.0),
    ),
    "inference": (inference, lambda t: t),
    "zero-size": (lambda: torch.zeros(0, 3), lambda t: t),
    "0-dim": (lambda: torch.tensor(2.5), lambda t: t),
    "expanded": (lambda: torch.randn(3, 1).expand(3, 100), lambda t: t),
    "non-contiguous": (lambda: torch.randn(10, 10)[::3, ::2], lambda t: t),
    "with an offset": (lambda: torch.randn(10)[3:], lambda t: t),
    "complex": (lambda: torch.randn(4, dtype=torch.complex64), torch.view_as_real),
    "complex, conjugated": (
        lambda: torch.randn(4, dtype=torch.complex64).conj(),
        lambda t: torch.view_as_real(t.resolve_conj()),
    ),
    "negated lazily": (lambda: torch.randn(4, dtype=torch.complex64).conj().imag, lambda t: t.resolve_neg()),
    "complex32": (lambda: torch.randn(4, dtype=torch.complex64).to(torch.complex32), torch.view_as_real),
    "float8_e5m2": (lambda: torch.randn(9).to(torch.float8_e5m2), lambda t: t),
    "sparse COO": (lambda: torch.randn(4, 4).relu().to_sparse(), lambda t: t.coalesce().values()),
    "sparse CSR": (lambda: torch.randn(4, 4).relu().to_sparse_csr(), lambda t: t.values()),
    "mkldnn": (lambda: torch.randn(4, 4).to_mkldnn(), lambda t: t.to_dense()),
    "nested, jagged": (
        lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged),
        lambda t: t.values(),
    ),
    "nested, strided": (
        lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]),
        lambda t: torch.cat([part.reshape(-1) for part in t.unbind()]),
    ),
}
# What leaves no row and no word: there is nothing to be read.
NO_NUMBERS = {
    "integer": lambda: torch.arange(5),
    "bool": lambda: torch.tensor([True]),
    "quantized": quantized,
}

# What is left out and counted.
LEFT_OUT = {
    "fake": (fake, "FakeTensor"),
    "meta": (lambda: torch.randn(3, device="meta"), "meta device"),
    "wrapper subclass": (lambda: Wrapped(torch.randn(3)), "Wrapped"),
    "freed": (lambda: freed(0), "without memory"),
    "freed, with an offset": (lambda: freed(4), "without memory"),
    "functionalized": (lambda: torch._to_functional_tensor(torch.randn(3)), "torch.func"),
    "nested, with holes": (holes, "holes"),
}


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of prototypes
        return make()


KERNELS = {"compiled": compiled.CompiledKernel, "plain": PlainKernel}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", READ)
def test_what_can_be_read(kind, kernel):
    make, numbers = READ[kind]
    tensor = quietly(make)
    reader = KERNELS[kernel]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.observe(tensor, 0, 0, 0)
        expected = numbers(tensor).double().numpy()
    record = probe.Record()
    record._slots.append(probe.record.Slot("activation", "x"))
    record._kernels.append(reader)
    assert record.histogram() == ExponentHistogram.of(expected)
    (row,) = record.to_frame().to_dict("records")
    assert row["count"] == expected.size
    if expected.size:
        assert (row["min"], row["max"]) == (expected.min(), expected.max())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", [*NO_NUMBERS, *LEFT_OUT])
def test_what_cannot_be_read_leaves_no_row(kind, kernel):
    reader = KERNELS[kernel]()
    if kind in NO_NUMBERS:
        reader.observe(quietly(NO_NUMBERS[kind]), 0, 0, 0)
    else:
        make, why = LEFT_OUT[kind]
        tensor = quietly(make)
        with pytest.raises(tensors.Unreadable, match=why):
            reader.observe(tensor, 0, 0, 0)
    assert len(reader.read().words) == 0


class Gives(nn.Module):
    """Returns a tensor of some kind, beside one that can be read."""

    def __init__(self, tensor):
        super().__init__()
        self.inner, self.tensor = nn.Linear(3, 3), tensor

    def forward(self, x):
        return self.inner(x), self.tensor


@pytest.mark.parametrize("kind", [*READ, *NO_NUMBERS, *LEFT_OUT])
def test_a_module_may_return_any_of_them(kind):
    make = LEFT_OUT[kind][0] if kind in LEFT_OUT else READ[kind][0] if kind in READ else NO_NUMBERS[kind]
    model = Gives(quietly(make))
    expected = (
        pytest.warns(probe.UnreadWarning, match=LEFT_OUT[kind][1]) if kind in LEFT_OUT else contextlib.nullcontext()
    )
    with expected, probe.track(model, directions=("activation", "activation_gradient")) as record:
        model(torch.randn(2, 3))[0].sum().backward()
    frame = record.to_frame()
    own = frame[(frame.layer == "") & (frame.direction == "activation")]
    assert own.output.tolist() == (["1"] if kind in READ else [])
    assert len(record.unread) == (kind in LEFT_OUT)


def test_all_that_is_left_out_is_told_once_in_a_sentence():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)), nn.MultiheadAttention(3, 1))
    warns = pytest.warns(probe.UnreadWarning)
    with warns as told, probe.track(model, directions="activation") as record:
        for _ in range(2):
            torch.vmap(model[:5])(torch.randn(2, 3))
        model[5](*[torch.randn(2, 3)] * 3)
    (only,) = told
    assert str(only.message) == (
        "10 tensors of '0', '1', '2' and 2 more were left out (inside of a torch.func transformation); "
        "'5.out_proj' holds weights and never ran as a module; Record.unread lists what was not seen"
    )
    assert record.unread[0] == probe.Unread("0", "inside of a torch.func transformation", 2)
    assert record.unread[-1] == probe.Unread("5.out_proj", "holds weights and never ran as a module", 0)
    assert only.filename == __file__


def test_a_module_that_cannot_run_is_not_missed():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.ones(3)])
            self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

        def forward(self, x):
            return self.inner(x) * self.weights[0]

    model = Holder()
    with probe.track(model) as record:
        model(torch.ones(2, 3)).sum().backward()
    assert record.unread == ()


# Programs, each with what it gives without a probe: (model) -> tensor or None.


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


X = torch.linspace(-1, 1, 15).reshape(5, 3)


def functional_gradient(model):
    parameters = dict(model.named_parameters())
    gradients = torch.func.grad(lambda p: torch.func.functional_call(model, p, (X,)).square().mean())(parameters)
    return torch.cat([each.reshape(-1) for each in gradients.values()])


def per_sample(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p, x):
        return torch.func.functional_call(model, p, (x,)).sum()

    return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X)["0.weight"]


PROGRAMS = {
    "vmap": lambda model: torch.vmap(model)(X),
    "grad": functional_gradient,
    "vmap of grad": per_sample,
    "jacrev": lambda model: torch.func.vmap(torch.func.jacrev(model))(X),
    "jacfwd": lambda model: torch.func.vmap(torch.func.jacfwd(model))(X),
    "hessian": lambda model: torch.func.hessian(lambda x: model(x).sum())(X[0]),
    "jvp": lambda model: torch.func.jvp(model, (X,), (torch.ones_like(X),))[1],
    "vjp": lambda model: torch.func.vjp(model, X)[1](torch.ones(5, 1))[0],
    "linearize": lambda model: torch.func.linearize(model, X)[1](torch.ones_like(X)),
    "jit.trace": lambda model: torch.jit.trace(model, X)(X),
    "make_fx": lambda model: torch.fx.experimental.proxy_tensor.make_fx(model)(X)(X),
}


@pytest.mark.parametrize("directions", [None, ("activation_gradient",)], ids=["all", "gradients"])
@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # linearize's own
def test_transformations_run_as_without_the_probe(program, with_optimizer, directions):
    model = net()
    expected = PROGRAMS[program](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1) if with_optimizer else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probe.UnreadWarning)
        with probe.track(model, optimizer=optimizer, directions=directions) as record:
            found = PROGRAMS[program](model)
    assert torch.equal(found, expected)
    frame = record.to_frame()
    if directions is None and program not in {"make_fx", "linearize"}:
        assert record.unread
    assert not frame.duplicated(["step", "direction", "layer", "call", "pass", "training", "parameter"]).any()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_exported_and_scripted():
    model = net()
    expected = model(X)
    with pytest.warns(probe.UnreadWarning, match="of type FakeTensor"), probe.track(model):
        program = torch.export.export(model, (X,))
    torch.testing.assert_close(program.module()(X), expected)
    scripted = torch.jit.script(model)
    silence = pytest.warns(probe.UnreadWarning, match="never ran as modules")
    with silence, probe.track(scripted, directions=("activation", "weight")) as record:
        assert torch.equal(scripted(X), expected)
    frame = record.to_frame()
    assert frame[frame.direction == "activation"].layer.tolist() == [""]
    assert (frame.direction == "weight").sum() == len(list(scripted.parameters()))


def test_symbolic_traces():
    model = net()
    with pytest.warns(probe.UnreadWarning, match="no call"), probe.track(model):
        traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(X), model(X))


def test_a_model_on_fake_tensors():
    with FakeTensorMode():
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        silence = pytest.warns(probe.UnreadWarning, match="tensors of the module itself were left out")
        with silence, probe.track(model, optimizer=optimizer) as record:
            model(torch.empty(2, 4)).sum().backward()
            optimizer.step()
    assert len(record) == 0
    assert sum(each.tensors for each in record.unread) >= 4


def test_a_model_on_the_meta_device():
    model = net().to("meta")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    warns = pytest.warns(probe.UnreadWarning, match="on the meta device")
    with warns, probe.track(model, optimizer=optimizer) as record:
        model(torch.empty(5, 3, device="meta")).sum().backward()
        optimizer.step()
    assert len(record) == 0


def test_a_quantized_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, torch.qint8)
    expected = model(X)
    with probe.track(model) as record:
        assert torch.equal(model(X), expected)
    frame = record.to_frame()
    assert frame[frame.direction == "activation"].layer.tolist() == ["0", "1", "2"]


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **kwargs or {})


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [Counting, Functions])
def test_modes_of_the_user_see_what_they_saw(mode, dtype):
    def run(model):
        with mode() as counting:
            model(X.to(dtype)).sum().backward()
        return counting.seen

    expected = run(net().to(dtype))
    model = net().to(dtype)
    with probe.track(model) as record:
        assert run(model) == expected
    counts = record.to_frame().direction.value_counts().to_dict()
    assert counts == {"activation": 3, "activation_gradient": 3, "weight": 4, "weight_gradient": 4}


@pytest.mark.parametrize("directions", [None, ("weight", "weight_gradient", "update")], ids=["all", "parameters"])
@pytest.mark.parametrize("mode", [Counting, Functions])
def test_modes_of_the_user_see_what_they_saw_around_an_optimizer(mode, directions):
    def run(model, optimizer):
        with mode() as counting:
            for _ in range(2):
                optimizer.zero_grad()
                model(X).sum().backward()
                optimizer.step()
        return counting.seen

    def fresh():
        model = net()
        return model, torch.optim.SGD(model.parameters(), 0.1)

    expected = run(*fresh())
    model, optimizer = fresh()
    with probe.track(model, optimizer=optimizer, directions=directions) as record:
        found = run(model, optimizer)
    assert found == expected
    assert (record.to_frame().direction.value_counts()[["weight", "weight_gradient", "update"]] == 8).all()


# Outputs.


@dataclass
class Output:
    logits: torch.Tensor
    cache: torch.Tensor = field(init=False, repr=False)


@dataclass
class Node:
    value: torch.Tensor
    root: object = None


class Named(NamedTuple):
    mean: torch.Tensor
    more: object


class Plain:
    def __init__(self, x):
        self.x, self.inner, self.name = x, {"y": x * 2}, "text"


def looped(x):
    node = Node(x)
    node.root = [node, {"again": node}]
    return node


def deep(x):
    for _ in range(3000):
        x = [x]
    return x


FORMS = {
    "a dataclass with a field that is not set": (Output, ["logits"]),
    "a dataclass that refers to itself": (looped, ["value"]),
    "a mapping": (lambda x: OrderedDict(a=x, b={"c": x * 2}), ["a", "b.c"]),
    "a named tuple": (lambda x: Named(x, (x * 2, None)), ["mean", "more.0"]),
    "an object": (Plain, ["x", "inner.y"]),
    "keys that are spelled alike": (lambda x: {1: x, "1": x * 2}, ["1", "1'"]),
    "a distribution": (lambda x: torch.distributions.Normal(x, x.exp()), ["loc", "scale"]),
    "nothing": (lambda _: None, []),
    "a list in a list, 3,000 times": (deep, [".".join(["0"] * 3000)]),
}


class Shapes(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.inner, self.form = nn.Linear(3, 2), form

    def forward(self, x):
        return self.form(self.inner(x) * 1)


@pytest.mark.parametrize("form", FORMS)
def test_an_output_of_any_form(form):
    make, places = FORMS[form]
    model = Shapes(make)
    with probe.track(model, directions="activation") as record:
        model(X)
    frame = record.to_frame()
    assert sorted(frame[frame.layer == ""].output) == sorted(places)


def test_lazy_layers_are_watched_once_they_exist():
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))
    with probe.track(model) as record:
        for _ in range(2):
            model(X).sum().backward()
    frame = record.to_frame()
    counts = frame.groupby(["direction", "step"]).size().to_dict()
    assert counts == {
        ("activation", 0): 3,
        ("activation", 1): 3,
        ("activation_gradient", 0): 3,
        ("activation_gradient", 1): 3,
        ("weight", 1): 4,
        ("weight_gradient", 0): 4,
        ("weight_gradient", 1): 4,
    }
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert record.unread == ()


@pytest.mark.parametrize("directions", [None, ("weight", "weight_gradient", "update")], ids=["all", "parameters"])
def test_lazy_layers_with_an_optimizer(directions):
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer, directions=directions) as record:
        model(X).sum().backward()
        optimizer.step()
    assert record.to_frame().direction.value_counts()[["weight", "weight_gradient", "update"]].tolist() == [4, 4, 4]


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_a_compiled_block_is_left_out_and_told():
    torch._dynamo.reset()
    model = net()
    model[0] = torch.compile(model[0], backend="eager")
    model[1].compile(backend="eager")
    expected = model(X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    silence = pytest.warns(probe.UnreadWarning, match="activations of '0', '1' were left out")
    with silence as told, probe.track(model, optimizer=optimizer) as record:
        out = model(X)
        out.sum().backward()
        optimizer.step()
    assert [each.category for each in told] == [probe.UnreadWarning]
    assert torch.equal(out, expected)
    frame = record.to_frame()
    assert frame[frame.direction == "activation"].layer.tolist() == ["2"]
    assert len(frame[frame.direction == "update"]) == 4
    torch._dynamo.reset()


def test_no_filter_of_warnings_is_left():
    before = list(warnings.filters)
    model = net()
    with probe.track(model), probe.track(model):
        model(X)
    assert warnings.filters == before


def test_blocks_that_overlap_keep_their_filters_of_warnings():
    before = list(warnings.filters)
    one, other = (probe.track(net(), directions="weight") for _ in range(2))
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    with warnings.catch_warnings():
        silent = list(warnings.filters)
    other.__exit__(None, None, None)
    assert len(silent) == len(before) + 1
    assert silent[0][0] == "ignore"
    assert warnings.filters == before


SHARDED = """
import os, sys, warnings, datetime, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from depthgauge import probe

warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))
fully_shard(model[0]); fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
warnings.simplefilter("error", probe.UnreadWarning)
with probe.track(model, optimizer=optimizer) as record:
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 10)).sum().backward()
        optimizer.step()
frame = record.to_frame()
weights = frame[(frame.direction == "weight") & (frame.step == 1)]
local = {name: p.to_local() for name, p in model.named_parameters()}
for row in weights.to_dict("records"):
    own = local[f"{row['layer']}.{row['parameter']}"]
    assert row["count"] == own.numel(), row
for direction in ("weight", "weight_gradient", "update"):
    assert (frame.direction == direction).sum() == 8, direction
update = frame[(frame.direction == "update") & (frame.layer == "2") & (frame.parameter == "bias") & (frame.step == 1)]
assert update["count"].sum() == local["2.bias"].numel()
gradient = frame[(frame.direction == "weight_gradient") & (frame.parameter == "bias") & (frame.layer == "2")]
if local["2.bias"].numel():
    assert abs(gradient["mean"].iloc[-1] - model[2].bias.grad.to_local().mean().item()) < 1e-6
dist.destroy_process_group()
"""


@pytest.mark.alone
@pytest.mark.slow
def test_fully_sharded_parameters_are_read_by_their_local_part(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, "-c", SHARDED, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
