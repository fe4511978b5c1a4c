"""Updates, decays and the optimizer's epsilon, against the last place of the weights that they should change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from depthgauge import formats, theory
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.beginning import Begun
from depthgauge.checking.parameters import format_of, names_of, spelled
from depthgauge.checking.questions.precision.operators import HALVES
from depthgauge.checking.words import listed
from depthgauge.workload import Training

if TYPE_CHECKING:
    import pandas as pd

MOST = 0.8  # of the weights with a gradient stand still: a fault where float32 cannot be tried. Of 24 trainings in
# bfloat16 (two initializations, Adam and momentum at 12 rates, 200 steps) the loss fell above it by 0.05 to 0.78 of
# float32's fall, and below it by 0.62 to 1.
MUCH = 0.8  # of float32's fall of the loss in the same steps is had all the same: nothing is lost that counts
COARSE = 2.0**-7  # of a loss in bfloat16, the spacing of its values
NEARLY_ALL = 0.9  # of the weights
NARROW = ("float16", "bfloat16")
HALF = (
    0.5  # of the weights, of one tensor or of all: they move at less than half their rate. Of all it is a fault where
)
# float32 weights, tried, bring the loss down further: at 0.50 and 0.54 (SignSGD, Adam) 1.4 to 1.8 times as far
ADAPTIVE = ("betas", "alpha", "rho")  # settings of optimizers whose step does not shrink with the gradient


def unchanged(training: Training, begun: Begun) -> pd.DataFrame:
    """A row a parameter: which share of its weights a step leaves as they were, the median over the recorded steps.

    Columns: `parameter`, `format`, `n` (weights with a gradient), `lost` (the share), `rms` (of the weights),
    `half_unit` (half a unit in the last place at that size).
    """
    import pandas as pd  # noqa: PLC0415 # half a second, needed only here

    frame = begun.record.to_frame()
    keys = ["layer", "parameter", "step"]
    update, gradient, weight = (
        frame[frame["direction"] == name].groupby(keys)[["count", "zeros", "second_moment"]].first()
        for name in ("update", "weight_gradient", "weight")
    )
    both = update.join(gradient, rsuffix="_gradient", how="inner").join(weight, rsuffix="_weight")
    both = both[both["count"] == both["count_gradient"]]  # a sparse gradient holds some of the rows alone
    both = both[_made(both)]
    live = both["count_gradient"] - both["zeros_gradient"]
    still = (both["zeros"] - both["zeros_gradient"]).clip(lower=0)
    both = both.assign(n=live, lost=(still / live).where(live > 0)).dropna(subset=["lost"])
    middle = both.groupby(["layer", "parameter"], sort=False)[["n", "lost", "second_moment_weight"]].median()
    named = dict(training.model.named_parameters())
    rows = []
    for row in middle.reset_index().to_dict("records"):
        name = f"{row['layer']}.{row['parameter']}".lstrip(".")
        if name in named and named[name].is_floating_point():
            fmt, rms = format_of(named[name]), math.sqrt(row["second_moment_weight"])
            half = formats.get(fmt).spacing(rms) / 2 if rms > 0 else 0.0
            rows.append((name, fmt, int(row["n"]), row["lost"], rms, float(half)))
    return pd.DataFrame(rows, columns=["parameter", "format", "n", "lost", "rms", "half_unit"])


def _made(both: pd.DataFrame) -> pd.Series[bool]:
    """Rows of steps that moved something: an optimizer may gather gradients and move weights every few steps."""
    moved = (both["count"] - both["zeros"]).groupby(level="step").transform("sum") > 0
    return moved if moved.any() else ~moved


def lost_updates(training: Training, table: pd.DataFrame, compensated: bool) -> list[Finding]:
    """Findings about weights that steps leave as they are."""
    if table.empty or _warming_up(training):
        return []
    if compensated:
        table = table[~table["format"].isin(NARROW)]
    found = []
    for fmt, part in table.groupby("format", sort=False):
        share = float((part["lost"] * part["n"]).sum() / part["n"].sum())
        still = part[part["lost"] >= HALF]
        if share >= (HALF if fmt in NARROW else MOST) and _counts(training, str(fmt)):
            found.append(_no_ops(training, str(fmt), part, share))
        elif len(still) and fmt in NARROW:
            found.append(_still(str(fmt), still))
    return found


def _counts(training: Training, fmt: str) -> bool:
    """Whether lost updates are the format's fault or the rate's, not those of a gradient that has vanished."""
    return fmt in NARROW or _adaptive(training)


def without_harm(fell: float, wide: float, least: float = 0.0) -> bool:
    """Tell whether the loss fell about as far as with float32 weights, or does not fall with them either.

    Args:
        fell: how far it fell.
        wide: how far it falls with float32 weights.
        least: differences that count for nothing.
    """
    return wide <= 0 or fell >= MUCH * wide or 0 <= wide - fell < least


def untried(finding: Finding) -> bool:
    """Tell whether so many weights stand still that it is a fault without a trial."""
    return finding.measure.value >= MOST


def _adaptive(training: Training) -> bool:
    groups = training.optimizer.param_groups if training.optimizer else []
    return any(name in group for group in groups for name in ADAPTIVE)


def _no_ops(training: Training, fmt: str, part: pd.DataFrame, share: float) -> Finding:
    worst = part.sort_values("n", ascending=False).iloc[0]
    half, rate = worst["half_unit"], _rate(training)
    narrow = fmt in NARROW
    keep = "keep the weights in float32 and run the loss under torch.autocast" if narrow else "raise the rate"
    return Finding(
        "lost_updates",
        Status.BROKEN,
        f"{100 * share:.3g} % of the {fmt} weights with a gradient are the same after a step: half a unit in their last"
        f" place is {half:.2g} in {worst['parameter']}, and the rate is {rate:.2g}",
        advice=f"{keep}{f' (dtype=torch.{fmt})' if narrow else ''}; at this format a step has to change a weight of"
        f" {worst['rms']:.2g} by more than {half:.2g}",
        expected="the weights move in every step" if narrow else "the updates pass the weights' last place",
        where=tuple(part[part["lost"] >= HALF]["parameter"]),
        measure=Measure(
            "weights left unchanged by a step", share, method="share of those with a gradient, median step"
        ),
    )


def _still(fmt: str, part: pd.DataFrame) -> Finding:
    worst = part.sort_values("lost", ascending=False).iloc[0]
    return Finding(
        "still_parameters",
        Status.LOOK,
        f"a step leaves {100 * worst['lost']:.3g} % of {worst['parameter']} as it was, whose {fmt} weights of"
        f" {worst['rms']:.2g} need a change above {worst['half_unit']:.2g}",
        advice=f"keep {listed(part['parameter'])} in float32, or all weights, with the loss under torch.autocast",
        expected="they train at the rate of the others",
        where=tuple(part["parameter"]),
        measure=Measure("weights left unchanged by a step", float(worst["lost"]), method="as above, of one parameter"),
    )


def lost_decay(training: Training) -> list[Finding]:
    """A finding where a weight decay is rounded away in every weight."""
    assert training.optimizer is not None
    if _warming_up(training):
        return []
    names = names_of(training.model)
    lost: dict[str, tuple[float, str]] = {}
    for group in training.optimizer.param_groups:
        decay = _number(group.get("lr")) * _number(group.get("weight_decay"))
        decoupled = group.get("decoupled_weight_decay", type(training.optimizer).__name__ == "AdamW")
        if decay > 0 and decoupled:
            for each in group["params"]:
                fmt = format_of(each)
                if each.is_floating_point() and each.numel() and id(each) in names:
                    std = each.detach().double().square().mean().sqrt().item()
                    if std > 0 and theory.lost_decay_fraction(fmt, std, decay) > NEARLY_ALL:
                        lost[names[id(each)]] = decay, fmt
    if not lost:
        return []
    decay, fmt = next(iter(lost.values()))
    bits = formats.get(fmt).mantissa_bits
    return [
        Finding(
            "lost_decay",
            Status.LOOK,
            f"the weight decay does nothing to {len(lost)} parameters: it takes {decay:.2g} of a {fmt} weight off in a"
            f" step, and what is below 2^-{bits + 2} is rounded away",
            advice="keep the weights in float32 and run the loss under torch.autocast"
            if bits < 23
            else f"raise weight_decay above {2.0 ** -(bits + 1) / max(_rate(training), 1e-300):.2g}, or set it to 0",
            expected="the weights decay as the setting says",
            where=tuple(lost),
            measure=Measure(
                "decay in a step", decay, method="rate times weight decay, against theory.lost_decay_fraction"
            ),
        )
    ]


def epsilon(training: Training, gradients: dict[str, float], broken: tuple[str, ...]) -> list[Finding]:
    """Findings about Adam's epsilon: 0 in the weights' format, or larger than the gradients.

    Args:
        training: with an optimizer.
        gradients: root mean squares by parameter, of those that have one.
        broken: parameters that one step leaves infinite or NaN, of finite gradients.
    """
    assert training.optimizer is not None
    names = names_of(training.model)
    zero, large, eps = [], [], 0.0
    for group in training.optimizer.param_groups:
        if "eps" not in group or "betas" not in group:
            continue
        eps = max(eps, _number(group["eps"]))
        for each in group["params"]:
            name = names.get(id(each), "")
            size = gradients.get(name, 0.0)
            if name in broken and _number(group["eps"]) <= formats.get("float16").zero_below:
                zero.append(name)
            elif 0 < size < _number(group["eps"]):
                large.append(name)
    found = []
    if zero:
        found.append(_zero_epsilon(eps, zero))
    if len(large) > HALF * sum(size > 0 for size in gradients.values()):
        found.append(_large_epsilon(eps, large))
    return found


def _zero_epsilon(eps: float, names: list[str]) -> Finding:
    return Finding(
        "lost_epsilon",
        Status.BROKEN,
        f"one step makes weights of {len(names)} float16 parameters infinite or NaN: Adam's epsilon of {eps:.2g} is 0"
        " in float16, as are the second moments of small gradients",
        advice="keep the weights in float32 and run the loss under torch.autocast(dtype=torch.float16)",
        expected="finite updates",
        where=("optimizer", *names),
        measure=Measure("the optimizer's epsilon", eps, method="its setting, against float16's smallest number"),
    )


def _large_epsilon(eps: float, names: list[str]) -> Finding:
    return Finding(
        "large_epsilon",
        Status.LOOK,
        f"the optimizer's epsilon of {eps:.2g} exceeds {len(names)} parameters' gradients and shortens their steps",
        advice=f"lower the optimizer's eps below the gradients, or multiply the loss by a constant ({listed(names)})",
        expected="steps of about the rate",
        where=("optimizer", *names),
        measure=Measure("the optimizer's epsilon", eps, method="its setting, against root mean squares of gradients"),
    )


def stalled_average(training: Training) -> list[Finding]:
    """A finding where second moments are held in a 16-bit format that rounds their decay away."""
    assert training.optimizer is not None
    names = names_of(training.model)
    stalled = [
        (names.get(id(each), "optimizer"), each.dtype, 1 - _number(group["betas"][1]))
        for group in training.optimizer.param_groups
        if "betas" in group
        for each in group["params"]
        if each.dtype in HALVES
    ]
    found = [each for each in stalled if each[2] <= 2.0 ** -(_bits(each[1]) + 2)]
    if not found:
        return []
    fmt = spelled(found[0][1])
    return [
        Finding(
            "stalled_average",
            Status.LOOK,
            f"Adam's second moments in {fmt} never fall: a step takes {found[0][2]:.2g} of them off, rounded away"
            f" below 2^-{_bits(found[0][1]) + 2}",
            advice="keep the weights in float32, and the optimizer's state with them, or lower betas[1]",
            expected="steps that grow again once gradients have shrunk",
            where=("optimizer", *(name for name, _, _ in found)),
            measure=Measure("decay of the second moment in a step", found[0][2], method="1 - betas[1]"),
        )
    ]


def _bits(dtype: torch.dtype) -> int:
    return formats.get(spelled(dtype)).mantissa_bits


def _warming_up(training: Training) -> bool:
    """Whether a scheduler has set the rates below those that they grow to."""
    groups = training.optimizer.param_groups if training.optimizer else []
    rates = [(_number(group.get("lr")), group) for group in groups]
    return any(
        rate == 0 or rate < max(_number(group.get("initial_lr")), _number(group.get("max_lr"))) for rate, group in rates
    )


def _rate(training: Training) -> float:
    groups = training.optimizer.param_groups if training.optimizer else []
    return max((_number(group.get("lr")) for group in groups), default=0.0)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
