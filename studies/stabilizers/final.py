"""Final accuracy with batch normalization and without, where both are trained to the end at rates of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, spelled
from depthgauge.studies.stabilizers import nets
from depthgauge.study import Grid
from depthgauge.verdict import Claim, Sentence

SAME = Claim("N25", "batch normalization does not change the final accuracy, and need not be combined with dropout")
MARGIN = 0.005  # of test accuracy: closer ones are the same
SIZES = sizes(
    "dataset depths width steps seeds", quick=("digits", (), 0, 0, 0), standard=("digits", (3, 6, 12), 32, 1000, 32),
    full=("mnist5k", (3, 6, 12), 64, 4000, 40), tiny=("digits", (2,), 4, 4, 5),
)  # fmt: skip


def grids(**size: Any) -> Iterator[Grid]:
    """Perceptrons of every kind and depth, at every rate."""
    yield from nets.grids(**size)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Test accuracy with batch normalization minus that without, by depth and skips."""
    tuned = nets.tuned(rows, MARGIN)
    if tuned.empty:  # those alone that choose a rate
        yield "final_accuracy", tuned
        return
    asked, further = {}, {}
    by_network = {key: own.set_index("seed") for key, own in groups(tuned, ["network", "depth"])}
    for (network, depth), without in by_network.items():
        if (normed := by_network.get((f"{network} with batch norm", depth))) is None:
            continue
        both = normed.index.intersection(without.index)
        pair = normed.loc[both], without.loc[both]
        difference = stats.paired(*(each["test_accuracy"] for each in pair), margin=MARGIN, test="t")
        asked[network, depth] = training.unsettled(difference, any(each["at_edge"].any() for each in pair))
        further[network, depth] = {
            f"{name}{metric}": each[metric].mean()
            for name, each in zip(("normed_", ""), pair, strict=True)
            for metric in ("test_accuracy", "train_accuracy", "diverged", "lr")
        }
    question = Question.of(
        "final", ("network", "depth"), asked, label="{network}, {depth} layers", reference="no difference"
    )
    if question:
        yield "final_accuracy", pd.DataFrame(_accuracies(tuned))
        yield question.table(further)
        yield from _answers(question, further)


def _accuracies(tuned: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (network, depth), own in groups(tuned, ["network", "depth"]):
        yield {"network": network, "depth": depth, "n": len(own), "lr": own["lr"].iloc[0],
               **spelled("accuracy", stats.mean(own["test_accuracy"].to_numpy()))}  # fmt: skip


def _answers(question: Question, further: dict[tuple[str, int], dict[str, float]]) -> Iterator[Answer]:
    told = "; ".join(
        f"{question.words(key)}: {row['normed_test_accuracy']:.1%} with batch normalization, "
        f"{row['test_accuracy']:.1%} without"
        for key, row in further.items()
    )
    yield question.verdict(
        SAME, agrees, unit="difference in test accuracy", why=told,
        method="the first half of the claim alone, whose second half the study regularization asks; test accuracy at "
        "the end with batch normalization minus that without, at rates chosen by other seeds; paired t by seed, "
        f"margin {MARGIN:.1%}; a run that diverged has 0 right",
    )  # fmt: skip
    gains = {key: row["normed_test_accuracy"] - row["test_accuracy"] for key, row in further.items()}
    least, most = min(gains, key=lambda key: gains[key]), max(gains, key=lambda key: gains[key])
    yield Sentence(
        f"Batch normalization changes the final test accuracy by {100 * gains[least]:+.1f} points "
        f"({question.words(least)}) to {100 * gains[most]:+.1f} ({question.words(most)}), each network at "
        "a learning rate of its own.",
        figure="final_accuracy", claims=(SAME.id,),
    )  # fmt: skip


@drawing.figure(
    "final_accuracy", "Final test accuracy by depth, with and without batch normalization",
    lambda final_accuracy: f"Each at its own rate; means of {final_accuracy['n'].min()} seeds, 95 % intervals.",
)  # fmt: skip
def draw_final(final_accuracy: pd.DataFrame) -> Any:
    """Accuracy by depth, a line a network."""
    axes = {"xlabel": "layers", "ylabel": "test accuracy"}
    return drawing.panels(
        final_accuracy, "", drawing.estimates, at="depth", by="network", value="accuracy", axes=axes, joined=True
    )


METHOD = """**Final accuracy.** The networks of the part *depth*, shallow enough to be trained without normalization,
and trained until they fit their training examples; test accuracy with batch normalization against that without it, at
the same depth, draws and order of the data."""
PART = Part("final", (SAME,), SIZES, grids, nets.run, analyse, (draw_final,), METHOD, second=nets.second)
