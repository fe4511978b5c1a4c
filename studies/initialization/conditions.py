"""The networks that are trained, and from which schemes at which learning rates: the grids of the part `training`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
LOW, HIGH = (0.003, 0.01, 0.03), (0.01, 0.03, 0.1)  # without and with a norm
SHAPE = ("depth", "norm", "order", "stem")  # what a model is built with, where it takes it; an MLP has `units` besides
SELECTION = 3  # further seeds that choose the learning rate
BUDGET = 2**27  # bytes of parameters, gradients and momentum a chunk


def trained(
    model: str, schemes: tuple[str, ...], rates: tuple[float, ...], seeds: int, steps: int, **shape: Value
) -> Grid:
    """One architecture from several schemes; its `sweep` keeps it apart where a model cannot be varied in shape."""
    return Grid(
        {"scheme": schemes, "lr": rates},
        {"model": model, "steps": steps, "sweep": " ".join(map(str, (model, *shape.values()))), **shape},
        seeds, ("scheme", "lr", "seed"), chunk=most_replicas, selection=SELECTION,
        architecture=tuple(name for name in shape if name in SHAPE),
    )  # fmt: skip


def most_replicas(case: Case) -> int:
    """Replicas a chunk: bounded by memory where they are trained together, small where one follows another."""
    if case["model"] != "mlp" or case.get("norm") == "batch":
        return 36
    width, depth = case.integer("units"), case.integer("depth")
    return min(96, replicas.most_members(64 * width + depth * width**2, BUDGET))


def _mlps(schemes: Mapping[int, tuple[str, ...]], units: int, seeds: int, steps: int) -> Iterator[Grid]:
    for depth, rates in MLP_RATES.items():
        yield trained("mlp", schemes[depth], rates, seeds, steps, depth=depth, units=units, norm="none")


def _architectures(seeds: int, convolutional: int, others: int, transformer: int) -> Iterator[Grid]:
    """Everything that is no MLP without normalization, with the steps of each kind."""
    for depth in (10, 30):
        yield trained("mlp", ("normal", *PLAIN), HIGH, seeds, others, depth=depth, units=64, norm="batch")
    for depth, schemes, rates in (
        (10, ("default", *CONVOLUTIONAL), (*LOW, 0.1)), (22, CONVOLUTIONAL, (0.001, *LOW)),
        (30, CONVOLUTIONAL, (0.001, *LOW)),
    ):  # fmt: skip
        yield trained("plain_cnn", schemes, rates, seeds, convolutional, depth=depth, norm="none")
    yield trained("resnet18", PLAIN, HIGH, seeds, others, norm="batch", stem="cifar")
    yield trained("resnet18", RESIDUAL, LOW, seeds, others, norm="none", stem="cifar")
    for order in ("pre", "post"):
        yield trained("transformer", SEQUENTIAL, HIGH, seeds, transformer, norm="layer", order=order)


QUICK = (
    *_mlps({3: ALL, 10: PLAIN, 30: PLAIN}, units=64, seeds=8, steps=250),
    trained("mlp", PLAIN, LOW, 8, 200, depth=10, units=32, norm="layer"),
)
STANDARD = (
    *_mlps(dict.fromkeys(MLP_RATES, ALL), units=64, seeds=16, steps=600),
    *_architectures(8, convolutional=300, others=200, transformer=200),
)
FULL = (
    *_mlps(dict.fromkeys(MLP_RATES, (*ALL, "xavier_uniform")), units=128, seeds=16, steps=2000),
    *_architectures(12, convolutional=1000, others=1000, transformer=1000),
)
TINY = (
    trained("mlp", ("he", "default", "zeros"), (0.01, 0.03), 5, 22, depth=1, units=4, norm="none"),
    trained("plain_cnn", ("he", "xavier"), (0.01, 0.03), 5, 1, depth=4, norm="none"),
    trained("resnet18", ("he", "fixup"), (0.01, 0.03), 5, 1, norm="none", stem="cifar"),
    trained("transformer", ("he",), (0.01, 0.03), 5, 1, norm="layer", order="pre"),
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
