"""The networks that are trained, and from which schemes at which learning rates: the grids of the part `training`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from depthgauge import replicas
from depthgauge.study import Case, Grid, Value

PLAIN = ("default", "xavier", "he", "orthogonal", "lsuv")
ALL = ("zeros", "constant", "normal", *PLAIN)
CONVOLUTIONAL = ("xavier", "he", "delta_orthogonal", "lsuv")
RESIDUAL = ("default", "he", "depth_scaled", "fixup", "lsuv")
SEQUENTIAL = ("default", "xavier", "he", "gpt2", "lsuv", "normal")

MLP_RATES = {3: (0.01, 0.03, 0.1), 10: (0.003, 0.01, 0.03), 30: (0.0005, 0.0015, 0.005)}  # deeper: smaller ones train
SHAPE = ("depth", "norm", "order", "stem")  # what a model is built with, where it takes it; an MLP has `units` besides
SELECTION = 3  # further seeds that choose the learning rate
BUDGET = 2**27  # bytes of parameters, gradients and momentum a chunk


@dataclass(frozen=True)
class Condition:
    """One architecture, trained from several schemes.

    Attributes:
        model: its name.
        schemes: from which it is trained.
        rates: at which it is trained.
        seeds: runs that are reported.
        steps: of training.
        shape: what the model is built with.
    """

    model: str
    schemes: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: int
    steps: int
    shape: Mapping[str, Value] = field(default_factory=dict)

    @property
    def sweep(self) -> str:
        """A name, part of its cases: on a model that cannot be varied as it asks, two conditions would be one."""
        return " ".join(map(str, (self.model, *self.shape.values())))

    def grid(self, schemes: tuple[str, ...], rates: tuple[float, ...]) -> Grid:
        """Its cases from these schemes, at these learning rates."""
        return Grid(
            {"scheme": schemes, "lr": rates},
            {"model": self.model, "steps": self.steps, "sweep": self.sweep, **self.shape},
            self.seeds, ("scheme", "lr", "seed"), chunk=most_replicas, selection=SELECTION,
            architecture=tuple(name for name in self.shape if name in SHAPE),
        )  # fmt: skip


def most_replicas(case: Case) -> int:
    """Replicas a chunk: bounded by memory where they are trained together, small where one follows another."""
    if case["model"] != "mlp" or case.get("norm") == "batch":
        return 36
    width, depth = case.integer("units"), case.integer("depth")
    return min(96, replicas.most_members(64 * width + depth * width**2, BUDGET))


def _mlps(schemes: Mapping[int, tuple[str, ...]], units: int, seeds: int, steps: int) -> Iterator[Condition]:
    """MLPs of 3, 10 and 30 layers without normalization."""
    for depth, rates in MLP_RATES.items():
        shape: dict[str, Value] = {"depth": depth, "units": units, "norm": "none"}
        yield Condition("mlp", schemes[depth], rates, seeds, steps, shape)


def _architectures(seeds: int, convolutional: int, residual: int, transformer: int) -> Iterator[Condition]:
    """Everything that is no plain MLP, with the steps of each kind."""
    for depth in (10, 30):
        shape: dict[str, Value] = {"depth": depth, "units": 64, "norm": "batch"}
        yield Condition("mlp", ("normal", *PLAIN), (0.01, 0.03, 0.1), seeds, residual, shape)
    for depth, schemes, rates in (
        (10, ("default", *CONVOLUTIONAL), (0.003, 0.01, 0.03, 0.1)),
        (22, CONVOLUTIONAL, (0.001, 0.003, 0.01, 0.03)),
        (30, CONVOLUTIONAL, (0.001, 0.003, 0.01, 0.03)),
    ):
        yield Condition("plain_cnn", schemes, rates, seeds, convolutional, {"depth": depth, "norm": "none"})
    for norm, names, tried in (("batch", PLAIN, (0.01, 0.03, 0.1)), ("none", RESIDUAL, (0.003, 0.01, 0.03))):
        yield Condition("resnet18", names, tried, seeds, residual, {"norm": norm, "stem": "cifar"})
    for order in ("pre", "post"):
        fixed: dict[str, Value] = {"norm": "layer", "order": order}
        yield Condition("transformer", SEQUENTIAL, (0.01, 0.03, 0.1), seeds, transformer, fixed)


def quick() -> tuple[Condition, ...]:
    """MLPs alone."""
    shape: dict[str, Value] = {"depth": 10, "units": 32, "norm": "layer"}
    return (
        *_mlps({3: ALL, 10: PLAIN, 30: PLAIN}, units=64, seeds=8, steps=250),
        Condition("mlp", PLAIN, (0.003, 0.01, 0.03), 8, 200, shape),
    )


def standard() -> tuple[Condition, ...]:
    """Every architecture, a few hundred steps."""
    return (
        *_mlps(dict.fromkeys(MLP_RATES, ALL), units=64, seeds=16, steps=600),
        *_architectures(8, convolutional=300, residual=200, transformer=200),
    )


def full() -> tuple[Condition, ...]:
    """Every architecture, a few thousand steps."""
    return (
        *_mlps(dict.fromkeys(MLP_RATES, (*ALL, "xavier_uniform")), units=128, seeds=16, steps=2000),
        *_architectures(12, convolutional=1000, residual=1000, transformer=1000),
    )


def tiny() -> tuple[Condition, ...]:
    """A step or two of the smallest of each kind."""
    rates = (0.01, 0.03)
    return (
        Condition("mlp", ("he", "default", "zeros"), rates, 5, 22, {"depth": 1, "units": 4, "norm": "none"}),
        Condition("plain_cnn", ("he", "xavier"), rates, 5, 1, {"depth": 4, "norm": "none"}),
        Condition("resnet18", ("he", "fixup"), rates, 5, 1, {"norm": "none", "stem": "cifar"}),
        Condition("transformer", ("he",), rates, 5, 1, {"norm": "layer", "order": "pre"}),
    )


def name_of(run: Mapping[Any, Any]) -> str:
    """An architecture, and what it is normalized by: `10-layer MLP (batch norm)`."""
    models = {"mlp": "MLP", "plain_cnn": "plain CNN", "resnet18": "ResNet-18", "transformer": "transformer"}
    model, norm, order = (str(run[name]) if isinstance(run[name], str) else "" for name in ("model", "norm", "order"))
    deep = f"{int(run['depth'])}-layer " if model in models and pd.notna(run["depth"]) else ""
    words = [f"{order}-LN" if order else "no norm" if norm == "none" else f"{norm} norm"] if order or norm else []
    if model not in models:  # what it stands in the place of may have had another budget
        words.append(f"{int(run['steps'])} steps")
    return f"{deep}{models.get(model, model)} ({', '.join(words)})" if words else f"{deep}{models[model]}"
