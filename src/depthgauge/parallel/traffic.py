"""Collectives that a step calls, by name: how often, and with how many bytes.

    found = traffic(step)                   # in a rank: one step of any training, with gradients and update
    found["all_reduce"].bytes, found.sent

    with pretended(64):                     # one process that takes itself for rank 0 of 64
        model = DistributedDataParallel(net)
        found = traffic(step)

Collectives are seen where torch dispatches them, those of DDP's reducer, of FSDP and of DTensor among them. Those that
a callback calls in a thread of the backend's are not: with gloo, some of DDP's PowerSGD hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from depthgauge.formats.arguments import whole
from depthgauge.parallel.naming import ParallelError

_C10D: Any = torch._C._distributed_c10d  # its stubs leave out what torch's own Python calls
_NAMES = {  # of torch's operators, without what is said of their form
    "allreduce": "all_reduce", "allgather": "all_gather", "reduce_scatter": "reduce_scatter", "broadcast": "broadcast",
    "reduce": "reduce", "gather": "gather", "scatter": "scatter", "alltoall": "all_to_all", "send": "send",
    "recv": "recv", "recv_any_source": "recv", "barrier": "barrier", "monitored_barrier": "barrier",
    "shard_dim_alltoall": "all_to_all",
}  # fmt: skip
_FORMS = ("_into_tensor_out", "_into_tensor", "_tensor", "_single", "_base", "_coalesced")
_NAMESPACES = ("c10d", "_c10d_functional", "_dtensor")
_SENT: Mapping[str, Callable[[int], float]] = {  # bytes sent a rank, on average and at least, over those of the buffer
    "all_reduce": lambda p: 2 * (p - 1) / p,
    **dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce"), lambda p: (p - 1) / p),
    **dict.fromkeys(("gather", "scatter"), lambda p: (p - 1) / p**2),
    "send": lambda _: 1.0,
    "recv": lambda _: 0.0,
    "barrier": lambda _: 0.0,
}


@dataclass(frozen=True)
class Collective:
    """All calls of one collective by one rank.

    Attributes:
        name: `all_reduce`, `all_gather`, `reduce_scatter`, `broadcast`, `reduce`, `gather`, `scatter`, `all_to_all`,
            `send`, `recv`, `barrier`.
        count: number of calls.
        bytes: of the buffers, each at its whole length: what an all-gather gives, what a reduce-scatter takes.
        sent: bytes that a rank sends for it at the least, as a mean over the ranks; 2 (p - 1) / p of an all-reduce's.
    """

    name: str
    count: int
    bytes: int
    sent: float


@dataclass(frozen=True)
class Traffic:
    """Everything that a rank exchanged with the others; of a collective that it never called there are 0 calls.

    Attributes:
        collectives: those that were called, in the order of their first calls.
    """

    collectives: tuple[Collective, ...] = field(default=())

    def __getitem__(self, name: str) -> Collective:
        """The calls of one collective."""
        return next((each for each in self.collectives if each.name == name), Collective(name, 0, 0, 0.0))

    @property
    def sent(self) -> float:
        """Bytes that a rank sends at the least, as a mean over the ranks."""
        return sum(each.sent for each in self.collectives)

    def to_frame(self) -> pd.DataFrame:
        """One row a collective: name, count, bytes, sent."""
        rows = [(each.name, each.count, each.bytes, each.sent) for each in self.collectives]
        return pd.DataFrame(rows, columns=["name", "count", "bytes", "sent"])


def traffic(step: Callable[[], object]) -> Traffic:
    """The collectives that `step()` calls in this rank, and their bytes.

    Run two steps before: DDP cuts its buckets anew after the first, and the second tells the others.

    Raises:
        ParallelError: `step` cannot be called.
    """
    if not callable(step):
        raise ParallelError(f"traffic takes a function without arguments, not {step!r:.60}")
    with _Seen() as seen:
        step()
    return Traffic(tuple(seen.calls.values()))


@contextmanager
def pretended(ranks: int, rank: int = 0) -> Iterator[None]:
    """Let this process take itself for one of many within the block, by torch's fake process group.

    Nothing is exchanged: what a collective returns is not what it would be, its calls and sizes are. So the traffic at
    any number of ranks is counted on one machine. Build the model, and wrap it, within the block.

    Raises:
        ParallelError: this process has a process group already, or there is no such rank.
        ValueError: ranks are no whole number above 0.
    """
    if rank not in range(whole("ranks", ranks)):
        raise ParallelError(f"there is no rank {rank!r} among {ranks!r}")
    if distributed.is_initialized():
        raise ParallelError("this process is in a process group already, where it cannot pretend to be in another")
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415 - registers the backend

    distributed.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        with _Handed():
            yield
    finally:
        distributed.destroy_process_group()


class _Plain(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Look at every plain operation; DTensor makes its own into these and collectives, one by one."""

    def __init__(self) -> None:
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 - a rank that needs none starts sooner

        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.desugared = DTensor

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and look at it."""
        if any(issubclass(each, self.desugared) for each in types):
            return NotImplemented
        return self.seen(func, (*args, *(kwargs or {}).values()), func(*args, **(kwargs or {})))

    def seen(self, operator: Any, given: Sequence[Any], result: Any) -> Any:
        """Return the result of an operation, or another."""
        raise NotImplementedError


class _Handed(_Plain):  # type: ignore[no-untyped-call]  # as above
    """Works of a fake group's all-reduces hold the tensors, as those of a real one: DDP's reducer reads them."""

    def seen(self, operator: Any, given: Sequence[Any], result: Any) -> Any:
        """Return the tensors, and a finished work that holds them."""
        if operator is not torch.ops.c10d.allreduce_.default:
            return result
        done: Any = torch.futures.Future()
        done.set_result(given[0])
        return result[0], _C10D._create_work_from_future(done).boxed()


class _Seen(_Plain):  # type: ignore[no-untyped-call]  # as above
    """Counter of the collectives within its block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Collective] = {}

    def seen(self, operator: Any, given: Sequence[Any], result: Any) -> Any:
        """Note an operation where it is a collective."""
        name = collective_name(operator)
        if name is not None:
            self._note(name, [_size(each) for each in (*given, result)], _ranks(operator, given))
        return result

    def _note(self, name: str, sizes: Sequence[int], ranks: int) -> None:
        whole = 0 if name == "barrier" else max(sizes)
        if name in {"gather", "scatter"}:  # all but the root have a part of it alone
            whole = ranks * min(filter(None, sizes), default=0)
        before = self.calls.get(name, Collective(name, 0, 0, 0.0))
        sent = before.sent + whole * _SENT[name](ranks)
        self.calls[name] = Collective(name, before.count + 1, before.bytes + whole, sent)


def collective_name(operator: Any) -> str | None:
    """The collective that an operator of torch is; None where it is another operator.

    Args:
        operator: as a `TorchDispatchMode` gets it, `torch.ops.c10d.allreduce_.default`.
    """
    if getattr(operator, "namespace", None) not in _NAMESPACES:
        return None
    name = operator.__name__.partition(".")[0].strip("_")
    while form := next((form for form in _FORMS if name.endswith(form)), ""):
        name = name.removesuffix(form)
    name = name.strip("_")
    return _NAMES.get(name) or _NAMES.get(name.replace("all_", "all", 1).replace("allto_", "allto"))


def _size(value: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tree_leaves(value) if isinstance(each, Tensor))


def _ranks(operator: Any, args: Sequence[Any]) -> int:
    """The size of the group that a collective is called in."""
    given = dict(zip((each.name for each in operator._schema.arguments), args, strict=False))
    group = given.get("process_group", given.get("group_name"))
    if isinstance(group, str):
        group = _C10D._resolve_process_group(group)
    elif isinstance(group, torch.ScriptObject):
        group = ProcessGroup.unbox(group)
    return distributed.get_world_size(group)
