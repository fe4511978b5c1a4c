"""A training step and its parts, by model, number format, batch size, device, compiled or not.

    pytest --benchmark benchmarks/test_models.py

Forward: model and loss. Backward: the gradients of every parameter, on a graph that stands. Optimizer: a step of plain
gradient descent. Step: all three. The small presets make a step of batch 64 in at most 50 ms on one core; that budget
is held against the minimum: what the machine can do when nothing else runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.functional import cross_entropy

from depthgauge import models

BATCH = 64
BUDGET = 0.050  # seconds
QUICK = ("mlp", "lenet5", "resnet18", "lstm", "transformer")
LARGE = ("resnet50", "transformer")
Timed = Callable[..., None]


@dataclass(frozen=True)
class Job:
    """A training step and its parts."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: torch.Tensor
    y: torch.Tensor

    @staticmethod
    def build(name: str, preset: str, dtype: str, batch: int, device: str) -> Job:
        """By the model's name; every class is the first one."""
        kind = getattr(torch, dtype)
        model = models.build(name, preset=preset, init="he", device=device).to(kind)
        x = models.example(name, preset=preset, batch=batch, device=device)
        x = x.to(kind) if x.is_floating_point() else x
        with torch.no_grad():
            shape = model(x).shape
        y = torch.zeros(shape[0], *shape[2:], dtype=torch.int64, device=device)
        return Job(model, torch.optim.SGD(model.parameters(), lr=1e-6), x, y)

    def forward(self) -> torch.Tensor:
        """The loss."""
        out = self.model(self.x)
        return out.square().mean() if out.shape[1:].numel() == 1 else cross_entropy(out, self.y)

    def step(self) -> None:
        """Forward, backward, optimizer."""
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()

    def part(self, name: str) -> Callable[[], object]:
        """What to call again and again for one part."""
        if name == "backward":
            loss, trained = self.forward(), list(self.model.parameters())
            return lambda: torch.autograd.grad(loss, trained, retain_graph=True)
        if name == "optimizer":
            self.forward().backward()
            return self.optimizer.step
        return {"forward": self.forward, "step": self.step}[name]


def full(*values: object) -> list[object]:
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


def _time(timed: Timed, job: Job, part: str, device: str, dtype: str, **told: object) -> None:
    timed(job.part(part), device, dtype, group=f"{part}, {dtype}, {device}", part=part, **told)


@pytest.mark.parametrize("part", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize(
    "name", [*QUICK, *full(*(name for name in models.names() if name not in QUICK))]
)  # fmt: skip
def test_part(timed: Timed, name: str, part: str, device: str) -> None:
    _time(timed, Job.build(name, "small", "float32", BATCH, device), part, device, "float32", model=name, batch=BATCH)


@pytest.mark.parametrize("batch", [*full(2), 16, *full(256)])
@pytest.mark.parametrize("dtype", [*full("float32"), "bfloat16", *full("float16")])
@pytest.mark.parametrize("name", ["mlp", *full("resnet18", "transformer")])
def test_dtype_and_batch(timed: Timed, name: str, dtype: str, batch: int, device: str) -> None:
    job = Job.build(name, "small", dtype, batch, device)
    _time(timed, job, "step", device, dtype, model=name, batch=batch)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # what torch's own compiler imports is deprecated
@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("name", ["mlp", "resnet18", "transformer"])
def test_compiled(timed: Timed, name: str, part: str, device: str) -> None:
    """Against `test_part` and `test_budget`. The first call, with the compilation, stands in `extra_info`."""
    job = Job.build(name, "small", "float32", BATCH, device)
    torch.compiler.reset()
    compiled = Job(torch.compile(job.model), job.optimizer, job.x, job.y)
    timed(
        compiled.part(part),
        device,
        counted=job.part(part),
        group=f"{part}, float32, {device}",
        part=part,
        model=name,
        batch=BATCH,
        compiled=True,
    )


@pytest.mark.full
@pytest.mark.cuda
@pytest.mark.parametrize("part", ["forward", "backward", "step"])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", LARGE)
def test_published(timed: Timed, name: str, dtype: str, part: str, device: str) -> None:
    batch = 64 if name == "resnet50" else 8
    job = Job.build(name, "published", "float32" if dtype == "tf32" else dtype, batch, device)
    _time(timed, job, part, device, dtype, model=name, batch=batch, preset="published")


@pytest.mark.parametrize("name", models.names())
def test_budget(timed: Timed, benchmark: BenchmarkFixture, name: str, device: str) -> None:
    """The step of every small preset, timed as its parts are; on a CPU against 50 ms."""
    job = Job.build(name, "small", "float32", BATCH, device)
    size = models.entry(name).sizes["small"]
    _time(timed, job, "step", device, "float32", model=name, batch=BATCH, parameters=size.parameters)
    if device == "cpu" and benchmark.stats is not None:  # there are none with --benchmark-disable
        assert benchmark.stats.stats.min <= BUDGET
