"""Accumulated steps in ranks: windows of tokens, what their losses are divided by, where they are reduced and clipped.

A rank's batch is cut into windows, one backward pass each. A window's loss is the sum over its tokens over a divisor:
every way to average is a rule for the divisor, and gives a token the weight 1 / (ranks x divisor), as DDP averages the
ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from depthgauge.parallel import Group
from depthgauge.seeding import Purpose, generator, seed_torch

Floats = NDArray[np.float64]
Windows = tuple[tuple[int, ...], ...]
"""Tokens of every window, by rank."""
Divisor = Callable[[Windows, int, int, int], float]
"""A divisor of the sum of a window's losses, from all windows, rank, window and the windows of a full step."""

WORDS, CLASSES, WIDTH = 64, 16, 24  # vocabulary, targets, width of the small network
UNEVEN = (2, 3, 5, 8, 13, 21, 34, 55)  # tokens a window, over the ranks
EVEN = 6
NEAR = 1e-5  # of the gradient's norm: 84 float32 roundings of it; within it the steps are one
SCALE = 1024.0  # of the loss, in the rows about unscaling
CLIPPED = 0.5  # threshold of the norm, in norms of the whole batch's gradient
TOKEN = math.sqrt(1 - 1 / CLASSES)  # norm of the gradient of one token's loss in the logits where all are 0


def of_step(windows: Windows, rank: int, place: int, _: int) -> float:
    """Mean over a window's tokens, and over the windows that the step has."""
    return windows[rank][place] * len(windows[rank])


@dataclass(frozen=True)
class Way:
    """A way to take an accumulated step.

    Attributes:
        uneven: whether windows differ in tokens.
        divisor: of each window's sum of losses.
        left: windows of the step, where they are fewer than those of a full one; 0: a full one.
        reduced: `last`: all but the last backward pass under no_sync; `every`: none of them; `backward`: the backward
            passes alone, not the forward ones; `never`: all of them.
        clip: the norm is clipped `after` or `before` the reduction, or while the loss scale is still there, `scaled`,
            or off again, `unscaled`.
        plain: a network with one weight a word and class, at 0: gradients of windows are orthogonal, of equal norms.
    """

    uneven: bool = False
    divisor: Divisor = of_step
    left: int = 0
    reduced: Literal["last", "every", "backward", "never"] = "last"
    clip: Literal["", "after", "before", "scaled", "unscaled"] = ""
    plain: bool = True

    def windows(self, ranks: int, steps: int) -> Windows:
        """Tokens of every window, by rank."""
        count = self.left or steps
        tokens = [UNEVEN[k % len(UNEVEN)] if self.uneven else EVEN for k in range(ranks * count)]
        return tuple(tuple(tokens[rank * count : (rank + 1) * count]) for rank in range(ranks))


def of_full(windows: Windows, rank: int, place: int, steps: int) -> float:
    """Mean over a window's tokens, and over the windows of a full step, however many this one has."""
    return windows[rank][place] * steps


def of_window(windows: Windows, rank: int, place: int, _: int) -> float:
    """Mean over a window's tokens, added up."""
    return windows[rank][place]


def of_rank(windows: Windows, rank: int, _: int, __: int) -> float:
    """Mean over the tokens of all windows of the rank."""
    return sum(windows[rank])


def of_all(windows: Windows, _: int, __: int, ___: int) -> float:
    """Mean over all tokens, times the ranks, as these are averaged."""
    return sum(map(sum, windows)) / len(windows)


def vectors(way: Way, ranks: int, steps: int) -> tuple[Floats, Floats]:
    """Gradients of all ranks, each of its own, and of the whole batch, in the directions of the windows' gradients.

    Returns:
        Shapes (ranks, windows) and (windows,); before anything is clipped. Exact where the windows' gradients are
        orthogonal, or where all weights are off by one factor.
    """
    windows = way.windows(ranks, steps)
    tokens, count = np.concatenate([np.array(own, float) for own in windows]), len(windows[0])
    own = np.zeros((ranks, ranks * count))
    for rank in range(ranks):
        for place in range(count):
            own[rank, rank * count + place] = windows[rank][place] / way.divisor(windows, rank, place, steps)
    return own * TOKEN, tokens / tokens.sum() * TOKEN


def threshold(way: Way, ranks: int, steps: int) -> float:
    """The norm above which gradients are clipped."""
    return CLIPPED * float(np.linalg.norm(vectors(way, ranks, steps)[1]))


def predicted(way: Way, ranks: int, steps: int) -> dict[str, float]:
    """Factor of the gradient, its distance and how far the ranks' gradients are apart, over the whole batch's norm."""
    own, whole = vectors(way, ranks, steps)
    most = threshold(way, ranks, steps)
    if way.clip == "before":
        own = np.stack([_clipped(one, most) for one in own])
    got = own if way.reduced == "never" and way.clip != "before" else np.tile(own.mean(0), (ranks, 1))
    if way.clip == "scaled":
        got = np.stack([_clipped(one * SCALE, most) / SCALE for one in got])
    elif way.clip in {"after", "unscaled"}:
        got = np.stack([_clipped(one, most) for one in got])
    whole = _clipped(whole, most) if way.clip else whole
    return _compared(got[0], whole) | {"apart": _apart(got, whole)}


def _clipped(vector: Floats, most: float) -> Floats:
    return vector * min(1.0, most / float(np.linalg.norm(vector)))


def _compared(got: Floats, whole: Floats) -> dict[str, float]:
    square = float(whole @ whole)
    return {"factor": float(got @ whole) / square, "distance": float(np.linalg.norm(got - whole)) / math.sqrt(square)}


def _apart(got: Floats, whole: Floats) -> float:
    return float(max(np.linalg.norm(one - got[0]) for one in got) / np.linalg.norm(whole))


class Lesson(nn.Module):
    """A model of the next token, and its loss: the sum over a window's tokens."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, CLASSES if plain else WIDTH)
        self.rest = nn.Identity() if plain else nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, CLASSES))
        if plain:
            nn.init.zeros_(self.words.weight)

    def forward(self, words: Tensor, targets: Tensor) -> Tensor:
        """The sum of the tokens' losses."""
        return nn.functional.cross_entropy(self.rest(self.words(words)), targets, reduction="sum")


def lesson(seed: int, group: Group, *, plain: bool) -> Lesson:
    """The model of a seed, on the rank's device."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, Purpose.MODULES)
        return Lesson(plain=plain).to(group.device)


def drawn(way: Way, windows: Windows, seed: int, device: torch.device) -> list[list[tuple[Tensor, Tensor]]]:
    """Words and targets of every window, by rank; in a plain way a window repeats one word, its own, and one target."""
    words, targets = generator(seed, Purpose.INPUTS), generator(seed, Purpose.LABELS)
    own = iter(torch.randperm(WORDS, generator=words).tolist())
    found: list[list[tuple[Tensor, Tensor]]] = []
    for tokens in windows:
        found.append([])
        for n in tokens:
            x = torch.full((n,), next(own)) if way.plain else torch.randint(WORDS, (n,), generator=words)
            y = torch.randint(CLASSES, (1 if way.plain else n,), generator=targets).expand(n)
            found[-1].append((x.to(device), y.to(device)))
    return found


def whole(model: Lesson, data: Sequence[Sequence[tuple[Tensor, Tensor]]], threshold: float = math.inf) -> Tensor:
    """The gradient of the mean over all tokens, in one pass of plain torch, its norm clipped; the model keeps none."""
    words, targets = (torch.cat([window[side] for own in data for window in own]) for side in (0, 1))
    (model(words, targets) / len(words)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), threshold)
    return flat(model, clear=True)


def flat(model: nn.Module, *, clear: bool = False) -> Tensor:
    """All gradients of a model, one after the other, in float32."""
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()
    if clear:
        model.zero_grad(set_to_none=True)
    return found


def step(group: Group, model: nn.Module, way: Way, data: Sequence[tuple[Tensor, Tensor]], steps: int) -> Tensor:
    """The gradient that the optimizer of this rank would see; `model` is wrapped by DistributedDataParallel."""
    windows = way.windows(group.ranks, steps)
    silent = model.no_sync if isinstance(model, DistributedDataParallel) else contextlib.nullcontext
    scaler = torch.amp.GradScaler(group.device.type, init_scale=SCALE, enabled=way.clip in {"scaled", "unscaled"})
    for place, window in enumerate(data):
        alone = way.reduced == "never" or (way.reduced != "every" and place < len(data) - 1)
        with silent() if alone and way.reduced != "backward" else contextlib.nullcontext():
            loss = model(*window) / way.divisor(windows, group.rank, place, steps)
            with silent() if alone and way.reduced == "backward" else contextlib.nullcontext():
                scaler.scale(loss).backward()
    _clip(group, model, way, scaler, threshold(way, group.ranks, steps))
    return flat(model, clear=True)


def _clip(group: Group, model: nn.Module, way: Way, scaler: torch.amp.GradScaler, most: float) -> None:
    """Clip the norm where the way says, undo the loss scale, and reduce by hand what was clipped before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if way.clip == "unscaled":
        scaler.unscale_(optimizer)
    if way.clip:
        nn.utils.clip_grad_norm_(model.parameters(), most)
    if way.clip == "scaled":
        scaler.unscale_(optimizer)
    if way.clip == "before":
        for p in model.parameters():
            if p.grad is not None:
                distributed.all_reduce(p.grad)
                p.grad /= group.ranks


def counted(state: list[int], bucket: Any) -> Any:
    """Count a bucket's bytes, and reduce it as DistributedDataParallel does."""
    state.append(bucket.buffer().nbytes)
    return allreduce_hook(_everyone(), bucket)


def _everyone() -> Any:
    return distributed.group.WORLD


def work(
    group: Group, ways: Mapping[str, Way], asked: Sequence[tuple[str, int]], steps: int, weighed: Sequence[str]
) -> list[dict[str, Any]]:
    """Take steps in this rank: of every name and seed asked for what `measured` and `weights` find; rank 0 answers."""
    found = []
    for name, seed in asked:
        way = ways[name]
        found.append(measured(group, way, seed, steps))
        if name in weighed:
            found[-1]["weight"] = weights(group, way, seed, steps)
    return found if group.rank == 0 else []


def measured(group: Group, way: Way, seed: int, steps: int) -> dict[str, Any]:
    """Factor, distance and ulps of a step's gradient against the whole batch's, and the reductions that it took."""
    model = lesson(seed, group, plain=way.plain)
    data = drawn(way, way.windows(group.ranks, steps), seed, group.device)
    reference = whole(model, data, threshold(way, group.ranks, steps) if way.clip else math.inf)
    wrapped = DistributedDataParallel(model)
    got = step(group, wrapped, way, data[group.rank], steps)
    gathered = [torch.empty_like(got) for _ in range(group.ranks)]
    distributed.all_gather(gathered, got)
    seen: list[int] = []
    # After what is compared, which is plain DistributedDataParallel.
    wrapped.register_comm_hook(seen, lambda state, bucket: counted(state, bucket))  # noqa: PLW0108 - torch refuses annotations that are text
    step(group, wrapped, way, data[group.rank], steps)
    every, one = torch.stack(gathered).double().cpu().numpy(), reference.double().cpu().numpy()
    ulp = float(np.spacing(np.float32(np.abs(one).max())))
    return {
        **_compared(every[0], one), "apart": _apart(every, one), "ulps": float(np.abs(every[0] - one).max()) / ulp,
        "reductions": float(len(seen)), "bytes": float(sum(seen)),
    }  # fmt: skip


def weights(group: Group, way: Way, seed: int, steps: int) -> list[float]:
    """Weight of a token of each window in the step of a small network, over its weight in the whole batch.

    Least squares of the step's gradient on those of the windows, which are linearly independent.
    """
    way = Way(way.uneven, way.divisor, plain=False)
    windows = way.windows(group.ranks, steps)
    model, data = lesson(seed, group, plain=False), drawn(way, windows, seed, group.device)
    alone = torch.stack([whole(model, [[window]]) for own in data for window in own])
    got = step(group, DistributedDataParallel(model), way, data[group.rank], steps)
    found = torch.linalg.lstsq(alone.double().cpu().T, got.double().cpu()[:, None]).solution.flatten()
    tokens = torch.tensor([n for own in windows for n in own], dtype=torch.float64)
    return [float(weight) for weight in found / (tokens / tokens.sum())]


def token_weights(way: Way, ranks: int, steps: int) -> Iterator[tuple[int, float]]:
    """(tokens of a window, predicted weight of one of them over its weight in the whole batch), over all windows."""
    windows = way.windows(ranks, steps)
    total = sum(map(sum, windows))
    for rank, own in enumerate(windows):
        for place, n in enumerate(own):
            yield n, total / (ranks * way.divisor(windows, rank, place, steps))
