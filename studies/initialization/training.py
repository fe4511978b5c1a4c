"""Networks trained on real digits from every scheme: how far they come, how fast, and whether at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from depthgauge import data, drawing, models, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.initialization import draw
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, enumerated, listed, side, spelled
from depthgauge.studies.initialization import conditions, reached
from depthgauge.studies.initialization.conditions import SHAPE, Condition
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

STABLE = Claim("N09", "sensible initial weights and activations keep training stable")
SAME = Claim("N10", "initialization generally does not affect the final result, as long as it is a normal one")
CROSSOVER = Claim(
    "initialization/crossover",
    "a plain convolutional net of 22 layers trains from Xavier's and from He's weights, one of 30 layers from He's "
    "alone",
)
FIXUP = Claim(
    "initialization/fixup", "Fixup's weights train a residual network without normalization as well as batch norm does"
)

BATCH = 32
EXAMPLES = 64  # digits that LSUV looks at
TARGET = 0.9  # moving mean of mini-batch accuracy
TRAINED = 0.5  # test accuracy from which a run counts as trained; chance is 0.1
MARGIN = 0.01  # test accuracy: a percentage point, the last digit of most tables of results, does not matter
REFERENCE = "he"
# What no one would call an unusual choice. Those scaled to the activation are what N09 calls sensible.
SENSIBLE = ("he", "orthogonal", "delta_orthogonal", "lsuv", "preserving", "depth_scaled", "fixup", "gpt2")
NORMAL = (*SENSIBLE, "default", "xavier", "xavier_uniform", "lecun", "he_fan_out")
EACH = ["condition", "scheme"]
SIZES = sizes(
    "networks", quick=(conditions.quick(),), standard=(conditions.standard(),), full=(conditions.full(),),
    tiny=(conditions.tiny(),),
)  # fmt: skip


def grids(networks: Sequence[Condition]) -> Iterator[Grid]:
    """Every scheme of every condition, at every learning rate."""
    for condition in networks:
        yield condition.grid(condition.schemes, condition.rates)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD with momentum on the digits; replicas differ in scheme, learning rate and seed."""
    shared = cases[0]
    digits = data.load("digits").to(context.device)
    shape: dict[str, Any] = shared.given(*(name for name in SHAPE if name in shared))
    if shared["model"] == "mlp":
        shape["width"] = shared.integer("units")
    template = models.build(
        shared.text("model"), preset="small", input_shape=tuple(digits.train.x.shape[1:]), classes=10, **shape
    )
    reach = reached.reached(cases, template)
    yield from reach
    if reached.nothing(reach):
        return
    columns: dict[str, Sequence[Any]] = {
        "scheme": [case.text("scheme") for case in cases],
        "activation": ["gelu" if shared.text("model") == "transformer" else "relu"] * len(cases),
        "batch": [digits.train.x[:EXAMPLES].cpu()] * len(cases),
    }
    sgd = replicas.SGD([case.number("lr") for case in cases], momentum=0.9)
    yield from training.outcomes(
        cases, template, digits,
        training.Recipe(sgd, shared.integer("steps"), BATCH, TARGET, strategy=_strategy(shared)),
        training.Draw([case.random_seed("seed") for case in cases], draw, columns),  # common to all: paired
    )  # fmt: skip


def smallest(case: Case) -> Case:
    """One step from He's weights, without what tells sweeps apart; a signal is one pass as it is."""
    return case.but(scheme=REFERENCE, lr=0.01, steps=1, seed=0, sweep="")


def _strategy(case: Case) -> Literal["vmap"] | None:
    """Tiny convolutions are bound by their dispatch: as grouped ones, many together, they train twice as fast."""
    stateless = case.get("norm") == "none" and case["model"] in ("plain_cnn", "resnet18")
    return "vmap" if stateless else None


# -- analysis ----------------------------------------------------------------------------------------------------------


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Every scheme at its own learning rate, by architecture and depth; what follows for the claims."""
    yield from reached.answers(rows, PART.claims)
    rows = reached.drawn(rows)
    runs = training.table(rows, "model", *SHAPE, "scheme", "lr", "seed", "steps", "sweep")
    runs = runs.assign(condition=[conditions.name_of(run) for run in runs.to_dict("records")])
    runs = training.tunable(runs.drop_duplicates([*EACH, "lr", "seed"]), EACH)
    if runs.empty:
        return
    best = training.tuned(runs, by=EACH)
    best["open_ended"] = training.open_ended(best, MARGIN)
    trained = Question.of(
        "outcomes", EACH, {key: _share(own) for key, own in groups(best, EACH)}, label="{scheme} in a {condition}",
        family=lambda condition, scheme: (condition, scheme), reference="half", counted="runs",
    )  # fmt: skip
    yield trained.table({key: _outcome(own, runs) for key, own in groups(best, EACH)})
    yield "steps", best[[*EACH, "seed", "lr", "steps_to_target", "reached", "steps", "test_accuracy"]]
    yield "rates", _by_rate(runs)
    yield from _same(best)
    yield from _stable(best)
    yield from _crossover(best)
    yield from _without_norm(best)
    yield from _sentences(best, trained)


def _share(runs: pd.DataFrame) -> stats.Comparison:
    """The share of runs that trained, against one half."""
    return stats.coverage(int((runs["test_accuracy"] >= TRAINED).sum()), len(runs), 0.5)


def _count(share: stats.Comparison) -> str:
    return f"{round(share.effect.value * share.effect.n)} of {share.effect.n}"


def _outcome(reported: pd.DataFrame, runs: pd.DataFrame) -> Mapping[str, Any]:
    """How one scheme ended in one condition, at the rate that its selection runs chose."""
    tried = runs[(runs[EACH] == reported[EACH].iloc[0]).all(axis=1)]
    curve = stats.survival(reported["steps_to_target"].to_numpy(), reported["reached"].to_numpy(bool))
    pace = curve.restricted_mean(min(float(reported["steps"].max()), curve.last))
    return {
        **spelled("accuracy", stats.mean(reported["test_accuracy"].to_numpy())),
        "reached": int(reported["reached"].sum()), **spelled("steps", pace), "budget": int(reported["steps"].max()),
        "lr": float(reported["lr"].iloc[0]), "a_better_rate_may_lie_outside": bool(reported["open_ended"].iloc[0]),
        "rates_that_do": training.tolerance(tried, 2 * MARGIN).factor,
        "diverged_at_some_rate": float(tried["diverged"].mean()),
    }  # fmt: skip


def _by_rate(runs: pd.DataFrame) -> pd.DataFrame:
    by = [*EACH, "lr"]
    return runs.groupby(by, sort=False)["test_accuracy"].agg(["mean", "min", "max", "size"]).reset_index()


def _same(best: pd.DataFrame) -> Iterator[Answer]:
    """N10: final test accuracy of every normal scheme against He's, in pairs of one seed."""
    asked: dict[tuple[Any, ...], stats.Comparison] = {}
    edges: set[tuple[str, str]] = set()
    for condition, own in groups(best, "condition"):
        accuracy = own.pivot_table(index="seed", columns="scheme", values="test_accuracy", sort=False)
        for scheme in [name for name in accuracy if name in NORMAL and name != REFERENCE and REFERENCE in accuracy]:
            pairs = accuracy[[scheme, REFERENCE]].dropna()
            asked[condition, scheme] = stats.paired(pairs[scheme], pairs[REFERENCE], margin=MARGIN, test="t")
            if own.loc[own["scheme"].isin([scheme, REFERENCE]), "open_ended"].any():
                edges.add((condition, scheme))
    if not asked:
        return
    question = Question.of("equivalence", EACH, asked, label="{scheme} in a {condition}", reference="none")
    yield question.table({key: {"a_better_rate_may_lie_outside": key in edges} for key in asked})
    answers = {key: None if key in edges else agrees(c) for key, c in question.members.items()}
    named = {question.words(key): answer for key, answer in answers.items()}
    undecided = sum(answer is None for answer in answers.values())
    yield question.verdict(
        SAME, answers, unit="test accuracy",
        why=listed(named, {True: f"within {MARGIN:.0%} of He's weights end", False: "further from them end"}, most=6)
        + f"; undecided are {undecided} of {len(answers)}",
        method=f"test accuracy minus that of He's weights, pairs of one seed, each scheme at the learning rate that "
        f"its selection seeds chose; paired t, margin {MARGIN:g}",
    )  # fmt: skip


def _stable(best: pd.DataFrame) -> Iterator[Answer]:
    """N09: in how many architectures do most runs of a scheme that is scaled to the activation train?"""
    most = best.groupby(EACH, sort=False)["test_accuracy"].agg(lambda runs: (runs >= TRAINED).mean() > 0.5)
    asked: dict[tuple[Any, ...], stats.Comparison] = {}
    failing: dict[str, str] = {}
    for scheme, trains in most.groupby("scheme", sort=False):
        if scheme in SENSIBLE:
            asked[(scheme,)] = stats.coverage(int(trains.sum()), len(trains), 0.5)
            failing[str(scheme)] = enumerated(trains[~trains].index.get_level_values("condition"))
    usual = {key: c for key, c in asked.items() if c.effect.n >= stats.seeds_needed(len(asked))}
    if not asked:
        return
    question = Question.of(
        "stability", ("scheme",), usual or asked, label="{scheme}", reference="half", counted="architectures"
    )
    yield question.table({key: {"not_in": failing[key[0]]} for key in question.members})
    yield question.verdict(
        STABLE, above, unit="share of architectures in which most runs train",
        why="; ".join(
            f"{scheme} trains in {_count(c)} architectures"
            + (f" (not in a {failing[scheme]})" if failing[scheme] else "")
            for (scheme,), c in question.members.items()
        ),
        method=f"most runs of an architecture have a test accuracy of at least {TRAINED:g} at a tuned learning rate; "
        "share of architectures against one half, exact binomial; schemes tried in too few architectures are left out",
    )  # fmt: skip


def _crossover(best: pd.DataFrame) -> Iterator[Answer]:
    """He et al. 2015, figures 2 and 3: 22 layers train from both, 30 from He's alone."""
    plain = best[(best["model"] == "plain_cnn") & best["scheme"].isin(["he", "xavier"]) & best["depth"].isin([22, 30])]
    wanted = {("xavier", 22): 1, ("he", 22): 1, ("xavier", 30): -1, ("he", 30): 1}
    asked = {(scheme, int(depth)): _share(own) for (scheme, depth), own in groups(plain, ["scheme", "depth"])}
    if set(asked) != set(wanted):
        return
    question = Question.of(
        "crossover", ("scheme", "depth"), asked, label="{scheme} at {depth} layers", reference="half", counted="runs"
    )
    yield question.table()
    sides = {key: side(c) for key, c in question.members.items()}
    counts = (f"{question.words(key)} {_count(share)}" for key, share in question.members.items())
    yield question.verdict(
        CROSSOVER, {key: None if sides[key] is None else sides[key] == wanted[key] for key in wanted},
        why=f"runs that trained: {', '.join(counts)}. Xavier's weights have half of the variance that ReLU needs, so "
        f"that signal and gradient each shrink by 2^(-(L-1)/2): {2 ** (-21 / 2):.1g} at 22 layers, "
        f"{2 ** (-29 / 2):.1g} at 30; how small a gradient can be overcome depends on the budget, here "
        f"{int(plain['steps'].max())} steps",
        method=f"test accuracy of at least {TRAINED:g} at a tuned learning rate; share of runs against one half, exact",
        shown=("xavier", 22), unit="share of runs that train",
    )  # fmt: skip


def _without_norm(best: pd.DataFrame) -> Iterator[Answer]:
    """Fixup without normalization against He's with batch norm, on the same residual network."""
    residual = best[best["model"] == "resnet18"].set_index(["norm", "scheme"])
    if not {("none", "fixup"), ("batch", "he")} <= set(residual.index):
        return
    cells = {key: residual.loc[[key]].set_index("seed") for key in (("none", "fixup"), ("batch", "he"), ("none", "he"))
             if key in residual.index}  # fmt: skip
    ends = pd.concat({key: cell["test_accuracy"] for key, cell in cells.items()}, axis=1).dropna()
    fixup, norm = ends["none", "fixup"], ends["batch", "he"]
    question = Question.of(
        "fixup", ("against",), {("he with batch norm",): stats.paired(fixup, norm, margin=2 * MARGIN)},
        label="Fixup without normalization against {against}", reference="none",
    )  # fmt: skip
    yield question.table()
    plain = f", He's without at {ends['none', 'he'].mean():.1%}" if ("none", "he") in cells else ""
    open_ended = any(cells[key]["open_ended"].any() for key in (("none", "fixup"), ("batch", "he")))
    answers = {
        # better than with normalization is as good
        key: None if open_ended else True if c.inside or c.above else False if c.below else None
        for key, c in question.members.items()
    }
    yield question.verdict(
        FIXUP, answers, unit="test accuracy",
        why=f"Fixup's weights without normalization end at {fixup.mean():.1%}, He's with batch norm at "
        f"{norm.mean():.1%}{plain}" + ("; a better learning rate may lie outside the grid" if open_ended else ""),
        method=f"pairs of one seed, exact sign flips, equivalence margin {2 * MARGIN:g}",
    )  # fmt: skip


def _sentences(best: pd.DataFrame, trained: Question) -> Iterator[str]:
    """Condition by condition, of how many runs each scheme trained; then what depth costs He's."""
    for condition in dict.fromkeys(best["condition"]):
        shares = {scheme: c for (_, scheme), c in trained.where(condition=condition).members.items()}
        every = [scheme for scheme, c in shares.items() if c.effect.value == 1]
        rest = [f"{scheme} {_count(shares[scheme])}" for scheme in shares if scheme not in every]
        yield f"{condition}: all runs trained from {enumerated(every, 9) or 'no scheme'}" + (
            f"; of the others {', '.join(rest)} runs." if rest else "."
        )
    plain = best[(best["model"] == "mlp") & (best["norm"] == "none") & (best["scheme"] == REFERENCE)]
    ends = plain.groupby("depth")[["lr", "test_accuracy"]].mean()
    if len(ends) > 1:
        first, last = ends.iloc[0], ends.iloc[-1]
        yield (
            f"From He's weights the chosen learning rate falls from {first['lr']:g} at {ends.index[0]:.0f} layers to "
            f"{last['lr']:g} at {ends.index[-1]:.0f}, and mean test accuracy from {first['test_accuracy']:.1%} to "
            f"{last['test_accuracy']:.1%} in {int(plain['steps'].max())} steps."
        )


# -- figures -----------------------------------------------------------------------------------------------------------


@drawing.figure(
    "steps_ladder", "How long each scheme takes to learn, and which runs never got there",
    f"A point a run, at the learning rate that selection runs chose: first step after which the last {training.WINDOW} "
    f"mini-batches have a mean accuracy of {TARGET:.0%}. Open triangles at the budget: never reached, with their "
    "number.",
)  # fmt: skip
def plot_ladder(steps: pd.DataFrame) -> Any:
    """Steps to the target, a row a scheme, a panel a condition."""
    return drawing.panels(steps, "condition", drawing.ladder, at="scheme", by="scheme", shared="")


@drawing.figure(
    "learning_rates", "How much each scheme forgives a learning rate that misses its best",
    lambda rates: f"Mean test accuracy over {rates['size'].min()} seeds or more at every learning rate that was tried; "
    "chance is 0.1.",
)  # fmt: skip
def plot_rates(rates: pd.DataFrame) -> Any:
    """Test accuracy over the learning rate, a line a scheme, a panel a condition."""
    axes = {"xscale": "log", "ylim": (0, 1.02), "ylabel": "test accuracy"}
    return drawing.panels(rates, "condition", drawing.lines, x="lr", y="mean", by="scheme", axes=axes)


METHOD = f"""
**Training.** SGD with momentum 0.9, batch {BATCH}, on the 1,442 training digits less a fifth for validation. Every
scheme is trained at every learning rate of the grid; {conditions.SELECTION} seeds of their own choose its rate by
validation accuracy, and all others are reported at that rate. Where they choose the end of the grid, and gain more than
{MARGIN:g} by its last step, one rate is added; where that is still so, nothing is concluded from a difference. Steps to
the target: first step after which the last 20 mini-batches have a mean accuracy of {TARGET:.0%}; who never gets there
is censored. Trained: test accuracy of at least {TRAINED:g}.

**N10.** The margin is one percentage point of test accuracy, the last digit of most tables of results. "Normal" leaves
out zeros, constants and N(0, 0.01²).
"""
SECOND = training.further_rates(
    "sweep", "scheme", margin=MARGIN, together=("scheme", "lr", "seed"), chunk=conditions.most_replicas,
    architecture=conditions.SHAPE,
)  # fmt: skip
PART = Part(
    "training", (STABLE, SAME, CROSSOVER, FIXUP), SIZES, grids, run, analyse, (plot_ladder, plot_rates), METHOD,
    second=SECOND, preflight=smallest,
)  # fmt: skip
