"""Replicas against a plain PyTorch loop over the same models, on one thread.

    pytest --benchmark --benchmark-full benchmarks/test_replicas.py

The loop is what one writes without depthgauge: for each model, for each step, forward, cross-entropy, backward and a
step of `torch.optim.SGD` with momentum. Both train the same models on the same mini-batches; every round of replicas is
paired with one of the loop right before it, and a row is the median of the paired ratios, with their extremes. It
fails where the upper quartile of the ratios is below the target: less than that a shared machine cannot tell. All that
`replicas.train` does is counted: choosing how to run, copying the stack, recording every step's loss and accuracy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.functional import cross_entropy

from depthgauge import models, replicas, seeding
from depthgauge.seeding import Purpose

IMAGE = (1, 28, 28)
EXAMPLES = 1000


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


JOBS = {
    "mlp 32 wide, 30 deep": Job(lambda: mlp(32, 30), 64, 16, 12, 6.0, 32),
    "mlp 64 wide, 10 deep": Job(lambda: mlp(64, 10), 64, 32, 12, 2.5, 64),
    "the same, 64 inputs": Job(lambda: mlp(64, 10, (64,)), 64, 32, 12, 2.5, 64, (64,)),
    "mlp 256 wide, 6 deep": Job(lambda: mlp(256, 6), 16, 64, 30, 0.95, 256),
    "mlp 256 wide, batch 16": Job(lambda: mlp(256, 6), 16, 16, 30, 0.95, 256),
    "mlp 512 wide, 5 deep": Job(lambda: mlp(512, 5), 8, 64, 30, 0.95, 512),
    "residual mlp 32 wide": Job(lambda: mlp(32, 10, norm="layer", residual=True), 32, 16, 30, 0.95),
    "residual mlp 256 wide": Job(lambda: mlp(256, 6, norm="layer", residual=True), 8, 32, 50, 0.95),
    "lenet5": Job(small("lenet5"), 4, 32, 40, 0.95),
    "plain_cnn": Job(small("plain_cnn"), 4, 16, 40, 0.95),
    "resnet18": Job(small("resnet18"), 4, 16, 40, 0.95),
    "rnn": Job(small("rnn"), 12, 16, 12, 0.95),
    "lstm": Job(small("lstm"), 12, 16, 12, 0.95),
    "transformer": Job(small("transformer"), 4, 16, 20, 0.95),
}

QUICK = ("mlp 64 wide, 10 deep", "plain_cnn")


def plain_loop(members: list[nn.Module], orders: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> None:
    for model, order in zip(members, orders, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for indices in order:
            optimizer.zero_grad()
            cross_entropy(model(x[indices]), y[indices]).backward()
            optimizer.step()


def matrix_rate(job: Job) -> float:
    """Multiply-adds per second of one batched product of the hidden layers' shape."""
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


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in JOBS]
)
def test_throughput(name: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    job = JOBS[name]
    generator = seeding.generator(0, Purpose.INPUTS)
    x = torch.randn(EXAMPLES, *job.inputs, generator=generator)
    y = torch.randint(0, 10, (EXAMPLES,), generator=generator)
    stack = replicas.stack(job.build(), range(job.replicas))
    members = [stack.module(replica) for replica in range(job.replicas)]
    orders = [replicas.order(seed, EXAMPLES, job.batch, job.steps) for seed in stack.seeds]
    loop: list[float] = []

    def run() -> replicas.Run:
        optimizer = replicas.SGD(lr=0.01, momentum=0.9)
        return replicas.train(stack, x, y, optimizer, batch=job.batch, steps=job.steps)

    def pair() -> None:
        start = time.perf_counter()
        plain_loop(members, orders, x, y)
        loop.append(time.perf_counter() - start)

    run()
    pair()
    loop.clear()
    done = benchmark.pedantic(run, setup=pair, rounds=7)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    ratios = [plain / ours for plain, ours in zip(loop, benchmark.stats.stats.data, strict=True)]
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    each = statistics.median(loop) / job.replicas / job.steps
    rate = ""
    if done.strategy == "chain":
        weights = [p.numel() for p in members[0].parameters() if p.dim() > 1]
        # A layer's product is taken once forward and twice backward; the first has no gradient of its input to find.
        work = job.replicas * job.steps * job.batch * (3 * sum(weights) - weights[0])
        fraction = work / benchmark.stats.stats.median / matrix_rate(job)
        benchmark.extra_info["fraction_of_matrix_rate"] = fraction
        rate = f", {100 * fraction:.0f} % of the batched matrix rate"
    benchmark.extra_info.update(strategy=done.strategy, ratio=ratio, low=low, high=high, loop_step=each)
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{name:24} | {done.strategy:5} | loop {1e3 * each:6.2f} ms a model and step |"
            f" {ratio:5.2f} x ({low:.2f} to {high:.2f}), at least {job.target}{rate}",
            end="",
        )
    assert statistics.quantiles(ratios, n=4)[2] >= job.target
