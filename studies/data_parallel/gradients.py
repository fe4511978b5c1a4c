"""The work of a rank: the first gradients of DDP, and those of one device to hold them against."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from depthgauge.parallel import Group, SyncBatchNorm
from depthgauge.seeding import Purpose, generator, seed_torch
from depthgauge.studies.data_parallel import shards
from depthgauge.studies.data_parallel.shards import OWN_SEED, ROWS, Batch, Loss, Row, Task, losses

Asked = tuple[str, int]  # a row and its seed


class Whole(nn.Module):
    """A network and its loss, which DDP takes as one module."""

    def __init__(self, model: nn.Module, loss: Loss, ranks: int) -> None:
        super().__init__()
        self.model, self.loss, self.ranks = model, loss, ranks

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a rank."""
        own = losses(self.model, batch)
        if self.loss == "mean":
            return own.mean()
        if self.loss == "sum":
            return own.sum()
        count = torch.tensor(float(len(own)), device=own.device)
        distributed.all_reduce(count)
        return own.sum() * self.ranks / count


def work(group: Group, asked: Sequence[Asked], draws: int) -> list[dict[str, Any]] | None:
    """Compare the gradients of every row on these ranks with one device's; the answers come from rank 0."""
    alone = distributed.new_group([0])
    found = []
    for name, seed in asked:
        if name in ROWS:
            found.append(compared(group, ROWS[name], seed, alone) | seen(group, ROWS[name], seed, draws))
        else:
            found.append(noise(group, name, seed, draws))
    return None if group.rank else found


def compared(group: Group, row: Row, seed: int, alone: Any) -> dict[str, Any]:
    """DDP's gradient against one device's: factor, distance, ulps, what was predicted, and what rounding does."""
    task = moved(row.task(seed, group.ranks), group.device)
    if group.rank:
        if not row.alone:
            averaged(group, row, task, seed, alone)
        return {}
    one = reference(copy.deepcopy(task.model), row, task, seed)
    many = averaged(group, row, task, seed, alone)
    g_1, g_k = flat(one), flat(many)
    fine = flat(reference(copy.deepcopy(task.model).double(), row, task, seed))
    size = float(g_1.norm())
    found: dict[str, Any] = {
        "factor": float(g_k @ g_1) / size**2,
        "distance": float((g_k - g_1).norm()) / size,
        "ulps": float((g_k - g_1).square().mean().sqrt() / np.spacing(np.float32(g_1.square().mean().sqrt()))),
        "rounding": float((g_1 - fine).norm()) / size,
        "predicted": 1.0,
    }
    if row.kind == shards.EXACT:
        theory, coarse = (flat(predicted(row, task, kind)) for kind in (torch.float64, torch.float32))
        found["predicted"] = float(theory @ fine) / float(fine @ fine)
        found["rounding"] = max(found["rounding"], float((coarse - theory).norm()) / size)
        found |= {"weights": weighed(row, task, g_k)} if task.weights is not None else {}
    if row.norm == "local":
        found["below"] = float((many[0].norm(dim=1) / one[0].norm(dim=1)).median())
        found["below_all"] = float(many[0].norm() / one[0].norm())
    return found


def averaged(group: Group, row: Row, task: Task, seed: int, alone: Any) -> list[Tensor]:
    """The gradients that DDP leaves in this rank."""
    model: nn.Module = copy.deepcopy(task.model)
    if row.norm == "synchronized":
        model = SyncBatchNorm.convert(model)
    members = alone if row.alone else None
    ddp = DistributedDataParallel(Whole(model, row.loss, group.ranks), process_group=members)
    batches = [task.shards[group.rank]]
    if row.join is not None:  # one batch that all have, then what they have left
        batches = [task.whole, *(batch for batch in batches if len(batch[0]))]
    joined = contextlib.nullcontext() if row.join is None else ddp.join(divide_by_initial_world_size=row.join)
    with joined:
        for batch in batches:
            ddp.zero_grad()
            if row.dropped:
                seed_torch(seed, Purpose.DROPOUT, device=group.device)
            ddp(batch).backward()
    return gradients(model)


def seen(group: Group, row: Row, seed: int, splits: int) -> dict[str, Any]:
    """The variance that batch normalization sees in a rank over that of the whole batch, mean of ranks and splits.

    Where it is synchronized: whether torch's own could have done it.
    """
    if row.norm != "local":
        return {"torch_sync": float(torch_synchronizes(group))} if row.norm else {}
    task = moved(row.task(seed, group.ranks), group.device)
    first, layer = task.model[0], task.model[1]
    order = generator(seed, Purpose.ORDER)
    with torch.no_grad():
        z = first(task.whole[0])
        total = torch.zeros(shards.WIDTH, dtype=torch.float64, device=z.device)
        for _ in range(splits):
            own = torch.randperm(len(z), generator=order).tensor_split(group.ranks)[group.rank]
            total += variance(layer, z[own])
        distributed.all_reduce(total)
        return {"variance": float((total / (splits * group.ranks) / variance(layer, z)).mean())}


def reference(model: nn.Module, row: Row, task: Task, seed: int) -> list[Tensor]:
    """The gradients of one device on the whole batch, in the model's precision."""
    if row.dropped:
        seed_torch(seed, Purpose.DROPOUT, device=task.whole[0].device)
    own = losses(model, cast(task.whole, model))
    (own.sum() if row.loss == "sum" else own.mean()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return gradients(model)


def predicted(row: Row, task: Task, kind: torch.dtype = torch.float64) -> list[Tensor]:
    """The gradients that theory says, by one process: of weighted losses, or of shards normalized apart."""
    model = copy.deepcopy(task.model).to(kind)
    if task.weights is None:
        parts = [losses(model, cast(shard, model)).mean() for shard in task.shards]
        torch.stack(parts).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    else:
        weighted(row, losses(model, cast(task.whole, model)), task.weights).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return gradients(model)


def weighted(row: Row, own: Tensor, weights: Tensor) -> Tensor:
    """Mean or sum of losses with these weights."""
    total = (weights.to(own) * own).sum()
    return total if row.loss == "sum" else total / len(own)


def weighed(row: Row, task: Task, g_k: Tensor) -> list[tuple[float, float]]:
    """(weight by least squares, predicted weight) of each group of losses."""
    assert task.weights is not None, "a row of weights"
    groups = torch.unique(task.weights, return_inverse=True)[1] if task.groups is None else task.groups
    basis, weights = [], []
    for group in sorted(set(groups.tolist())):
        model, own = copy.deepcopy(task.model).double(), groups == group
        weighted(row, losses(model, cast(task.whole, model)), own).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        basis.append(flat(gradients(model)))
        weights.append(float(task.weights[own][0]))
    found = torch.linalg.lstsq(torch.stack(basis, 1), g_k[:, None]).solution[:, 0]
    return list(zip(found.tolist(), weights, strict=True))


def noise(group: Group, name: str, seed: int, draws: int) -> dict[str, Any]:
    """Share of mask entries alike in two ranks, and the gradient's variance over that of one device.

    All examples are one, so that the mask alone makes a difference.
    """
    task = moved(shards.equal(seed, group.ranks, dropout=True), group.device)
    (x, y), each = task.whole, shards.EACH
    whole: Batch = (x[:1].expand_as(x), y[:1].expand_as(y))
    seed_torch(seed, Purpose.DROPOUT, group.rank if name == OWN_SEED else 0, device=group.device)
    mask = nn.functional.dropout(torch.ones(1000, device=group.device))
    masks = [torch.empty_like(mask) for _ in range(group.ranks)]
    distributed.all_gather(masks, mask)
    own = (whole[0][:each], whole[1][:each])
    many = torch.stack([flat(gradient_of(task.model, own)) for _ in range(draws)]) / group.ranks
    distributed.all_reduce(many)
    if group.rank:
        return {}
    seed_torch(seed, Purpose.DROPOUT, "one device", device=group.device)
    one = torch.stack([flat(gradient_of(task.model, whole)) for _ in range(draws)])
    spread, alone = (float(drawn.var(0).sum()) for drawn in (many, one))
    return {"alike": float((masks[0] == masks[1]).double().mean()), "noise": spread / alone}


def gradient_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Gradients of the mean loss."""
    return list(torch.autograd.grad(losses(model, batch).mean(), list(model.parameters())))


def torch_synchronizes(group: Group) -> bool:
    """Tell whether DDP takes torch's own SyncBatchNorm on this device."""
    try:
        DistributedDataParallel(nn.Sequential(nn.SyncBatchNorm(2)).to(group.device))
    except ValueError:
        return False
    return True


def variance(layer: nn.Module, z: Tensor) -> Tensor:
    """The biased variance of these examples, from the running variance that they leave, at momentum 1."""
    layer(z)
    kept: Tensor = layer.running_var  # type: ignore[assignment]  # a buffer
    return kept.double() * (len(z) - 1) / len(z)


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients that a backward pass left, by parameter."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """All of them, one after the other, in float64."""
    return torch.cat([part.detach().flatten().double() for part in parts])


def cast(batch: Batch, model: nn.Module) -> Batch:
    """The batch in the precision of a model."""
    kind = next(model.parameters()).dtype
    return (batch[0].to(kind) if batch[0].is_floating_point() else batch[0]), batch[1]


def moved(task: Task, device: torch.device) -> Task:
    """The task on a device."""
    parts = tuple((x.to(device), y.to(device)) for x, y in task.shards)
    whole = (task.whole[0].to(device), task.whole[1].to(device))
    return replace(task, model=task.model.to(device), whole=whole, shards=parts)
