"""Contents of the batches: scales, constants, labels, and whether labels belong to their inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.observing import Seen
from depthgauge.checking.parameters import format_of
from depthgauge.checking.questions.data import leaking
from depthgauge.checking.questions.data.batches import Batches, Column
from depthgauge.checking.questions.data.losses import chance, main_term
from depthgauge.checking.questions.data.outputs import scored
from depthgauge.checking.questions.data.passing import Passed
from depthgauge.checking.questions.data.seeing import changed
from depthgauge.checking.words import percent
from depthgauge.foreign import contained
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.workload import Training

LARGE = 20.0  # rms of inputs: curvature grows with its square; bytes as they are have 70 to 150, standardized ones 1
SAME_SLOPE = 0.2  # of the first weights' gradient, when inputs are halved: 0.10 before a norm, 0.38 and more elsewhere
SMALL = 0.005  # rms of inputs: bytes divided by 255 twice have 0.002, quiet sound 0.01
NORM = 0.1  # of an example of a table: words counted and divided by their number have 0.2, and one-hot rows 1
OFFSET = 10.0  # mean over standard deviation: the condition of a linear layer's curvature is 1 + its square
UNEVEN = 1e3  # largest over smallest standard deviation of features: the condition is its square
ENOUGH = 32  # examples below which a constant feature is chance
TRAINED = 0.5  # of chance, below which a model has learnt on inputs and targets of this scale
TABLE = 256  # features at most of what is looked at feature by feature; an image has more
WASHED = 50.0  # mean over standard deviation, from which on a first layer sees hardly anything but the mean: 0.02 of it
CHANNELS, APART = 16, 100.0  # channels of an image, and the ratio of their standard deviations
TARGET = 100.0  # rms of regression targets: the output starts near 0, and has as far to go

KINDS = {
    "constant_inputs": Kind("fault", "all examples of the batches that were looked at are the same"),
    "nonfinite_inputs": Kind("fault", "inputs hold NaN or infinite values"),
    "unscaled_inputs": Kind(
        "fault",
        f"inputs reach the first weights with a root mean square of {LARGE:g} or more: the curvature there grows with"
        " its square, and the largest stable rate falls with it. Not said where halved inputs leave the first weights'"
        f" gradient as it is (to {percent(SAME_SLOPE)}), as of a layer before a normalization",
    ),
    "tiny_inputs": Kind(
        "fault",
        f"inputs have a root mean square of {SMALL:g} or less, and a table's rows a norm below {NORM:g}: biases"
        " outweigh them in the first layer (bytes that were divided by 255 twice)",
    ),
    "offset_inputs": Kind(
        "opportunity", f"the mean of the inputs is {OFFSET:g} times their standard deviation or more"
    ),
    "uneven_features": Kind(
        "opportunity", f"the standard deviations of features differ by {UNEVEN:g} or more"
    ),
    "constant_features": Kind("opportunity", f"features are constant over {ENOUGH} examples or more"),
    "duplicated_features": Kind("opportunity", f"features are equal over {ENOUGH} examples or more"),
    **leaking.KINDS,
    "washed_out": Kind(
        "fault",
        f"the mean of the inputs is {WASHED:g} times their standard deviation (an image's channels') or more where they"
        " reach the first weights: scaled by the numbers of other units",
    ),
    "uneven_channels": Kind(
        "fault", f"the standard deviations of an image's channels differ by {APART:g} or more: some were not scaled"
    ),
    "unscaled_targets": Kind(
        "fault", f"regression targets have a root mean square of {TARGET:g} or more, and outputs start near 0"
    ),
}  # fmt: skip


def findings(seen: Seen, batches: Batches, passed: Passed, training: Training) -> Iterator[Finding]:
    """Yield what is found about inputs, and about the targets of a regression."""
    term = main_term(seen)
    trained = term is not None and term.value < TRAINED * chance(term)
    if batches.examples > 1:
        yield from _constant(batches)
    for column in batches.inputs:
        if column.numbers.is_floating_point():
            yield from _nonfinite(column, seen)
        if column.continuous:
            found = [] if trained else [*_scale(column, passed)]
            if any(each.kind == "unscaled_inputs" for each in found) and _is_scaled_inside(
                training, seen, column, passed
            ):
                found = []
            found += [*_features(column), *_channels(column), *leaking.findings(column, batches)]
            yield from found if found and _goes_in(training, seen.batch, column) else ()
    if term is not None and term.form == "regression" and not trained:
        for column in batches.targets:
            yield from _targets(column)


def _goes_in(training: Training, batch: Any, column: Column) -> bool:
    """Tell whether the module's outputs depend on a tensor of the batch: an advantage or a weight goes to the loss.

    All of it becomes 0, and what was 0 becomes 1: units that large numbers saturate are free then.
    """
    try:
        with training.untouched(), contained():
            flipped = changed(batch, {column.place or None}, lambda values: (values == 0).to(values.dtype))
            base, other = (scored(training, each) for each in (batch, flipped))
    except Exception:  # noqa: BLE001 - the user's code may raise anything of other numbers
        return True
    return base is None or other is None or not torch.equal(base[0], other[0])


def _is_scaled_inside(training: Training, seen: Seen, column: Column, passed: Passed) -> bool:
    """Tell whether halved inputs leave the first weights' gradient as it is, as of a layer before a normalization.

    That layer's output then goes on without its size: from the same weights, every step is the same at every size.
    """
    if passed.first is None:
        return False
    weights = [each for each in training.model.get_submodule(passed.first.layer).parameters() if each.dim() > 1]
    weights = [each for each in weights if each.requires_grad]
    try:
        with training.untouched(), contained():
            halved = changed(seen.batch, {column.place or None}, lambda values: values / 2)
            whole, half = (_slopes(training, batch, weights) for batch in (seen.batch, halved))
    except Exception:  # noqa: BLE001 - the user's code may raise anything of other numbers
        return False
    return bool((whole - half).norm() < SAME_SLOPE * whole.norm())


def _slopes(training: Training, batch: Any, weights: Sequence[Tensor]) -> Tensor:
    """The loss's gradient to these, as one vector; noise is drawn as in every other call."""
    seed_globals(0, Purpose.DROPOUT)
    with torch.enable_grad():
        return torch.cat(
            [nested.real(each).flatten().double() for each in torch.autograd.grad(training.value(batch), weights)]
        )


def table(batches: Batches) -> pd.DataFrame:
    """A row for each tensor of a batch."""
    rows = []
    for column in batches.columns:
        values = _finite(column)
        some = len(values) > 0
        rows.append({
            "tensor": column.place or "batch", "part": "target" if column.target else "input",
            "dtype": format_of(column.numbers), "examples": len(column.numbers),
            "numbers": math.prod(column.numbers.shape[1:]),
            "mean": values.mean().item() if some else math.nan,
            "std": values.std(correction=0).item() if some else math.nan,
            "min": values.min().item() if some else math.nan, "max": values.max().item() if some else math.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _finite(column: Column) -> Tensor:
    values = column.numbers.reshape(-1).double()
    return values[values.isfinite()]


def _constant(batches: Batches) -> Iterator[Finding]:
    inputs = [column for column in batches.inputs if len(column.numbers) > 1]
    if not inputs or not all(bool((column.numbers == column.numbers[:1]).all()) for column in inputs):
        return
    varied = any(bool((column.numbers != column.numbers[:1]).any()) for column in batches.targets)
    if batches.targets and varied:
        count = len(inputs[0].numbers)
        yield Finding(
            "constant_inputs", Status.BROKEN,
            f"the inputs of all {count} examples in {batches.count} batches are the same, and their targets are not",
            "look at what the loader returns: an index that does not move, or a buffer that is overwritten",
            "the model can tell examples apart", ("batches",),
            Measure("examples that differ", 1, 1, 1, f"of {count}"),
        )  # fmt: skip


def _nonfinite(column: Column, seen: Seen) -> Iterator[Finding]:
    nans = column.numbers.isnan()
    infinite = column.numbers.isinf()
    masks = infinite.any() and not bool((column.numbers.isfinite() & (column.numbers != 0)).any())
    bad = int(nans.sum()) + (0 if masks else int(infinite.sum()))
    taken = math.isfinite(seen.loss) and not bool(column.numbers[: seen.examples or 0].isfinite().all())
    if bad and not taken:  # a model that knows what a missing value is, or does not read this tensor
        rows = int((nans | infinite).reshape(len(column.numbers), -1).any(1).sum())
        yield Finding(
            "nonfinite_inputs", Status.BROKEN,
            f"{rows} of {len(column.numbers)} examples hold NaN or infinite values ({bad} numbers of {column.called})",
            "replace them before the batch is made, by the feature's mean, or leave these examples out",
            "loss and gradients are finite", ("batches", *filter(None, [column.place])),
            Measure("examples with non-finite values", rows / len(column.numbers)),
        )  # fmt: skip


def _scale(column: Column, passed: Passed) -> Iterator[Finding]:
    values = _finite(column)
    if len(values) < 2:
        return
    mean, std = values.mean().item(), values.std(correction=0).item()
    rms = math.hypot(mean, std)
    reached = passed.first
    if rms >= LARGE and reached is not None and reached.rms >= LARGE:
        yield Finding(
            "unscaled_inputs", Status.LOOK,
            f"{column.called} reach `{reached.layer or 'model'}` with a root mean square of {reached.rms:.3g} (mean"
            f" {mean:.3g}, standard deviation {std:.3g}), where 1 is usual",
            f"subtract {mean:.3g} and divide by {max(std, 1e-12):.3g} before the first layer",
            f"the curvature there falls {reached.rms**2:.2g} times, and the largest stable rate rises", ("batches",),
            Measure("root mean square at the first weights", reached.rms, min(rms, reached.rms), max(rms, reached.rms)),
        )  # fmt: skip
    elif _tiny(column, rms) and reached is not None and 0 < reached.rms <= SMALL:
        yield Finding(
            "tiny_inputs", Status.LOOK,
            f"{column.called} reach `{reached.layer or 'model'}` with a root mean square of {reached.rms:.2g} (mean"
            f" {mean:.2g}, standard deviation {std:.2g}), where 1 is usual: were they scaled twice?",
            f"subtract {mean:.2g} and divide by {max(std, 1e-12):.2g} before the first layer",
            "the first layer's outputs are made of its inputs, not of its biases", ("batches",),
            Measure("root mean square at the first weights", reached.rms),
        )  # fmt: skip
    elif reached is not None and reached.rms >= 0.5 * rms:
        yield from _offset(column, mean, _within_channels(column, std))


def _offset(column: Column, mean: float, std: float) -> Iterator[Finding]:
    if std > 0 and abs(mean) >= OFFSET * std:
        yield Finding(
            "washed_out" if abs(mean) >= WASHED * std else "offset_inputs", Status.LOOK,
            f"{column.called} have mean {mean:.3g} and standard deviation {std:.3g}: their differences are small beside"
            " what they share",
            f"subtract {mean:.3g} and divide by {std:.3g}", "the first layer learns their differences as fast as their"
            " mean", ("batches",), Measure("mean over standard deviation", abs(mean) / std),
        )  # fmt: skip


def _within_channels(column: Column, std: float) -> float:
    """The standard deviation of an image's numbers round the mean of their channel; of other numbers that of all."""
    values = column.numbers
    if values.dim() != 4 or values.shape[1] > CHANNELS or not values.is_floating_point():
        return std
    return values[: 4 * ENOUGH].transpose(0, 1).flatten(1).var(1, correction=0).mean().sqrt().item()


def _tiny(column: Column, rms: float) -> bool:
    table = column.numbers.dim() < 3
    return 0 < rms <= SMALL and (not table or rms * math.sqrt(column.flat.shape[1]) < NORM)


def _features(column: Column) -> Iterator[Finding]:
    """Features one by one, of a table."""
    values = column.flat
    if column.numbers.dim() != 2 or not 1 < values.shape[1] <= TABLE or len(values) < ENOUGH:
        return
    finite = values.nan_to_num()
    stds = finite.std(0, correction=0)
    still = (finite == finite[:1]).all(0)
    if still.any() and not still.all():
        places = still.nonzero()[:, 0].tolist()
        yield Finding(
            "constant_features", Status.LOOK,
            f"{len(places)} of {values.shape[1]} features are constant over {len(values)} examples: {_some(places)}",
            "leave them out, or look at how they are made", "fewer weights that nothing can be learned for",
            ("batches",), Measure("constant features", len(places), unit=f"of {values.shape[1]}"),
        )  # fmt: skip
    if pairs := _equal_pairs(finite, still):
        yield Finding(
            "duplicated_features", Status.LOOK,
            f"{len(pairs)} features are equal to another over {len(values)} examples: {_some([b for _, b in pairs])}",
            "leave them out", "fewer weights that do the same", ("batches",),
            Measure("duplicated features", len(pairs), unit=f"of {values.shape[1]}"),
        )  # fmt: skip
    moving = stds[~still]
    if len(moving) > 1 and (ratio := (moving.max() / moving.min().clamp_min(1e-30)).item()) >= UNEVEN:
        yield Finding(
            "uneven_features", Status.LOOK,
            f"the standard deviations of features go from {moving.min().item():.2g} to {moving.max().item():.2g}, a"
            f" factor of {ratio:.2g}",
            "standardize each feature", "the first layer learns from all of them at one rate", ("batches",),
            Measure("largest over smallest standard deviation", ratio),
        )  # fmt: skip


def _channels(column: Column) -> Iterator[Finding]:
    values = column.numbers
    if values.dim() != 4 or not 1 < values.shape[1] <= CHANNELS or len(values) < 2:
        return
    stds = values[: 4 * ENOUGH].float().nan_to_num().transpose(0, 1).flatten(1).std(1)
    if stds.min() > 0 and (ratio := (stds.max() / stds.min()).item()) >= APART:
        yield Finding(
            "uneven_channels", Status.LOOK,
            f"the standard deviations of the channels of {column.called} go from {stds.min().item():.2g} (channel"
            f" {int(stds.argmin())}) to {stds.max().item():.2g} (channel {int(stds.argmax())}): some were not scaled",
            "scale each channel by its own mean and standard deviation", "the first layer sees all channels",
            ("batches",), Measure("largest over smallest standard deviation", ratio),
        )  # fmt: skip


def _equal_pairs(values: Tensor, still: Tensor) -> list[tuple[int, int]]:
    known: dict[bytes, int] = {}
    pairs = []
    for place in (~still).nonzero()[:, 0].tolist():
        key = values[:, place].numpy().tobytes()
        if key in known:
            pairs.append((known[key], place))
        known.setdefault(key, place)
    return pairs


def _targets(column: Column) -> Iterator[Finding]:
    values = _finite(column)
    if not column.numbers.is_floating_point() or len(values) < 2:
        return
    mean, std = values.mean().item(), values.std(correction=0).item()
    if math.hypot(mean, std) >= TARGET:
        yield Finding(
            "unscaled_targets", Status.LOOK,
            f"targets have mean {mean:.3g} and standard deviation {std:.3g}, where outputs start near 0",
            f"subtract {mean:.3g} and divide by {max(std, 1e-12):.3g}, and undo that for what is predicted",
            "the first steps do not go into reaching their mean, and gradients are of size 1", ("batches",),
            Measure("root mean square of the targets", math.hypot(mean, std)),
        )  # fmt: skip


def _some(places: list[int]) -> str:
    return ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
