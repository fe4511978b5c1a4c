"""The causes behind the rows of the table: weights of losses, variances of shards, masks of dropout."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from depthgauge import stats, theory
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.questions import Question, above, agrees, enumerated, spelled
from depthgauge.studies.data_parallel import shards
from depthgauge.studies.data_parallel.shards import LOCAL_FEW, ONE_SEED, OWN_SEED
from depthgauge.verdict import Claim, Sentence

WEIGHT_MARGIN = 1e-4
BIAS_MARGIN = 0.02  # of the variance
LITTLE = 0.01  # of the gradient of one device
NOISY = 1.25  # factor of a variance that matters
WEIGHTS = ("weight", "weight_predicted")


def weights(rows: pd.DataFrame) -> Question:
    """The weight of each group of losses: by predicted weight, the lightest first; of tokens by rank."""
    keys = ["row", "ranks", "seed", "layer_index"]
    wide = rows[rows["metric"].isin(WEIGHTS)].pivot_table(index=keys, columns="metric", values="value", sort=False)
    asked = {}
    for (row, ranks, order), own in groups(wide.reset_index(), ["row", "ranks", "layer_index"]):
        predicted = own["weight_predicted"].mean()
        shifted = own["weight"] - own["weight_predicted"] + predicted  # the interval is that of the differences
        asked[row, ranks, int(order) + 1] = stats.against(shifted, predicted, margin=WEIGHT_MARGIN)
    return Question.of(
        "weights", ("row", "ranks", "group"), asked, label="{row} ({ranks} ranks, group {group})",
        family=lambda ranks, **_: ranks,
    )  # fmt: skip


def weighed(question: Question, row: str, ranks: int) -> str:
    """`; weights of its losses: 0.833, 1.25`; empty where they are not weighed."""
    found = [abs(round(w.effect.value, 6)) for w in question.where(row=row, ranks=ranks).members.values()]
    return f"; weights of its losses: {enumerated(f'{weight:.3g}' for weight in found)}" if found else ""


def normalized(bias: Claim, collapse: Claim, cases: pd.DataFrame) -> Iterator[Answer]:
    """The variance that ranks see by themselves, and the gradient below the normalization, over those of one device."""
    biased, below, further = {}, {}, {}
    for (row, ranks), own in groups(cases[cases["variance"].notna()], ["row", "ranks"]):
        each = shards.FEW if row == LOCAL_FEW else shards.EACH
        predicted = theory.batch_norm_shard_bias(each * ranks, ranks)
        biased[each, ranks] = stats.against(own["variance"], predicted, margin=BIAS_MARGIN)
        below[each, ranks] = stats.against(own["below"], 0.0, margin=LITTLE)
        further[each, ranks] = spelled("all_channels", stats.median(own["below_all"]))
    by, label = ("examples", "ranks"), "{examples} examples a rank ({ranks} ranks)"
    seen = Question.of("shard_variance", by, biased, label=label)
    if seen:
        yield seen.table()
        yield seen.prediction(bias, "variances", within=f"{BIAS_MARGIN:g}", unit="share of the whole batch's variance")
    passed = Question.of("below_batch_norm", by, below, label=label, reference="nothing")
    if passed:
        yield passed.table(further)
        few = passed.where(examples=shards.FEW)
        some = [
            f"at {passed.words(key)} {member.effect.value:.2g} in the median channel and "
            f"{further[key]['all_channels']:.2g} in all channels together"
            for key, member in passed.members.items()
        ]
        yield few.verdict(
            collapse, agrees, unit="share of one device's gradient",
            why=f"below the normalization the gradient's norm is, of that of one device, {enumerated(some, 9)}; a "
            "channel whose two examples nearly agree passes a large one",
            method=f"norm of a channel's weights' gradient, median over channels, mean over seeds, margin {LITTLE:g}",
        )  # fmt: skip


def masks(claim: Claim, cases: pd.DataFrame) -> Iterator[Answer]:
    """The variance that dropout gives the gradient of k ranks, over that on one device: k where masks are alike."""
    asked, further = {}, {}
    for key, own in groups(cases, ["row", "ranks"]):
        asked[key] = stats.against(own["noise"], 1.0, log=True, margin=NOISY)
        further[key] = {"alike": own["alike"].mean(), "predicted": 1.0 if key[0] == OWN_SEED else float(key[1])}
    question = Question.of("dropout", ("row", "ranks"), asked, label="{row} ({ranks} ranks)", reference="one device")
    if not question:
        return
    yield question.table(further)
    words = {True: "the gradient is no noisier than on one device for", False: "noisier for", None: "undecided for"}
    yield question.verdict(
        claim, _no_noisier, unit="times the variance", why=question.listed(_no_noisier, words, 9),
        method=f"variance over draws of the mean gradient of equal examples, margin a factor of {NOISY:g}, by seed",
    )  # fmt: skip
    if one := question.where(row=ONE_SEED).members:
        (_, ranks), member = max(one.items(), key=lambda pair: pair[0][1])
        yield Sentence(
            f"Ranks that share a seed draw the same dropout masks: on {ranks} ranks the gradient's variance by dropout "
            f"is {member.effect.value:.2g} times that on one device.",
            claims=(claim.id,),
        )


def _no_noisier(member: stats.Comparison) -> bool | None:
    more = above(member)
    return None if more is None else not more
