"""What an operator reads and writes, found by experiment: the oracle of `test_transfers.py`.

An argument is read if another value of it changes what comes out; an element is written if it ever changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

Operator = torch._ops.OpOverload
Arguments = dict[str, Any]
_DECOMPOSES = torch._C.DispatchKey.CompositeImplicitAutograd
_LEFT_OUT = re.compile(
    r"_(?!_i|foreach_|fused_)|linalg_|fft_|special_|cudnn_|mkldnn_|geqrf|ormqr|cholesky|triangular_solve|lu_"
    r"|masked_select|nonzero"
)
_SIDE = 4
_INDICES = {"index", "indices", "target"}
KINDS = ("float", "wide", "int", "bool", "cube", "image", "vector", "complex")


def overloads() -> list[Operator]:
    """Every overload of torch's own that writes to an argument and runs below autograd, in the order of names.

    Without those that only torch calls (`_cudnn_rnn.out`, but for `_foreach_` and `_fused_`), those that it derives for
    its own compiler from ones that make a new tensor, linear algebra, transforms and special functions, and those whose
    result has as many elements as the values say.
    """
    found = []
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if space == "aten" and not _LEFT_OUT.match(name):
            operator = getattr(getattr(torch.ops.aten, name), overload or "default")
            result = any(each.is_out for each in operator._schema.arguments)
            derived = result and torch.Tag.generated in operator.tags
            idle = torch.Tag.inplace_view in operator.tags or operator.has_kernel_for_dispatch_key(_DECOMPOSES)
            if operator._schema.is_mutable and (result or name.endswith("_")) and not derived and not idle:
                found.append(operator)
    return found


def _tensor(kind: str, name: str) -> torch.Tensor:
    if kind == "int":
        return torch.randint(1, 3, (_SIDE, _SIDE))
    if kind == "bool":
        return torch.rand(_SIDE, _SIDE) > 0.5
    if kind == "wide":
        return torch.rand(_SIDE, 2 * _SIDE if name == "self" else _SIDE) * 0.8 + 0.1
    shape = {"cube": (3, _SIDE, _SIDE), "image": (2, 2, _SIDE, _SIDE), "vector": (_SIDE,)}.get(kind, (_SIDE, _SIDE))
    return torch.rand(shape, dtype=torch.complex64 if kind == "complex" else torch.float32) * 0.8 + 0.1


_OWN: dict[tuple[str, str], Callable[[], object]] = {
    # what an operator's name and an argument's ask for
    ("scatter", "index"): lambda: torch.tensor([[2, 0], [1, 3]]),
    ("gather", "index"): lambda: torch.tensor([[2, 0], [1, 3]]),
    ("_fused_", "max_exp_avg_sqs"): list,
    ("_fused_", "state_steps"): lambda: [torch.tensor(1.0), torch.tensor(1.0)],
    ("addmv", "self"): lambda: torch.rand(_SIDE),
    ("addbmm", "batch1"): lambda: torch.rand(2, _SIDE, 3),
    ("addbmm", "batch2"): lambda: torch.rand(2, 3, _SIDE),
    ("scatter.reduce", "reduce"): lambda: "add",
    ("scatter.value_reduce", "reduce"): lambda: "add",
    ("random", "to"): lambda: 5,
    ("randint", "high"): lambda: 5,
    ("nll_loss", "weight"): lambda: torch.rand(_SIDE),
    ("nll_loss", "total_weight"): lambda: torch.tensor(1.0),
    ("nll_loss", "reduction"): lambda: 0,
    ("nll_loss", "grad_output"): lambda: torch.rand(_SIDE),
    ("index_put", "values"): lambda: torch.rand(2, _SIDE),
    ("native_batch_norm", "training"): lambda: True,
    ("isin", "test_elements"): lambda: torch.rand(3),
}


def _value(operator: Operator, argument: Any, kind: str) -> object:
    """A value that may suit an argument.

    Raises:
        TypeError: there is none for its type.
    """
    name, typed = argument.name, str(argument.type)
    for (begins, named), value in _OWN.items():
        if str(operator).removeprefix("aten.").replace("_.", ".").startswith(begins) and named == name:
            return value()
    if name in {"min", "max"} and typed.startswith("Optional"):
        return 0.4 if "number" in typed else _tensor(kind, name)
    if argument.has_default_value() and typed != "Optional[Tensor]":
        return argument.default_value
    if typed in {"Tensor", "Optional[Tensor]"}:
        return _filled(operator, name, kind)
    values: dict[str, Callable[[], object]] = {
        "List[Tensor]": lambda: [torch.tensor([2, 0])] if name == "indices" else [_tensor(kind, name) for _ in "12"],
        "List[Optional[Tensor]]": lambda: [torch.tensor([2, 0])],
        "number": lambda: 2, "List[number]": lambda: [2, 3], "float": lambda: 0.5, "int": lambda: 1,
        "bool": lambda: False, "List[int]": lambda: [2, 2], "str": lambda: "amax" if name == "reduce" else "sum",
        "Optional[str]": lambda: "floor",
    }  # fmt: skip
    if typed not in values and typed.startswith("Optional"):
        return None
    if typed not in values:
        raise TypeError(typed)
    return values[typed]()


def _filled(operator: Operator, name: str, kind: str) -> torch.Tensor | None:
    one = operator._schema.overload_name
    if name in {"grad_scale", "found_inf", "sorter"}:
        return None
    if name in _INDICES:
        return torch.tensor([2, 0, 1, 3])
    if name == "mask":
        return torch.ones(_SIDE, _SIDE, dtype=torch.bool)
    foreach = operator.overloadpacket.__name__.startswith("_foreach_")
    if name in {"lr", "value", "start", "end"} or (foreach and one == "Tensor" and name == "other"):
        return torch.tensor(0.6)
    if name in {"vec", "vec1", "vec2"} or (foreach and name == "scalars"):
        return torch.rand(2 if foreach else _SIDE)
    return _tensor(kind, name)


def arguments(operator: Operator, kind: str) -> Arguments:
    """Arguments of a kind, with tensors for results that the operator has sized itself.

    Raises:
        Exception: whatever the operator raises where they do not suit it.
    """
    schema = operator._schema
    results = [each.name for each in schema.arguments if each.is_out]
    given = {each.name: _value(operator, each, kind) for each in schema.arguments if not each.is_out}
    types = (torch.float32, torch.bool, torch.int64) if results else ()
    pairs = itertools.chain(((one, one) for one in types), ((one, torch.int64) for one in types if len(results) > 1))
    for first, second in pairs:
        for place, each in enumerate(results):
            listed = "List" in str(next(one for one in schema.arguments if one.name == each).type)
            empty = torch.empty(0, dtype=first if place == 0 else second)
            given[each] = [empty, empty.clone()] if listed else empty
        try:
            call(operator, given)
        except Exception:  # noqa: BLE001 # another type of result may do
            continue
        return given
    call(operator, _copied(given))
    return given


def suiting(operator: Operator) -> Arguments | None:
    """Arguments of the first kind that an operator takes; None where it takes none of them."""
    for kind in KINDS:
        try:
            return arguments(operator, kind)
        except Exception:  # noqa: BLE001 # of another kind they may do
            continue
    return None


def call(operator: Operator, given: Arguments) -> object:
    """Run it with the same random numbers each time; arguments with a list in the schema go by name."""
    torch.manual_seed(0)
    schema = operator._schema
    args = [given[each.name] for each in schema.arguments if not each.kwarg_only]
    return operator(*args, **{each.name: given[each.name] for each in schema.arguments if each.kwarg_only})


def _each(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _each(item)


def tensors(given: Arguments) -> list[tuple[str, torch.Tensor]]:
    """Its tensors, each with its argument's name."""
    return [(name, tensor) for name, value in given.items() for tensor in _each(value)]


def _copied(given: Arguments) -> Arguments:
    def copied(value: object) -> object:
        if isinstance(value, list | tuple):
            return [copied(item) for item in value]
        return value.clone() if isinstance(value, torch.Tensor) else value

    return {name: copied(value) for name, value in given.items()}


def _others(name: str, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Other values that a tensor could have."""
    if tensor.dtype is torch.bool:
        yield ~tensor
        yield torch.zeros_like(tensor)
    elif name in _INDICES:
        yield tensor.flip(0)
    elif tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        yield -3.3 * tensor
        yield from (torch.full_like(tensor, each) for each in (0.0, 1.0, 2.0, 2.5, torch.inf, torch.nan))
        yield tensor.flip(0)
    else:
        yield from (tensor + 1, tensor * 8 + 1, -9 * tensor, torch.zeros_like(tensor))


def measured(operator: Operator, given: Arguments, *, singly: bool = False) -> int:
    """Bytes that it reads and writes.

    Args:
        operator: the operator.
        given: its arguments.
        singly: change one element after the other, for operators that read a part.
    """
    base = _run(operator, given)
    runs = [(place, at, run) for place, at, other in _changed(given, singly) if (run := _tried(operator, other))]
    written = [torch.zeros(before.shape, dtype=torch.bool) for before, _ in base[1]]
    names = [name for name, _ in tensors(given)]
    for run in (base, *(run for place, _, run in runs if names[place] not in _INDICES)):
        for place, (before, after) in enumerate(run[1]):
            written[place] |= _differs(before, after)
    read = {(place, at) for place, at, run in runs if _reads(base, run, place, written[place])}
    total = sum(tensor.numel() * tensor.element_size() for tensor in base[0])
    for place, (before, _) in enumerate(base[1]):
        elements = sum(1 if singly else before.numel() for mine, _ in read if mine == place)
        total += before.element_size() * (int(written[place].sum()) + elements)
    return total


_Run = tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]  # new tensors; arguments before and after


def _run(operator: Operator, given: Arguments) -> _Run:
    mine = _copied(given)
    before = [tensor.clone() for _, tensor in tensors(mine)]
    out = call(operator, mine)
    after = [tensor for _, tensor in tensors(mine)]
    new = [tensor for tensor in _each(out) if not any(tensor is each for each in after)]
    return new, list(zip(before, after, strict=True))


def _tried(operator: Operator, given: Arguments) -> _Run | None:
    """A run; None of values that the operator refuses."""
    try:
        return _run(operator, given)
    except RuntimeError:
        return None


def _changed(given: Arguments, singly: bool) -> Iterator[tuple[int, int, Arguments]]:
    """Arguments of which one has other values: its place, which of its elements (0: all), and the arguments."""
    for place, (name, tensor) in enumerate(tensors(given)):
        for other in list(_others(name, tensor))[-3 if singly else 0 :]:
            for at in range(tensor.numel()) if singly else (0,):
                mine = _copied(given)
                target = tensors(mine)[place][1]
                if singly:
                    target.view(-1)[at] = other.view(-1)[at]
                else:
                    target.copy_(other)
                yield place, at, mine


def _differs(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one != other) & ~((one != one) & (other != other))  # noqa: PLR0124 # NaN is the same as NaN


def _reads(base: _Run, run: _Run, place: int, written: torch.Tensor) -> bool:
    """Whether something came out differently, but for elements of its own that it passes on untouched."""
    for mine, (one, other) in enumerate(zip(base[1], run[1], strict=True)):
        differs = _differs(one[1], other[1])
        if bool((differs & written if mine == place else differs).any()):
            return True
    return any(bool(_differs(one, other).any()) for one, other in zip(base[0], run[0], strict=True))
