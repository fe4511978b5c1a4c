"""A study with a finding, a figure that shows it, and a verdict: the smallest report that has everything."""

import matplotlib.pyplot as plt

from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Figure, Findings, Sentence, Status, Verdict

GROWS = Claim("drawn/grows", "it grows by one a step", topic="signal")


def run(cases, context):
    for case in cases:
        yield case.rows("size", [1.0, 2.0], step=[0, 1])


def analyse(frame):
    sizes = frame.pivot_table(index="seed", columns="step", values="value")
    growth = float((sizes[1] - sizes[0]).mean())
    verdict = Verdict(
        GROWS.id, GROWS.text, Status.HOLDS, observed=growth, low=growth, high=growth, predicted=1.0, n=len(sizes)
    )
    answers = (
        Sentence(f"It begins at {sizes[0].mean():g}."),
        Sentence(f"It grows by {growth:g} a step.", figure="growth", claims=(GROWS.id,)),
    )
    return Findings((verdict,), {"sizes": sizes.reset_index()}, answers)


def plot(findings):
    canvas, panel = plt.subplots()
    panel.plot([0, 1], [1, 2])
    yield Figure("growth", canvas, "It grows", caption="Size over steps.", alt="A line that rises from 1 to 2.")


STUDY = Study(
    "drawn",
    "Does it grow?",
    {"quick": (Grid({"kind": ("only",)}, seeds=5),)},
    run,
    analyse,
    plot,
    (GROWS,),
    topic="signal",
)
