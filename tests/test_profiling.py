"""Profiles against what is known: counts by hand for a real step, planted events for a device that is not here."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import Training, roofline
from depthgauge.operations import Operation
from depthgauge.profiling import Capture, Profile, ProfileError, TraceError, analyse, capture, parse, read
from depthgauge.profiling.analysis import _frame
from depthgauge.profiling.kinds import kernel_kind, operator_kind, tensor_cores
from depthgauge.profiling.memory import memory
from depthgauge.profiling.opportunities import _lower, _update
from depthgauge.profiling.steady import steady
from depthgauge.profiling.timeline import segments
from depthgauge.profiling.work import Work, pieces
from depthgauge.roofline import Ceilings

FLOAT = 4
BATCH, INPUTS, WIDTH, OUTPUTS = 32, 8, 16, 4
CPU = Ceilings("cpu", 1, {"float32": 1e11, "bfloat16": 2e11}, bandwidth=1e10, cached_bandwidth=1e11)
GPU = Ceilings("cuda", 1, {"float32": 1e12, "bfloat16": 4e12}, bandwidth=1e12, cached_bandwidth=1e11)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def square(out: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, OUTPUTS, bias=False))


def recorded(folder: Path, model: nn.Module, batch: torch.Tensor, loss: Callable[[Any], Any] = square) -> Capture:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    training = Training(model, [batch], lambda model, batch: loss(model(batch)), optimizer)
    return capture(
        training, label="stack", folder=folder, ceilings=CPU,
        setting={"model": "stack", "dtype": "float32", "device": "cpu"}, seconds=0.2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Capture, Profile, Path]:
    folder = tmp_path_factory.mktemp("profile")
    captured = recorded(folder, stack(), torch.randn(BATCH, INPUTS))
    return captured, analyse(captured, read(folder / captured.trace)), folder


def test_operations_of_a_linear_stack(real: tuple[Capture, Profile, Path]) -> None:
    _, profile, _ = real
    first, second = 2 * BATCH * INPUTS * WIDTH, 2 * BATCH * WIDTH * OUTPUTS
    assert profile.flops == (first + second) + (first + 2 * second)  # the first layer's input wants no gradient
    table = profile.operators.set_index("name")
    assert table["flops"].sum() == profile.flops  # every operator that was counted is found in the trace
    assert table.loc["aten::mm", "calls"] == 5
    assert table.loc["aten::relu", "bytes"] == 2 * FLOAT * BATCH * WIDTH


def test_times_of_operators_and_what_lies_between_add_up_to_the_step(real: tuple[Capture, Profile, Path]) -> None:
    _, profile, _ = real
    assert profile.operators["share"].sum() + profile.waiting == pytest.approx(1.0)
    assert profile.timeline["share"].sum() == pytest.approx(1.0)
    assert all(profile.phase(name) > 0 for name in ("forward", "backward", "optimizer"))


def test_memory_of_a_linear_stack_by_category(real: tuple[Capture, Profile, Path]) -> None:
    _, profile, _ = real
    weights = FLOAT * (INPUTS * WIDTH + WIDTH * OUTPUTS)
    held = profile.memory
    assert set(held["parameters"]) == {weights}
    assert set(held["optimizer state"]) == {weights}  # a momentum each
    assert set(held["batch"]) == {FLOAT * BATCH * INPUTS}
    assert held["gradients"].max() == weights
    # what the forward pass leaves: the rectified hidden layer, the output (its square is derived by it), the loss
    kept = FLOAT * (BATCH * WIDTH + BATCH * OUTPUTS + 1)
    assert held["activations"].max() == kept
    end = held.iloc[-1]
    assert (end["activations"], end["gradients"], end["temporary"]) == (0, 0, 0)


def test_what_is_stored_is_read_back(real: tuple[Capture, Profile, Path]) -> None:
    captured, profile, folder = real
    again = Capture.read(folder / "profiles" / "stack.json")
    assert again == captured
    assert len(captured.plain) == len(captured.profiled) == profile.overhead.effect.n


def test_profiling_again_replaces_the_trace(tmp_path: Path) -> None:
    for _ in range(2):
        recorded(tmp_path, stack(), torch.randn(BATCH, INPUTS))
    assert len(list(tmp_path.rglob("*.pt.trace.json.gz"))) == 1


def test_sparse_gradients_and_jagged_batches_are_profiled(tmp_path: Path) -> None:
    embedding = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Linear(8, 3))
    tokens = torch.arange(9).repeat(4, 1)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    loss = lambda model, batch: model(batch).square().mean()  # noqa: E731 - it is handed over as a value
    where = {"folder": tmp_path, "ceilings": CPU, "setting": {}, "seconds": 0.1}
    sparse = capture(Training(embedding, [tokens], loss, optimizer), label="sparse", **where)
    assert sparse.resident["batch"] == tokens.numel() * 8
    layer = nn.Linear(4, 4)
    layer.bias.requires_grad_(False)
    jagged = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)

    def value(model: nn.Module, batch: Any) -> Any:
        return model(batch).values().square().mean()

    nested = capture(Training(layer, [jagged], value), label="jagged", **where)
    assert Capture.read(tmp_path / "profiles" / "jagged.json") == nested
    assert nested.resident["batch"] == 5 * 4 * FLOAT
    assert (nested.resident["parameters"], nested.trained) == (20 * FLOAT, 16 * FLOAT)


def test_an_optimizer_that_evaluates_the_loss_itself_is_profiled(tmp_path: Path) -> None:
    model, batch = stack(), torch.randn(BATCH, INPUTS)
    once = recorded(tmp_path, model, batch)
    training = Training(model, [batch], lambda model, batch: square(model(batch)))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    captured = capture(
        replace(training, optimizer=optimizer), label="closure", folder=tmp_path, ceilings=CPU, setting={},
        seconds=0.01,
    )  # fmt: skip
    passes = sum(each.flops for each in captured.operations) / sum(each.flops for each in once.operations)
    assert passes > 2  # the gradients there were, and each evaluation of the closure
    assert not optimizer.state


def test_a_step_that_fails_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ProfileError, match=r"stack in float32 cannot run a training step on cpu, fed float32 32 x 9: mat1 and mat2"
    ):
        recorded(tmp_path, stack(), torch.randn(BATCH, INPUTS + 1))

    def loss(_: Any) -> Any:
        raise AssertionError

    with pytest.raises(ProfileError, match=r"cannot run a training step on cpu, fed float32 32 x 8: AssertionError$"):
        recorded(tmp_path, stack(), torch.randn(BATCH, INPUTS), loss)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ProfileError, match="holds no profile"):
        Capture.read(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", gzip.compress(b'{"traceEvents": [{"ph": "X"', mtime=0)])
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trace.json.gz").write_bytes(content)
    with pytest.raises(TraceError, match=r"is not a trace of torch\.profiler"):
        read(tmp_path / "trace.json.gz")


def test_the_program_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "profiles.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofline, "ceilings", lambda _device: CPU)
    model = stack()
    names = {
        "model": model,
        "batches": [torch.randn(BATCH, INPUTS)],
        "loss": lambda model, batch: square(model(batch)),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(program.replace("label=", "seconds=0.1, label="), names)
    assert (tmp_path / "runs/mine/profiles/mine.json").exists()


# -- a device that is not here: planted events, in microseconds --------------------------------------------------------


def event(cat: str, name: str, start: float, end: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": end - start, "args": args}


def launch(correlation: int, start: float, end: float) -> dict[str, Any]:
    return event("cuda_runtime", "cudaLaunchKernel", start, end, correlation=correlation)


def kernel(name: str, start: float, end: float, **args: int) -> dict[str, Any]:
    return event("kernel", name, start, end, **{"stream": 7, "device": 0, **args})


def of(correlation: int, link: int) -> dict[str, int]:
    """The call that launched a kernel, and the operator that made the call."""
    return {"correlation": correlation, "External id": link}


def operator(name: str, start: float, end: float, link: int, *shapes: tuple[int, ...]) -> dict[str, Any]:
    args = {"External id": link, "Input Dims": [list(one) for one in shapes], "Input type": ["float"] * len(shapes)}
    return event("cpu_op", name, start, end, **args)


SINGLE = "ampere_sgemm_128x64_nn"
TENSOR = "sm80_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x32_stage4_warpsize2x2x1_tensor16x8x16"
REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
PLANTED = [
    event("user_annotation", "ProfilerStep#5", 0, 1000),
    event("user_annotation", "depthgauge: forward", 0, 400),
    event("user_annotation", "depthgauge: backward", 400, 800),
    event("user_annotation", "depthgauge: optimizer", 800, 1000),
    operator("aten::linear", 8, 32, 90, (64, 32), (16, 32)),  # not counted itself; what it calls is
    operator("aten::mm", 10, 30, 1, (64, 32), (32, 16)),
    launch(11, 20, 25),
    kernel(SINGLE, 50, 150, **of(11, 1)),
    operator("aten::relu", 35, 45, 2, (64, 16)),
    launch(12, 40, 42),
    kernel("void at::native::vectorized_elementwise_kernel<4>", 150, 170, **of(12, 2)),
    operator("aten::mm", 500, 520, 3, (32, 64), (64, 16)),
    launch(13, 510, 515),
    kernel(TENSOR, 600, 800, **of(13, 3)),
    launch(14, 516, 518),
    kernel(REDUCE, 700, 900, **of(14, 0), stream=20),  # beside the product until 800, alone for the last 100
]
OPERATIONS = (
    Operation("aten::mm", ((64, 32), (32, 16)), 50_000_000, 1_000_000, "float32"),
    Operation("aten::relu", ((64, 16),), 0, 8_000_000, "float32"),
    Operation("aten::mm", ((32, 64), (64, 16)), 200_000_000, 1_000_000, "bfloat16"),
)


@pytest.fixture
def planted() -> Profile:
    captured = Capture(
        label="planted", setting={"model": "planted", "dtype": "bfloat16", "device": "cuda"}, examples=64,
        precision="float32", plain=(0.0005,) * 8, profiled=(0.001,) * 8, first=1.0, operations=OPERATIONS, resident={},
        ceilings=GPU, trace="", fingerprint={},
    )  # fmt: skip
    return analyse(captured, parse(PLANTED))


def states(profile: Profile) -> dict[tuple[str, str], float]:
    seconds = profile.timeline.set_index(["phase", "state"])["seconds"] * 1e6
    return {key: round(value, 6) for key, value in seconds.items() if value}  # type: ignore[misc] # keys are pairs


def test_a_planted_step_is_partitioned_as_it_was_planted(planted: Profile) -> None:
    assert states(planted) == {
        ("forward", "computing"): 120.0,
        ("forward", "waiting for the host"): 25.0,  # until the launch has returned
        ("forward", "launching"): 25.0,
        ("backward", "waiting for the host"): 345.0,  # from 170 to 515, its cause lies in what was launched then
        ("backward", "launching"): 85.0,
        ("backward", "computing"): 200.0,
        ("backward", "communicating"): 100.0,  # the half that no product hides
        ("optimizer", "waiting for the host"): 100.0,
    }
    assert planted.waiting == pytest.approx(0.470)


@pytest.mark.parametrize(("trained", "moved"), [(4_000, 3 * 4_000 + 2 * 500), (None, 3 * 100_000 + 2 * 500)])
def test_an_update_moves_what_trains(planted: Profile, trained: int | None, moved: int) -> None:
    """Frozen weights are not read for it; files of before do not tell which these are."""
    resident = {"parameters": 100_000, "optimizer state": 500}
    captured = replace(planted.capture, ceilings=CPU, resident=resident, trained=trained)
    assert _update(captured) == pytest.approx(moved / CPU.fastest)


@pytest.mark.parametrize(("convolutions", "seconds"), [("tf32", 0.5), ("float32", 1.0), ("", 1.0)])
def test_convolutions_of_float32_have_a_format_of_their_own(
    planted: Profile, convolutions: str, seconds: float
) -> None:
    """CUDA rounds those to TF32 unless told otherwise, and products not."""
    gpu = replace(GPU, flops={"float32": 1e12, "tf32": 2e12})
    work = [
        Work(name, name, kind, "forward", 0, 0.0, 2.0, (), "float32", 1e12, 1.0)
        for name, kind in (("aten::mm", "matrix product"), ("aten::convolution", "convolution"))
    ]
    frame = _frame(work, replace(planted.capture, ceilings=gpu, convolutions=convolutions))
    assert list(frame["floor"]) == [1.0, seconds]
    assert list(frame["format"]) == ["float32", convolutions or "float32"]
    only = frame[frame["kind"] == "convolution"]
    assert (_lower(gpu, only, only, 1) is None) == (convolutions == "tf32")  # they are in the narrower one already


def test_planted_kernels_are_the_table(planted: Profile) -> None:
    table = planted.kernels.set_index("name")
    assert list(table["seconds"] * 1e6) == pytest.approx([200.0, 200.0, 100.0, 20.0])
    assert table.loc[SINGLE, "operator"] == table.loc[TENSOR, "operator"] == "aten::mm"
    assert table.loc[SINGLE, "flop_rate"] == pytest.approx(50e6 / 100e-6)
    assert table.loc[SINGLE, "of_floor"] == pytest.approx((50e6 / 1e12) / 100e-6)
    assert table.loc["void at::native::vectorized_elementwise_kernel<4>", "byte_rate"] == pytest.approx(8e6 / 20e-6)
    assert pd.isna(table.loc[REDUCE, "flops"])
    assert table.loc[REDUCE, "kind"] == "communication"
    assert dict(table["tensor_cores"])[TENSOR]


def test_tensor_core_use_is_told_by_format(planted: Profile) -> None:
    assert planted.tensor_cores is not None
    used = planted.tensor_cores.set_index("dtype")["share"]
    assert dict(used) == {"bfloat16": 1.0, "float32": 0.0}


def test_bounds_on_what_could_be_saved(planted: Profile) -> None:
    bound = {one.name: one for one in planted.opportunities}
    half = 0.5  # a step takes 500 µs without the profiler, 1000 under it
    assert bound["keep the device fed"].seconds * 1e6 == pytest.approx(half * (25 + 345 + 25 + 85))
    # the products take at least 50 µs at either peak; they took 100 and 200
    assert bound["faster matrix work"].seconds * 1e6 == pytest.approx(half * (50 + 150))
    assert bound["fuse elementwise operators"].seconds * 1e6 == pytest.approx(half * 20)
    assert bound["overlap communication"].seconds * 1e6 == pytest.approx(half * 100)
    assert sum(one.share for one in planted.opportunities if one.exclusive) <= 1.0
    assert [one.seconds for one in planted.opportunities] == sorted(
        (one.seconds for one in bound.values()), reverse=True
    )


def test_an_operator_of_two_kernels_shares_its_cost_by_time() -> None:
    events = [
        event("user_annotation", "ProfilerStep#0", 0, 100),
        operator("aten::mm", 0, 10, 1, (8, 8), (8, 8)),
        kernel("gemm_one", 20, 50, **of(1, 1)),
        kernel("gemm_reduce", 50, 60, **of(2, 1)),
    ]
    one, two = pieces(parse(events), [Operation("aten::mm", ((8, 8), (8, 8)), 1024, 768, "float32")])
    assert (one.flops, two.flops) == (768, 256)
    assert (one.bytes, two.bytes) == (576, 192)


def test_calls_of_equal_shapes_get_the_costs_of_their_order() -> None:
    """A convolution's cost depends on its stride, which no shape of its inputs tells."""
    shapes = ((1, 8, 8, 8), (8, 8, 3, 3))
    events = [
        event("user_annotation", "ProfilerStep#0", 0, 100),
        *(operator("aten::convolution", start, start + 5, start, *shapes) for start in (10, 20)),
        operator("aten::mkldnn_convolution", 11, 14, 12, *shapes),  # inside the first: no piece of its own
    ]
    counted = [Operation("aten::convolution", shapes, flops, 10, "float32") for flops in (400, 100)]
    found = pieces(parse(events), counted)
    assert [piece.flops for piece in found] == [400, 100]
    assert [round(piece.seconds * 1e6, 3) for piece in found] == [5.0, 5.0]


def test_what_interrupts_a_step_here_and_there_is_no_part_of_it() -> None:
    """Three steps, each held up for a millisecond in another place: in a product, in a copy inside one, in a gap."""
    events = []
    for number, (product, inner, gap) in enumerate([(1000, 0, 0), (0, 1000, 0), (0, 0, 1000)]):
        start = 10_000 * number
        end = start + 10 + 20 + product + inner
        relu = end + 5 + gap
        events += [
            event("user_annotation", f"ProfilerStep#{number}", start, relu + 40),
            event("user_annotation", "depthgauge: forward", start, relu + 35),
            operator("aten::mm", start + 10, end, 1, (64, 32), (32, 16)),
            operator("aten::copy_", start + 12, start + 15 + inner, 2),
            operator("aten::relu", relu, relu + 30, 3, (64, 16)),
        ]
    trace = steady(parse(events))
    found = [(one.name, round(one.start * 1e6, 3), round(one.end * 1e6, 3)) for one in trace.operators]
    assert found == [("aten::mm", 10, 30), ("aten::copy_", 12, 15), ("aten::relu", 35, 65)]
    (step,) = trace.steps
    assert (step.end - step.start) * 1e6 == pytest.approx(75)


def test_on_a_host_the_time_between_operators_is_waiting() -> None:
    events = [
        event("user_annotation", "ProfilerStep#0", 0, 100),
        event("user_annotation", "depthgauge: forward", 0, 60),
        operator("aten::mm", 10, 30, 1, (8, 8), (8, 8)),
        operator("aten::mm", 70, 90, 2, (8, 8), (8, 8)),
    ]
    trace = parse(events)
    found = segments(trace, pieces(trace, [Operation("aten::mm", ((8, 8), (8, 8)), 1024, 768, "float32")]), 0)
    assert [(round(start * 1e6), round(end * 1e6), *what) for start, end, *what in found] == [
        (0, 10, "forward", "waiting for the host"),
        (10, 30, "forward", "computing"),
        (30, 60, "forward", "waiting for the host"),
        (60, 70, "other", "waiting for the host"),
        (70, 90, "other", "computing"),
        (90, 100, "other", "waiting for the host"),
    ]


def test_memory_follows_what_outlives_its_phase() -> None:
    def change(time: float, address: int, size: int, device: int = 1) -> dict[str, Any]:
        args = {"Addr": address, "Bytes": size, "Device Type": device}
        return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": time, "args": args}

    events = [
        *PLANTED[:4],
        change(10, 1, 100),  # kept for the backward pass
        change(20, 2, 50),
        change(30, 2, -50),  # the same address serves again, later
        change(500, 2, 70),  # a gradient
        change(510, 1, -100),
        change(520, 3, 30),
        change(530, 3, -30),
        change(540, 4, 999, device=0),  # on the host, which was not asked for
        change(900, 2, -70),
        change(910, 9, -5),  # older than the trace
    ]
    held = memory(parse(events), {"parameters": 1000}, 0, device=1).set_index("time")
    assert held["activations"].max() == 100
    assert held["gradients"].max() == 70
    assert held["temporary"].max() == 50
    assert held.drop(columns=["parameters"]).iloc[-1].sum() == 0
    assert held.sum(axis=1).max() == 1000 + 100 + 70


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("matrix product", ["aten::mm", "aten::addmm", "aten::bmm", "mkl::_mkl_linear"]),
        ("convolution", ["aten::convolution", "aten::convolution_backward"]),
        ("attention", ["aten::_scaled_dot_product_flash_attention_for_cpu"]),
        ("normalization", ["aten::native_batch_norm", "aten::native_layer_norm_backward"]),
        ("elementwise", ["aten::relu", "aten::threshold_backward", "aten::gelu_backward", "aten::add_", "aten::mul_"]),
        ("elementwise", ["aten::_foreach_add_", "aten::sigmoid_backward", "aten::tanh", "graph_0_cpp_fused_relu_0"]),
        ("elementwise", ["aten::clamp_min", "aten::clamp_max", "aten::fmax", "aten::fmin", "aten::_foreach_clamp_max"]),
        ("reduction", ["aten::max", "aten::amin", "aten::argmin", "aten::aminmax", "aten::var_mean", "aten::nansum"]),
        ("reduction", ["aten::logsumexp", "aten::prod", "aten::cumsum", "aten::argmax", "aten::std_mean"]),
        ("reduction", ["aten::sum", "aten::_softmax", "aten::_log_softmax_backward_data", "aten::nll_loss_forward"]),
        ("pooling", ["aten::max_pool2d_with_indices_backward", "aten::avg_pool2d"]),
        ("copy", ["aten::clone", "aten::copy_", "aten::cat", "aten::zeros", "aten::_to_copy"]),
        ("indexing", ["aten::embedding", "aten::embedding_dense_backward", "aten::select_backward"]),
        ("communication", ["c10d::allreduce_", "nccl:all_reduce"]),
    ],
)
def test_what_operators_do(kind: str, names: list[str]) -> None:
    assert {name: operator_kind(name) for name in names} == dict.fromkeys(names, kind)


def test_what_kernels_do() -> None:
    assert kernel_kind(SINGLE) == kernel_kind(TENSOR) == kernel_kind("nvjet_tst_128x256_64x4_1x2_h_bz_TNT")
    assert kernel_kind(SINGLE) == "matrix product"
    assert kernel_kind(REDUCE) == "communication"
    assert kernel_kind("sm90_xmma_fprop_implicit_gemm_bf16bf16") == "convolution"
    assert tensor_cores("nvjet_tst_128x256_64x4_1x2_h_bz_TNT")
    assert tensor_cores("cutlass_80_tensorop_s1688gemm_128x128_nn_align4")
    assert not tensor_cores("cutlass_80_simt_sgemm_128x128_8x4_nn_align1")
    assert not tensor_cores(SINGLE)
    assert not tensor_cores("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize64x64x8_ffma")
