"""The loss as it stands: against chance, and what it is handed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from depthgauge import stats
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.observing import Seen
from depthgauge.checking.parameters import is_normal
from depthgauge.checking.questions.data.passing import Passed, probabilities
from depthgauge.checking.terms import Term
from depthgauge.checking.words import MOST_WHERE, listed

EXCESS = 2.0  # nats above chance: scores drawn from N(0, s^2) are s^2 / 2 above it, so that s = 2; He's have s = 1.4
TIED = 3.0  # times the loss of equal scores: of N(0, 1) rows of width d and unit-variance outputs it is d / 2 more
NORMALIZED = 0.05  # |ln of the sum of probabilities|: bfloat16 log-probabilities of 1000 classes stay below
SHIFTED = 0.7  # of chance: what labels moved by one class must reach where the labels themselves are above chance
_ROWS = 4096  # rows whose loss gives the interval
_SQUASHING = {"Sigmoid": "a sigmoid", "Tanh": "a tanh", "Relu": "a ReLU", "Softmax": "a softmax"}

KINDS = {
    "nonfinite_loss": Kind(
        "fault", "the loss of one of the first batches, or of a smaller one after them, is NaN or infinite"
    ),
    "double_softmax": Kind(
        "fault",
        "cross-entropy takes scores and gets probabilities: softmax is applied twice, and the loss stays above"
        " ln(1 + (C - 1) / e), 1.46 for 10 classes",
    ),
    "squashed_scores": Kind("fault", "scores pass a sigmoid, a tanh or a ReLU before cross-entropy, which bounds them"),
    "double_sigmoid": Kind(
        "fault",
        "binary cross-entropy with logits, or another sigmoid of the loss, takes scores and gets a sigmoid's output",
    ),
    "redundant_log_softmax": Kind("opportunity", "log-softmax is applied twice, which changes nothing and costs time"),
    "log_of_softmax": Kind("opportunity", "the logarithm of a softmax underflows where log-softmax does not"),
    "not_log_probabilities": Kind(
        "fault", f"a loss that takes log-probabilities gets something else: |ln of their sum| is above {NORMALIZED}"
    ),
    "one_class": Kind(
        "fault", "cross-entropy, or a softmax before it, over one class is the same, whatever the model does"
    ),
    "negated_loss": Kind("fault", "the loss is minus the mean cross-entropy: steps make it worse"),
    "broadcast_targets": Kind(
        "fault", "scores and targets differ in shape and are repeated against each other: each meets all others"
    ),
    "far_above_chance": Kind(
        "opportunity",
        f"the loss at the start is more than {EXCESS:g} nats above that of equal scores: scores of standard deviation s"
        " are s^2 / 2 above it",
    ),
    "unscaled_tie": Kind(
        "fault",
        f"the loss at the start is {TIED:g} times that of equal scores or more, which are products with the rows of an"
        " embedding that keeps torch's N(0, 1): their standard deviation is the root of its width",
    ),
    "unit_weights": Kind(
        "fault",
        f"the loss at the start is {TIED:g} times that of equal scores or more, and weight matrices hold draws from"
        " N(0, 1), whatever their width: outputs grow by its root in each",
    ),
    "shifted_labels": Kind(
        "fault",
        f"labels moved by one class have a loss below {SHIFTED:g} of chance, the labels themselves one above it",
    ),
}


def chance(term: Term) -> float:
    """The loss of equal scores: ln classes, ln 2; of regression the targets' variance. NaN where there is none."""
    if term.form == "classes":
        return math.log(term.classes) if term.classes else math.nan
    if term.form in {"binary", "binary_logits"}:
        return math.log(2)
    if term.form == "regression" and len(term.targets) > 1:
        return term.targets.double().var(correction=0).item()
    return math.nan


def main_term(seen: Seen) -> Term | None:
    """The cross-entropy in the loss, where there is one, or the regression that the loss is; None where none is."""
    terms = seen.graph.terms
    if len(terms) != 1 or terms[0].form == "kl":
        return None
    return terms[0] if terms[0].form != "regression" or terms[0].is_all_of(seen.loss) else None


def start(seen: Seen) -> Measure:
    """The loss at the start over chance."""
    term = main_term(seen)
    if term is None or not math.isfinite(term.value) or not (level := chance(term)) > 0:
        return Measure()
    rows = term.by_row[:_ROWS]
    estimate = stats.mean((rows / level).tolist())
    unit = "variances of the targets" if term.form == "regression" else f"times chance ({level:.4g})"
    method = f"mean over {len(rows)} rows of the first batch, 95 % interval over rows"
    return Measure("loss at the start over chance", estimate.value, estimate.low, estimate.high, unit, method)


def findings(seen: Seen, passed: Passed, model: nn.Module) -> Iterator[Finding]:
    """Yield what is found about the loss."""
    if not all(map(math.isfinite, seen.losses)):
        place = next(index for index, loss in enumerate(seen.losses) if not math.isfinite(loss))
        yield Finding(
            "nonfinite_loss", Status.BROKEN,
            f"the loss of batch {place} is {seen.losses[place]:g} before the first step",
            "look for a division by zero, a logarithm of 0 or a batch in which nothing counts",
            "steps stay finite", ("loss",), Measure("loss", seen.losses[place]),
        )  # fmt: skip
    handed = [found for each in seen.graph.terms for found in _handed(each, passed)]
    yield from handed
    if not seen.graph.terms and ("LogSoftmax", "Softmax") in seen.graph.pairs:
        yield _twice("cross-entropy", "a softmax", "softmax", 0)
    elif not any(each.kind in {"double_softmax", "double_sigmoid", "squashed_scores"} for each in handed):
        yield from _flattened(seen)
    term = main_term(seen)
    if term is not None:
        yield from _level(seen, term, model)
        yield from _negated(seen, term)


def _flattened(seen: Seen) -> Iterator[Finding]:
    """A softmax or sigmoid by hand of what has passed one already, anywhere in the loss."""
    for upper, lower in sorted(seen.graph.flattened):
        if upper in {"Softmax", "LogSoftmax"}:
            yield Finding(
                "double_softmax", Status.BROKEN,
                f"probabilities go through {'log_softmax' if upper == 'LogSoftmax' else 'softmax'} again, which takes"
                " scores: it makes them nearly equal, as none gets more than e = 2.7 times another's",
                "take one of the two out: hand over scores, or use the probabilities themselves",
                "a probability can be near 1", ("loss", "model"),
            )  # fmt: skip
        else:
            yield Finding(
                "double_sigmoid", Status.BROKEN,
                f"the output of {_SQUASHING[lower]} goes through a sigmoid again: what comes out stays between 0.5 and"
                " 0.73",
                "take one of the two out: hand over scores, or use the probabilities themselves",
                "a probability can be near 0 or 1", ("loss", "model"),
            )  # fmt: skip
        return


def _handed(term: Term, passed: Passed) -> Iterator[Finding]:
    """What is wrong with what a term gets."""
    if term.form == "classes":
        yield from _classes(term, passed)
    elif term.form == "binary" and term.below[:1] == ("Softmax",) and bool((term.scores == 1).all()):
        yield _alone("a softmax over one class is 1, whatever the model does, and so is what binary cross-entropy gets")
    elif term.form == "binary_logits" and term.below[:1] and term.below[0] in {"Sigmoid", "Softmax"}:
        what = _SQUASHING[term.below[0]]
        yield Finding(
            "double_sigmoid", Status.BROKEN,
            f"binary cross-entropy with logits gets the output of {what}, between 0 and 1: its probabilities stay"
            " between 0.5 and 0.73",
            f"hand over the scores as they are before {what}, or use binary_cross_entropy",
            "the loss can fall below 0.31", ("loss",),
        )  # fmt: skip
    elif term.form == "kl" and bool((term.scores > 0).any() | ((term.scores >= 0).all() & (len(term.scores) > 0))):
        yield Finding(
            "not_log_probabilities", Status.BROKEN,
            f"kl_div takes log-probabilities and gets numbers from {term.scores.min().item():.3g} to"
            f" {term.scores.max().item():.3g}",
            "hand over torch.log_softmax(scores, -1)", "the loss is a divergence", ("loss",),
        )  # fmt: skip
    if term.broadcast:
        yield Finding(
            "broadcast_targets", Status.BROKEN,
            f"scores and targets are repeated against each other to {' x '.join(map(str, term.shape))} numbers: every"
            " score is held against every target",
            "give both the same shape: scores.squeeze(-1), or targets.unsqueeze(-1)",
            "each example is held against its own target", ("loss",),
        )  # fmt: skip


def _classes(term: Term, passed: Passed) -> Iterator[Finding]:
    if term.classes == 1:
        yield _alone("cross-entropy is taken over one class, so that it is 0 whatever the model does")
        return
    first, second = (*term.below, "", "")[:2]
    if first == "LogSoftmax" and second in _SQUASHING:
        yield _twice("cross-entropy", _SQUASHING[second], second, term.classes)
    elif first == "LogSoftmax" and probabilities(passed.scores, term):
        yield _twice("cross-entropy", "a softmax", "Softmax", term.classes)
    elif first == "LogSoftmax" and second == "LogSoftmax":
        yield Finding(
            "redundant_log_softmax", Status.LOOK,
            "cross-entropy gets log-probabilities, and applies log-softmax a second time, which changes nothing",
            "use torch.nn.functional.nll_loss, or leave log_softmax out of the model", "a pass less over the scores",
            ("loss",),
        )  # fmt: skip
    elif first == "Log" and second == "Softmax":
        yield Finding(
            "log_of_softmax", Status.LOOK,
            "the loss takes the logarithm of a softmax, which is -inf where it underflows",
            "use torch.log_softmax", "no infinite loss for a confident score", ("loss",),
        )  # fmt: skip
    off = _unnormalized(term)
    if off > NORMALIZED:
        yield Finding(
            "not_log_probabilities", Status.BROKEN,
            f"nll_loss takes log-probabilities over the classes, and the sum of what it gets is off by {off:.3g} in ln",
            "hand over torch.log_softmax(scores, 1), or scores to cross_entropy",
            "the loss is a cross-entropy, and not below 0", ("loss",), Measure("ln of the sum of probabilities", off),
        )  # fmt: skip


def _alone(text: str) -> Finding:
    advice = "use binary_cross_entropy_with_logits for one score, or one score for each class"
    return Finding("one_class", Status.BROKEN, text, advice, "the loss depends on the model", ("loss", "model"))


def _twice(loss: str, what: str, node: str, classes: int) -> Finding:
    if node.lower() == "softmax":
        floor = f", and stays above {math.log1p((classes - 1) / math.e):.3g}" if classes else ""
        return Finding(
            "double_softmax", Status.BROKEN,
            f"softmax is applied twice: {loss} gets probabilities instead of scores{floor}",
            f"leave the softmax out of the model, and hand its scores to {loss}",
            "gradients are no longer those of scores between 0 and 1, and the loss can reach 0", ("loss", "model"),
        )  # fmt: skip
    bound = {"Sigmoid": "between 0 and 1", "Tanh": "between -1 and 1", "Relu": "at 0 or above"}[node]
    return Finding(
        "squashed_scores", Status.LOOK if node == "Relu" else Status.BROKEN,
        f"the scores of {loss} pass {what}, and lie {bound}",
        f"leave {what} out after the last layer", "the loss can reach 0", ("loss", "model"),
    )  # fmt: skip


def _unnormalized(term: Term) -> float:
    sums = torch.logsumexp(term.scores[term.counted].double(), 1).abs()
    sums = sums[sums.isfinite()]
    return sums.median().item() if len(sums) else 0.0


def _negated(seen: Seen, term: Term) -> Iterator[Finding]:
    if term.form in {"classes", "binary", "binary_logits"} and seen.loss < 0 and term.is_all_of(-seen.loss):
        yield Finding(
            "negated_loss", Status.BROKEN,
            f"the loss is {seen.loss:.4g}, minus the mean cross-entropy: every step makes that worse",
            "leave the minus sign out", "steps lower the cross-entropy", ("loss",), Measure("loss", seen.loss),
        )  # fmt: skip


def _level(seen: Seen, term: Term, model: nn.Module) -> Iterator[Finding]:
    """What the loss at the start says against chance."""
    level, loss = chance(term), term.value
    if term.form == "regression" or not math.isfinite(loss) or not loss > level + EXCESS:
        return
    if term.form == "classes" and (moved := _moved(term)) is not None and moved[1] < SHIFTED * level:
        yield Finding(
            "shifted_labels", Status.BROKEN,
            f"the loss is {loss:.4g} with the labels as they are, chance {level:.4g}, and {moved[1]:.4g} with"
            f" {moved[0]:+d} added to every label: labels and classes are off by one",
            f"add {moved[0]:+d} to the labels", f"the loss starts at {moved[1]:.4g}", ("batches",),
        )  # fmt: skip
        return
    spread = math.sqrt(2 * (loss - level))
    measure = start(seen)
    if loss > TIED * level and (tied := _unit_table(model, term)) is not None:
        name, width = tied
        yield Finding(
            "unscaled_tie", Status.LOOK,
            f"the scores are products with the rows of `{name}`, which are N(0, 1) and {width} wide: the loss is"
            f" {loss:.4g} before the first step, and {level:.4g} with equal scores",
            f"draw the table with standard deviation {width**-0.5:.2g} (1 over the root of {width})",
            f"the loss starts near {level:.4g}", (name, "loss", "model"), measure,
        )  # fmt: skip
        return
    if loss > TIED * level and (drawn := _unit_matrices(model)):
        wide = max(each.shape[1:].numel() for each in drawn.values())
        yield Finding(
            "unit_weights", Status.LOOK,
            f"the weights of {listed(list(drawn))} are draws from N(0, 1), whatever the width: the loss is {loss:.4g}"
            f" before the first step, and {level:.4g} with equal scores",
            f"divide them by the root of their width ({wide**-0.5:.2g} for {wide}): nn.init.kaiming_normal_ does, for"
            " ReLU",
            f"the loss starts near {level:.4g}", (*list(drawn)[:MOST_WHERE], "loss", "model"), measure,
        )  # fmt: skip
        return
    yield Finding(
        "far_above_chance", Status.LOOK,
        f"the loss is {loss:.4g} before the first step, and {level:.4g} with equal scores: the model is sure of wrong"
        f" answers, as with scores of standard deviation {spread:.2g}",
        f"multiply the initial weights of the last layer by {min(0.1, 0.3 / spread):.2g}",
        f"the loss starts near {level:.4g}, and the first steps do not go into taking the scores back",
        ("loss", "model"), measure,
    )  # fmt: skip


def _unit_table(model: nn.Module, term: Term) -> tuple[str, int] | None:
    """The name and width of an embedding of N(0, 1) that must be the last layer, as no other has a row a class."""
    if term.form != "classes":
        return None
    tables = {name: each for name, each in model.named_modules() if isinstance(each, nn.Embedding)}
    own = {id(each.weight) for each in tables.values()}
    others = [each for each in model.parameters() if each.dim() > 1 and id(each) not in own]
    if any(term.classes in each.shape for each in others):
        return None
    fit = [(name, each) for name, each in tables.items() if each.num_embeddings == term.classes]
    if len(fit) != 1 or not is_normal(fit[0][1].weight.detach()):
        return None
    return fit[0][0], fit[0][1].embedding_dim


def _unit_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Weights of linear and convolutional layers, by layer, that are draws from N(0, 1)."""
    layers = {
        name: each for name, each in model.named_modules() if isinstance(each, nn.Linear | nn.modules.conv._ConvNd)
    }
    weights = {name: each.weight.detach() for name, each in layers.items() if not nn.parameter.is_lazy(each.weight)}
    return {name: each for name, each in weights.items() if is_normal(each.flatten(1))}


def _moved(term: Term) -> tuple[int, float] | None:
    """By how much labels are to be moved for the least loss, and that loss."""
    scores, targets = term.scores[term.counted], term.targets[term.counted]
    best: tuple[int, float] | None = None
    for by in (-1, 1):
        inside = ((targets + by) >= 0) & ((targets + by) < term.classes)
        if inside.float().mean() < 0.5:
            continue
        value = -scores[inside].gather(1, (targets[inside] + by)[:, None]).mean().item()
        best = (by, value) if best is None or value < best[1] else best
    return best
