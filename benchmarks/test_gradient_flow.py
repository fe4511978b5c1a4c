"""Parts of gradient_flow on the instruments, beside the same parts without them.

    pytest --benchmark --benchmark-full benchmarks/test_gradient_flow.py

- training: a chunk of the quick preset trained by `replicas`, over the same chunk one network after another;
- overflow: a chunk read by `probe`, over the same passes whose tensors a plain hook keeps in `ExponentHistogram`s;
- signal: `replicas.plain.propagate`, over one stack of `replicas` for each activation whose members are the networks
  at each sigma. It is slower because sigma scales a product of weights and signal that all members share.

Each row is a median of pairs of processor time, in turns; above 1, the first is faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from depthgauge import data, replicas, theory
from depthgauge.formats import ExponentHistogram
from depthgauge.replicas import plain
from depthgauge.studies import gradient_flow
from depthgauge.studies.gradient_flow import overflow, training
from depthgauge.study import Case, Context

pytestmark = pytest.mark.full


def middle_chunk(part: str) -> Sequence[Case]:
    """The chunk of that part in the middle of the quick preset's."""
    chunks = [chunk.cases for chunk in gradient_flow.STUDY.chunks("quick") if chunk.cases[0].text("part") == part]
    return chunks[len(chunks) // 2]


def ratios(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> list[float]:
    """Their time over ours, pair by pair."""
    found = []
    for pair in range(pairs + 1):
        seconds = {}
        for work in (ours, theirs) if pair % 2 else (theirs, ours):
            start = time.process_time()
            work()
            seconds[work] = time.process_time() - start
        if pair:  # the first one warms up
            found.append(seconds[theirs] / seconds[ours])
    return found


def report(benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], name: str, found: list[float]) -> None:
    told = {"ratio": statistics.median(found), "low": min(found), "high": max(found), "pairs": len(found)}
    benchmark.extra_info[name.partition(": ")[2]] = told
    with capsys.disabled():
        print(f"\n{name:48} | {statistics.median(found):6.2f} x ({min(found):.2f} to {max(found):.2f})", end="")  # noqa: T201 # a result


def test_training(
    benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a chunk: initialization, training, evaluation."""
    cases = middle_chunk("training")
    train, evaluate = replicas.train, replicas.evaluate

    def run(strategy: str | None) -> None:
        monkeypatch.setattr(training.replicas, "train", partial(train, strategy=strategy))
        monkeypatch.setattr(training.replicas, "evaluate", partial(evaluate, strategy=strategy))
        list(training.run(cases, Context()))

    found = benchmark.pedantic(ratios, (partial(run, None), partial(run, "loop"), 3), rounds=1)
    report(benchmark, capsys, f"training, {len(cases)} networks: loop / replicas", found)


def test_overflow(benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Forward and backward passes and what is read of them; fractions are taken from the same histograms."""
    cases = middle_chunk("overflow")
    digits = data.load("mnist5k").train
    x, y = digits[: cases[0].integer("batch")]
    models = [overflow.network(case) for case in cases]
    chosen = "hidden.*.activation"

    def passes() -> None:
        for model in models:
            functional.cross_entropy(model(x), y).backward()

    def ours() -> None:
        for model in models:
            with overflow.probe.track(model, directions=overflow.DIRECTIONS, layers=chosen):
                functional.cross_entropy(model(x), y).backward()

    def theirs() -> None:
        histograms = []

        def read(tensor: torch.Tensor) -> None:
            histograms.append(ExponentHistogram.of(tensor.detach().numpy()))

        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            read(output)
            output.register_hook(read)

        handles = [
            part.register_forward_hook(hook)
            for model in models
            for name, part in model.named_modules()
            if name.startswith("hidden.") and name.endswith(".activation")
        ]
        passes()
        for handle in handles:
            handle.remove()

    found = benchmark.pedantic(ratios, (ours, theirs, 5), rounds=1)
    report(benchmark, capsys, f"overflow, {len(cases)} networks: plain hooks / probe", found)
    found = ratios(passes, ours, 5)
    report(benchmark, capsys, f"overflow, {len(cases)} networks: probe / nothing watched", found)


def test_signal(benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights as drawn, in both cases; stacking a member's own copy of them is part of what `replicas` needs."""
    cases = [case for case in middle_chunk("signal") if case.text("init") == "gaussian"]
    width, depth = cases[0].integer("width"), cases[0].integer("depth")
    activation = cases[0].text("activation")
    seeds = sorted({case.random_seed("width", "seed", "init") for case in cases})
    sigmas = sorted({(case.number("sigma_w"), case.number("sigma_b")) for case in cases})
    networks = plain.Networks.draw(width, depth, "gaussian", seeds)

    def ours() -> None:
        plain.propagate(networks, activation, sigmas)

    found = benchmark.pedantic(ratios, (ours, partial(by_replicas, networks, activation, sigmas), 3), rounds=1)
    report(benchmark, capsys, f"signal, {len(cases)} networks: replicas / by hand", found)


def by_replicas(networks: plain.Networks, activation: str, sigmas: Sequence[tuple[float, float]]) -> None:
    """The same by `replicas.signals`, a stack for each seed, as inputs are common to a stack."""
    width, depth = networks.inputs.shape[-1], len(networks.weights)
    phi = theory.activation(activation).module()
    layers = (part for _ in range(depth) for part in (nn.Linear(width, width), phi))
    model = nn.Sequential(*layers)[:-1].double()
    for seed in range(len(networks.inputs)):

        def initialize(
            module: nn.Module, _generator: torch.Generator, sigma_w: float, sigma_b: float, seed: int = seed
        ) -> None:
            linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
            for part, weight, bias in zip(linear, networks.weights, networks.biases, strict=True):
                part.weight.copy_(sigma_w * weight[seed])
                part.bias.copy_(sigma_b * bias[seed, 0])

        sigma_w, sigma_b = zip(*sigmas, strict=True)
        stack = replicas.stack(model, seeds=[0] * len(sigmas), initialize=initialize, sigma_w=sigma_w, sigma_b=sigma_b)
        replicas.signals(stack, networks.inputs[seed], networks.cotangent[seed].expand(3, -1))
