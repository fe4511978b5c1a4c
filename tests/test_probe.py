"""The probe: what it measures, that it changes nothing, and what it copes with (the table of docs/probe.md)."""

import functools
import gc
import math
import os
import platform
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from depthgauge import formats, probe
from depthgauge.formats import ExponentHistogram
from depthgauge.probe import blocks, compiled, pairs, planes, session, shuffles
from depthgauge.probe.plain import PlainKernel

FORWARD_AND_BACKWARD = ("activation", "activation_gradient")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def rows(record, direction, layer=None, **more):
    frame = record.to_frame()
    chosen = frame.direction == direction
    if layer is not None:
        chosen &= frame.layer == layer
    for column, value in more.items():
        chosen &= frame[column] == value
    return frame[chosen]


# What it measures.


def describe(values):
    """The columns of a row, computed in the plainest way."""
    x = np.asarray(values, np.float64).ravel()
    finite = x[np.isfinite(x)]
    magnitude = np.abs(finite[finite != 0])
    return {
        "count": len(x),
        "zeros": np.count_nonzero(x == 0),
        "nans": np.count_nonzero(np.isnan(x)),
        "positive_infinities": np.count_nonzero(x == np.inf),
        "negative_infinities": np.count_nonzero(x == -np.inf),
        "mean": finite.mean() if len(finite) else math.nan,
        "second_moment": (finite**2).mean() if len(finite) else math.nan,
        "min": finite.min() if len(finite) else math.nan,
        "max": finite.max() if len(finite) else math.nan,
        "log2_mean": np.log2(magnitude).mean() if len(magnitude) else math.nan,
    }


def random_bits(dtype, n):
    wide = {torch.float32: np.uint32, torch.float64: np.uint64, torch.float16: np.uint16, torch.bfloat16: np.uint16}
    bits = np.random.default_rng(0).integers(0, np.iinfo(wide[dtype]).max, n, dtype=wide[dtype], endpoint=True)
    return torch.from_numpy(bits).view(dtype)


def small(x):
    """The same exponents, but those whose squares would overflow."""
    return torch.where(x.abs() > 1e140, 1 / x, x)


def edges_of_every_format():
    fractions = [float(edge.fraction) for edge in formats.EDGES if edge.fraction.denominator <= 2**23]
    x = np.array([(1 + f) * 2.0**e for f in fractions for e in range(-126, 127, 7)], np.float32)
    return torch.from_numpy(np.concatenate([np.nextafter(x, np.float32(0)), x, np.nextafter(x, np.float32(np.inf))]))


TENSORS = {
    "normal": lambda: torch.randn(16384),
    "rectified": lambda: torch.randn(64, 64).relu(),
    "log-normal, wider than 31 binades": lambda: torch.randn(100_003).mul(8).exp(),
    "growing": lambda: torch.randn(5000) * torch.logspace(-30, 30, 5000),
    "random bits": lambda: random_bits(torch.float32, 50_000),
    "edges of every format": edges_of_every_format,
    "subnormal": lambda: torch.randn(5000) * 1e-41,
    "zeros": lambda: torch.zeros(3000),
    "negative zeros": lambda: -torch.zeros(3000),
    "one value, many times": lambda: torch.full((300_000,), 1.3),
    "powers of two": lambda: torch.ones(77),
    "one power of two, many times": lambda: -torch.ones(3 * 4096 + 512),
    "powers of two of 16 binades, and zeros": lambda: torch.ldexp(
        torch.randn(5000).round().sign(), torch.randint(-15, 1, (5000,))
    ),
    "powers of two of more": lambda: 2.0 ** torch.randint(-18, 1, (9000,)),
    "quantized": lambda: torch.randn(5000).mul(8).round() * 2.0**-20,
    "just below powers of two": lambda: torch.full((9000,), 2 - 2.0**-23) * 2.0 ** torch.randint(-3, 4, (9000,)),
    "last 128th of a binade": lambda: (2 - torch.rand(6000) / 64) * 2.0 ** torch.randint(-20, 20, (6000,)),
    "two sizes, far apart": lambda: torch.cat([torch.randn(3000) * 1e20, torch.randn(3000) * 1e-20]),
    "all binades": lambda: torch.randn(6000).sign() * 2.0 ** torch.linspace(-149, 127.9, 6000),
    "more than one block, with a rest": lambda: torch.randn(2 * 4096 + 512 + 31),
    "a rest of zeros": lambda: torch.cat([torch.randn(512), torch.zeros(41)]),
    "far apart, more than 16 bits count": lambda: torch.exp(8 * torch.randn(140_001)) * (torch.rand(140_001) < 0.2),
    "off the boundaries of vectors": lambda: torch.randn(3001)[1:],
    "one number that is not finite": lambda: torch.cat([torch.randn(5000), torch.tensor([math.inf])]),
    "negative": lambda: -torch.rand(4000),
    "one number": lambda: torch.tensor(3.5),
    "none": lambda: torch.zeros(0, 3),
    "non-finite": lambda: torch.tensor([math.inf, -math.inf, math.nan, 1.0, -2.0, 0.0, 1e-40] * 300),
    "nothing finite": lambda: torch.tensor([math.inf, math.nan]),
    "float64": lambda: torch.randn(3000, dtype=torch.float64),
    "float64, random bits": lambda: small(random_bits(torch.float64, 20_000)),
    "float16": lambda: random_bits(torch.float16, 20_000),
    "bfloat16": lambda: random_bits(torch.bfloat16, 20_000),
    "float8_e4m3fn": lambda: torch.randn(3000).to(torch.float8_e4m3fn),
    "transposed": lambda: torch.randn(37, 53).T,
    "expanded": lambda: torch.randn(5, 1).expand(5, 7),
    "strided": lambda: torch.randn(40, 40)[::2, ::3],
    "channels last": lambda: torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
}


# The kernels that this processor can run.
READABLE = {"pairs": pairs}
if compiled.VECTORS:
    READABLE["shuffles"] = shuffles
if compiled.VECTORS == "avx512bw":
    READABLE["planes"] = planes


@pytest.fixture(params=[*READABLE, "plain"])
def each_kernel(request, monkeypatch):
    """Probes read with this kernel, whichever is chosen on this machine."""
    if request.param == "plain":
        kernel = PlainKernel
    else:
        method = READABLE[request.param].METHOD
        kernel = functools.partial(compiled.CompiledKernel, method)
    monkeypatch.setattr(session, "kernel_for", lambda _device: kernel())


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_row_is_what_the_tensor_says(tensor):
    values = tensor()
    module = nn.Identity()
    with probe.track(module, directions="activation") as record:
        module(values)
    (row,) = record.to_frame().to_dict("records")
    numbers = values.double().numpy()
    expected = describe(numbers)
    assert record.histogram() == ExponentHistogram.of(numbers)
    finite = numbers[np.isfinite(numbers)]
    size = np.abs(finite).sum() / max(len(finite), 1)
    for name in (*probe.METRICS[:5], "min", "max"):
        assert row[name] == pytest.approx(expected[name], rel=0, abs=0, nan_ok=True), name
    # n additions in double precision, and a second moment that adds up n squares.
    rounding = max(len(finite), 1) * 2.0**-52
    assert row["mean"] == pytest.approx(expected["mean"], rel=0, abs=rounding * size, nan_ok=True)
    assert row["second_moment"] == pytest.approx(expected["second_moment"], rel=rounding, abs=0, nan_ok=True)
    # Products of 64 significands in float32, each factor rounded once, and logarithms of up to 1074.
    assert row["log2_mean"] == pytest.approx(expected["log2_mean"], rel=1e-12, abs=64 * 2.0**-24, nan_ok=True)


@pytest.mark.usefixtures("each_kernel")
def test_a_row_does_not_depend_on_those_before():
    """Nor do its last bits: counters and their scale begin anew with each tensor."""
    tensors = [tensor() for tensor in TENSORS.values()]

    def observed(tensors):
        module = nn.Identity()
        with probe.track(module, directions="activation") as record:
            for values in tensors:
                module(values)
        return record

    alone = [observed([values]) for values in tensors]
    metrics = np.concatenate([record.to_frame()[list(probe.METRICS)] for record in alone])
    for order in (slice(None), slice(None, None, -1)):
        together = observed(tensors[order])
        np.testing.assert_array_equal(together.to_frame()[list(probe.METRICS)].to_numpy(), metrics[order])
        for step, record in enumerate(alone[order]):
            assert together.histogram(step=step) == record.histogram()


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_of_more_than_one_block(dtype):
    model = nn.Linear(130, 77, dtype=dtype)  # neither a whole number of blocks nor of vectors
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer, directions="update") as record:
        for step in range(2):
            before = model.weight.detach().clone()
            optimizer.zero_grad()
            model(torch.randn(4, 130, dtype=dtype)).square().mean().backward()
            optimizer.step()
            (row,) = rows(record, "update", parameter="weight", step=step).to_dict("records")
            expected = describe(model.weight.detach() - before)
            assert row["second_moment"] == pytest.approx(expected["second_moment"], rel=10_010 * 2.0**-52)
            assert (row["min"], row["max"], row["zeros"]) == (expected["min"], expected["max"], expected["zeros"])


def test_moments_and_fractions_of_known_distributions():
    """After ReLU, a standard normal has mean 1/sqrt(2 pi), second moment 1/2, and half of it is zero."""
    n = 1 << 20
    module = nn.ReLU()
    with probe.track(module) as record:
        module(torch.randn(n))
    (row,) = record.to_frame().to_dict("records")
    assert row["mean"] == pytest.approx(
        1 / math.sqrt(2 * math.pi), abs=5 * math.sqrt(0.5 - 0.5 / math.pi) / math.sqrt(n)
    )
    assert row["second_moment"] == pytest.approx(0.5, abs=5 * math.sqrt(1.5 - 0.25) / math.sqrt(n))
    assert row["zeros"] / n == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    # E[log2|z|] = -(gamma + ln 2) / (2 ln 2), with variance pi^2 / (8 ln^2 2).
    expected = -(np.euler_gamma + math.log(2)) / (2 * math.log(2))
    assert row["log2_mean"] == pytest.approx(expected, abs=5 * math.pi / math.sqrt(8) / math.log(2) / math.sqrt(n / 2))


def test_fractions_are_those_of_the_tensor_itself():
    model, x = mlp(), torch.randn(16, 8)
    with probe.track(model) as record:
        out = model(x)
        out.square().mean().backward()
    fractions = record.fractions("fp8_e4m3fn", loss_scale=2.0**-4)
    gradient = model[2].weight.grad
    (row,) = fractions[
        (fractions.direction == "weight_gradient") & (fractions.layer == "2") & (fractions.parameter == "weight")
    ].to_dict("records")
    direct = formats.fractions(ExponentHistogram.of(gradient.numpy()), "fp8_e4m3fn", 2.0**-4)
    assert {name: row[name] for name in vars(direct)} == vars(direct)
    assert 0 < row["under"] < 1


def mlp(*, inplace=False, bias=True):
    return nn.Sequential(
        nn.Linear(8, 16, bias=bias), nn.ReLU(inplace), nn.Linear(16, 16, bias=bias), nn.Tanh(), nn.Linear(16, 4)
    )


def test_gradients_and_updates_are_the_true_ones():
    model, x = mlp(), torch.randn(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with probe.track(model, optimizer=optimizer) as record:
        hidden = model[1](model[0](x))
        hidden.retain_grad()
        model[4](model[3](model[2](hidden))).square().mean().backward()
        optimizer.step()
    (row,) = rows(record, "activation_gradient", "1").to_dict("records")
    assert row["mean"] == pytest.approx(hidden.grad.double().mean().item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        layer, own = name.split(".")
        for direction, value in [
            ("weight", before[name]),
            ("weight_gradient", parameter.grad),
            ("update", parameter.detach() - before[name]),
        ]:
            (row,) = rows(record, direction, layer, parameter=own).to_dict("records")
            expected = describe(value)
            assert row["second_moment"] == pytest.approx(expected["second_moment"], rel=1e-12)
            assert (row["min"], row["max"], row["zeros"]) == (expected["min"], expected["max"], expected["zeros"])


def test_frame_columns_and_order():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer) as record:
        train(model, optimizer, steps=2)
    frame = record.to_frame()
    where = ["step", "skipped", "direction", "layer", "layer_index", "call", "pass", "training", "parameter", "output"]
    assert list(frame.columns) == [*where, *probe.METRICS]
    assert frame.step.is_monotonic_increasing
    forward = frame[(frame.direction == "activation") & (frame.step == 0)]
    assert forward.layer.tolist() == ["0", "1", "2", "3", "4"] == forward.layer_index.astype(str).tolist()
    assert set(frame.direction) == set(probe.DIRECTIONS)
    long = record.to_frame(long=True)
    assert list(long.columns) == [*where, "metric", "value"]
    assert len(long) == len(frame) * len(probe.METRICS) == len(record) * len(probe.METRICS)


def train(model, optimizer, steps, loss=None):
    x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = functional.cross_entropy(model(x), y) if loss is None else loss(model, x)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


# What is looked at.


def test_every_kth_step():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer, every=3) as record:
        train(model, optimizer, steps=8)
    assert set(record.to_frame().step) == {0, 3, 6}
    assert (record.to_frame().groupby("step").size() == 10 + 3 * 6).all()


def test_without_an_optimizer_a_step_is_a_call_of_the_module():
    model = mlp()
    with probe.track(model) as record:
        for _ in range(3):
            model(torch.randn(2, 8)).sum().backward()
    counts = record.to_frame().groupby("step").direction.value_counts().unstack()
    assert counts.to_dict("list") == {
        "activation": [5, 5, 5],
        "activation_gradient": [5, 5, 5],
        "weight": [6, 6, 6],
        "weight_gradient": [6, 6, 6],
    }


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("2", {"2"}),
        (["0", "4"], {"0", "4"}),
        ("[0-2]", {"0", "1", "2"}),
        (nn.Linear, {"0", "2", "4"}),
        ([nn.Tanh, "0"], {"0", "3"}),
    ],
)
def test_chosen_layers(layers, names):
    model = mlp()
    with probe.track(model, layers=layers) as record:
        model(torch.randn(2, 8)).sum().backward()
    assert set(record.to_frame().layer) == names


def test_callback_sees_each_step_and_may_clear():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []

    def write(record):
        seen.append(set(record.to_frame().step))
        record.clear()

    @probe.track(model, optimizer=optimizer, directions="weight", on_step=write)
    def run():
        train(model, optimizer, steps=3)

    run()
    assert seen == [{0}, {1}, {2}]
    seen.clear()
    with probe.track(model, directions="activation", on_step=write):
        for _ in range(2):
            model(torch.randn(2, 8))
    assert seen == [{0}, {1}]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layers": "encoder"}, "no layer matches 'encoder'"),
        ({"layers": nn.Conv2d}, "no layer matches"),
        ({"directions": "gradients"}, "no direction is called 'gradients'"),
        ({"directions": "update"}, "pass optimizer="),
        ({"every": 0}, "a whole number from 1"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence), probe.track(mlp(), **arguments):
        pass


def test_importing_the_probe_is_cheap():
    code = "import sys, depthgauge.probe; sys.exit(bool({'numba', 'triton', 'pandas', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("name", "chosen"), [("haswell", "shuffles"), ("x86-64", "pairs")])
def test_the_kernel_is_one_for_the_processor_that_numba_compiles_for(name, chosen):
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("these are names of other processors")
    code = f"from depthgauge.probe import compiled, {chosen}; assert compiled.METHOD is {chosen}.METHOD"
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_machine_code_on_disk_belongs_to_the_sources_of_all_modules(tmp_path):
    for path in Path(blocks.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    assert blocks.digest_of(tmp_path) == blocks.SOURCES
    with (tmp_path / "vectors.py").open("a") as vectors:
        vectors.write("# edited\n")
    assert blocks.digest_of(tmp_path) != blocks.SOURCES
    for module in (planes, pairs, shuffles):
        for function in (module.METHOD.observe, module.METHOD.observe_all):
            # Numba's key has what the closure holds; an inner function here would differ in each process.
            assert [cell.cell_contents for cell in function.py_func.__closure__] == [module, blocks.SOURCES]


def test_silence_is_reported():
    with pytest.warns(UserWarning, match="no call of the tracked modules was seen"), probe.track(mlp()):
        pass


# It changes nothing.


def state(model, optimizer):
    """All that a probe could leave behind."""
    hooks = [
        {name: list(value) for name, value in vars(part).items() if "hook" in name and hasattr(value, "__iter__")}
        for part in model.modules()
    ]
    attributes = [sorted(vars(part)) for part in model.modules()]
    tensors = [
        (
            p.requires_grad,
            *map(list, (p._backward_hooks or {}, p._post_accumulate_grad_hooks or {})),
            p.is_leaf,
            vars(p),
        )
        for p in model.parameters()
    ]
    return (
        hooks,
        attributes,
        tensors,
        [part.training for part in model.modules()],
        [(name, list(value)) for name, value in vars(optimizer).items() if "hook" in name],
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        len(torch.nn.modules.module._global_forward_hooks),
    )


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=lambda kind: kind.__name__)
def test_fifty_steps_are_bit_identical(make):
    def fresh():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(144, 4),
        )
        return model, make(model.parameters(), lr=0.05)

    def loss(model, _x):
        return functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(0, 4, (8,)))

    plain, plain_optimizer = fresh()
    plain_losses = train(plain, plain_optimizer, 50, loss)
    end = torch.get_rng_state()
    probed, optimizer = fresh()
    with probe.track(probed, optimizer=optimizer):
        probed_losses = train(probed, optimizer, 50, loss)
    assert plain_losses == probed_losses
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), probed.state_dict().values(), strict=True)
    )
    assert torch.equal(end, torch.get_rng_state())


@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize("where", ["nowhere", "forward", "before the step", "at the start"])
def test_everything_is_as_before_also_after_an_exception(where, with_optimizer):
    model = mlp()
    model[2].weight.requires_grad_(requires_grad=False)
    model[1].eval()
    model[0].register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    before = state(model, optimizer)
    rng = torch.get_rng_state()

    def body():
        with probe.track(model, optimizer=optimizer if with_optimizer else None):
            if where == "at the start":
                raise ArithmeticError
            out = model(torch.ones(2, 8))
            if where == "forward":
                raise ArithmeticError
            out.sum().backward()
            if where == "before the step":
                raise ArithmeticError
            optimizer.step()

    if where == "nowhere":
        body()
    else:
        with pytest.raises(ArithmeticError):
            body()
    assert torch.equal(rng, torch.get_rng_state())
    assert state(model, optimizer) == before


def test_a_graph_that_outlives_the_block_is_not_recorded():
    model = mlp()
    with probe.track(model) as record:
        out = model(torch.randn(2, 8))
    n = len(record)
    out.sum().backward()
    assert len(record) == n


def test_no_tensor_is_kept():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    alive = []
    for part in model:
        part.register_forward_hook(lambda _m, _a, output: alive.append(weakref.ref(output)))
    with probe.track(model, optimizer=optimizer) as record:
        train(model, optimizer, steps=2)
        gc.collect()
        assert len(alive) == 10
        assert [ref() for ref in alive] == [None] * 10
    weak = weakref.ref(model)
    del model, part, optimizer
    gc.collect()
    assert weak() is None
    assert len(record)


def test_memory_does_not_grow_when_the_record_is_cleared():
    import tracemalloc

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.track(model, optimizer=optimizer, on_step=lambda record: record.clear()):
        train(model, optimizer, steps=200)
        gc.collect()
        tracemalloc.start()
        train(model, optimizer, steps=200)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < 50_000  # 5,600 rows of 112 bytes were seen


def test_a_histogram_of_what_was_never_recorded_names_the_nearest():
    module = nn.Sequential(nn.Identity())
    with probe.track(module, directions="activation") as record:
        assert record.histogram(layer="0").count == 0  # nothing has run
        module(torch.ones(3))
    assert record.histogram("activation", layer="0").count == 3
    with pytest.raises(ValueError, match="no layer '00'; the nearest is '0'"):
        record.histogram(layer="00")
    with pytest.raises(ValueError, match="no direction 'activations'; the nearest is 'activation'"):
        record.histogram("activations")
    record.clear()
    assert record.histogram(layer="00").count == 0


def test_a_full_block_of_rows_is_put_aside():
    module = nn.Identity()
    with probe.track(module, directions="activation") as record:
        for i in range(5000):
            module(torch.full((2,), float(i)))
    frame = record.to_frame()
    assert frame["mean"].tolist() == list(range(5000))
    assert frame.step.tolist() == list(range(5000))
    assert record.histogram().count == 10_000
