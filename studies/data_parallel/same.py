"""The same as one device? One table: what several ranks make of a batch, against what one device makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, parallel, stats
from depthgauge.drawing.palette import FAINT
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated
from depthgauge.studies.data_parallel import causes, gradients, shards
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.studies.data_parallel.shards import DROPOUT, EXACT, LOCAL_FEW, ROUNDING, ROWS, SEEDINGS, SUM, SUM_ALONE
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SAME = Claim(
    "data_parallel/same",
    "DDP on equal shards, or on unequal ones with each loss a sum over the mean count of all ranks, leaves the "
    "gradient of one device but for rounding",
)
FACTOR = Claim(
    "data_parallel/factor",
    "where ranks have another gradient than one device, its component along that is the multiple that theory predicts",
)
WEIGHT = Claim(
    "data_parallel/weight",
    "an example on one of k ranks, which has n of N examples, weighs N / (k n) times what it does on one device, and a "
    "token likewise by numbers of tokens",
)
N20 = Claim("N20", "whether the loss is averaged or summed does not matter: it only divides the learning rate by N")
BIAS = Claim(
    "data_parallel/shard_bias",
    "the variance within one of k shards of a batch of B examples is on average (B - k) / (B - 1) of the batch's",
)
COLLAPSE = Claim(
    "data_parallel/collapse",
    "at two examples a rank, batch normalization by a rank's own statistics passes less than 1 % of one device's "
    "gradient in most channels",
)
MASKS = Claim("data_parallel/masks", "the gradient's variance by dropout is no larger on k ranks than on one device")

METRICS = (
    "factor", "distance", "ulps", "rounding", "predicted", "variance", "below", "below_all", "noise", "alike",
)  # fmt: skip
TIMES = 8  # rounding errors of one device within which two gradients are one
TOLD = (SUM, LOCAL_FEW)  # rows whose sentences open the report
FLOOR = 1e-9  # of a gradient: where the axis of distances begins
SIZES = sizes(
    "ranks seeds draws", quick=((2,), 10, 30), standard=((2, 4), 16, 150), full=((2, 4, 8), 24, 400),
    tiny=((2,), 5, 4),
)  # fmt: skip


def grids(ranks: tuple[int, ...], seeds: int, draws: int) -> Iterator[Grid]:
    """Every row on every number of ranks; one launch does all rows of one number."""
    yield Grid(
        {"row": (*ROWS, *SEEDINGS), "ranks": ranks}, {"draws": draws}, seeds, ("row", "seed"), 10_000, exclusive=True
    )


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The first gradients of all rows, in one process group."""
    asked = [(case.text("row"), case.random_seed("seed")) for case in cases]
    ranks, draws = cases[0].integer("ranks"), cases[0].integer("draws")
    device = parallel.device_for(ranks, context.device)
    answers = launched(gradients.work, asked, draws, ranks=ranks, device=device, context=context)
    for case, found in zip(cases, answers[0], strict=True):
        for order, group in enumerate(found.pop("weights", ())):
            yield from (case.rows(*pair, layer_index=order) for pair in zip(causes.WEIGHTS, group, strict=True))
        for metric, value in found.items():
            yield case.rows(metric, value)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The table, then the weights of examples, batch normalization's variance, and the noise of dropout."""
    rows = rows.assign(ranks=rows["ranks"].astype(int))
    cases = params_of(rows, "row", "ranks")
    for metric in METRICS:
        cases[metric] = only(rows, metric)
    weighed = causes.weights(rows)
    yield from table(cases[cases["factor"].notna()], weighed)
    if weighed:
        yield weighed.table()
        within, unit = f"{causes.WEIGHT_MARGIN:g}", "of the weight on one device"
        yield weighed.prediction(WEIGHT, "weights", within=within, unit=unit)
    yield from causes.normalized(BIAS, COLLAPSE, cases)
    yield from causes.masks(MASKS, cases[cases["noise"].notna()])
    synchronizes = rows[rows["metric"] == "torch_sync"]["value"]
    if len(synchronizes) and not synchronizes.any():
        yield Sentence("torch.nn.SyncBatchNorm runs on no CPU; depthgauge.parallel.SyncBatchNorm took its place.")


# -- the table ---------------------------------------------------------------------------------------------------------


def table(cases: pd.DataFrame, weighed: Question) -> Iterator[Answer]:
    """Factor, distance and a sentence of every row, and what follows for DDP, for predictions and for a summed loss."""
    asked, apart, further = {}, {}, {}
    once: dict[tuple[int], stats.Comparison] = {}
    every = dict(groups(cases, ["row", "ranks"]))
    for key, own in every.items():
        band = TIMES * own["rounding"].max()
        predicted = own["predicted"].mean()
        shifted = own["factor"] - own["predicted"] + predicted  # the interval is that of the differences
        asked[key] = stats.against(shifted, predicted, margin=band)
        apart[key] = stats.against(own["distance"] / band, 0.0, margin=1.0, test="median")
        if key[0] in {SUM, SUM_ALONE}:
            size = 1 if key[0] == SUM_ALONE else key[1]
            once.setdefault((size,), stats.against(own["factor"], 1.0, margin=band))
        further[key] = {
            "kind": ROWS[key[0]].kind,
            "distance": own["distance"].median(),
            "ulps": own["ulps"].mean(),
            "band": band,
        }
    if not asked:
        return
    by, label = ("row", "ranks"), "{row} ({ranks} ranks)"
    whole = Question.of("same", by, asked, label=label, family=lambda ranks, **_: ranks)
    near = Question.of("apart", by, apart, label=label, reference="same", family=lambda ranks, **_: ranks)
    for key, own in every.items():
        further[key]["sentence"] = sentence(
            key[0], own, causes.weighed(weighed, *key), same=agrees(near.members[key])
        )  # fmt: skip
    yield whole.table(further)
    yield near.table()
    yield from told(whole, near)
    yield from summed(once)
    fewest = min(key[1] for key in further)
    for row in TOLD:
        if (row, fewest) in further and agrees(near.members[row, fewest]) is False:
            away = f"{further[row, fewest]['distance']:.0%} of its length away from one device's"
            yield Sentence(f"{ROWS[row].says}: DDP's gradient is {away}.", claims=(FACTOR.id,))


def sentence(row: str, own: pd.DataFrame, weights: str, *, same: bool | None) -> str:
    """A sentence on what the ranks compute, and how far it is from one device."""
    says, away = ROWS[row].says, own["distance"].median()
    if same is None:
        return (
            f"{says}: undecided by {len(own)} seeds, in the median its gradient is {away:.2g} of the length of that of "
            "one device away from it."
        )
    if same:
        near = f"but for rounding ({away:.1g} of it)" if away else "bit for bit"
        return f"{says}: the same training, its gradient that of one device {near}."
    why = "" if ROWS[row].kind == ROUNDING else f" ({own['predicted'].mean():.3g} predicted)"
    return (
        f"{says}: another training, its gradient {own['factor'].mean():.3g} times that of one device in its "
        f"direction{why} and {away:.0%} of its length away{weights}."
    )


def told(whole: Question, near: Question) -> Iterator[Answer]:
    """Verdicts on the rows that are one device's training, and on what is predicted for the others."""
    sound = near.select(lambda row, **_: ROWS[row].kind == ROUNDING and row != DROPOUT)
    if sound:
        words = {True: "the gradient of one device but for rounding:", False: "another gradient:", None: "undecided:"}
        yield sound.verdict(
            SAME, agrees, unit="rounding bands", why=sound.listed(agrees, words, 20),
            method=f"distance of the first gradients over the rounding band, {TIMES} times the largest distance, of "
            "any seed, of one device's float32 gradient from its float64 one; margin 1 band",
        )  # fmt: skip
    fewest = min(ranks for _, ranks in near.members)
    same = [*near.where(ranks=fewest).read(agrees).values()]
    yield Sentence(
        f"Of {len(same)} set-ups of DistributedDataParallel on {fewest} ranks {same.count(False)} compute another "
        "gradient than one device does.",
        "same", (SAME.id, FACTOR.id),
    )  # fmt: skip
    other = whole.select(lambda row, **_: ROWS[row].kind == EXACT)
    if other:
        yield other.prediction(FACTOR, "factors", within=f"{TIMES} rounding errors", unit="times one device's gradient")


def summed(once: Mapping[tuple[int], stats.Comparison]) -> Iterator[Answer]:
    """A summed loss: the gradient that DDP makes of it, over that of the same sum on one device."""
    question = Question.of("summed", ("ranks",), once, label="{ranks} ranks", reference="one device")
    if question:
        yield question.table()
        shown = [f"{member.effect.value:.3g} in a group of {key[0]}" for key, member in question.members.items()]
        yield question.verdict(
            N20, agrees, unit="times the sum's gradient on one device",
            why="DDP takes the mean over ranks of their sums, so that the rate is divided by N / k, which changes with "
            f"the number of ranks: {enumerated(shown, 9)}",
            method=f"first gradients, margin {TIMES} rounding errors",
        )  # fmt: skip


AWAY, ALONG = "Distance from one device's gradient", "Factor in its direction"
UNITS = {AWAY: "$|g_k - g_1| / |g_1|$", ALONG: "$g_k^T g_1 / |g_1|^2$"}


def _form(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    """Distances with the band of rounding, or factors with their predictions."""
    what = rows["what"].iloc[0]
    axis.set_xlabel(UNITS[what])
    if what == AWAY:
        axis.set_xscale("log")
        axis.barh(range(len(rows)), rows["band"], 0.9, color=FAINT, zorder=0, label="within rounding")
        axis.set_xlim(FLOOR, 4 * rows["value"].max())
    drawing.estimates(axis, rows, **options)


@drawing.figure(
    "same", "First gradients of several ranks against one device's",
    "First gradients on the fewest ranks. Left: distance, over the norm of one device's gradient, and the band within "
    "which rounding alone may put it (leftmost: the same bits). "
    "Right: factor in its direction, with interval and prediction.",
)  # fmt: skip
def draw_table(same: pd.DataFrame) -> Any:
    """Each row on the fewest ranks; those of one device's training first."""
    same = same.sort_values("ranks", kind="stable").drop_duplicates("row").sort_index()
    same = same.sort_values("kind", ascending=False, kind="stable")
    rows = same.assign(
        row=pd.Categorical(same["row"], same["row"]),
        training=np.where(same["distance"] > same["band"], "another training", "the same training"),
    )
    distance = rows["distance"].clip(lower=2 * FLOOR)
    away = rows.assign(what=AWAY, value=distance, predicted=np.nan, **dict.fromkeys(drawing.interval(same), distance))
    both = pd.concat([away, rows.assign(what=ALONG)])
    return drawing.panels(both, "what", _form, at="row", by="training", size=(5.0, 1.5 + 0.3 * len(rows)))


METHOD = f"""**The same as one device?** Real processes, launched by torchrun, and DDP's own reduction (gloo on a CPU).
Every row has a batch of its own, shared over the ranks. g_k is the gradient that DDP leaves in rank 0, g_1 that of
plain torch on the whole batch in one process; both in float32, before any step. Factor: <g_k, g_1> / |g_1|². Distance:
|g_k - g_1| / |g_1|, the median of seeds. Ulps: root mean square of g_k - g_1, in units of the last place of a float32
as large as that of g_1. Band: {TIMES} times the largest distance of any seed between float32 and float64 of g_1, or of
what is predicted.
Networks: 64-{shards.WIDTH}-10 on 8 x 8 digits; for tokens an embedding and a linear layer, on lines of 2 to
{shards.LONGEST} characters of Shakespeare. Predicted gradients are of one process in float64: losses with the weights
that sizes, lengths and samplers say, or shards that batch normalization sees apart. Weights are solved for, too: least
squares from g_k and the gradients of groups of losses, within {causes.WEIGHT_MARGIN:g}.

Variance: running variance at momentum 1, mean over ranks, channels and random splits of a batch, within
{causes.BIAS_MARGIN:g}. Dropout's noise: every rank has copies of one and the same example, so that the masks alone make
gradients differ; variance of the mean gradient over draws of masks, over that of one device with as many copies."""
PART = Part(
    "same", (SAME, FACTOR, WEIGHT, N20, BIAS, COLLAPSE, MASKS), SIZES, grids, run, analyse, (draw_table,), METHOD,
    shown=("same", "weights"),
)  # fmt: skip
