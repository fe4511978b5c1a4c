"""The runs of a bisection: float32, low precision, and each call of a module by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.foreign import describe_error
from depthgauge.nested import inexact
from depthgauge.precision.arithmetic import FLOAT32, Arithmetic, stand_in
from depthgauge.precision.copying import copied
from depthgauge.precision.errors import Tally
from depthgauge.precision.randomness import random_state, set_random_state
from depthgauge.precision.recording import Call, Gradients, Parts, Recorder
from depthgauge.precision.replay import Replay
from depthgauge.seeding import Purpose, generator

FORWARD, BACKWARD = "forward", "backward"
OWN, INHERITED, TOTAL = "own", "inherited", "total"
Loss = Callable[[nn.Module, Any], Tensor]


class Bisection:
    """The runs of one model, and the errors between them.

    Attributes:
        parts: its modules.
        reference: calls of the float32 run, in the order of their beginnings.
        dtypes: id of a tensor of the float32 run -> dtype that it has in the low-precision run.
        tallies: (module's id, direction, column) -> errors.
        reasons: module's id -> why the dtype's own arithmetic could not be used, or why there is no comparison.
    """

    def __init__(self, module: nn.Module, low: Arithmetic) -> None:
        self.parts = Parts(module)
        self.reference: list[Call] = []
        self.dtypes: dict[int, torch.dtype] = {}
        self.tallies: dict[tuple[int, str, str], Tally] = defaultdict(Tally)
        self.reasons: dict[int, str] = {}
        self._differentiating: set[int] = set()
        self._module = module
        self._low = low

    def measure(self, batch: Any, loss: Loss | None) -> None:
        """Run the model in float32 and in low precision, then each call by itself."""
        start = random_state()
        self.reference = self._recorded(FLOAT32, batch, loss, {})
        if self.parts.states.overlooked():
            set_random_state(start)
            self.reference = self._recorded(FLOAT32, batch, loss, {})
        like = {call.key: call for call in self.reference}
        set_random_state(start)
        native = self._low.emulated is None
        try:
            _refuse_complex(self._low, self.reference)
            low = self._recorded(self._low, batch, loss, like)
        except Exception as error:
            if self._low.emulated is not None:
                raise
            self.reasons[getattr(error, "_module", id(self._module))] = _emulated("total", error)
            set_random_state(start)
            native, low = False, self._recorded(stand_in(self._low), batch, loss, like)
        pairs = {call.key: call for call in low}
        for call in self.reference:
            self._total(call, pairs.get(call.key), native)
        self._own()
        with self._in(FLOAT32):
            for call in self.reference:
                if call.key in pairs:
                    self._inherited(call, pairs[call.key])
        self._leave_out_differentiating()

    def resolve(self, call: Call, gradients: Gradients) -> None:
        """Find the gradients that a call's backward pass gives, and its children's on the way."""
        call.gradients = gradients
        replay = Resolved(self, call)
        replay.forward()
        call.handed, call.held_gradients = replay.backward(gradients)

    @contextmanager
    def _in(self, side: Arithmetic) -> Iterator[None]:
        self.parts.states.begin(side.cast)
        with side.block():
            yield

    def _recorded(
        self, side: Arithmetic, batch: Any, loss: Loss | None, like: Mapping[tuple[int, int], Call]
    ) -> list[Call]:
        """The calls of a whole run, with their gradients."""
        recorder = Recorder(self.parts, side, like)
        batch, _ = copied(batch, lambda tensor: tensor, self.parts.kept)  # the model may append to what it is given
        with self._in(side):
            try:
                with self.parts.handled(recorder):
                    value = _called(self._module, batch) if loss is None else loss(self._module, batch)
                for call, gradients in _arriving(recorder, None if loss is None else value):
                    self.resolve(call, gradients)
            except Exception as error:
                error._module = id(recorder.failed or self._module)  # type: ignore[attr-defined]  # read above
                raise
        return recorder.calls

    def _total(self, call: Call, low: Call | None, native: bool) -> None:
        key = id(call.module)
        try:
            if low is None:
                raise ValueError("in low precision it was called less often")
            for kind in ("given", "returned", "handed"):
                for reference, found in zip(getattr(call, kind), getattr(low, kind), strict=True):
                    if reference is not None and found is not None and native:
                        self.dtypes[id(reference)] = found.dtype
            if native:
                self._note_dtypes(call, low)
            self._compare(TOTAL, call, low.returned, low.handed, low.held_gradients)
        except ValueError as error:
            self._incomparable(key, (TOTAL, INHERITED), error)

    def _note_dtypes(self, call: Call, low: Call) -> None:
        """Note those of what the module holds, where it holds as much in both runs."""
        for one, other in ((call.before, low.before), (call.after, low.after)):
            copies = [] if one is None or other is None else [one.copies(), other.copies()]
            if copies and [each.shape for each in copies[0]] == [each.shape for each in copies[1]]:
                self.dtypes.update({id(each): same.dtype for each, same in zip(*copies, strict=True)})

    def _own(self) -> None:
        left = self._forced(self._low, self.reference)
        if left:
            self._forced(stand_in(self._low), left)

    def _forced(self, side: Arithmetic, calls: Sequence[Call]) -> list[Call]:
        """Measure calls' own errors; the calls that raise are returned, the first time."""
        left = []
        with self._in(side):
            for call in calls:
                replay = Forced(self, call, side)
                try:
                    _refuse_complex(side, [call])
                    replay.run()
                except Exception as error:  # noqa: BLE001 - a module may raise anything
                    if side.emulated is None:
                        self.reasons.setdefault(id(call.module), _emulated("own", error))
                        left.append(call)
                        continue
                    self.reasons[id(call.module)] = f"own is infinite, as it raised {describe_error(error)}"
                    for tally in replay.tallies.values():
                        tally.fail()
                if replay.differentiates:
                    self._differentiating.add(id(call.module))
                for direction, tally in replay.tallies.items():
                    self.tallies[id(call.module), direction, OWN].merge(tally)
        return left

    def _inherited(self, call: Call, low: Call) -> None:
        if _alike(call.given, low.given) and _alike(call.gradients, low.gradients):
            return  # nothing is inherited
        replay = Replay(self.parts, low, FLOAT32.cast, whole=True, begun=call)
        try:
            replay.forward()
            handed, held = replay.backward(low.gradients)
            self._compare(INHERITED, call, replay.returned, handed, held)
        except Exception as error:  # noqa: BLE001 - a module may raise anything on other inputs than its own
            self._incomparable(id(call.module), (INHERITED,), error)

    def _compare(self, column: str, call: Call, returned: Gradients, handed: Gradients, held: Gradients) -> None:
        """Add the errors of a call's outputs, and of the gradients that it hands back, where any arrive."""
        kinds: list[tuple[str, str, Gradients, Gradients]]
        count = len(call.places)
        kinds = [(FORWARD, "output", returned[:count], call.returned[:count])]
        if call.arrived:
            kinds += [(BACKWARD, "inputs", handed, call.handed), (BACKWARD, "held", held, call.held_gradients)]
        for direction, what, found, references in kinds:
            tally = self.tallies[id(call.module), direction, column]
            for low, reference in zip(found or [None] * len(references), references, strict=True):
                if low is not None or direction == BACKWARD:
                    tally.add(what, low, reference)

    def _leave_out_differentiating(self) -> None:
        """Take back what rests on recorded gradients, which a forward pass asked for others: so around it, too."""
        for key in self._differentiating:
            self.reasons[key] = "own is the total error, as its forward takes gradients of its children"
            name = f"{self.parts.names[key]}."
            for direction in (FORWARD, BACKWARD):
                self.tallies[key, direction, OWN] = self.tallies[key, direction, TOTAL]
            for other, around in self.parts.names.items():
                if not around or name.startswith(f"{around}."):
                    self.tallies[other, BACKWARD, INHERITED].defined = False

    def _incomparable(self, key: int, columns: Sequence[str], error: Exception) -> None:
        self.reasons.setdefault(key, f"not compared: {describe_error(error)}")
        for direction in (FORWARD, BACKWARD):
            for column in columns:
                self.tallies[key, direction, column].defined = False


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """As it was recorded; a gradient in the dtype of what it is one of."""
    return tensor.detach().clone() if dtype in {None, tensor.dtype} else tensor.detach().to(dtype)


def _refuse_complex(side: Arithmetic, calls: Sequence[Call]) -> None:
    """Raise where a call has complex numbers, and the device's own arithmetic has none."""
    if side.emulated is not None or side.complex_dtype is not None:
        return
    with_children = [each for call in calls for each in (call, *call.children)]
    if any(tensor.is_complex() for each in with_children for tensor in (*each.given, *each.returned, *each.held)):
        raise TypeError(f"{str(side.dtype).removeprefix('torch.')} has no complex numbers")


def _alike(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    return len(one) == len(other) and all(map(_equal, one, other))


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    plain = all(each.layout is torch.strided and not each.is_nested for each in (a, b))
    return plain and a.dtype == b.dtype and torch.equal(a, b)


def _emulated(column: str, error: Exception) -> str:
    return f"{column} is that of an emulated run, as the dtype's own raised {describe_error(error)}"


def _called(module: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return module(**batch)
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return module(*batch)
    return module(batch)


def _arriving(recorder: Recorder, value: Any) -> Iterator[tuple[Call, Gradients]]:
    """The outermost calls and the gradients with respect to their outputs: of a loss, or drawn where there is none.

    Where a loss depends on the outputs by their gradients alone, they are those of the backward pass that it takes.
    """
    if value is None:
        draw = generator(0, Purpose.COTANGENT)
        for ended in recorder.ended:
            if any(each.is_nested for each in ended.outputs):
                raise TypeError("an output is a nested tensor, whose gradient cannot be drawn: give a loss")
            dtypes = [torch.complex64 if each.is_complex() else torch.float32 for each in ended.outputs]
            pairs = zip(ended.outputs, dtypes, strict=True)
            drawn = [torch.randn(each.shape, generator=draw, dtype=dtype).to(each.device) for each, dtype in pairs]
            ones = zip(drawn, ended.outputs, strict=True)
            known = [gradient if inexact(each) and each.requires_grad else None for gradient, each in ones]
            yield ended.call, [*known, *[None] * len(ended.call.left)]
        return
    asked = [each for ended in recorder.ended for each in ended.tensors if each.requires_grad]
    if not asked or not value.requires_grad:
        return
    found = dict(zip(map(id, asked), torch.autograd.grad(value, asked, allow_unused=True), strict=True))
    alone = all(each is None for each in found.values())  # it depends on the outputs by gradients with respect to them
    for ended in reversed(recorder.ended):
        yield ended.call, ended.of_the_loss() if alone else [found.get(id(each)) for each in ended.tensors]


class Resolved(Replay):
    """A call's gradients as the run itself has them: every child answers by its own backward pass."""

    def __init__(self, study: Bisection, call: Call) -> None:
        super().__init__(study.parts, call, _copy)
        self._study = study

    def answer(self, child: Call, gradients: Gradients) -> Gradients:
        """Run the child's own backward pass."""
        if any(each is not None for each in gradients):
            self._study.resolve(child, gradients)
        return child.handed


class Forced(Replay):
    """A call in low precision between what it was given in float32, compared with what it made of it."""

    def __init__(self, study: Bisection, call: Call, side: Arithmetic) -> None:
        super().__init__(study.parts, call, lambda t, dtype: side.cast(t, dtype or study.dtypes.get(id(t))))
        self.tallies = {FORWARD: Tally(), BACKWARD: Tally()}

    def remembered(self, copy_of: Tensor) -> Tensor:
        """Copy what the module held, in the dtype that it has in low precision."""
        return self.cast(copy_of, None)

    def watch_input(self, child: Call, given: Sequence[Tensor]) -> None:
        """Compare what is handed to a child."""
        for tensor, reference in zip(given, child.given, strict=True):
            self._compare(FORWARD, id(child.module), tensor, reference)

    def answer(self, child: Call, gradients: Gradients) -> Gradients:
        """Compare the gradient that is handed to a child, and hand back the child's."""
        for tensor, reference in zip(gradients, child.gradients, strict=False):
            self._compare(BACKWARD, id(child.module), tensor, reference)
        return [None if each is None else self.cast(each, None) for each in child.handed]

    def run(self) -> None:
        """Compare outputs, then gradients."""
        self.forward()
        for place, (tensor, reference) in enumerate(zip(self.returned, self.call.returned, strict=True)):
            if tensor is not None:
                self._compare(FORWARD, "output" if place < len(self.call.places) else "left", tensor, reference)
        if self.call.arrived:
            inputs, held = self.backward(self.call.gradients)
            for what, low, references in (
                ("inputs", inputs, self.call.handed),
                ("held", held, self.call.held_gradients),
            ):
                for found, wanted in zip(low, references, strict=True):
                    self._compare(BACKWARD, what, found, wanted)

    def _compare(self, direction: str, what: object, low: Tensor | None, reference: Tensor | None) -> None:
        moved = self.given if direction == FORWARD else self.given_back
        if low is not None and moved.holds(low):
            self.tallies[direction].exact(what, reference)
        else:
            self.tallies[direction].add(what, low, reference)
