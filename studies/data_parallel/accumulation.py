"""Accumulated steps against the step on the whole batch: windows, tokens, the last window, no_sync, clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import parallel, stats
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.data_parallel import accumulation_figures, windows
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.studies.data_parallel.windows import NEAR, SCALE, Way, of_all, of_full, of_rank, of_window
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SAME = Claim(
    "data_parallel/accumulation",
    "gradients accumulated over equal windows are the gradient of the whole batch, whenever they are reduced",
)
TRAFFIC = Claim(
    "data_parallel/no_sync",
    "gradients are reduced once a step where no_sync encloses the forward and backward passes of all windows but the "
    "last, and once a window without it or where it encloses the backward passes alone",
)
MEANS = Claim(
    "data_parallel/window_means",
    "the mean over windows of their token means has the gradient of the mean over all tokens, also where windows have "
    "unequal numbers of tokens",
)
RANK = Claim(
    "data_parallel/rank_tokens",
    "sums over windows, divided on each rank by its own number of tokens, have the gradient of the mean over all "
    "tokens",
)
TOKENS = Claim(
    "data_parallel/token_sums",
    "sums over windows, divided by the mean number of tokens a rank, have the gradient of the mean over all tokens",
)
LENGTHS = Claim(
    "data_parallel/token_weights",
    "the numbers of tokens in the windows alone determine the weight of a token in an accumulated step",
)
LAST = Claim(
    "data_parallel/last_step",
    "a last step of fewer windows has the whole batch's gradient where it is divided and reduced as a full step is",
)
CLIPPING = Claim(
    "data_parallel/clipping", "gradients clipped on each rank before the reduction are those clipped after it"
)
UNSCALING = Claim(
    "data_parallel/unscaling", "gradients clipped before they are divided by the loss scale are those clipped after it"
)
FACTOR = Claim(
    "data_parallel/accumulation_factor",
    "the component of an accumulated gradient along the whole batch's is the multiple of it that was predicted",
)

WEIGHT = 1.001  # a factor: token weights that are solved for are right to this
NO_SYNC, PLAIN, BACKWARD = EQUAL = (
    "accumulated with no_sync", "accumulated without no_sync", "accumulated with no_sync around backward",
)  # fmt: skip
AVERAGED, ADDED = "mean of window means", "sum of window means"
PER_RANK, PER_ALL = "sum over the tokens of a rank", "sum over the tokens of all ranks"
SHORT, OWN = "short last step divided as a full one", "short last step divided by its own windows"
UNSYNCED = "short last step never reduced"
AFTER, BEFORE = "clipped after the reduction", "clipped before the reduction"
UNSCALED, SCALED = "clipped after unscaling", "clipped before unscaling"
WAYS: Mapping[str, Way] = {
    NO_SYNC: Way(plain=False), PLAIN: Way(reduced="every", plain=False), BACKWARD: Way(reduced="backward", plain=False),
    AVERAGED: Way(uneven=True), ADDED: Way(uneven=True, divisor=of_window),
    PER_RANK: Way(uneven=True, divisor=of_rank), PER_ALL: Way(uneven=True, divisor=of_all),
    SHORT: Way(divisor=of_full, left=2, plain=False), OWN: Way(left=2, plain=False),
    UNSYNCED: Way(left=2, reduced="never"),
    AFTER: Way(clip="after"), BEFORE: Way(clip="before", reduced="never"),
    UNSCALED: Way(clip="unscaled"), SCALED: Way(clip="scaled"),
}  # fmt: skip
WEIGHED = (AVERAGED, PER_RANK, PER_ALL)
SENTENCES: Mapping[str, str] = {
    NO_SYNC: "The gradient is that of the whole batch, and is reduced once.",
    PLAIN: "The gradient is that of the whole batch, and is reduced once a window.",
    BACKWARD: "The forward pass was outside of no_sync, so that every window is reduced all the same.",
    AVERAGED: "A token weighs less the longer its window: the accumulation bug of 2024.",
    ADDED: "Window means are not divided by their number: the gradient grows with the steps.",
    PER_RANK: "Each rank divides by its own tokens, so that those of a rank with few weigh more.",
    PER_ALL: "Every token weighs the same: the whole batch's gradient.",
    SHORT: "Divided by the windows of a full step, the last gradient is too short by the share of missing windows.",
    OWN: "Divided by the windows that there are, the last gradient is the whole batch's.",
    UNSYNCED: "All windows were inside no_sync: every rank steps by its own gradient, and the ranks' weights part.",
    AFTER: "The norm that is clipped is the whole batch's.",
    BEFORE: "Clipped first, gradients of ranks that are orthogonal add up to less: the step is too short.",
    UNSCALED: "The norm that is clipped is the gradient's own.",
    SCALED: "The norm that is clipped has the loss scale in it, so that the step is divided by the scale.",
}
SIZES = sizes(
    "ranks steps seeds", quick=((2,), 4, 10), standard=((2,), 4, 16), full=((2, 4), 4, 24), tiny=((2,), 4, 5)
)  # fmt: skip


def grids(ranks: tuple[int, ...], steps: int, seeds: int) -> Iterator[Grid]:
    """Every way at once, so that the ranks are launched once."""
    yield Grid({"row": tuple(WAYS), "ranks": ranks}, {"steps": steps}, seeds, ("row", "seed"), 10_000, exclusive=True)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """All cases in the ranks of one launch."""
    asked, ranks = [(case.text("row"), case.random_seed("seed")) for case in cases], cases[0].integer("ranks")
    answers = launched(
        windows.work, dict(WAYS), asked, cases[0].integer("steps"), WEIGHED,
        ranks=ranks, device=parallel.device_for(ranks, context.device), context=context,
    )  # fmt: skip
    for case, found in zip(cases, answers[0], strict=True):
        weights = found.pop("weight", None)
        yield from (case.rows(metric, value) for metric, value in found.items())
        if weights is not None:
            yield case.rows("weight", weights, layer_index=np.arange(len(weights)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Factors, distances, reductions, and weights of tokens."""
    params = params_of(rows, "row", "ranks", "steps", "seed").astype({"ranks": int, "steps": int})
    for metric in ("factor", "distance", "apart", "ulps", "reductions", "bytes"):
        params[metric] = only(rows, metric)
    factor, distance, traffic, further = {}, {}, {}, {}
    for (row, ranks, steps), own in groups(params, ["row", "ranks", "steps"]):
        expected = windows.predicted(WAYS[row], ranks, steps)
        kind = "rounding" if expected["distance"] < NEAR else "exact"
        factor[row, kind, ranks] = stats.against(own["factor"], expected["factor"], log=True, margin=1 + NEAR)
        distance[row, kind, ranks] = stats.against(own["distance"], 0.0, margin=NEAR)
        further[row, kind, ranks] = {
            "distance": own["distance"].mean(), "predicted_distance": expected["distance"],
            "apart": own["apart"].mean(), "predicted_apart": expected["apart"], "ulps": own["ulps"].max(),
            "sentence": SENTENCES[row],
        }  # fmt: skip
        if row in EQUAL:
            traffic[row, ranks] = stats.against(own["reductions"], 1.0 if row == NO_SYNC else steps, margin=0.5)
    label = "{row} ({ranks} ranks)"
    factors = Question.of("accumulation", ("row", "kind", "ranks"), factor, label=label)
    yield factors.table(further)
    yield factors.prediction(
        FACTOR, "factors", within=f"a factor of 1 ± {NEAR:g}", unit="times the whole batch's gradient"
    )
    parted = Question.of("accumulation_distance", ("row", "kind", "ranks"), distance, label=label, reference="same")
    yield parted.table()
    yield from verdicts(parted, factors, further)
    if traffic:
        counts = Question.of("accumulation_reductions", ("row", "ranks"), traffic, label=label)
        yield counts.table()
        yield counts.prediction(TRAFFIC, "counts of reductions", within="0.5", unit="reductions a step and bucket")
    yield from weighed(rows)


def verdicts(parted: Question, factors: Question, further: Mapping[Any, Mapping[str, Any]]) -> Iterator[Answer]:
    """The same gradient as the whole batch's, or another: by its distance."""
    words = {True: "the whole batch's gradient has", False: "another gradient has", None: "undecided:"}
    asked = ((SAME, EQUAL), (MEANS, (AVERAGED,)), (RANK, (PER_RANK,)), (TOKENS, (PER_ALL,)), (LAST, (SHORT, UNSYNCED)),
             (CLIPPING, (BEFORE,)), (UNSCALING, (SCALED,)))  # fmt: skip
    for claim, names in asked:
        if not (own := parted.where(row=names)):
            continue
        told = [
            f"{factors.words(key)} has the factor {factors.members[key].effect.value:.3g}, where "
            f"{factors.members[key].reference:.3g} was predicted"
            for key, member in own.members.items() if agrees(member) is False
        ]  # fmt: skip
        why = own.listed(agrees, words, 4) + "".join(f"; {one}" for one in told)
        if claim is LAST and any(row == UNSYNCED for row, *_ in own.members):
            gap = max(further[key]["apart"] for key in own.members if key[0] == UNSYNCED)
            why += f"; the gradients of ranks that never reduce are {gap:.2f} of its norm apart"
        why += "; the ranks' gradients are orthogonal" * (claim is CLIPPING)
        yield own.verdict(
            claim, agrees, unit="share of the whole batch's norm", why=why,
            method=f"distance of the accumulated gradient from the whole batch's on one device, margin {NEAR:g}, "
            "torch.nn.parallel.DistributedDataParallel in real process groups",
        )  # fmt: skip


def weighed(rows: pd.DataFrame) -> Iterator[Answer]:
    """Weights of tokens by the length of their window, in a network of which no gradient is known beforehand."""
    found = rows[rows["metric"] == "weight"].astype({"ranks": int, "steps": int, "layer_index": int})
    asked: dict[tuple[str, int, int], list[float]] = {}
    expected = {}
    for (row, ranks, steps), own in groups(found, ["row", "ranks", "steps"]):
        for place, (tokens, weight) in enumerate(windows.token_weights(WAYS[row], ranks, steps)):
            if (row, ranks, tokens) not in asked:  # ranks that repeat the lengths are no further seeds
                asked[row, ranks, tokens] = own.loc[own["layer_index"] == place, "value"].to_list()
                expected[row, ranks, tokens] = weight
    if not asked:
        return
    question = Question.of(
        "token_weights", ("row", "ranks", "tokens"),
        {key: stats.against(own, expected[key], log=True, margin=WEIGHT) for key, own in asked.items()},
        label="{row}, a window of {tokens} tokens ({ranks} ranks)", family=lambda row, **_: row, reference="predicted",
    )  # fmt: skip
    yield question.table()
    yield question.prediction(
        LENGTHS, "weights", within=f"{WEIGHT - 1:.1%}", unit="times a token's weight in the whole batch"
    )
    if means := question.where(row=AVERAGED):
        low, high = (means.members[end(means.members, key=lambda key: key[2])].effect.value for end in (min, max))
        yield Sentence(
            f"Averaging the means of windows of {min(windows.UNEVEN)} to {max(windows.UNEVEN)} tokens gives a token of "
            f"the shortest {low:.1f} times its weight in the whole batch, one of the longest {high:.2f} times.",
            "token_weights", (LENGTHS.id,),
        )  # fmt: skip


METHOD = f"""**Accumulation.** Steps of {SIZES["standard"]["steps"]} windows a rank by DistributedDataParallel in real
process groups, against one pass over all windows' tokens on one device, from the same weights. The loss of a window is
the sum over its tokens over a divisor, so that a token weighs 1 / (ranks x divisor). Windows have {windows.EVEN}
tokens, or from {min(windows.UNEVEN)} to {max(windows.UNEVEN)}. In the first rows, and those about the divisor of a
short last step, the model is a small network; their gradient is the whole batch's times one factor. In the others it
has one weight a word and class, all 0, and each window a word of its own: the windows' gradients are orthogonal, of
equal norms, and factor, distance and what clipping does follow from the lengths exactly. Norms are clipped at
{windows.CLIPPED:g} of the whole batch's, the reference likewise; the loss scale is {SCALE:g}. Token weights are those
of the small network: least squares of the step's gradient on those of its windows. Ulps: the largest difference of an
element, in spacings of float32 at the gradient's largest element. Sources: transformers #34191, #34242 and #37766,
ms-swift #10084."""
PART = Part(
    "accumulation", (SAME, TRAFFIC, MEANS, RANK, TOKENS, LENGTHS, LAST, CLIPPING, UNSCALING, FACTOR), SIZES, grids, run,
    analyse, accumulation_figures.FIGURES, METHOD, shown=("accumulation",),
)  # fmt: skip
