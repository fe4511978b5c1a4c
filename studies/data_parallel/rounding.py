"""Rounding of reduced gradients: compression hooks, and bfloat16 reductions as the ranks grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import parallel, stats
from depthgauge.frames import groups, logs, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated, spelled
from depthgauge.studies.data_parallel import ring, rounding_figures
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.studies.data_parallel.ring import DIGITS, EQUAL, GRADIENTS
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.theory.summation import unit_roundoff
from depthgauge.verdict import Claim, Sentence, Status, Verdict

GROWTH = Claim(
    "data_parallel/reduction_growth",
    "the relative rounding error of a gradient reduced in bfloat16 grows in proportion to the number n of ranks: n u",
)
LAW = Claim(
    "data_parallel/reduction_law",
    "where the ranks' gradients differ, the error of their reduction is that of independent roundings",
)
RING = Claim(
    "data_parallel/ring_order",
    "additions in the order of gloo's ring, done in one process, give every bit of a reduction by real ranks",
)
HALF = Claim(
    "data_parallel/compression",
    "the error of a float16 compression hook is 1/8 of a bfloat16 hook's, by its three bits more",
)

FORMATS, NARROW = ("float32", "float16", "bfloat16"), ("float16", "bfloat16")
GROUP, EMULATION, SCALED = "process group", "emulation", "scaled"
MARGIN = 0.125  # of the exponent of the growth
FACTOR = 1.25  # errors within this factor of the law are the law's
BITS = 1.5  # a factor: hooks that differ by no more differ by their bits alone
UNLIKE = 1e-3  # of the elements
AT = 8  # ranks of the hooks that are compared at several sizes of the gradient
SIZES = sizes(
    "real ranks scales seeds",
    quick=((), (2, 4, 8, 16, 32, 64), (2.0**-16, 2.0**-8, 1.0), 10),
    standard=((2, 4), (2, 4, 8, 16, 32, 64), (2.0**-20, 2.0**-16, 2.0**-12, 2.0**-8, 2.0**-4, 1.0), 16),
    full=((2, 3, 4), (2, 4, 8, 16, 32, 64), (2.0**-20, 2.0**-16, 2.0**-12, 2.0**-8, 2.0**-4, 1.0), 24),
    tiny=((2,), (2, 4, 8), (2.0**-16,), 5),
)  # fmt: skip


def grids(real: tuple[int, ...], ranks: tuple[int, ...], scales: tuple[float, ...], seeds: int) -> Iterator[Grid]:
    """Real groups in one launch, the ring's order in one process, and hooks at several sizes of the gradient."""
    together = ("format", "gradient", "ranks")
    if real:
        yield Grid(
            {"format": FORMATS, "gradient": GRADIENTS, "ranks": real}, {"how": GROUP, "scale": 1.0}, seeds,
            (*together, "seed"), 10_000, claims=(RING.id,), exclusive=True,
        )  # fmt: skip
    yield Grid(
        {"format": FORMATS, "gradient": GRADIENTS, "ranks": ranks}, {"how": EMULATION, "scale": 1.0}, seeds, together,
        1000, claims=(GROWTH.id, LAW.id),
    )  # fmt: skip
    yield Grid(
        {"format": NARROW, "scale": scales}, {"how": SCALED, "gradient": DIGITS, "ranks": AT}, seeds,
        ("format", "scale"), 1000, claims=(HALF.id,),
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Reductions of all cases: in one launch, or emulated."""
    if cases[0].text("how") == GROUP:
        yield from _launched(cases, context)
        return
    for case in cases:
        fmt, values = case.text("format"), ring.gradients(case.text("gradient"), case.random_seed("seed"))
        values = values[: case.integer("ranks")] * case.number("scale")
        yield case.rows("error", ring.error(ring.reduced(ring.parts(values, fmt)), values))
        law = ring.equal_law if case.text("gradient") == EQUAL else ring.law
        yield case.rows("law", law(values, fmt))


def _launched(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The rows of real groups."""
    asked = [(c.text("format"), c.text("gradient"), c.integer("ranks"), c.random_seed("seed")) for c in cases]
    most = max(ranks for _, _, ranks, _ in asked)
    device = parallel.device_for(most, context.device)
    answers = launched(ring.work, asked, ranks=most, device=device, context=context)
    for case, found in zip(cases, answers[0], strict=True):
        yield from (case.rows(metric, value) for metric, value in found.items())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Bits of real groups, errors against their law, their growth with the ranks, and hooks against each other."""
    params = params_of(rows, "how", "format", "gradient", "ranks", "scale", "seed").astype({"ranks": int})
    for metric in ("error", "law", "reduced", "accepted", "unlike"):
        params[metric] = only(rows, metric)
    if GROUP not in set(params["how"]):
        why = "no real ranks reduced at this size of the study"
        yield Verdict(RING.id, RING.text, Status.NOT_MEASURED, why=why)
    for how, answer in ((GROUP, grouped), (EMULATION, grown), (SCALED, compressed)):
        if len(own := params[params["how"] == how]):
            yield from answer(own)


def grouped(params: pd.DataFrame) -> Iterator[Answer]:
    """Is a real reduction that of the ring's order, to the bit?"""
    if refused := sorted(set(params.loc[params["reduced"] == 0, "format"])):
        yield Sentence(f"The backend of this device reduces no {', '.join(refused)}: a hook in it fails.")
    if unwanted := sorted(set(params.loc[params["accepted"] == 0, "format"])):
        yield Sentence(
            f"DistributedDataParallel refuses torch's own hook for {', '.join(unwanted)} on this device, though the "
            "backend reduces the format."
        )
    asked, further = {}, {}
    for key, own in groups(params[params["reduced"] == 1], ["format", "gradient", "ranks"]):
        asked[key], further[key] = stats.against(own["unlike"], 0.0, margin=UNLIKE), {"error": own["error"].median()}
    if not asked:
        return
    by, label = ("format", "gradient", "ranks"), "{gradient} gradients of {ranks} ranks in {format}"
    question = Question.of("ring_order", by, asked, label=label, reference="same")
    yield question.table(further)
    answers = list(map(agrees, question.members.values()))
    most = max(c.effect.value for c in question.members.values())
    told = (
        f"{answers.count(True)} of {len(answers)} conditions have the same bits, {answers.count(False)} have others; "
        f"the largest share of elements that differ is {most:.2g}"
    )
    yield question.verdict(
        RING, agrees, unit="share of the elements", why=told,
        method=f"elements that differ between DistributedDataParallel with torch's hook and this, margin {UNLIKE:g}",
    )  # fmt: skip


def grown(params: pd.DataFrame) -> Iterator[Answer]:
    """Errors by the number of ranks, against the law, and their growth; an emulation."""
    ratio, further, growth, slopes = {}, {}, {}, {}
    for (fmt, gradient), some in groups(params, ["format", "gradient"]):
        unit = unit_roundoff(fmt)
        for ranks, own in groups(some, "ranks"):
            if gradient != EQUAL:
                ratio[fmt, gradient, ranks] = stats.against(own["error"] / own["law"], 1.0, log=True, margin=FACTOR)
            further[fmt, gradient, ranks] = {
                **spelled("error", stats.median(own["error"])), "law": own["law"].median(),
                "n u": ranks * unit,
            }  # fmt: skip
        if len(set(some["ranks"])) > 2:
            wide = logs(some.pivot_table(index="seed", columns="ranks", values="error").dropna())
            growth[fmt, gradient] = stats.against(
                stats.slopes(np.log(wide.columns.to_numpy(float)), wide.to_numpy()).slope, 1.0, margin=MARGIN
            )
            mean = some[some["law"] > 0].groupby("ranks")["law"].mean()
            slopes[fmt, gradient] = {"law": float(np.polyfit(np.log(mean.index.to_numpy(float)), np.log(mean), 1)[0])}
    yield (
        "reduction_error",
        pd.DataFrame(
            [{**dict(zip(("format", "gradient", "ranks"), key, strict=True)), **more} for key, more in further.items()]
        ),
    )
    laws = Question.of(
        "reduction_law", ("format", "gradient", "ranks"), ratio, counted="seeds",
        label="{gradient} gradients of {ranks} ranks in {format}", family=lambda gradient, **_: gradient,
    )  # fmt: skip
    largest = max(ranks for *_, ranks in further)
    last = {fmt: own["error"] for (fmt, gradient, n), own in further.items() if (gradient, n) == (DIGITS, largest)}
    if last:
        each = enumerated(f"{100 * value:.2g} % in {fmt}" for fmt, value in last.items())
        yield Sentence(
            f"Reduced over {largest} ranks a gradient is off by {each} of its norm (an emulation of gloo's ring).",
            claims=(LAW.id,),
        )
    if laws:
        yield laws.table()
        yield laws.prediction(LAW, "errors", within=f"a factor of {FACTOR:g}", unit="times the law")
    if growth:
        yield from exponents(growth, slopes)


def exponents(growth: dict[Any, stats.Comparison], slopes: dict[Any, dict[str, float]]) -> Iterator[Answer]:
    """Does the error grow as the ranks do?"""
    by, label = ("format", "gradient"), "{gradient} gradients in {format}"
    question = Question.of("reduction_growth", by, growth, label=label, reference="n u")
    yield question.table(slopes)
    if not (own := question.where(format="bfloat16")):
        return
    words = {True: "in proportion to the ranks for", False: "not in proportion for", None: "undecided for"}
    each = [f"{key[1]} {member.effect.value:.2f}" for key, member in own.members.items()]
    yield own.verdict(
        GROWTH, agrees, unit="power of the ranks",
        why=f"it grows {own.listed(agrees, words, 9)}; exponents: {', '.join(each)}",
        method=f"relative error against the ranks, log-log slope by seed, margin {MARGIN:g}; an emulation",
    )  # fmt: skip


def compressed(params: pd.DataFrame) -> Iterator[Answer]:
    """A float16 hook against a bfloat16 hook, by the size of the gradient."""
    asked, further = {}, {}
    for scale, own in groups(params.astype({"scale": float}).sort_values("scale"), "scale"):
        error, law = (own.pivot_table(index="seed", columns="format", values=name) for name in ("error", "law"))
        if set(NARROW) <= set(error):
            ratio = (error["float16"] / error["bfloat16"]).dropna()
            asked[(scale,)] = stats.against(ratio, 1 / 8, log=True, margin=BITS)
            further[(scale,)] = {"law": (law["float16"] / law["bfloat16"]).median()}
    if not asked:
        return
    question = Question.of("compression", ("scale",), asked, label="gradients of digits times {scale:.2g}")
    yield question.table(further)
    words = {True: "the error is 1/8 for", False: "not 1/8 for", None: "undecided for"}
    least = question.members[min(question.members)].effect.value
    yield question.verdict(
        HALF, agrees, unit="times the error of bfloat16",
        why=f"{question.listed(agrees, words, 9)}; with the smallest gradients the error "
        f"is {least:.2g} times bfloat16's",
        method=f"hooks over {AT} ranks, ratios by seed, margin a factor of {BITS:g}; an emulation",
    )  # fmt: skip


METHOD = f"""**Rounding of reductions.** Gradients of ranks are rounded to a format, divided by the ranks and added up,
as torch's compression hooks do; float32 without a hook. Real groups: DistributedDataParallel with the hook, on a
module whose gradient is given. Beyond them the same additions are done in one process in the order of gloo's ring,
where each rank adds its own part and passes the sum on: an emulation, held against the real groups to the bit. Other
rings add as many numbers one after the other; trees, and reductions that add in float32, do not. Gradients:
independent standard normal numbers; mostly shared, with noise of {ring.NOISE:g} of a rank's own; equal in all ranks;
of a small network, {ring.SHARD} digits a rank. Law: each rounding makes an independent error, uniform over the spacing
at its result; where all ranks add the same number, the error that equal additions make and add up. Error: norm of the
difference from the exact mean, over its norm."""
PART = Part(
    "rounding", (GROWTH, LAW, RING, HALF), SIZES, grids, run, analyse, rounding_figures.FIGURES, METHOD,
    shown=("reduction_growth", "compression"),
)  # fmt: skip
