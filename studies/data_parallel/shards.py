"""The task of each row of the table: a network, a batch, its shards, and the weights that its losses should get."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from depthgauge import data
from depthgauge.seeding import Purpose, generator, number, seed_torch

Batch = tuple[Tensor, Tensor]
Loss = Literal["mean", "sum", "counted"]
Kind = Literal["exact", "rounding"]

EXACT: Kind = "exact"
ROUNDING: Kind = "rounding"
WIDTH, LONGEST = 32, 64  # units; characters of a sequence
EACH, FEW = 8, 2  # examples a rank
IGNORED = -100  # the target of a token that pads, as in torch's cross-entropy


@dataclass(frozen=True)
class Task:
    """One step of training, on one device and on several ranks.

    Attributes:
        model: the network.
        whole: inputs and targets that one device takes.
        shards: those of each rank; an empty one: the rank has run out of batches.
        weights: predicted, of every loss of the whole batch; 1 as on one device; None: not a matter of weights.
        groups: of losses whose weight is solved for; None: those of one predicted weight each.
    """

    model: nn.Sequential
    whole: Batch
    shards: tuple[Batch, ...]
    weights: Tensor | None = None
    groups: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        task: seed and number of ranks -> what it trains on.
        kind: `rounding`: one device's gradient is expected; `exact`: another, which is predicted.
        says: the sentence's first half: what the ranks compute.
        loss: of a rank: `mean` or `sum` of its losses; `counted`: their sum over the mean count of all ranks.
        norm: whose statistics batch normalization takes.
        join: for ranks that run out of batches: whether DDP's `join` divides by all ranks, or by those that still have.
        alone: a group of one rank.
        dropped: the network has dropout; every rank, and the one device, begin with one seed.
    """

    task: Callable[[int, int], Task]
    kind: Kind
    says: str
    loss: Loss = "mean"
    norm: Literal["", "local", "synchronized"] = ""
    join: bool | None = None
    alone: bool = False
    dropped: bool = False


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every example, or of every token that does not pad."""
    targets = batch[1].flatten()
    found = nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), targets, reduction="none", ignore_index=IGNORED)
    return found[targets != IGNORED]


def network(seed: int, *, norm: bool = False, dropout: bool = False) -> nn.Sequential:
    """A perceptron on 8 x 8 digits; its batch normalization keeps the statistics of the last batch alone."""
    between: list[nn.Module] = [nn.BatchNorm1d(WIDTH, momentum=1.0)] if norm else []
    after: list[nn.Module] = [nn.Dropout(0.5)] if dropout else []
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, Purpose.MODULES)
        return nn.Sequential(
            nn.Linear(64, WIDTH, bias=not norm), *between, nn.Tanh(), *after, nn.Linear(WIDTH, 10)
        )  # fmt: skip


def digits(seed: int, count: int) -> Batch:
    """Different digits and their classes."""
    train = data.load("digits").train
    chosen = torch.randperm(len(train.x), generator=generator(seed, Purpose.SAMPLE))[:count]
    return train.x[chosen].flatten(1), train.y[chosen]


def equal(seed: int, ranks: int, *, each: int = EACH, norm: bool = False, dropout: bool = False) -> Task:
    """Equal shards: every rank has as many examples."""
    task = uneven(seed, [each] * ranks)
    weights = None if norm or dropout else task.weights
    return replace(task, model=network(seed, norm=norm, dropout=dropout), weights=weights)


def uneven(seed: int, counts: Sequence[int], *, fair: bool = False) -> Task:
    """So many examples in each rank: of n among N in k ranks one weighs N / (k n), where none is done to be `fair`."""
    whole, total = digits(seed, sum(counts)), sum(counts)
    weights = [1.0 if fair else total / (len(counts) * count) for count in counts for _ in range(count)]
    return Task(network(seed), whole, split(whole, counts), torch.tensor(weights, dtype=torch.float64))


def ragged(seed: int, ranks: int) -> Task:
    """A last batch with one example more than ranks can share."""
    return uneven(seed, [FEW + 1] + [FEW] * (ranks - 1))


def stairs(seed: int, ranks: int, *, fair: bool = False) -> Task:
    """Four examples more in each rank than in the one before."""
    return uneven(seed, [4 * (rank + 1) for rank in range(ranks)], fair=fair)


def spent(seed: int, ranks: int, *, everyone: bool) -> Task:
    """Rank 0 has a batch when the others have none left."""
    whole = digits(seed, EACH)
    shards = split(whole, [EACH] + [0] * (ranks - 1))
    return Task(network(seed), whole, shards, torch.full((EACH,), 1 / ranks if everyone else 1.0, dtype=torch.float64))


def sampled(seed: int, ranks: int, *, more: int = 0, drop: bool = False) -> Task:
    """Dealt by torch's DistributedSampler: shuffled where ranks share them evenly, else in order, and padded or cut.

    It repeats the first examples, or drops the last, until every rank has as many.
    """
    count = EACH * ranks + more
    batch, order = digits(seed, count), {"shuffle": not more, "seed": number(seed, Purpose.ORDER) % 2**31}
    samplers = [DistributedSampler(range(count), ranks, rank, drop_last=drop, **order) for rank in range(ranks)]  # type: ignore[arg-type,var-annotated]  # a range is no Dataset
    places = [torch.tensor(list(sampler)) for sampler in samplers]
    total = ranks * (count // ranks if drop else math.ceil(count / ranks))
    times = torch.ones(count, dtype=torch.float64)
    times[: max(total - count, 0)] += 1
    times[total:] -= 1
    shards = tuple((batch[0][place], batch[1][place]) for place in places)
    return Task(network(seed), batch, shards, times * count / total)


def repeated(seed: int, ranks: int) -> Task:
    """All ranks read the same first examples, for want of a sampler."""
    whole = digits(seed, EACH * ranks)
    first = (whole[0][:EACH], whole[1][:EACH])
    weights = torch.tensor([float(ranks)] * EACH + [0.0] * (EACH * (ranks - 1)), dtype=torch.float64)
    return Task(network(seed), whole, (first,) * ranks, weights)


def tokens(seed: int, ranks: int, *, fair: bool = False) -> Task:
    """Four lines a rank, of unequal length: of T tokens in k ranks one of a rank that has t weighs T / (k t)."""
    train, count = data.load("shakespeare", context=LONGEST).train, 4 * ranks
    drawn = generator(seed, Purpose.SAMPLE)
    chosen = torch.randint(len(train.x), (count,), generator=drawn)
    lengths = (2 ** (1 + 5 * torch.rand(count, generator=drawn))).round().long()  # 2 to 64, evenly on a log scale
    x, y = train.x[chosen], train.y[chosen].clone()
    y[torch.arange(LONGEST) >= lengths[:, None]] = IGNORED
    letters = 1 + int(train.x.max())
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, Purpose.MODULES)
        model = nn.Sequential(nn.Embedding(letters, 16), nn.Tanh(), nn.Linear(16, letters))
    own = lengths.view(ranks, 4).sum(1)
    weights = torch.ones(ranks, dtype=torch.float64) if fair else lengths.sum() / (ranks * own.double())
    groups = torch.arange(ranks).repeat_interleave(own)
    return Task(model, (x, y), split((x, y), [4] * ranks), weights.repeat_interleave(own), groups)


def summed(seed: int, ranks: int, *, alone: bool = False) -> Task:
    """A sum of losses, of which DDP takes the mean over ranks."""
    task = equal(seed, ranks)
    if alone:
        return replace(task, shards=(task.whole,) * ranks)
    return replace(task, weights=torch.full((EACH * ranks,), 1 / ranks, dtype=torch.float64))


def split(whole: Batch, counts: Sequence[int]) -> tuple[Batch, ...]:
    """The parts of a batch along its first dimension."""
    return tuple(zip(*(torch.split(part, list(counts)) for part in whole), strict=True))


SUM, SUM_ALONE, DROPOUT = "summed loss", "summed loss of one rank", "dropout of one seed"
LOCAL, LOCAL_FEW = "batch norm of 8 a rank", "batch norm of 2 a rank"
SYNC, SYNC_FEW = "synchronized batch norm of 8 a rank", "synchronized batch norm of 2 a rank"
_OWN = "Batch normalization by each rank's own statistics, {} examples a rank"
_ALL = "Batch normalization by the statistics of all ranks, {} examples a rank"

ROWS: Mapping[str, Row] = {
    "equal shards": Row(equal, ROUNDING, "DDP on equal shards, with a loss that is a mean over examples"),
    "shuffled by DistributedSampler": Row(sampled, ROUNDING, "A batch whose examples a sampler deals to other ranks"),
    SYNC: Row(partial(equal, norm=True), ROUNDING, _ALL.format(EACH), norm="synchronized"),
    SYNC_FEW: Row(partial(equal, norm=True, each=FEW), ROUNDING, _ALL.format(FEW), norm="synchronized"),
    "counted uneven shards": Row(
        partial(stairs, fair=True), ROUNDING, "DDP on uneven shards, each loss a sum over the mean count of all ranks",
        loss="counted",
    ),
    "counted token mean": Row(
        partial(tokens, fair=True), ROUNDING, "A mean over tokens, each loss a sum over the mean count of all ranks",
        loss="counted",
    ),
    "join by active ranks": Row(
        partial(spent, everyone=False), ROUNDING, "The last batch of one rank, in a join by active ranks", join=False
    ),
    SUM_ALONE: Row(
        partial(summed, alone=True), ROUNDING, "A sum of losses in a group of one rank", loss="sum", alone=True
    ),
    DROPOUT: Row(
        partial(equal, dropout=True), ROUNDING, "Dropout, with one seed for all ranks and for one device", dropped=True
    ),
    LOCAL: Row(partial(equal, norm=True), EXACT, _OWN.format(EACH), norm="local"),
    LOCAL_FEW: Row(partial(equal, norm=True, each=FEW), EXACT, _OWN.format(FEW), norm="local"),
    "ragged last batch": Row(ragged, EXACT, "DDP on a batch that ranks cannot share evenly"),
    "uneven shards": Row(stairs, EXACT, "DDP on uneven shards, the mean of the ranks' means"),
    "join": Row(partial(spent, everyone=True), EXACT, "The last batch of one rank, in DDP's join", join=True),
    "sampler that pads": Row(partial(sampled, more=1), EXACT, "A sampler that repeats the first examples"),
    "sampler that drops": Row(partial(sampled, more=1, drop=True), EXACT, "A sampler that drops the last examples"),
    "no sampler": Row(repeated, EXACT, "Ranks that all read the same examples, for want of a sampler"),
    "token mean": Row(tokens, EXACT, "The mean over ranks of means over unequal numbers of tokens"),
    SUM: Row(summed, EXACT, "A sum of losses, of which DDP takes the mean over ranks", loss="sum"),
}  # fmt: skip
ONE_SEED, OWN_SEED = SEEDINGS = ("masks of one seed", "masks of seed + rank")
