"""One training, shared between ranks in many ways by torch's own pieces."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.parallel import Group
from depthgauge.seeding import Purpose, generator

ONE, DDP, VIEWS, FSDP = "one process", "DDP", "DDP with views", "FSDP2"
FP16, BF16, POWER = "DDP with fp16 hook", "DDP with bf16 hook", "DDP with PowerSGD hook"
TENSOR, PIPELINE, THREADS = "tensor parallel", "pipeline", "nn.DataParallel"
RATE, MOMENTUM = 0.05, 0.9
RANK = 2  # of PowerSGD's matrices
MICROBATCHES = 4
ONE_BUCKET = 1 << 14  # MiB


class Block(nn.Module):
    """A feed-forward block with a residual: two linear layers, four times as wide between.

    Its activation is smooth: where rounding puts a ReLU unit on the other side of its kink, a gradient jumps by more.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x and what the two layers make of it, together."""
        result: Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return result


def shapes(width: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of a block's weights."""
    return (4 * width, width), (4 * width,), (width, 4 * width), (width,)


@dataclass(frozen=True)
class Task:
    """A training of blocks by SGD with momentum, the same numbers in every rank.

    Attributes:
        width: of a block.
        depth: number of blocks.
        batch: examples of a step, all ranks together.
        seed: of weights and data.
    """

    width: int
    depth: int
    batch: int
    seed: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the weights."""
        return 4 * self.depth * sum(map(math.prod, shapes(self.width)))

    def network(self) -> nn.Sequential:
        """Blocks with weights of variance 1 / fan-in."""
        draws = generator(self.seed, Purpose.WEIGHTS)
        blocks = nn.Sequential(*(Block(self.width) for _ in range(self.depth)))
        with torch.no_grad():
            for weight in blocks.parameters():
                scale = math.sqrt(weight.shape[-1]) if weight.ndim > 1 else math.inf
                weight.copy_(torch.randn(weight.shape, generator=draws) / scale)
        return blocks

    @cached_property
    def examples(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (batch, width)."""
        shape = self.batch, self.width
        x, y = (torch.randn(shape, generator=generator(self.seed, use)) for use in (Purpose.INPUTS, Purpose.LABELS))
        return x, y


@dataclass(frozen=True)
class Trainer:
    """A training in one rank.

    Attributes:
        step: takes one step; gradients are left where they are.
        weights: those that this rank can tell, by the whole network's names; all ranks ask together.
    """

    step: Callable[[], object]
    weights: Callable[[], dict[str, Tensor]]


def distance_to(given: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error: the loss of every way."""
    return (given - wanted).square().mean()


def trainer(way: str, task: Task, group: Group) -> Trainer:
    """Build a training as this rank sees it.

    Raises:
        ValueError: there is no such way.
    """
    if way not in _WAYS:
        raise ValueError(f"{way!r} is no way to train; these are: {', '.join(_WAYS)}")
    return _WAYS[way](task, group)


def _stepping(model: nn.Module, backward: Callable[[], object]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return step


def _on_loss(model: nn.Module, task: Task, group: Group, shards: int) -> Callable[[], None]:
    """Steps on this rank's shard of the examples."""
    x, y = (each.chunk(shards)[group.rank % shards].to(group.device) for each in task.examples)
    return _stepping(model, lambda: distance_to(model(x), y).backward())  # type: ignore[no-untyped-call]  # torch's own


def _plain(model: nn.Module) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name.removeprefix("module."): each.detach() for name, each in model.named_parameters()}


def _whole(model: nn.Module) -> Callable[[], dict[str, Tensor]]:
    """Weights of which each rank has a part, put together."""
    return lambda: {
        name: each.full_tensor().detach() if hasattr(each, "full_tensor") else each.detach()
        for name, each in model.named_parameters()
    }


def _one(task: Task, group: Group) -> Trainer:
    if group.rank:
        return Trainer(lambda: None, dict)
    model = task.network().to(group.device)
    return Trainer(_on_loss(model, task, group, 1), _plain(model))


def _threads(task: Task, group: Group) -> Trainer:
    """One process that copies the model to every CUDA device at each step; without any it is the model itself."""
    if group.rank:
        return Trainer(lambda: None, dict)
    devices = list(range(group.ranks)) if group.device.type == "cuda" else []
    model = nn.DataParallel(task.network().to(group.device), device_ids=devices)
    return Trainer(_on_loss(model, task, group, 1), _plain(model))


def _wrapped(task: Task, group: Group, **options: Any) -> tuple[Any, Trainer]:
    model: Any = nn.parallel.DistributedDataParallel(task.network().to(group.device), **options)
    return model, Trainer(_on_loss(model, task, group, group.ranks), _plain(model))


def _compressed(hook: str) -> Callable[[Task, Group], Trainer]:
    def build(task: Task, group: Group) -> Trainer:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook  # noqa: PLC0415 - slow

        # PowerSGD starts collectives in callbacks; on gloo those of several buckets differ in order from rank to rank.
        model, made = _wrapped(task, group, **({"bucket_cap_mb": ONE_BUCKET} if hook == POWER else {}))
        if hook == POWER:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=2)
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        else:
            model.register_comm_hook(None, getattr(default_hooks, f"{hook}_compress_hook"))
        return made

    return build


def mesh(group: Group) -> Any:
    """All ranks in one row."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - a rank that needs none starts sooner

    return init_device_mesh(group.device.type, (group.ranks,))


def _sharded(task: Task, group: Group) -> Trainer:
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - as above

    model, ranks = task.network().to(group.device), mesh(group)
    for block in (*model, model):
        fully_shard(block, mesh=ranks)
    return Trainer(_on_loss(model, task, group, group.ranks), _whole(model))


def _tensor(task: Task, group: Group) -> Trainer:
    from torch.distributed.tensor import parallel  # noqa: PLC0415 - as above

    model, ranks = task.network().to(group.device), mesh(group)
    for block in model:
        parallel.parallelize_module(
            block, ranks, {"up": parallel.ColwiseParallel(), "down": parallel.RowwiseParallel()}
        )
    return Trainer(_on_loss(model, task, group, 1), _whole(model))


def _pipeline(task: Task, group: Group) -> Trainer:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B  # noqa: PLC0415 - as above

    part = blocks_of(task, group.rank, group.ranks).to(group.device)
    stage = PipelineStage(part, group.rank, group.ranks, group.device)
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=distance_to)
    return Trainer(_stepping(part, feeding(schedule, task, group)), _plain(part))


def blocks_of(task: Task, stage: int, stages: int) -> nn.Sequential:
    """The blocks of one stage, by the names that they have in the whole network."""
    whole, size = task.network(), task.depth // stages
    own = range(stage * size, task.depth if stage == stages - 1 else (stage + 1) * size)
    return nn.Sequential(OrderedDict((str(place), whole[place]) for place in own))


def feeding(schedule: Any, task: Task, group: Group) -> Callable[[], object]:
    """One forward and backward pass of a pipeline: the first stage is given inputs, the last one targets."""
    x, y = (each.to(group.device) for each in task.examples)
    given = (x,) if group.rank == 0 else ()
    wanted = {"target": y, "losses": []} if group.rank == group.ranks - 1 else {}
    return lambda: schedule.step(*given, **wanted)


_WAYS: dict[str, Callable[[Task, Group], Trainer]] = {
    ONE: _one,
    DDP: lambda task, group: _wrapped(task, group)[1],
    VIEWS: lambda task, group: _wrapped(task, group, gradient_as_bucket_view=True)[1],
    FSDP: _sharded,
    FP16: _compressed("fp16"),
    BF16: _compressed("bf16"),
    POWER: _compressed(POWER),
    TENSOR: _tensor,
    PIPELINE: _pipeline,
    THREADS: _threads,
}
