"""The findings about reproducibility, in words."""

from __future__ import annotations

from collections.abc import Callable

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.reproducibility import ordering, reseeding
from depthgauge.checking.questions.reproducibility.accumulating import Accumulated
from depthgauge.checking.questions.reproducibility.future import Future
from depthgauge.checking.questions.reproducibility.mixing import Mixed
from depthgauge.checking.questions.reproducibility.repeating import Repeated
from depthgauge.checking.words import percent

_HALF = "more than half the digits of the number format (the square root of its spacing at 1; 0.03 % in float32)"

KINDS = {
    **reseeding.KINDS,
    "unseeded": Kind(
        "fault", f"two runs from the same state and seeds differ by {_HALF}, or each of"
        f" {ordering.READINGS} readings of the loader from them has other batches, and a generator is seeded without a"
        " number"
    ),
    "order_of_sums": Kind("property", "two runs from the same state and seeds differ, by no more than rounding"),
    "mixes_examples": Kind(
        "fault", "in eval mode an example's output moves when another example of its batch is replaced, by"
        f" {_HALF}, and also depends on their order, or a softmax, attention or normalization works along the"
        " examples' dimension",
    ),
    "shared_number": Kind(
        "fault", "in eval mode an example's output moves with the rest of its batch, by"
        f" {_HALF}, and a number that is taken over all of them (their largest, their mean) divides or multiplies each,"
        " or is subtracted from it, by no layer that has statistics of its own",
    ),
    "examples_meet": Kind("property", "in eval mode outputs depend on the batch's other examples, not on their order"),
    "keeps_state": Kind("property", "a second call on the same batch, in eval mode, returns other outputs"),
    "hands_on_state": Kind(
        "fault", "in eval mode an example's output moves when the same row of the batch before it holds another"
        f" example, no other row's does, by {_HALF}, and the loader draws its examples at random",
    ),
    "sees_future": Kind(
        "fault", "a model of next tokens returns outputs that depend on later tokens, those that it is to tell, by"
        f" {_HALF}",
    ),
    "accumulation": Kind(
        "fault", "examples have weights in the batch's gradient that contradict those that they have in pairs, by more"
        " than 4 %: means of unequal parts are averaged",
    ),
    "every_pair": Kind("fault", "outputs (N, 1) less targets (N,) are held against each other all in all, as (N, N)"),
    "weighted_mean": Kind(
        "property", "parts of a batch make up its gradient by unequal weights: a mean over tokens, or class weights"
    ),
    "summed": Kind("property", "the loss is a sum over examples: parts of a batch add up to its gradient"),
    "batch_norm": Kind(
        "property", "parts of a batch make up its gradient only where batch normalization is held still"
    ),
    "tied_examples": Kind(
        "property", "no weights make the batch's gradient of its parts': the loss ties examples together"
    ),
}  # fmt: skip


GROWN = 1000  # times as far from another call's output as a sum of another order is from itself
_IN_SHORT = {
    "unseeded": "equal runs differ by {} of a tensor's size, more than rounding",
    "order_of_sums": "equal runs differ by rounding ({})",
    "mixes_examples": "an example's output moves by {} with the others of its batch",
    "shared_number": "an example's output moves by {} with a number that its batch shares",
    "examples_meet": "an example's output moves by {} with the others of its batch",
    "keeps_state": "the model keeps something from call to call (its output moves by {})",
    "hands_on_state": "a row's output moves by {} with the same row of the batch before",
    "sees_future": "outputs move by {} with later tokens",
    "every_pair": "every output is held against every target",
    "weighted_mean": "the plain mean of parts misses a batch's gradient by {}",
    "summed": "the loss is a sum over examples",
    "batch_norm": "parts of a batch miss its gradient by {}, for batch normalization",
    "tied_examples": "parts of a batch miss its gradient by {}, for the loss ties examples together",
}


def in_short(finding: Finding) -> str:
    """A clause with the finding's figure."""
    if finding.kind == "accumulation":
        return f"some examples count {finding.measure.value:.3g} times as much as others"
    return _IN_SHORT[finding.kind].format(percent(finding.measure.value)).replace("of it of", "of")


def repeated(found: Repeated) -> Finding | None:
    """Finding of two equal runs."""
    first = found.first
    if first is None:
        return None
    place = {
        "input": f"what the loss hands to `{first.name}`",
        "forward": f"the output of `{first.name}`",
        "loss": "the loss itself",
        "backward": f"the gradient of `{first.name}`",
        "update": f"the update of `{first.name}`",
    }[first.phase]
    where = {"loss": "loss", "input": "loss", "update": "optimizer"}.get(first.phase, first.name)
    measure = Measure(
        "difference of two equal runs, where they part", found.difference, unit="of the root mean square",
        method=f"{found.tensors} tensors of {found.steps} steps compared bit by bit",
    )  # fmt: skip
    text = (
        f"Two runs from the same weights and seeds part in step {first.step}, at {place},"
        f" by {percent(found.difference).removesuffix(' of it')} of its root mean square"
    )
    if found.difference <= found.rounding:
        return Finding(
            "order_of_sums", Status.LOOK, f"{text}: rounding, of a sum whose order is another each time.",
            "set torch.use_deterministic_algorithms(True) for runs that are compared bit by bit",
            "equal runs become bit-identical; some operators become slower, or raise", (where,), measure,
        )  # fmt: skip
    return Finding(
        "unseeded", Status.LOOK, f"{text}: more than rounding; it draws numbers that no seed sets.",
        f"let {'the loss' if where == 'loss' else f'`{where}`'} draw from torch's generator, or one that you seed",
        "a seed then repeats a run", (where,), measure,
    )  # fmt: skip


def mixed(found: Mixed, *, surely: bool) -> Finding | None:
    """Finding of an example that was replaced; `surely`: the first dimension is that of examples."""
    if not found.mixes:
        return None
    attends = found.kind in {"MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"}
    meant = found.meant and not (found.along and "experts" in found.meant)  # they share places, not their weights
    fault = surely and not meant and (found.ordered or attends or bool(found.along))
    place = f"`{found.culprit}`" + (f", before `{found.before}`" if found.before else "")
    measure = Measure(
        "change of an example's output when another example is replaced", found.moved, unit="of the root mean square",
        method="eval mode, two examples of a few replaced in turn",
    )  # fmt: skip
    text = (
        f"An example's output moves by {percent(found.moved)} when another example of its batch is replaced;"
        f" this begins in {place}"
    )
    where = tuple(dict.fromkeys(name for name in (found.culprit, found.before) if name))
    if not fault:
        reason = found.meant or ("it also depends on their order" if found.ordered else "their order does not matter")
        return Finding(
            "examples_meet", Status.LOOK, f"{text} ({reason}).",
            f"check that examples are meant to meet in {place}: predictions depend on what else is in their batch",
            "", where, measure,
        )  # fmt: skip
    advice = f"keep the batch dimension apart in {place}"
    if attends or found.kind in {"LSTM", "GRU", "RNN"}:
        advice = f"give `{found.culprit}` batch_first=True: it takes the batch's first dimension for time"
    elif found.along:
        advice = f"take the {found.along} in {place} along the last dimension (dim=-1), not along the batch's"
    return Finding(
        "mixes_examples", Status.BROKEN, f"{text}.", advice, "an example's output is its own", where, measure
    )


def shared(where: str, moved: float) -> Finding:
    """Finding of a number that all examples of a batch share."""
    place = "the loss, before the model" if where == "loss" else f"`{where}`"
    return Finding(
        "shared_number", Status.BROKEN,
        f"An example's output moves by {percent(moved)} when the others of its batch are replaced: in {place} a number"
        " taken over the whole batch (a largest number, a mean, a length) scales each, or is subtracted from it.",
        "take it over each example alone (x.amax(dim=1, keepdim=True)), or over the training set, once",
        "an example's output is its own", tuple(dict.fromkeys((where, "model", "loss"))),
        Measure("change of an example's output with the rest of its batch", moved, unit="of the root mean square",
                method="eval mode, all others of a few replaced"),
    )  # fmt: skip


def carried(moved: float, noise: float = 0.0) -> Finding | None:
    """Finding of a second call.

    Args:
        moved: how far its output is from the first one's.
        noise: by how much equal runs differ where they part: sums of another order, which grow from layer to layer.
    """
    if not moved > GROWN * noise:
        return None
    return Finding(
        "keeps_state", Status.LOOK,
        f"A second call on the same batch, in eval mode and with the same seeds, returns outputs that differ by"
        f" {percent(moved)}: the model keeps something from call to call.",
        "reset what the model keeps between sequences, and before each evaluation", "", ("model",),
        Measure("change of the output at a second call", moved, unit="of the root mean square"),
    )  # fmt: skip


def handed_on(moved: float) -> Finding:
    """Finding of a state that goes over to an unrelated batch."""
    return Finding(
        "hands_on_state", Status.BROKEN,
        f"An example's output moves by {percent(moved)} with the example that had its row in the batch before, which"
        " has nothing to do with it: the loader draws its examples at random, and the model keeps a state a row.",
        "begin each batch with a new state, or read the sequences in order, so that a row goes on where it ended",
        "outputs depend on their own example alone", ("model", "batches"),
        Measure("change of a row's output with the batch before", moved, unit="of the root mean square"),
    )  # fmt: skip


def future(found: Future) -> Finding | None:
    """Finding of a last token that was changed."""
    if not found.seen:
        return None
    return Finding(
        "sees_future", Status.BROKEN,
        f"Outputs move by {percent(found.moved)} when a later token is changed, which they are to predict; this begins"
        f" in `{found.culprit}`.",
        f"mask later places in `{found.culprit}` (is_causal=True, or an upper triangular mask)",
        "the loss no longer falls by copying, and means something", (found.culprit,),
        Measure("change of earlier outputs with a later token", found.moved, unit="of the root mean square"),
    )  # fmt: skip


def accumulated(found: Accumulated) -> Finding | None:
    """Finding of a batch that was cut."""
    return _ACCUMULATED[found.cause](found) if found.cause in _ACCUMULATED else None


def _measure(found: Accumulated) -> Measure:
    return Measure(
        "distance of the mean gradient of two halves from the batch's", found.apart, unit="of the gradient",
        method="the batch's halves, and every other example against the rest, at the weights as they are",
    )  # fmt: skip


def _every_pair(_: Accumulated) -> Finding:
    return Finding(
        "every_pair", Status.BROKEN,
        "Every output is held against every target: outputs (N, 1) and targets (N,) broadcast to (N, N).",
        "give outputs and targets one shape: model(x).squeeze(-1), or y.unsqueeze(-1)",
        "each output is held against its own target", ("loss",),
    )  # fmt: skip


def _uneven(found: Accumulated) -> Finding:
    return Finding(
        "accumulation", Status.LOOK,
        f"Examples count up to {found.spread:.3g} times as much as others in the batch's gradient, by the part of"
        " the batch they are in: the loss averages means of unequal parts.",
        "sum the loss over each part, and divide by the whole batch's count (of tokens, of labels)",
        "every token counts alike, whatever part it is in", ("loss",),
        Measure("largest over smallest weight of an example", found.spread, method="examples' gradients fitted"),
    )  # fmt: skip


def _weighted(found: Accumulated) -> Finding:
    weights = " and ".join(f"{each:.2g}" for each in found.weights)
    return Finding(
        "weighted_mean", Status.LOOK,
        f"Gradients of two halves of a batch make up its own with the weights {weights}, not 0.5 and 0.5: the plain"
        f" mean, as accumulation and data-parallel training take it, misses it by {percent(found.apart)}.",
        "where you accumulate or train on several devices, sum each part's loss and divide by the whole's count",
        "accumulation gives the large batch's gradient", ("loss",), _measure(found),
    )  # fmt: skip


def _summed(found: Accumulated) -> Finding:
    return Finding(
        "summed", Status.LOOK,
        "The loss is a sum over examples: gradients of parts add up to the batch's, and grow with its size.",
        "do not divide by the number of parts where you accumulate; divide the rate where you enlarge the batch",
        "", ("loss",), _measure(found),
    )  # fmt: skip


def _tied(found: Accumulated) -> Finding:
    norm = found.cause == "batch norm"
    reason = "batch normalization sees one part at a time" if norm else "the loss ties examples together"
    return Finding(
        "batch_norm" if norm else "tied_examples", Status.FINE,
        f"The mean gradient of two halves misses the batch's by {percent(found.apart)}: {reason}.",
        where=("model",) if norm else ("loss",), measure=_measure(found),
    )  # fmt: skip


_ACCUMULATED: dict[str, Callable[[Accumulated], Finding]] = {
    "broadcast": _every_pair, "uneven": _uneven, "weights": _weighted, "sum": _summed, "batch norm": _tied,
    "tied": _tied,
}  # fmt: skip
"""By the cause; what it lacks is no finding."""
