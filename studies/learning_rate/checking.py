"""The coordinate check under both parametrizations, held against the powers that theory names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import coordinates, data, drawing, seeding, stats
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.questions import Question, listed, side
from depthgauge.seeding import Purpose
from depthgauge.studies.learning_rate.parametrization import EXPONENTS, LAYERS, Net
from depthgauge.study import Case, Rows
from depthgauge.verdict import Claim
from depthgauge.workload import Training

MARGIN = 0.15  # of an exponent in the width: over a factor of 16 in width less than a factor of 1.5
SETTING = ["method", "parametrization"]
GENTLE = {"SGD": 2e-4, "Adam": 3e-5}  # rates of the coordinate check: small enough for the powers to be those of a step
CHECKED, UPDATES = 64, 3  # examples and updates of the coordinate check
READOUT = 0.02  # of the output's deviation there: scores of order 1 have a gradient of their own that falls in mu


def net_of(case: Case, dataset: data.Dataset) -> Net:
    """The network of a case."""
    inputs = int(np.prod(dataset.input_shape))
    named = {"parametrization": case.text("parametrization"), "method": case.text("method")}
    named["readout"] = READOUT if case.get("updates") else 1.0  # type: ignore[assignment]  # a number among texts
    return Net(inputs, case.integer("width"), dataset.classes, case.integer("base"), **named)  # type: ignore[arg-type]  # a case's texts


def check(case: Case, dataset: data.Dataset) -> Iterator[Rows]:
    """Change of each layer's output after a few steps, of one network."""
    net, seed = net_of(case, dataset), case.random_seed("seed")
    batch = (dataset.train.x[:CHECKED], dataset.train.y[:CHECKED])

    def make(_width: int) -> Training:
        module = net.module()
        net.draw(module, seeding.generator(seed, Purpose.WEIGHTS))
        method = torch.optim.SGD if net.method == "SGD" else torch.optim.Adam
        return Training(module, [batch], optimizer=method(module.parameters(), lr=GENTLE[net.method]))

    changes = coordinates.changes(make, net.width, seed, case.integer("updates"))
    yield case.rows("change", list(changes.values()), layer=list(changes), layer_index=range(len(changes)))


def answers(checks: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    """Exponents of each layer's change against 0, and whether they lie on the side that theory names."""
    asked, further, means = {}, {}, []
    for setting, own in groups(checks, SETTING):
        wide = own.pivot_table(index=["layer", "seed"], columns="width", values="value").dropna()
        sizes = wide.columns.to_numpy(float)
        if wide.empty or len(sizes) < coordinates.FEWEST_WIDTHS:
            continue
        for layer, predicted in zip(LAYERS, EXPONENTS[setting], strict=True):
            logs = np.log(wide.loc[layer].to_numpy())
            asked[*setting, layer] = stats.against(stats.slopes(np.log(sizes), logs).slope, 0.0, margin=MARGIN)
            further[*setting, layer] = {"predicted": predicted}
            means += [(*setting, layer, *pair) for pair in zip(sizes, np.exp(logs.mean(0)), strict=True)]
    if not asked:
        return
    yield "changes", pd.DataFrame(means, columns=[*SETTING, "layer", "width", "change"])
    label = "{method} {parametrization} {layer}"
    question = Question.of("coordinates", (*SETTING, "layer"), asked, label=label, reference="flat")
    told = {key: coordinates.WORDS[side(c)] for key, c in question.members.items()}
    yield question.table({key: {**further[key], "verdict": word} for key, word in told.items()})
    signs = {key: int(np.sign(row["predicted"])) for key, row in further.items()}
    right = {key: None if side(c) is None else side(c) == signs[key] for key, c in question.members.items()}
    words = {word: f"{word} for" for word in sorted(set(told.values()))}
    layers = listed({question.words(key): word for key, word in told.items()}, words, 12)
    yield question.verdict(
        claim, {question.words(key): answer for key, answer in right.items()}, unit="power of the width",
        why=f"{sum(map(bool, right.values()))} of {len(right)} layers change as theory says; {layers}",
        method=f"exponent of the change in the width against 0, t over seeds, margin {MARGIN:g}",
    )  # fmt: skip


@drawing.figure(
    "changes", "The coordinate check: change of each layer's output against the width",
    f"Root mean square of the change of each layer's output after {UPDATES} steps, geometric mean over seeds.",
)  # fmt: skip
def draw_changes(changes: pd.DataFrame) -> Any:
    """Change of each layer against width."""
    changes = changes.assign(setting=changes["method"] + ", " + changes["parametrization"], weights=changes["layer"])
    axes = {"xscale": "log", "yscale": "log", "xlabel": "width", "ylabel": "change of a layer's output"}
    return drawing.panels(changes, "setting", drawing.lines, x="width", y="change", by="weights", axes=axes)
