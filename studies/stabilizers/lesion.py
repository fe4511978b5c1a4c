"""Lesions: one block of a trained network deleted, two swapped, several deleted at once, with and without skips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from depthgauge import data, drawing, models, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, every, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers import lines, nets
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

LESION = Claim(
    "stabilizers/lesion", "deleting one block of a trained residual network, or swapping two neighbours, hardly "
    "changes its accuracy; a plain network of the same depth collapses",
)  # fmt: skip
SEVERAL = Claim(
    "stabilizers/lesions_add", "the accuracy of a residual network falls smoothly with the number of blocks deleted"
)
LITTLE = 0.1  # share of the accuracy above chance: up to that much lost is hardly a change
COLLAPSE = 0.5  # a network that loses more than that at once has collapsed; where none does, accuracy falls smoothly
ALIKE = 0.03  # accuracies of two whole networks within this are comparable
KEYS = ("form", "kind")
METRICS = ("validation_accuracy", "test_accuracy")
FORMS = {"perceptron": "perceptron", "convolutional": "convolutional network"}
LESIONS = {"deleted": "one block deleted", "swapped": "two neighbours swapped"}
CONVOLVED = ("plain_normed", "skips_normed")
RATES = {"perceptron": nets.RATES, "convolutional": (0.01, 0.03, 0.1, 0.3)}
SIZES = sizes(
    "dataset depth width steps resnet seeds",
    quick=("digits", 0, 0, 0, (), 0), standard=("digits", 13, 32, 1000, ("resnet18", 4, 500), 10),
    full=("mnist5k", 21, 64, 3000, ("resnet34", 8, 1000), 20), tiny=("digits", 5, 6, 4, ("resnet18", 1, 2), 5),
)  # fmt: skip


def most_networks(case: Case) -> int:
    """Networks a chunk: convolutional ones on larger images take minutes each, and a chunk has a limit of time."""
    convolutional = case["form"] == "convolutional"
    if convolutional and case["data"] != "digits":
        return 1
    if case.integer("seed") >= 0:  # lesioned, too
        return 10
    return 6 if convolutional else 60


def grids(
    *, dataset: str, depth: int, width: int, steps: int, resnet: tuple[Any, ...], **_: Any
) -> Iterator[Grid]:  # fmt: skip
    """Runs that choose the rates, by kind and form; at quick there are none."""
    if not resnet:
        return
    yield Grid(
        {"kind": tuple(nets.KINDS), "lr": RATES["perceptron"]},
        {"form": "perceptron", "data": dataset, "depth": depth, "width": width, "steps": steps},
        0, nets.TOGETHER, most_networks, selection=3,
    )  # fmt: skip
    model, channels, updates = resnet
    yield Grid(
        {"kind": CONVOLVED, "lr": RATES["convolutional"]},
        {"form": "convolutional", "data": dataset, "depth": int(model[6:]), "width": channels, "steps": updates},
        0, nets.TOGETHER, most_networks, selection=3,
    )  # fmt: skip


def second(rows: pd.DataFrame, seeds: int, **_: Any) -> Iterator[Grid]:
    """The runs that are reported, and lesioned."""
    yield from nets.reported(rows, KEYS, seeds, most_networks)


def template(form: str, kind: nets.Kind, dataset: data.Dataset, *, depth: int, width: int) -> nn.Module:
    """A multilayer perceptron, or a ResNet or the plain network of its convolutions, in pre-activation order."""
    if form == "perceptron":
        return nets.perceptron(kind, dataset, depth=depth, width=width)
    return models.build(
        f"resnet{depth}", input_shape=dataset.input_shape, classes=dataset.classes, width=width, stem="cifar",
        order="pre", residual=kind.skips, norm="batch",
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train, and lesion every run that is reported."""
    shared, dataset = cases[0], data.load(cases[0].text("data")).to(context.device)
    kind, steps = nets.KINDS[shared.text("kind")], shared.integer("steps")
    network = template(shared.text("form"), kind, dataset, depth=shared.integer("depth"), width=shared.integer("width"))
    fit, validation = data.hold_out(dataset.train, training.HELD_OUT)
    seeds = [case.random_seed("seed", "form", "depth", "width", "steps") for case in cases]  # of all kinds: paired
    trained = nets.trained(network, kind, cases, seeds, fit, steps=steps)
    ends = nets.accuracies(trained, fit, validation, dataset.test)
    for i, (case, seed) in enumerate(zip(cases, seeds, strict=True)):
        yield from (case.rows(metric, float(value)) for metric, value in zip(METRICS, ends[:, i], strict=True))
        if case.integer("seed") >= 0:
            line = lines.Line(trained.stack.module(i)).to(context.device)
            for metric, at, value in lines.lesions(line, fit.x, dataset.test, generator(seed, Purpose.RESAMPLES)):
                yield case.rows(metric, value, layer_index=at)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Share of the accuracy above chance that is lost, by lesion and network."""
    runs = training.tunable(nets.runs_of(rows, KEYS, *METRICS), KEYS)
    if runs.empty:  # those alone that choose a rate
        yield "lesions", runs
        yield "several_lesions", runs
        return
    tuned = training.tuned(runs, KEYS).set_index("run")
    measured = rows[rows["case"].isin(tuned.index) & rows["layer_index"].notna()]
    own = tuned.loc[measured["case"]].reset_index(drop=True)
    after, whole = measured["value"].to_numpy(), own["test_accuracy"].to_numpy()
    lost = own[["form", "network", "seed"]].assign(
        lesion=measured["metric"].to_numpy(), at=measured["layer_index"].astype(int).to_numpy(),
        lost=(whole - after) / np.maximum(whole - 0.1, 0.1), accuracy=after,
    )  # fmt: skip
    one, more = lost[lost["lesion"] != "several"], lost[lost["lesion"] == "several"]
    yield "lesions", _curves(one.rename(columns={"at": "block"}), "block")
    yield "several_lesions", _curves(more.rename(columns={"at": "deleted"}), "deleted")
    yield from _one(one, tuned)
    yield from _several(more)


def _curves(lost: pd.DataFrame, at: str) -> pd.DataFrame:
    """Means over seeds, with intervals: one row a network, lesion and place."""
    return pd.DataFrame([
        {"form": key[0], "network": key[1], "lesion": key[2], at: key[3], "n": len(own),
         "accuracy": own["accuracy"].mean(), **spelled("lost", stats.mean(own["lost"].to_numpy()))}
        for key, own in groups(lost, ["form", "network", "lesion", at])
    ])  # fmt: skip


def _one(lost: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[Answer]:
    asked, further = {}, {}
    for (form, network, lesion), own in groups(lost, ["form", "network", "lesion"]):
        means = own.groupby("seed")["lost"].mean().to_numpy()  # over blocks
        asked[form, network, lesion] = (
            stats.against(means, 0.0, margin=LITTLE) if network.startswith("skips") else stats.against(means, COLLAPSE)
        )
        whole = tuned[(tuned["form"] == form) & (tuned["network"] == network)]["test_accuracy"]
        worst = own.groupby("at")["lost"].mean()
        further[form, network, lesion] = {
            "whole": whole.mean(), "accuracy": own["accuracy"].mean(), "blocks": len(worst),
            "worst_block": worst.idxmax(), "worst_lost": worst.max(),
        }  # fmt: skip
    question = Question.of(
        "lesion", ("form", "network", "lesion"), asked, label="{network} ({form}), {lesion}", reference="limit",
        counted="networks",
    )  # fmt: skip
    yield question.table(further)
    answers, told = {}, []
    for (form, network, lesion), comparison in question.members.items():
        plain = form, network.replace("skips", "plain"), lesion
        if lesion not in LESIONS or not network.startswith("skips") or plain not in question.members:
            continue
        answers[f"{form}{network[5:]}, {LESIONS[lesion]}"] = every([agrees(comparison), above(question.members[plain])])
        here, there = further[form, network, lesion], further[plain]
        unlike = "" if abs(here["whole"] - there["whole"]) <= ALIKE else ", no comparable network from the start"
        told.append(
            f"{LESIONS[lesion]}: a {FORMS[form]} ({network}) goes from {here['whole']:.1%} to {here['accuracy']:.1%}, "
            f"one that is {plain[1]} from {there['whole']:.1%} to {there['accuracy']:.1%}{unlike}"
        )
    if not answers:
        return
    yield question.verdict(
        LESION, answers, unit="share of the accuracy above chance lost", why="; ".join(told),
        method=f"lost accuracy over that above chance (10 %), mean over blocks; holds where the residual network "
        f"loses {LITTLE:.0%} at most and the plain one more than {COLLAPSE:.0%}; batch normalization keeps the "
        "statistics of the whole network; rates chosen by other seeds",
    )  # fmt: skip
    yield from _sentences(question, further)


def _sentences(question: Question, further: dict[tuple[str, str, str], dict[str, Any]]) -> Iterator[Answer]:
    for form in dict.fromkeys(form for form, _, _ in question.members):
        keys = [(form, f"{kind} with batch norm", "deleted") for kind in ("skips", "plain")]
        if not all(key in further for key in keys):
            continue
        ends = [f"{further[key]['whole']:.1%} to {further[key]['accuracy']:.1%}" for key in keys]
        yield Sentence(
            f"With skips, deleting one block of a trained {FORMS[form]} takes its test accuracy from {ends[0]}, "
            f"without them from {ends[1]} (batch norm, means over {further[keys[0]]['blocks']} blocks).",
            figure="lesions", claims=(LESION.id,),
        )  # fmt: skip
        anew = [(key[0], key[1], lines.ANEW) for key in keys]
        if all(key in further for key in anew):
            yield Sentence(
                f"Where batch normalization's statistics are measured anew after one block of a {FORMS[form]} "
                f"is deleted, the test accuracy is {further[anew[0]]['accuracy']:.1%} with skips and "
                f"{further[anew[1]]['accuracy']:.1%} without.",
                figure="lesions", claims=(LESION.id,),
            )  # fmt: skip


def _several(lost: pd.DataFrame) -> Iterator[Answer]:
    asked = {}
    for (form, network), own in groups(lost, ["form", "network"]):
        wide = own.pivot_table(index="seed", columns="at", values="lost").sort_index(axis=1)
        rises = np.diff(np.column_stack([np.zeros(len(wide)), wide.to_numpy()]), axis=1)
        asked[form, network] = stats.against(rises.max(1), COLLAPSE)
    question = Question.of(
        "lesions_add", ("form", "network"), asked, label="{network} ({form})", reference="limit", counted="networks"
    )
    yield question.table()
    residual = question.select(lambda network, **_: network.startswith("skips"))
    if not residual:
        return
    yield residual.verdict(
        SEVERAL, below, unit="largest share lost with one block more",
        why=residual.listed(below, {True: "no block more costs as much with", False: "one does with"}),
        method="largest rise of the share lost from one number of deleted blocks to the next, mean over "
        f"{lines.DRAWS} sets of them, below {COLLAPSE:.0%}",
    )  # fmt: skip


@drawing.figure(
    "lesions", "What deleting one block costs residual and plain networks",
    lambda lesions: f"Share of the test accuracy above chance that is lost; means of {lesions['n'].min()} networks, "
    "95 % intervals. Statistics anew: batch normalization measured again on the training examples after the lesion.",
)  # fmt: skip
def draw_lesions(lesions: pd.DataFrame) -> Any:
    """Loss by block, a panel a form and lesion."""
    shown = lesions.assign(panel=lesions["form"] + ": " + lesions["lesion"])
    most = int(lesions["block"].max())
    axes: dict[str, Any] = {"ylabel": "share of accuracy lost", "ylim": (-0.1, 1.15), "xlim": (0.5, most + 0.5)}
    axes["xticks"] = range(1, most + 1, -(-most // 8))
    return drawing.panels(
        shown, "panel", drawing.estimates, at="block", by="network", value="lost", axes=axes, joined=True
    )


@drawing.figure(
    "several_lesions", "What deleting several blocks costs residual and plain networks",
    lambda several_lesions: "Share of the test accuracy above chance that is lost; means of "
    f"{several_lesions['n'].min()} networks and {lines.DRAWS} sets of blocks each, 95 % intervals.",
)  # fmt: skip
def draw_several(several_lesions: pd.DataFrame) -> Any:
    """Loss by number of deleted blocks, a panel a form."""
    axes: dict[str, Any] = {"xlabel": "blocks deleted", "ylabel": "share of accuracy lost", "ylim": (-0.1, 1.15)}
    axes["xticks"] = range(1, int(several_lesions["deleted"].max()) + 1)
    return drawing.panels(
        several_lesions, "form", drawing.estimates, at="deleted", by="network", value="lost", axes=axes, joined=True
    )


METHOD = f"""**Lesions.** Trained networks in pre-activation order, with skips and without, after Veit, Wilber and
Belongie (2016): multilayer perceptrons with one layer a block, and ResNets against the plain networks of the same
convolutions, whose blocks that change the shape are left alone. SGD with momentum {nets.MOMENTUM:g}, a rate that falls
to 0, tuned for each by other seeds. Then blocks are replaced by the identity, or exchanged with the next, and the
network is tested as it stands; batch normalization keeps the training set's statistics of the whole network."""
PART = Part(
    "lesion", (LESION, SEVERAL), SIZES, grids, run, analyse, (draw_lesions, draw_several), METHOD, second=second,
)  # fmt: skip
