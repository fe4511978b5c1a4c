"""A stored run made by hand, and a study on it: what a report is tested on."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Figure, Findings, Status, Verdict

FINGERPRINT = {
    "depthgauge": "0.1.0", "source": "9f2c" * 16, "commit": None, "python": "3.11.7", "torch": "2.13.0+cpu",
    "numpy": "2.3.4", "device": "cpu", "cpu": "AMD EPYC 7R13", "cores": 2, "memory_gib": 23.5,
    "system": "Linux-6.1", "threads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class FakeStored:
    directory: Path
    frames: Mapping[str, pd.DataFrame]
    run: Mapping[str, object] = field(default_factory=lambda: {"request": {}})
    unfinished: int = 0

    @property
    def studies(self) -> Iterable[str]:
        return tuple(self.frames)

    def chunks(self, _name: str) -> tuple[str, ...]:
        return ("0", "1", "2")

    def missing(self, _name: str) -> int:
        return self.unfinished

    def frame(self, name: str) -> pd.DataFrame:
        return self.frames[name]

    def rows(self, name: str) -> "FakeRows":
        columns = ["case", "metric", "value", "status", "message"]
        frame = self.frame(name)
        return FakeRows(frame if len(frame) else frame.reindex(columns=columns))


@dataclass(frozen=True)
class FakeRows:
    every: pd.DataFrame

    @property
    def cases(self) -> int:
        return self.every["case"].nunique()

    @property
    def broken(self) -> pd.DataFrame:
        return self.every.loc[self.every["status"] != "ok", ["case", "status", "message"]]

    @property
    def diverged(self) -> int:
        every = self.every
        return every["case"][(every["metric"] == "diverged") & (every["value"] > 0)].nunique()

    @property
    def finite(self) -> Mapping[str, tuple[int, bool]]:
        values = self.every["value"][self.every["status"] == "ok"]
        return {"": (len(values), bool(np.isfinite(values.to_numpy(float)).any()))} if len(values) else {}

    def frame(self) -> pd.DataFrame:
        return self.every


def rows(cases: int = 24, layers: int = 40) -> pd.DataFrame:
    """What a store gives back: `cases` seeds of a signal that loses 3 % a layer; some diverge, some fail."""
    rng = np.random.default_rng(0)
    seed, layer = (grid.ravel() for grid in np.meshgrid(np.arange(cases), np.arange(layers), indexing="ij"))
    steps = rng.normal(-0.03, 0.05, (cases, layers)).cumsum(axis=1)
    measured = pd.DataFrame({
        "case": [f"activation=tanh,seed={one}" for one in seed], "activation": "tanh", "seed": seed,
        "layer": [f"{one}.linear" for one in layer], "layer_index": layer, "direction": "forward", "step": 0,
        "metric": "log_norm", "value": steps.ravel(), "status": "ok", "message": None,
    })  # fmt: skip
    diverged = measured.groupby("case", as_index=False, sort=False).first()
    diverged = diverged.assign(metric="diverged", value=lambda frame: (frame["seed"] < 2) * 1.0)
    failed = diverged.assign(
        case=lambda frame: frame["case"] + ",width=9", metric="", value=np.nan, status="error",
        message=lambda frame: np.where(frame["seed"] < 1, "RuntimeError: out of memory", "ValueError: no such width"),
    )[:4]  # fmt: skip
    return pd.concat([measured, diverged, failed], ignore_index=True)


def analyse(frame: pd.DataFrame) -> Findings:
    signal = frame[frame["metric"] == "log_norm"]
    by_layer = signal.groupby("layer_index")["value"]
    mean, error = by_layer.mean(), by_layer.sem()
    table = pd.DataFrame({"mean": mean, "low": mean - 2 * error, "high": mean + 2 * error, "n": by_layer.size()})
    last = table.iloc[-1]
    return Findings(
        verdicts=(
            Verdict("N01", "a factor of 1.5 a layer over 100 layers gives about 4e14", Status.FAILS, observed=1.5**100,
                    predicted=4e14, n=1, method="exact arithmetic",
                    why="1.5 to the 100th power is 4.07e17; 4e14 is reached after 83 layers."),
            Verdict("N02", "a factor of 0.8 a layer over 100 layers gives about 2e-10", Status.HOLDS,
                    observed=0.8**100, predicted=2e-10, n=1, method="exact arithmetic", why="It is 2.04e-10."),
            Verdict("N05", "with sigmoid and many layers the gradient vanishes", Status.DEPENDS, observed=last["mean"],
                    low=last["low"], high=last["high"], predicted=-1.2, unit="nats a layer", n=24,
                    method="mean over 24 seeds, t interval, 95 %; paired by seed, Holm over 12 comparisons",
                    why="It does below the critical weight scale; at σ_w = 4 sigmoid passes the gradient on, and the "
                        "depth at which fp16 underflows moves from 9 layers to beyond 100."),
            Verdict("N08", "the range of the numbers does not affect what a network can express",
                    Status.INCONCLUSIVE, observed=0.013, low=-0.2, high=0.21, unit="relative error", n=4,
                    method="points only", why="Four seeds are fewer than the five that a verdict needs."),
            Verdict("overflow", "a loss scale saves every configuration from underflow",
                    Status.NOT_APPLICABLE, why="No configuration of this preset underflows."),
        ),
        tables={"signal": table, "raw": signal[["case", "layer_index", "value"]]},
        answers=(
            "Tanh loses 3.0 % of its signal a layer, as theory predicts, and all 24 seeds stay inside the band.",
            "PyTorch's default initialization is deep in the ordered phase: fp16 loses a tanh gradient after 9 layers.",
            "Training survives to about six times the predicted depth scale ξ_c, and not beyond.",
        ),
        shown=("signal",),
    )  # fmt: skip


def plot(findings: Findings) -> Iterable[Figure]:
    from matplotlib import pyplot as plt

    table = findings.tables["signal"]
    figure, axes = plt.subplots()
    axes.fill_between(table.index, table["low"], table["high"], alpha=0.25, linewidth=0)
    axes.plot(table.index, table["mean"], "o", markersize=4, label="measured, 24 seeds")
    axes.plot(table.index, -0.03 * (table.index + 1), color="C1", label="theory")
    axes.set(xlabel="layer", ylabel="log of the signal's norm (nats)")
    axes.legend()
    yield Figure("signal", figure, "Tanh loses three percent of its signal a layer",
                 "Points: mean over 24 seeds; band: two standard errors; line: theory.")  # fmt: skip
    figure, axes = plt.subplots()
    sigma, depth = np.linspace(0.5, 3, 26), np.arange(2, 101, 4)
    accuracy = 1 / (1 + np.exp(depth[:, None] * np.abs(np.log(sigma / 1.1))[None, :] / 6 - 2))
    mesh = axes.pcolormesh(sigma, depth, accuracy, vmin=0, vmax=1)
    axes.plot(sigma, 6 / np.maximum(np.abs(np.log(sigma / 1.1)), 0.06), color="white", linewidth=1.6)
    axes.set(xlabel="weight scale $\\sigma_w$", ylabel="depth (layers)", ylim=(2, 100))
    axes.grid(visible=False)
    figure.colorbar(mesh, label="training accuracy")
    yield Figure("map", figure, "Training survives to six times the predicted depth scale",
                 "Colour: training accuracy after 200 steps; line: 6 ξ_c.")  # fmt: skip


CLAIMS = tuple(
    Claim(identifier, text)
    for identifier, text in (
        ("N01", "a factor of 1.5 a layer over 100 layers gives about 4e14"),
        ("N02", "a factor of 0.8 a layer over 100 layers gives about 2e-10"),
        ("N05", "with sigmoid and many layers the gradient vanishes"),
        ("N08", "the range of the numbers does not affect what a network can express"),
        ("overflow", "a loss scale saves every configuration from underflow"),
    )
)

METHOD = """Signals are measured at initialization, layer by layer, over 24 seeds.

1. Draw weights from N(0, σ_w²/n).
2. Push one batch forward, and one gradient back.

## Intervals

Means get a *t* interval; rates a **Wilson** interval. See [Schoenholz et al. 2017](https://arxiv.org/abs/1611.01232).

| figure | interval |
| --- | --- |
| mean | `t` |
| rate | Wilson |
"""


def make_study(name: str = "gradient_flow", **changes: object) -> Study:
    settings: dict[str, object] = {
        "name": name,
        "question": "How do signal and gradient grow or shrink with depth, and does theory say so in advance?",
        "presets": {"quick": (Grid({"activation": ("tanh",)}, seeds=24),)},
        "run": lambda *_: (),
        "analyse": analyse,
        "plot": plot,
        "claims": CLAIMS,
        "method": METHOD,
        "caveats": ("Width is 512 throughout.", "Inputs are standard normal; images are not."),
    }
    return Study(**{**settings, **changes})  # type: ignore[arg-type] # settings are typed where they are declared


def make_run(*names: str) -> dict[str, object]:
    return {
        "schema": 1,
        "request": {name: {"preset": "quick", "seeds": None, "origin": "depthgauge.studies"} for name in names},
        "command": f"depthgauge run {' '.join(names)} --preset quick --out runs/first",
        "started": "2026-11-23T01:00:00+00:00",
        "fingerprint": FINGERPRINT,
    }


@pytest.fixture
def stored(tmp_path: Path) -> FakeStored:
    return FakeStored(tmp_path, {"gradient_flow": rows()}, make_run("gradient_flow"))


@pytest.fixture
def conftest_parts() -> ModuleType:
    """This module: test modules cannot import it by name."""
    return sys.modules[__name__]
