"""Findings from a watched pass: outputs that say nothing, places made alike, states that grow, rows never looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.signal.watching import Watched
from depthgauge.checking.questions.signal.wiring import is_new
from depthgauge.checking.words import MOST_WHERE, listed, plural

ALIKE = 1e-4  # of a sequence's second moment: its places differ by a hundredth of their size
APART = 0.05  # of it, before the first block
CHAIN = 3  # blocks of a kind, in a row
GROWN = 100.0  # times over one sequence: Glorot's, He's and orthogonal recurrent weights stay below 2
DROWNED = 300.0  # times as large: sinusoids over embeddings of 0.02 are 36 times
CHOOSING = 0.5  # of the rows of attention give one place 0.99: none of any usual initialization's
COVERED = 0.9  # of the rows in a range that are looked up
SIMILAR = 0.9  # of the widest column's range, that the narrowest has where all are of one kind
CUT = 3  # steps of a recurrence, each without the gradient of the one before
HALF = 0.6  # of the rows of an embedding, at most, that are looked up where columns share them


def findings(model: nn.Module, now: Watched, later: Watched | None) -> Iterator[Finding]:
    """Yield what a pass showed at the start, and one after the first steps."""
    yield from _mute(model, now, later)
    yield from _places(model, now)
    yield from _grown(now)
    yield from _drowned(now)
    yield from _chosen(model, now, later)
    yield from _rows(now)
    yield from _across(now)
    yield from _built(now)
    yield from _twice(now)
    yield from _zeroed(now)
    yield from _cut_states(now)
    yield from _repeated(model)


def _mute(model: nn.Module, now: Watched, later: Watched | None) -> Iterator[Finding]:
    """Layers whose output is the same for all examples, at the start and after steps."""
    weights = {name: getattr(module, "weight", None) for name, module in model.named_modules()}
    closed = {name for name, each in weights.items() if isinstance(each, Tensor) and not bool(each.detach().any())}
    names = [name for name in now.mute if name not in closed and (later is None or name in later.mute)]
    if not names:
        return
    size = now.mute[names[0]]
    text = f"the output of {listed(names)} is the same for all examples, whatever goes in"
    text += " (one value is normalized by itself)" if size == 1 or "norm" in names[0].lower() else ""
    advice = f"let the output of `{names[0]}` depend on its input: normalize over several features, or leave it out"
    yield Finding("constant_output", Status.BROKEN, text, advice, "what comes after it sees the examples",
                  tuple(names)[:MOST_WHERE])  # fmt: skip


def _places(model: nn.Module, now: Watched) -> Iterator[Finding]:
    """Blocks of one class in a row that make the places of a sequence alike."""
    for chain in _chains(model, list(now.alike)):
        (first, _), (given, last) = now.alike[chain[0]], now.alike[chain[-1]]
        falls = all(now.alike[after][0] < max(ALIKE, 2 * now.alike[before][0]) for before, after in pairwise(chain))
        if first > APART and max(given, last) < ALIKE and falls:
            share = max(last, 1e-14) ** 0.5
            text = (
                f"after {len(chain)} blocks the places of a sequence differ by {share:.1g} of their size, before them"
                f" by {first**0.5:.1g}: they have become alike"
            )
            advice = f"give {listed(chain)} a way around: return x + block(x)"
            yield Finding("collapse", Status.BROKEN, text, advice, "places stay apart", tuple(chain)[:MOST_WHERE],
                          Measure("relative difference between places", share))  # fmt: skip
            return


def _chains(model: nn.Module, names: list[str]) -> Iterator[list[str]]:
    """Blocks of one class, in the order of their calls, neither parts of other blocks nor what holds them."""
    kinds: dict[type, list[str]] = {}
    for name in names:
        module = model.get_submodule(name)
        if next(module.children(), None) is not None:
            kinds.setdefault(type(module), []).append(name)
    repeated = [name for found in kinds.values() if len(found) >= CHAIN for name in found]
    for found in kinds.values():
        inside = {other: sum(name.startswith(f"{other}.") for name in found) for other in repeated}
        once = [other for other, count in inside.items() if count == 1]  # a part of a block is none by itself
        chain = [name for name in found if not any(name.startswith(f"{other}.") for other in once)]
        chain = [name for name in chain if not any(other.startswith(f"{name}.") for other in chain)]
        if len(chain) >= CHAIN:
            yield chain


def _grown(now: Watched) -> Iterator[Finding]:
    grown = {name: times for name, times in now.growth.items() if times >= GROWN}
    if not grown:
        return
    worst = max(grown, key=grown.__getitem__)
    text = f"the state of `{worst}` grows {grown[worst]:.2g} times from the first quarter of a sequence to the last"
    advice = f"draw the recurrent weights of `{worst}` orthogonally with gain 1 (torch.nn.init.orthogonal_)"
    yield Finding("exploding", Status.BROKEN, text, advice, "the state keeps its size", tuple(grown)[:MOST_WHERE],
                  Measure("growth of the state over a sequence", grown[worst]))  # fmt: skip


def _drowned(now: Watched) -> Iterator[Finding]:
    worst = max(now.added, key=lambda each: each.ratio, default=None)
    if worst is None or worst.ratio < DROWNED:
        return
    shared = f"`{worst.shared}`" if worst.shared else "what is the same for all examples"
    text = f"{shared} is {worst.ratio:.2g} times as large as what differs between examples, to which it is added"
    text += f" after `{worst.last}`" if worst.last else ""
    advice = f"bring both to one size: smaller values in {shared}"
    advice += f", or a larger output of `{worst.last}`" if worst.last else ""
    where = tuple(dict.fromkeys(each for each in (worst.shared, worst.last, worst.inside) if each))
    yield Finding("drowned", Status.LOOK, text, advice, "examples are told apart", where,
                  Measure("size of the shared part over the other", worst.ratio))  # fmt: skip


def _chosen(model: nn.Module, now: Watched, later: Watched | None) -> Iterator[Finding]:
    """Attention that gives one place nearly all weight, in a new model."""
    layers = [each for each in model.modules() if isinstance(each, nn.Linear | nn.Conv1d | nn.Conv2d)]
    new = sum(map(is_new, layers))
    names = [name for name in now.choosing(CHOOSING) if later is None or name in later.choosing(CHOOSING)]
    if not names or 2 * new < len(layers):
        return
    all_, one = now.chosen[names[0]]
    text = f"{100 * one / all_:.3g} % of the rows of attention in `{names[0]}` give one place 0.99 of the weight:"
    text += " its softmax is saturated"
    advice = "divide the scores by the root of the width of a head, or draw smaller weights for queries and keys"
    yield Finding("saturated_units", Status.LOOK, text, advice, "a gradient passes the scores",
                  tuple(names)[:MOST_WHERE], Measure("saturated rows of attention", one / all_))  # fmt: skip


def _across(now: Watched) -> Iterator[Finding]:
    """Attention that is normalized over its queries."""
    names = sorted(now.across)
    if names:
        text = f"the weights of attention in {listed(names)} add up to one along another axis than that of the sum"
        text += " over values: a row's weights may add up to anything"
        advice = "take the softmax over the keys, the last axis of query @ key.transpose(-2, -1)"
        yield Finding(
            "wrong_axis", Status.LOOK, text, advice, "each row is a mean of values", tuple(names)[:MOST_WHERE]
        )


def _repeated(model: nn.Module) -> Iterator[Finding]:
    """One layer in several places of a list."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        places: dict[int, list[str]] = {}
        children: dict[str, nn.Module | None] = dict(module._modules)  # `children()` leaves out who is there already
        for own, child in children.items():
            if child is not None and any(each.dim() > 1 for each in child.parameters()):
                places.setdefault(id(child), []).append(f"{name}.{own}" if name else own)
        for same in places.values():
            if len(same) >= CHAIN:
                text = f"{listed(same)} are one and the same layer, in {len(same)} places: they train as one"
                advice = "make each place a layer of its own: [make() for _ in range(n)] in place of [layer] * n"
                where = tuple(dict.fromkeys((*same, *([name] if name else []))))
                yield Finding("one_layer", Status.LOOK, text, advice, "each layer has weights of its own",
                              where[:MOST_WHERE])  # fmt: skip


def _rows(now: Watched) -> Iterator[Finding]:
    """Embeddings of which whole ranges of rows are never looked up, where an offset explains it."""
    for name, (rows, found) in now.looked.items():
        if len({each.shape[1] for each in found}) != 1:
            continue
        indices = torch.cat(found)
        if len(indices) < 64 or rows < 8:
            continue
        columns = indices.shape[1]
        most = indices.max(0).values
        used = _count(indices)
        low, high = int(indices.min()), int(most.max())
        full = all(_count(indices[:, place]) >= COVERED * (int(most[place]) + 1) for place in range(columns))
        total = int((most + 1).sum())
        text = advice = ""
        unlike = int(most.min()) + 1 < SIMILAR * (high + 1)  # words of a text have one range in each column
        if unlike and 2 <= columns <= 64 and high + 1 <= HALF * rows and 0.8 * rows <= total <= rows and full:
            text = (
                f"{columns} columns look up the same {high + 1} rows of `{name}`, and its other {rows - high - 1} are"
                f" never used: its {rows} rows suffice for all columns' own"
            )
            advice = "add to each column the number of rows of those before it"
        elif high == rows - 1 and 4 * low >= rows and used >= COVERED * (rows - low) and indices.numel() >= 4 * rows:
            text = f"the first {low} of {rows} rows of `{name}` are never looked up, and all others are"
            advice = "take the offset out of the indices"
        if text:
            yield Finding("unused_rows", Status.LOOK, text, advice, "each index has a row of its own", (name,),
                          Measure("rows that are looked up", float(used), unit="rows"))  # fmt: skip


def _count(indices: Tensor) -> int:
    return len(indices.unique())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _built(now: Watched) -> Iterator[Finding]:
    """Parameters that are made within each pass: none of the last one's is in the next."""
    passes = now.strangers
    if len(passes) < 2 or not all(passes):
        return
    ids = [set(map(id, each)) for each in passes]
    if any(one & other for one, other in pairwise(ids)):
        return
    size = sum(each.numel() for each in passes[0])
    kinds = list(dict.fromkeys(kind for kind, *_ in now.made))
    places = [each for _, _, inside, last in now.made for each in (inside, last) if each]
    where = tuple(dict.fromkeys((*places, "model")))
    text = f"{plural(size, 'parameter')} are made anew in each forward pass and never train"
    text += f" ({', '.join(kinds[:3])} inside `{now.made[0][2]}`)" if now.made else ""
    advice = "make the layer once, in __init__, and call it in forward; then build the optimizer"
    yield Finding("unregistered", Status.BROKEN, text, advice, f"{plural(size, 'parameter')} begin to train",
                  where[:MOST_WHERE], Measure("made anew", float(size), unit="parameters"))  # fmt: skip


def _where(places: Mapping[str, str]) -> tuple[str, ...]:
    """Places and the modules called last before them, each once."""
    return tuple(dict.fromkeys(each for pair in places.items() for each in pair if each))


def _twice(now: Watched) -> Iterator[Finding]:
    """Weights that add up to one, and go through a softmax once more."""
    if not now.twice:
        return
    where = _where(now.twice)
    text = f"weights that add up to one go through a softmax again in `{where[0]}`: it makes them nearly equal, as none"
    text += " gets more than e = 2.7 times another's"
    yield Finding("softmax_twice", Status.LOOK, text, "take one of the two softmaxes out", "a weight can be near 1",
                  where[:MOST_WHERE])  # fmt: skip


def _zeroed(now: Watched) -> Iterator[Finding]:
    """Scores that a mask has made 0, whose exponential is 1."""
    if not now.zeroed:
        return
    where = _where(now.zeroed)
    text = f"scores of masked places are 0 before the softmax in `{where[0]}`, and exp(0) is 1: what is masked gets a"
    text += " weight like the others"
    yield Finding("masked_by_zero", Status.BROKEN, text, "set masked scores to -inf (masked_fill) before the softmax",
                  "masked places have no weight", where[:MOST_WHERE])  # fmt: skip


def _cut_states(now: Watched) -> Iterator[Finding]:
    """Cells that always get their own last state without its gradient."""
    names = [name for name, (kept, cut) in now.states.items() if not kept and cut >= CUT]
    if names:
        text = f"{listed(names)} gets its own last state without its gradient at each of its steps: it learns from one"
        text += " step of a sequence alone"
        advice = "detach the state between batches, where a new sequence begins, not between steps"
        yield Finding("cut_state", Status.BROKEN, text, advice, "what came some steps before can be learnt to be kept",
                      tuple(names)[:MOST_WHERE])  # fmt: skip
