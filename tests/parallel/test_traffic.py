"""Collectives and bytes at 8 and 64 ranks, by torch's fake process group, against what each way of training says."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from depthgauge import parallel
from depthgauge.parallel.traffic import collective_name

BATCH, IN, WIDTH, OUT = 16, 64, 256, 10
LAYERS = ((WIDTH, IN), (OUT, WIDTH))
BYTES = 4 * sum(rows * columns + rows for rows, columns in LAYERS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let torch say that its own hooks are slow, or its own functions old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(IN, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))


def step_of(model: nn.Module) -> Callable[[], object]:
    x = torch.randn(BATCH, IN)

    def step() -> None:
        model(x).square().sum().backward()

    step()
    step()  # buckets are cut anew after the first one
    return step


def counted_by_torch(step: Callable[[], object]) -> int:
    with CommDebugMode() as seen:
        step()
    return int(seen.get_total_counts())


def wrapped(**options: Any) -> nn.Module:
    return DistributedDataParallel(network(), **options)


def compressed() -> nn.Module:
    model = DistributedDataParallel(network())
    model.register_comm_hook(None, fp16_compress_hook)
    return model


def sharded(ranks: int) -> nn.Module:
    model, mesh = network(), init_device_mesh("cpu", (ranks,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def padded(ranks: int) -> int:
    """Bytes of all weights, each padded to as many rows a rank, as FSDP2 shards them."""
    rows = [-(-rows // ranks) * ranks * (columns + 1) for rows, columns in LAYERS]
    return 4 * sum(rows)


@pytest.mark.parametrize("ranks", [8, 64])
def test_ddp_reduces_every_gradient_once(ranks: int) -> None:
    with parallel.pretended(ranks):
        step = step_of(wrapped())
        found = parallel.traffic(step)
        assert counted_by_torch(step) == found["all_reduce"].count == 1
    assert [each.name for each in found.collectives] == ["all_reduce"]
    assert found["all_reduce"].bytes == BYTES
    assert found.sent == pytest.approx(2 * (ranks - 1) / ranks * BYTES)


@pytest.mark.parametrize("ranks", [8, 64])
def test_small_buckets_are_more_calls_and_as_many_bytes(ranks: int) -> None:
    with parallel.pretended(ranks):
        found = parallel.traffic(step_of(wrapped(bucket_cap_mb=1e-3)))
    assert found["all_reduce"].count > 1
    assert found["all_reduce"].bytes == BYTES


@pytest.mark.parametrize("ranks", [8, 64])
def test_half_precision_halves_the_bytes(ranks: int) -> None:
    with parallel.pretended(ranks):
        found = parallel.traffic(step_of(compressed()))
    assert found["all_reduce"].bytes == BYTES / 2


@pytest.mark.parametrize("ranks", [8, 64])
def test_fsdp_gathers_twice_and_scatters_once_with_padding(ranks: int) -> None:
    """The last layer has 10 rows: at 64 ranks it is padded to 64, and so are the bytes."""
    with parallel.pretended(ranks):
        step = step_of(sharded(ranks))
        found = parallel.traffic(step)
        assert counted_by_torch(step) == 6
    whole = padded(ranks)
    assert whole > BYTES
    assert (found["all_gather"].count, found["all_gather"].bytes) == (4, 2 * whole)
    assert (found["reduce_scatter"].count, found["reduce_scatter"].bytes) == (2, whole)
    assert found.sent == pytest.approx(3 * (ranks - 1) / ranks * whole)


@pytest.mark.parametrize("ranks", [8, 64])
def test_tensor_parallel_reduces_activations(ranks: int) -> None:
    with parallel.pretended(ranks):
        mesh = init_device_mesh("cpu", (ranks,))
        step = step_of(parallelize_module(network(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}))
        found = parallel.traffic(step)
        assert counted_by_torch(step) == found["all_reduce"].count == 1
    assert found["all_reduce"].bytes == 4 * BATCH * OUT


def test_a_pretended_step_is_that_of_one_process() -> None:
    """A fake all-reduce leaves the tensor as it is, and DDP divides by the number of ranks."""
    torch.manual_seed(0)
    plain = network()
    with parallel.pretended(8):
        model = DistributedDataParallel(copy.deepcopy(plain))
        x = torch.randn(BATCH, IN)
        for each in (plain, model):
            each(x).square().sum().backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad / 8)


CALLS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], int, float]] = {
    "all_reduce": (lambda part, _: distributed.all_reduce(part), 1, 2 * 7 / 8),
    "all_gather": (lambda part, whole: distributed.all_gather_into_tensor(whole, part), 8, 7 / 8),
    "reduce_scatter": (distributed.reduce_scatter_tensor, 8, 7 / 8),
    "broadcast": (lambda part, _: distributed.broadcast(part, 0), 1, 7 / 8),
    "reduce": (lambda part, _: distributed.reduce(part, 0), 1, 7 / 8),
    "gather": (lambda part, whole: distributed.gather(part, list(whole.chunk(8)), 0), 8, 7 / 64),
    "scatter": (lambda part, whole: distributed.scatter(part, list(whole.chunk(8)), 0), 8, 7 / 64),
    "all_to_all": (lambda _, whole: distributed.all_to_all_single(torch.empty_like(whole), whole), 8, 7 / 8),
    "send": (lambda part, _: distributed.send(part, 1), 1, 1.0),
    "recv": (lambda part, _: distributed.recv(part, 1), 1, 0.0),
    "barrier": (lambda _, __: distributed.barrier(), 0, 0.0),
}


@pytest.mark.parametrize("name", CALLS)
def test_bytes_of_every_collective(name: str) -> None:
    call, times, sent = CALLS[name]
    part, whole = torch.zeros(6), torch.zeros(48)
    with parallel.pretended(8):
        found = parallel.traffic(lambda: call(part, whole))
    (only,) = found.collectives
    assert (only.name, only.count, only.bytes) == (name, 1, 24 * times)
    assert only.sent == pytest.approx(sent * 24 * times)
    assert found.to_frame().to_dict("records") == [{"name": name, "count": 1, "bytes": only.bytes, "sent": only.sent}]


def test_gather_is_seen_as_large_by_a_rank_that_is_not_the_root() -> None:
    with parallel.pretended(8, rank=3):
        found = parallel.traffic(lambda: distributed.gather(torch.zeros(6), dst=0))
    assert found["gather"].bytes == 8 * 24


def test_every_collective_of_torch_has_a_name() -> None:
    """By the list that CommDebugMode keeps, so that a new one is missed here and not by a user."""
    from torch.distributed.tensor.debug import _comm_mode

    known = {*_comm_mode.c10d_collective_ops, *CommDebugMode().comm_registry}  # type: ignore[no-untyped-call]
    operators = [getattr(packet, name) for packet in known for name in packet.overloads()]
    assert len(operators) > 20
    above = ("c10d_functional", "_c10d_functional_autograd")  # they call _c10d_functional's
    named = [each for each in operators if each.namespace not in above]
    assert [str(each) for each in named if collective_name(each) is None] == []
    assert collective_name(torch.ops._c10d_functional.wait_tensor.default) is None
    assert collective_name(torch.ops.aten.add.Tensor) is None


def test_functional_collectives_are_seen_once() -> None:
    from torch.distributed import _functional_collectives as functional

    def step() -> None:
        x = torch.zeros(16, requires_grad=True)
        functional.all_to_all_single_autograd(x, None, None, distributed.group.WORLD).sum().backward()
        functional.all_gather_tensor(x.detach(), 0, distributed.group.WORLD).sum()

    with parallel.pretended(8):
        found = parallel.traffic(step)
    assert (found["all_to_all"].count, found["all_to_all"].bytes) == (2, 2 * 64)  # its backward pass is another
    assert (found["all_gather"].count, found["all_gather"].bytes) == (1, 8 * 64)


def test_without_collectives_there_is_no_traffic() -> None:
    found = parallel.traffic(lambda: torch.zeros(2) + 1)
    assert found.collectives == ()
    assert (found["all_reduce"].count, found.sent, len(found.to_frame())) == (0, 0, 0)


def test_a_group_is_pretended_once_and_left_again() -> None:
    with parallel.pretended(2), pytest.raises(parallel.ParallelError, match="in a process group already"):
        parallel.pretended(3).__enter__()
    assert not distributed.is_initialized()
    with pytest.raises(parallel.ParallelError, match="no rank 4 among 4"):
        parallel.pretended(4, rank=4).__enter__()
    with pytest.raises(ValueError, match="ranks"):
        parallel.pretended(0).__enter__()
