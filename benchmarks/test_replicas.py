"""Replicas against a plain PyTorch loop over the same models, on one thread.

    pytest --benchmark --benchmark-full benchmarks/test_replicas.py

The loop is what one writes without depthgauge: for each model, for each step, forward, cross-entropy, backward and a
step of `torch.optim.SGD` with momentum; models with convolutions are channels last in memory, as replicas have them.
Both train the same models on the same mini-batches; every round of replicas is paired with one of the loop right
before it, and a row is the median of the paired ratios, with their extremes. The loop takes as long for each model: it
is timed on four of them, and stands for all. It fails where the upper quartile of the ratios is below the target: less
than that a shared machine cannot tell. All that `replicas.train` does is counted: choosing how to run, copying the
stack, recording every step's loss and accuracy.

Beside it stand two shares. Dispatch: the loop's time on the fewest examples that the model trains on, over its time on
whole batches: the same calls on next to nothing, measured in the same rounds on one model. For chains the share of the
matrix rate: the time that their matrix products take alone, by the batched product of the hidden layers' shape,
measured right after each round, over the time of the round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.functional import cross_entropy

from depthgauge import models, replicas, seeding
from depthgauge.seeding import Purpose

IMAGE = (1, 28, 28)
EXAMPLES = 1000
ROUNDS = 5
LOOPED = 4  # models that the loop trains in a round


def mlp(width: int, layers: int, inputs: tuple[int, ...] = IMAGE, **parts: object) -> nn.Module:
    """A multilayer perceptron of so many weight layers."""
    return models.build(
        "mlp", depth=layers - 1, width=width, activation="tanh", input_shape=inputs, classes=10, **parts
    )


def small(name: str) -> Callable[[], nn.Module]:
    return lambda: models.build(name, preset="small")


@dataclass(frozen=True)
class Job:
    """What is trained, and how many times faster than the loop it should be at least."""

    build: Callable[[], nn.Module]
    replicas: int
    batch: int
    steps: int
    target: float
    width: int = 0
    inputs: tuple[int, ...] = IMAGE
    fewest: int = 1


JOBS = {
    "mlp 32 wide, 30 deep": Job(lambda: mlp(32, 30), 64, 16, 12, 6.0, 32),
    "mlp 64 wide, 10 deep": Job(lambda: mlp(64, 10), 64, 32, 12, 2.5, 64),
    "the same, 64 inputs": Job(lambda: mlp(64, 10, (64,)), 64, 32, 12, 2.5, 64, (64,)),
    "mlp 256 wide, 6 deep": Job(lambda: mlp(256, 6), 16, 64, 15, 0.95, 256),
    "mlp 256 wide, batch 16": Job(lambda: mlp(256, 6), 16, 16, 15, 0.95, 256),
    "mlp 512 wide, 5 deep": Job(lambda: mlp(512, 5), 8, 64, 15, 0.95, 512),
    "residual mlp 32 wide": Job(lambda: mlp(32, 10, norm="layer", residual=True), 32, 16, 30, 0.95),
    "residual mlp 256 wide": Job(lambda: mlp(256, 6, norm="layer", residual=True), 8, 32, 25, 0.95),
    "lenet5": Job(small("lenet5"), 8, 32, 40, 1.5),
    "plain_cnn": Job(small("plain_cnn"), 8, 16, 20, 1.2),
    "plain_cnn, 64 examples": Job(small("plain_cnn"), 8, 64, 4, 1.0),
    "plain_cnn, width 24": Job(lambda: models.build("plain_cnn", preset="small", width=24), 8, 16, 5, 0.95),
    "resnet18": Job(small("resnet18"), 8, 16, 20, 1.5, fewest=2),
    "resnet18, width 16": Job(lambda: models.build("resnet18", preset="small", width=16), 8, 16, 10, 1.0, fewest=2),
    "rnn": Job(small("rnn"), 12, 16, 12, 1.0),
    "lstm": Job(small("lstm"), 12, 16, 12, 1.0),
    "transformer": Job(small("transformer"), 8, 16, 20, 1.1),
    "transformer, 8 examples": Job(small("transformer"), 8, 8, 20, 1.2),
    "transformer, 64 examples": Job(small("transformer"), 8, 64, 4, 0.95),
}

QUICK = ("mlp 64 wide, 10 deep", "plain_cnn")


def plain_loop(members: list[nn.Module], orders: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> float:
    """Seconds of the loop."""
    start = time.perf_counter()
    for model, order in zip(members, orders, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for indices in order:
            optimizer.zero_grad()
            cross_entropy(model(x[indices]), y[indices]).backward()
            optimizer.step()
    return time.perf_counter() - start


def matrix_rate(job: Job) -> float:
    """Multiply-adds per second of one batched product of the hidden layers' shape, as it is now."""
    generator = seeding.generator(0, Purpose.OPERANDS)
    left = torch.randn(job.replicas, job.batch, job.width, generator=generator)
    right = torch.randn(job.replicas, job.width, job.width, generator=generator)
    out = torch.empty_like(left)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        torch.bmm(left, right, out=out)
        seconds.append(time.perf_counter() - start)
    return job.replicas * job.batch * job.width**2 / statistics.median(seconds)


@dataclass
class Rounds:
    """What is timed beside each round of replicas: the loop, its dispatch, and the matrix rate right after it."""

    job: Job
    members: list[nn.Module]
    x: torch.Tensor
    y: torch.Tensor
    orders: list[torch.Tensor]
    loop: list[float] = field(default_factory=list)
    dispatch: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def before(self) -> None:
        """Time the loop, and its dispatch."""
        few = [order[:, : self.job.fewest] for order in self.orders[:1]]
        self.dispatch.append(plain_loop(self.members[:1], few, self.x, self.y) * self.job.replicas)
        every = self.job.replicas / len(self.members)
        self.loop.append(plain_loop(self.members, self.orders, self.x, self.y) * every)

    def after(self) -> None:
        """Time the matrix product."""
        if self.job.width:
            self.rates.append(matrix_rate(self.job))


def ours(job: Job) -> tuple[replicas.Stack, Rounds]:
    """The replicas, and the first of the same models for the loop."""
    generator = seeding.generator(0, Purpose.INPUTS)
    x = torch.randn(EXAMPLES, *job.inputs, generator=generator)
    y = torch.randint(0, 10, (EXAMPLES,), generator=generator)
    stack = replicas.stack(job.build(), range(job.replicas))
    members = [stack.module(replica) for replica in range(min(job.replicas, LOOPED))]
    if any(isinstance(module, nn.Conv2d) for module in members[0].modules()):
        members = [member.to(memory_format=torch.channels_last) for member in members]
        x = x.contiguous(memory_format=torch.channels_last)
    orders = [replicas.order(seed, EXAMPLES, job.batch, job.steps) for seed in stack.seeds[:LOOPED]]
    return stack, Rounds(job, members, x, y, orders)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in JOBS]
)
def test_throughput(name: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    job = JOBS[name]
    stack, rounds = ours(job)

    def run() -> replicas.Run:
        optimizer = replicas.SGD(lr=0.01, momentum=0.9)
        return replicas.train(stack, rounds.x, rounds.y, optimizer, batch=job.batch, steps=job.steps)

    run()
    rounds.before()
    rounds.loop.clear()
    rounds.dispatch.clear()
    done = benchmark.pedantic(run, setup=rounds.before, teardown=rounds.after, rounds=ROUNDS)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    seconds = benchmark.stats.stats.data
    ratios = [plain / own for plain, own in zip(rounds.loop, seconds, strict=True)]
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    each = statistics.median(rounds.loop) / job.replicas / job.steps
    share = statistics.median(few / all_ for few, all_ in zip(rounds.dispatch, rounds.loop, strict=True))
    rate = ""
    if done.strategy == "chain":
        weights = [p.numel() for p in rounds.members[0].parameters() if p.dim() > 1]
        # A layer's product is taken once forward and twice backward; the first has no gradient of its input to find.
        work = job.replicas * job.steps * job.batch * (3 * sum(weights) - weights[0])
        fractions = sorted(work / own / top for own, top in zip(seconds, rounds.rates, strict=True))
        benchmark.extra_info["fraction_of_matrix_rate"] = fractions
        spread = f"{100 * fractions[0]:.0f} to {100 * fractions[-1]:.0f}"
        rate = f", {100 * statistics.median(fractions):.0f} % ({spread}) of the batched matrix rate"
    benchmark.extra_info.update(strategy=done.strategy, ratio=ratio, low=low, high=high, loop_step=each, dispatch=share)
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{name:24} | {done.strategy:5} | loop {1e3 * each:6.2f} ms a model and step,"
            f" {100 * share:.0f} % dispatch | {ratio:5.2f} x ({low:.2f} to {high:.2f}), at least {job.target}{rate}",
            end="",
        )
    assert statistics.quantiles(ratios, n=4)[2] >= job.target
