"""Are the dimensions of outputs what the loss takes them for: examples, places, classes, padding?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.graphs import nodes, softmaxes
from depthgauge.checking.questions.data.called import watched
from depthgauge.checking.questions.data.held import Held
from depthgauge.checking.questions.data.outputs import Outputs
from depthgauge.checking.questions.reproducibility import mixing
from depthgauge.checking.subject import Subject
from depthgauge.checking.terms import short
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

OTHERS = 0.02  # of the sequences, that may end with another token, repeated
PADDED = 0.15  # of all places, that are padding where it is told

KINDS = {
    "softmax_over_examples": Kind(
        "fault",
        "a softmax of the loss goes along the examples of outputs that are held against an example's label, or, of loss"
        " or model, along a dimension that is as long as the batch, whatever its length, and whose others are not",
    ),
    "softmax_over_places": Kind(
        "fault",
        "a softmax of outputs that are held against a label at each place goes along the places, not the classes",
    ),
    "norm_over_examples": Kind(
        "fault",
        "similarities of all examples are products of rows, and each number is normalized over the examples, not each"
        " row over its numbers",
    ),
    "scrambled_classes": Kind(
        "fault",
        "scores of one place reach cross-entropy in the rows of several, one class each: a view in place of a"
        " permutation",
    ),
    "padding_counts": Kind(
        "fault",
        f"places at the ends of sequences that repeat one token, {PADDED:.0%} of all or more, have a gradient"
        " like others",
    ),
}


def findings(subject: Subject, outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    """Yield what is found of the outputs' dimensions."""
    graph = list(nodes(outputs.value(outputs.free)))
    yield from (
        list(_softmax(graph, outputs, pairs)) or list(_over_rows(subject)) or _over_places(graph, outputs, pairs)
    )
    yield from _crossed(graph, outputs)
    yield from _scrambled(subject)
    yield from _padding(outputs, pairs)


def _softmax(graph: Sequence[Any], outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    count = nested.rows(outputs.batch)
    shapes = {
        (count, *outputs.free[pair.leaf].shape[1:])
        for pair in pairs
        if pair.classes is not None and outputs.free[pair.leaf].dim() == 2 and outputs.free[pair.leaf].shape[1] != count
    }
    if shapes and any(along == 0 and shape in shapes for shape, along in softmaxes(graph)):
        yield Finding(
            "softmax_over_examples", Status.BROKEN,
            f"a softmax of the loss goes along dimension 0, over the {count} examples: their"
            " probabilities of a class add up"
            " to 1, not those of an example's classes",
            "take it along the classes (dim=1)", "each example has probabilities of its own", ("loss",),
        )  # fmt: skip


def _over_rows(subject: Subject) -> Iterator[Finding]:
    """A softmax along a dimension that follows the number of examples, of numbers of which each has several."""
    training, batch = subject.training, subject.seen.batch
    if not mixing.by_example(training, batch) or not (whole := _rowwise(training, batch)):
        return
    if not any(_rowwise(training, part) == whole for part in mixing.few(batch)):  # of another length each
        return
    dim, shape = whole[0]
    several = " x ".join("examples" if size is None else str(size) for size in shape)
    yield Finding(
        "softmax_over_examples", Status.BROKEN,
        f"a softmax of {several} numbers goes along dimension {dim}, over the {nested.rows(batch)} examples of a batch:"
        " shares of one example add up to 1 with those of others, not among themselves",
        "take it along the last dimension (dim=-1), or that of what is shared out",
        "an example's shares are its own", ("loss", "model"),
    )  # fmt: skip


def _rowwise(training: Training, batch: Any) -> list[tuple[int, tuple[int | None, ...]]]:
    """Of each softmax along examples, and along no other dimension as long: which, and its shape without them."""
    count = nested.rows(batch)
    found: list[tuple[int, tuple[int | None, ...]]] = []
    try:
        with random_states_kept():
            graph = list(nodes(training.value(batch)))
    except Exception:  # noqa: BLE001 - a module may ask for a number of examples; others are tried
        return found
    for shape, along in softmaxes(graph):
        others = [size for dim, size in enumerate(shape) if dim != along]
        if shape[along] == count and count not in others and max(others, default=1) > 1:
            found.append((along, tuple(None if dim == along else size for dim, size in enumerate(shape))))
    return found


def _over_places(graph: Sequence[Any], outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    """A softmax of the loss, or of the model at its end, along another dimension than the one that labels choose in."""
    classes = {outputs.free[pair.leaf].shape: pair.classes for pair in pairs if pair.classes is not None}
    leaves = {pair.leaf: pair.classes for pair in pairs if pair.classes is not None}
    if not leaves or len(leaves) < sum(pair.classes is not None for pair in pairs):  # the dimension is not told
        return
    for leaf, own in leaves.items():
        output = outputs.free[leaf].float()
        logs = output if bool((output <= 0).all()) else output.log()
        others = [dim for dim in range(1, output.dim()) if dim != own and output.dim() > 2]
        if not _is_one(logs, own) and (over := next((dim for dim in others if _is_one(logs, dim)), None)) is not None:
            yield _along_other(over, own, output, "model")
            return
    made = list(softmaxes(graph))
    for shape, own in classes.items():
        dims = {dim for of, dim in made if of == tuple(shape)}
        if len(shape) > 2 and dims and own not in dims and 0 not in dims:
            yield _along_other(dims.pop(), own, torch.empty(shape, device="meta"), "loss")
            return


def _crossed(graph: Sequence[Any], outputs: Outputs) -> Iterator[Finding]:
    """Products of two matrices, of (examples, examples), whose factors have unit length along the other axis."""
    count = nested.rows(outputs.batch) or 0
    for node in graph:
        if short(node) != "Mm" or node._saved_self is None or node._saved_mat2 is None:
            continue
        rows, other = node._saved_self.detach(), node._saved_mat2.detach().T
        square = len(rows) == len(other) and len(rows) in {count, 2 * count} and rows.shape[1] >= 3
        if square and all(_is_unit(each, 0) and not _is_unit(each, 1) for each in (rows, other)):
            yield Finding(
                "norm_over_examples", Status.BROKEN,
                f"similarities of {len(rows)} examples are products of rows of {rows.shape[1]} numbers, and what has"
                " length 1 are the columns: each number is normalized over the examples",
                "normalize along the last dimension (dim=-1)", "similarities are cosines, between -1 and 1", ("loss",),
            )  # fmt: skip
            return


def _is_unit(matrix: Tensor, dim: int) -> bool:
    return bool(((matrix.float().norm(dim=dim) - 1).abs() < 1e-2).all())


def _is_one(logs: Tensor, dim: int) -> bool:
    return logs.shape[dim] > 1 and bool((torch.logsumexp(logs, dim).abs() < 0.01).all())


def _along_other(dim: int, own: int | None, output: Tensor, where: str) -> Finding:
    sizes = " x ".join(map(str, output.shape))
    return Finding(
        "softmax_over_places", Status.BROKEN,
        f"a softmax of {sizes} numbers goes along dimension {dim}, and a label of each place chooses along dimension"
        f" {own}: probabilities add up to 1 over places, not over an example's {output.shape[own or 0]} classes",
        f"take it along dimension {own}", "each place has probabilities of its own",
        ("loss",) if where == "loss" else ("loss", where),
    )  # fmt: skip


def _scrambled(subject: Subject) -> Iterator[Finding]:
    """Move all scores of one place: rows of cross-entropy move with all their classes, or with one each."""
    training = subject.training
    calls, _ = watched(subject)
    before = next((_rows(call.given["input"]) for call in calls if call.name in {"cross_entropy", "nll_loss"}), None)
    if before is None or before.shape[1] < 3:
        return
    classes = before.shape[1]
    last: list[tuple[torch.nn.Module, tuple[int, ...]]] = []
    handles = [
        module.register_forward_hook(
            lambda one, _, out: last.append((one, tuple(out.shape))) if isinstance(out, Tensor) else None
        )
        for module in training.model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.modules.conv._ConvNd)
    ]
    watched(subject)
    for each in handles:
        each.remove()
    if not last:
        return
    module, shape = last[-1]
    dim = len(shape) - 1 if isinstance(module, torch.nn.Linear) else 1
    if len(shape) < 3 or shape[dim] % classes or sum(one is module for one, _ in last) > 1:
        return
    moved = torch.zeros(shape)
    place = tuple(slice(None) if each == dim else size // 2 for each, size in enumerate(shape))
    moved[place] = torch.linspace(1.0, 2.0, shape[dim])
    handle = module.register_forward_hook(lambda _, __, out: out + moved.to(out))
    try:
        again, _ = watched(subject)
    finally:
        handle.remove()
    after = next((_rows(call.given["input"]) for call in again if call.name in {"cross_entropy", "nll_loss"}), None)
    if after is None or after.shape != before.shape:
        return
    apart = after - before
    apart = (apart - apart.median(1, keepdim=True).values).abs() > 1e-4
    hit = apart.sum(1)[apart.any(1)]
    if len(hit) >= 2 and len(hit) >= classes // 2 and bool((hit <= max(1, classes // 3)).all()):
        yield Finding(
            "scrambled_classes", Status.BROKEN,
            f"the {classes} scores of one place reach cross-entropy in {len(hit)} rows, one class each: the"
            " classes' dimension"
            " was brought there by a view or reshape, which leaves numbers where they lie",
            "bring the classes' dimension to its place by permute, movedim or transpose, then reshape",
            "each row holds one place's"
            " scores", ("loss", "model"), Measure("rows that one place's scores reach", len(hit)),
        )  # fmt: skip


def _rows(scores: Tensor) -> Tensor:
    """(rows, classes)."""
    scores = scores.detach().float()
    return scores.movedim(1, -1).reshape(-1, scores.shape[1]) if scores.dim() > 1 else scores[None]


def _padding(outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    ways: dict[tuple[str | None, int], list[float | None]] = {}
    for pair in pairs:
        ways.setdefault((pair.place, pair.leaf), []).append(_counted_padding(outputs, pair))
    for shares in ways.values():  # with as many places as classes either dimension may be the classes'
        share = shares[0]
        if share is None or None in shares:
            continue
        yield Finding(
            "padding_counts", Status.LOOK,
            f"{share:.0%} of all places repeat one token up to their sequence's end, and the loss counts them like"
            " others: it is mostly a mean over padding",
            "leave padding out of the loss (ignore_index, labels of -100, or a mask), and divide by what is left",
            "the loss is of what is to be learnt", ("loss", "batches"), Measure("share of padding", share),
        )  # fmt: skip
        return


def _counted_padding(outputs: Outputs, pair: Held) -> float | None:
    """The share of padding, of labels whose padding has a gradient as other places have; None of others."""
    labels, output = pair.targets, outputs.free[pair.leaf]
    tokens = [each for _, each in nested.tensors(outputs.batch) if each.dim() == 2 and each.dtype is torch.int64]
    if pair.classes is None or labels.dim() != 2 or output.dim() != 3 or not tokens:
        return None
    padded = _ends(labels) & (labels >= 0)  # below 0 there is no class: a loss leaves it out, or raises
    for each in tokens:
        padded = padded & _ends(each) if each.shape == padded.shape else padded
    inner = padded & padded.roll(-1, 1)
    inner[:, -1] = False
    if inner.float().mean() < PADDED:
        return None
    with torch.no_grad():
        gradient = outputs.gradient(outputs.free)[1][pair.leaf]
    counted = (gradient.movedim(pair.classes, -1) != 0).any(-1)
    return padded.float().mean().item() if counted[inner].float().mean() > 0.9 else None


def _ends(tokens: Tensor) -> Tensor:
    """(rows, places) where a row repeats, up to its end, the token that most rows end with; of different lengths."""
    none = torch.zeros_like(tokens, dtype=torch.bool)
    if tokens.shape[1] < 4 or len(tokens) < 8:
        return none
    token = int(tokens[:, -1].mode().values)
    if 2 < token < int(tokens.max()):  # padding has the first numbers of a vocabulary, or its last
        return none
    run = (tokens == token).flip(1).long().cumprod(1).flip(1).bool()
    lengths = run.sum(1)
    if (
        (lengths >= 2).float().mean() < 0.5
        or len(set(lengths.tolist())) < 3
        or bool((lengths == tokens.shape[1]).all())
    ):
        return none
    others = (lengths == 0) & (tokens[:, -1] == tokens[:, -2])
    if others.float().mean() > OTHERS:  # sequences that come to rest, each at a token of its own
        return none
    return run
