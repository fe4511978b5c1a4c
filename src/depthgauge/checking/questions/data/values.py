"""The numbers that inputs hold: marks of missing values, equal examples, fractions cut off, axes not moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import stored
from depthgauge.checking.questions.data.batches import Batches, Column, flags
from depthgauge.checking.questions.data.padding import padded
from depthgauge.checking.words import percent
from depthgauge.workload import Training

EXAMPLES = 512  # that are looked at
ENOUGH = 64  # examples, below which equal ones are chance
EQUAL = 0.3  # of examples, whose inputs are one and the same: what was not loaded
SHOWN = 0.25  # of the examples of a part of one epoch, that are different
NUMBERS = 8  # of an example, below which equal ones are no wonder
MARKED, FAR = 0.005, 20.0  # share of values that are one number, and its distance in middle halves of the others
ISOLATED = (0.1, 0.7)  # share of an image's bright places without a bright neighbour: of drawings below 0.01
UNKNOWN, MANY = 0.9, 10  # share of one token, and tokens that an embedding knows
EDGE, LEVELS = 0.03, 12  # of the range at both ends, where numbers that were wrapped lie, and how many there are
RARE = 0.35  # of places, that are bright
ZEROS, TWOS = (0.58, 0.78), (0.015, 0.09)  # of N(0, 1) without fractions 0.683 are 0 and 0.0455 are 2 or more
LAG = 0.08  # of correlation, by which places so many channels apart must be more alike than neighbours
ALIKE = 0.3  # correlation of these
SIDE = 8  # places along an axis

KINDS = {
    "equal_examples": Kind(
        "fault",
        f"{percent(EQUAL)} or more of the examples have the same inputs, of {NUMBERS} numbers or more, and different"
        " targets: they were not loaded",
    ),
    "repeated_examples": Kind(
        "fault",
        f"of the examples of a part of one epoch {percent(SHOWN)} or fewer are different, and nothing draws them by"
        " weights: an index stays in a small part of the data",
    ),
    "missing_marks": Kind(
        "fault",
        f"{percent(MARKED)} or more of a tensor's numbers are one and the same, {FAR:g} times the others' middle half"
        " away from them: a mark of missing values, such as -999",
    ),
    "one_token": Kind(
        "fault",
        f"{percent(UNKNOWN)} or more of the tokens that are no padding are one, of {MANY} or more that an embedding"
        " knows",
    ),
    "cut_to_whole": Kind(
        "fault",
        "numbers have lost their fractions: images of two values whose bright places stand alone (10 to 70 % have no"
        " bright neighbour; of drawings below 1 %) and of which some are blank or equal, or tables of whole numbers"
        " distributed as N(0, 1) without fractions",
    ),
    "channels_not_moved": Kind(
        "fault",
        f"places as far apart as there are channels are more alike than neighbours, by {LAG:g} of correlation: channels"
        " came last and were made first by a change of shape, not by a permutation",
    ),
}


def findings(batches: Batches, training: Training) -> Iterator[Finding]:
    """Yield what is found about the numbers themselves."""
    yield from _repeated(batches, training.batches)
    for column in batches.inputs:
        yield from _one_token(column, training)
        if not column.numbers.is_floating_point() or len(column.numbers) < ENOUGH:
            continue
        yield from _equal(column, batches)
        yield from _cut(column)
        yield from _axes(column)
    for column in batches.columns:
        if column.numbers.is_floating_point() and len(column.numbers) >= ENOUGH:
            yield from _marks(column)


def _one_token(column: Column, training: Training) -> Iterator[Finding]:
    tokens = column.numbers
    if tokens.is_floating_point() or tokens.dim() != 2 or tokens.shape[1] < NUMBERS or len(tokens) < ENOUGH:
        return
    known = max((each.num_embeddings for each in training.model.modules() if isinstance(each, nn.Embedding)), default=0)
    found = padded(column.place, tokens)
    held = tokens.reshape(-1) if found is None else tokens[~found.padding]
    if not len(held) or held.min() < 0 or len(torch.unique(held)) < 3 or known < MANY or held.max() >= known:
        return
    token = int(held.mode().values)
    share = (held == token).float().mean().item()
    if share >= UNKNOWN:
        yield Finding(
            "one_token", Status.LOOK,
            f"{percent(share)} of the tokens of {column.called} are {token}, of {known} that the model knows: is it"
            " that of unknown words?",
            "look at what the tokenizer makes of a text: was it built on another, or in other cases?",
            "the model sees the words", ("batches", *([column.place] if not column.place.isdecimal() else [])),
            Measure("share of one token", share),
        )  # fmt: skip


def _repeated(batches: Batches, loader: object) -> Iterator[Finding]:
    columns = [each for each in batches.columns if len(each.numbers) == batches.examples]
    count, known = batches.examples, getattr(loader, "dataset", None)
    try:
        length = len(known)  # type: ignore[arg-type]  # what has no length raises
    except Exception:  # noqa: BLE001 - a stranger's data set
        return
    measured = [each for each in columns if each.continuous]  # sequences of few tokens are equal by chance
    enough = sum(math.prod(each.numbers.shape[1:]) for each in measured) >= NUMBERS
    if not enough or batches.count < 3 or not ENOUGH <= count <= length:
        return
    weights = getattr(getattr(loader, "sampler", None), "weights", None)
    if weights is not None and len(weights) >= length:  # of fewer, such as one a class, the rest is never drawn
        return
    bits = [each.numbers.reshape(count, -1).double().numpy() for each in columns]
    different = len({b"".join(part[row].tobytes() for part in bits) for row in range(count)})
    if different <= SHOWN * count and not _few(stored.examples(stored.innermost(loader)), count):
        yield Finding(
            "repeated_examples", Status.BROKEN,
            f"of {count} examples in {batches.count} batches of one epoch only {different} are different",
            "look at the index that the data set is asked for, and at its length", "steps see the other examples",
            ("batches",), Measure("different examples", different, unit=f"of {count}"),
        )  # fmt: skip


def _few(examples: Sequence[Tensor], count: int) -> bool:
    """Whether the stored examples themselves are few different ones, of as many spread over all."""
    if not examples:
        return False
    spread = torch.linspace(0, len(examples[0]) - 1, count).long()
    held = torch.cat([each[spread].flatten(1).double() for each in examples], 1)
    return len(torch.unique(held, dim=0)) <= SHOWN * count


def _equal(column: Column, batches: Batches) -> Iterator[Finding]:
    if flags(column.numbers) and any(each.continuous and not flags(each.numbers) for each in batches.inputs):
        return  # a mask
    flat = column.flat
    targets = next((each for each in batches.targets if len(each.numbers) == len(flat)), None)
    if flat.shape[1] < NUMBERS or targets is None:
        return
    rows, which, counts = torch.unique(flat[:EXAMPLES], dim=0, return_inverse=True, return_counts=True)
    most = int(counts.argmax())
    share = int(counts[most]) / len(which)
    theirs = targets.flat[: len(which)][which == most]
    if len(rows) > 1 and share >= EQUAL and bool((theirs != theirs[:1]).any()):
        what = f"are all {rows[most][0].item():.3g}" if bool((rows[most] == rows[most][0]).all()) else "are the same"
        yield Finding(
            "equal_examples", Status.BROKEN,
            f"the inputs of {percent(share)} of {len(which)} examples {what}, and their targets are not",
            "look at what the loader returns where a file cannot be read, and at casts to whole numbers",
            "the model can tell these examples apart", ("batches",), Measure("share of equal examples", share),
        )  # fmt: skip


def _marks(column: Column) -> Iterator[Finding]:
    values = column.flat[: 4 * EXAMPLES].reshape(-1)
    values = values[values.isfinite()][:200_000]
    if len(values) < ENOUGH:
        return
    for end in (values.min(), values.max()):
        same = values == end
        rest = values[~same]
        share = same.float().mean().item()
        if not MARKED <= share < 0.5 or len(rest) < ENOUGH // 2:
            continue
        low, middle, high = rest.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        beyond = rest.max() if end > middle else rest.min()
        far = abs(end.item() - middle) > FAR * (high - low) and abs(end - beyond).item() > 0.5 * abs(
            end.item() - middle
        )
        if high > low and far:
            yield Finding(
                "missing_marks", Status.BROKEN,
                f"{percent(share)} of the numbers of {column.called} are {end.item():g}, and the others lie around"
                f" {middle:.3g}, half of them within {high - low:.2g}: does it stand for a missing value?",
                "replace it by the feature's mean and add a flag, or leave these values out of the loss",
                "the first layer sees the values, not the marks", ("batches",), Measure("share of marks", share),
            )  # fmt: skip


def _cut(column: Column) -> Iterator[Finding]:
    text = _image_cut(column) if column.numbers.dim() == 4 else _table_cut(column) if column.numbers.dim() == 2 else ""
    if text:
        yield Finding(
            "cut_to_whole", Status.LOOK, f"{column.called} have lost their fractions: {text}",
            "scale before a cast to whole numbers, or leave the cast out", "differences between examples come back",
            ("batches",),
        )  # fmt: skip


def _image_cut(column: Column) -> str:
    images = column.numbers[:EXAMPLES].float()
    values = torch.unique(images)
    if 4 <= len(values) <= LEVELS:
        low, high = values[0] + EDGE * (values[-1] - values[0]), values[-1] - EDGE * (values[-1] - values[0])
        if (
            min(int((values < low).sum()), int((values > high).sum())) >= 2
            and not ((values >= low) & (values <= high)).any()
        ):
            return f"the images hold {len(values)} values, all at the ends of their range: were they cast to bytes?"
    if len(values) != 2 or min(images.shape[2:]) < SIDE or images.shape[1] > 4:
        return ""
    bright = images == values[1]
    if bright.float().mean() > 0.5:
        bright = ~bright
    share = bright.float().mean().item()
    around = torch.nn.functional.pad(bright.float(), (1, 1, 1, 1))
    near = around[..., 2:, 1:-1] + around[..., :-2, 1:-1] + around[..., 1:-1, 2:] + around[..., 1:-1, :-2]
    alone = int((bright & (near == 0)).sum()) / max(1, int(bright.sum()))
    different = len(torch.unique(bright.flatten(1), dim=0))
    if share > RARE or not ISOLATED[0] <= alone <= ISOLATED[1] or different == len(images):
        return ""
    return (
        f"the images hold two values, {values[0].item():.3g} and {values[1].item():.3g}, {percent(alone)} of the places"
        f" of the rarer have no neighbour of it, and {len(images) - different} of {len(images)} images are equal to"
        " another"
    )


def _table_cut(column: Column) -> str:
    rows = column.flat[:EXAMPLES]
    if rows.shape[1] < 2 or not bool((rows == rows.round()).all()) or not bool((rows < 0).any()):
        return ""
    zeros = (rows == 0).float().mean(0)
    twos = (rows.abs() >= 2).float().mean().item()
    each = ((zeros >= ZEROS[0] - 0.1) & (zeros <= ZEROS[1] + 0.1)).float().mean().item()
    zero = zeros.mean().item()
    if not (ZEROS[0] <= zero <= ZEROS[1] and TWOS[0] <= twos <= TWOS[1] and each > 0.8):
        return ""
    return (
        f"the table holds whole numbers alone, {percent(zero)} of them 0 and {percent(twos)} of them 2 or more, as of"
        " standardized features that were cast"
    )


def _axes(column: Column) -> Iterator[Finding]:
    values = column.numbers[:EXAMPLES].float()
    if values.dim() not in {3, 4} or not 2 <= values.shape[1] <= 8 or min(values.shape[2:]) < SIDE:
        return
    channels = values.shape[1]
    centred = (values - values.mean(0)).nan_to_num()
    lags = [_lag(centred, by) for by in range(1, channels + 2)]
    others = max(*lags[: channels - 1], lags[channels])
    if lags[channels - 1] >= ALIKE and lags[channels - 1] > others + LAG and lags[0] + LAG < lags[channels - 1]:
        yield Finding(
            "channels_not_moved", Status.LOOK,
            f"along the last axis of {column.called}, {' x '.join(map(str, values.shape[1:]))}, places {channels} apart"
            f" are more alike (correlation {lags[channels - 1]:.2f}) than neighbours ({lags[0]:.2f}): channels came"
            " last, and were not moved but reshaped",
            "use permute(0, 3, 1, 2) or movedim(-1, 1), not view or reshape", "neighbours are neighbours again",
            ("batches",), Measure("correlation of neighbours", lags[0]),
        )  # fmt: skip


def _lag(values: Tensor, by: int) -> float:
    one, two = values[..., by:], values[..., :-by]
    size = (one.square().mean() * two.square().mean()).sqrt().item()
    return (one * two).mean().item() / size if size else 0.0
