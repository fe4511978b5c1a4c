"""The question of the signal: what watched passes show, each fault beside the same training without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training
from depthgauge.checking import Answer
from depthgauge.checking.questions.signal import QUESTION, passed_by, reversing, telling
from depthgauge.checking.questions.signal.depth import passage
from depthgauge.checking.questions.signal.remedies import Trial
from depthgauge.checking.questions.signal.watching import watch

WIDTH, LENGTH, ROWS = 16, 12, 16


def _kinds(model: nn.Module, *batches: Any) -> dict[str, tuple[str, ...]]:
    """What watched passes over batches of inputs tell of a model."""
    training = Training(model, [*batches], lambda net, x: net(x).square().mean())
    with training.untouched():
        seen = watch(training, batches)
    return {finding.kind: finding.where for finding in telling.findings(model, seen, None)}


class _Sequence(nn.Module):
    """A function of (N, length, width), and the layers that it needs."""

    def __init__(self, act: Callable[[_Sequence, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.act = act
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def _sequences() -> Tensor:
    return torch.randn(ROWS, LENGTH, WIDTH)


@pytest.mark.parametrize(("groups", "found"), [(WIDTH, {"constant_output": ("1",)}), (4, {})])
def test_a_normalization_of_single_values_says_nothing(groups: int, found: dict[str, tuple[str, ...]]) -> None:
    """Whatever its class: here by groups of one feature each."""
    net = nn.Sequential(nn.Linear(8, WIDTH), nn.GroupNorm(groups, WIDTH), nn.Linear(WIDTH, 2))
    assert _kinds(net, torch.randn(ROWS, 8)) == found


def test_a_normalization_by_a_function_is_named_by_the_layer_after_it() -> None:
    """It is no module, and what it gets may need no gradient."""
    net = _Sequence(lambda self, x: self.head(functional.layer_norm(x, (1,))), head=nn.Linear(1, 4))  # type: ignore[operator] # a module
    assert "head" in _kinds(net, torch.randn(ROWS, LENGTH, 1))["constant_output"]


def test_layers_that_begin_at_zero_are_no_fault() -> None:
    """They open with the first steps."""
    net = nn.Sequential(nn.Linear(8, WIDTH), nn.Linear(WIDTH, 2))
    nn.init.zeros_(net[1].weight)
    assert not _kinds(net, torch.randn(ROWS, 8))


class _Mean(nn.Module):
    """Half of each place is the mean of all, with a way around or without."""

    def __init__(self, around: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(0.9 * x.mean(1, keepdim=True) + 0.1 * x)
        return x + out if self.around else out


@pytest.mark.parametrize("around", [False, True])
def test_blocks_that_make_places_alike(around: bool) -> None:
    """The blocks are named, outermost."""
    blocks = nn.Sequential(*(_Mean(around) for _ in range(4)))
    assert _kinds(blocks, _sequences()) == ({} if around else {"collapse": ("0", "1", "2", "3")})
    inner = nn.Sequential(*(nn.Sequential(_Mean(around), nn.Sequential(nn.ReLU())) for _ in range(9)))
    found = _kinds(nn.Sequential(inner, nn.Linear(WIDTH, 2)), _sequences())
    assert found.get("collapse", ()) == (() if around else tuple(f"0.{place}" for place in range(9)))


@pytest.mark.parametrize(("gain", "found"), [(3.0, {"exploding": ("rnn",)}), (1.0, {})])
def test_a_state_that_grows_over_time(gain: float, found: dict[str, tuple[str, ...]]) -> None:
    """Within one call of a recurrent layer."""
    rnn = nn.RNN(WIDTH, 32, nonlinearity="relu", batch_first=True)
    nn.init.orthogonal_(rnn.weight_hh_l0, gain=gain)
    assert _kinds(_Sequence(lambda self, x: self.rnn(x)[0], rnn=rnn), _sequences()) == found  # type: ignore[operator] # a module


@pytest.mark.parametrize(("gain", "found"), [(3.0, {"exploding": ("cell",)}), (1.0, {})])
def test_a_layer_whose_output_grows_from_call_to_call(gain: float, found: dict[str, tuple[str, ...]]) -> None:
    """As in a recurrence written by hand."""

    def act(self: _Sequence, x: Tensor) -> Tensor:
        state = x[:, 0]
        for place in range(1, LENGTH):
            state = (x[:, place] + self.cell(state)).relu()  # type: ignore[operator] # a module
        return state

    cell = nn.Linear(WIDTH, WIDTH)
    nn.init.orthogonal_(cell.weight, gain=gain)
    assert _kinds(_Sequence(act, cell=cell), _sequences()) == found


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_positions_that_drown_the_tokens(size: float) -> None:
    """The parameter and the layer whose output it is added to are named."""
    net = _Sequence(lambda self, x: self.embed(x) + self.places, embed=nn.Linear(WIDTH, WIDTH))  # type: ignore[operator] # a module
    net.register_parameter("places", nn.Parameter(size * torch.randn(LENGTH, WIDTH)))
    found = _kinds(net, _sequences())
    assert found == ({"drowned": ("places", "embed", "model")} if size > 1 else {})


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [100.0, 1.0])
def test_attention_that_chooses_one_place(scale: float, fused: bool) -> None:
    """By torch's fused operator, or by a softmax; a model that has learnt may choose."""

    def act(self: _Sequence, x: Tensor) -> Tensor:
        query = scale * self.query(x)  # type: ignore[operator] # a module
        if fused:
            return functional.scaled_dot_product_attention(query[:, None], x[:, None], x[:, None])
        return (query @ x.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ x

    net = _Sequence(act, query=nn.Linear(WIDTH, WIDTH))
    assert _kinds(net, _sequences()) == ({"saturated_units": ("model",)} if scale > 1 else {})
    with torch.no_grad():
        for each in net.parameters():
            each.add_(0.3)
    assert not _kinds(net, _sequences())


@pytest.mark.parametrize(("axis", "found"), [(1, {"wrong_axis": ("model",)}), (2, {})])
def test_attention_normalized_over_its_queries(axis: int, found: dict[str, tuple[str, ...]]) -> None:
    """By a product or by einsum; what is normalized over features is left alone."""
    inner = nn.Linear(WIDTH, WIDTH)

    def product(self: _Sequence, x: Tensor) -> Tensor:
        return (self.inner(x) @ x.transpose(1, 2) / 9).softmax(axis) @ x  # type: ignore[operator] # a module

    def summed(self: _Sequence, x: Tensor) -> Tensor:
        weights = torch.einsum("nid,njd->nij", self.inner(x), x).div(9).softmax(axis)  # type: ignore[operator] # a module
        return torch.einsum("nij,njd->nid", weights, x)

    for act in (product, summed):
        assert _kinds(_Sequence(act, inner=inner), _sequences()) == found
    linear = _Sequence(lambda _, x: x.softmax(-1) @ (x.softmax(1).transpose(1, 2) @ x), inner=inner)
    assert not watch(Training(linear, [_sequences()], lambda net, x: net(x).sum() + 0 * inner.weight.sum()),
                     [_sequences()]).across  # fmt: skip


def test_columns_that_share_rows_and_an_offset_too_many() -> None:
    """A table with rows for every column is looked up in its first ones alone, or in its last."""
    columns = torch.stack([torch.randint(size, (400,)) for size in (10, 14, 8)], 1)
    offsets = torch.tensor([0, 10, 24])
    net = nn.Sequential(nn.Embedding(32, 4))
    assert _kinds(net, columns) == {"unused_rows": ("0",)}
    assert not _kinds(net, columns + offsets)
    assert _kinds(net, torch.randint(10, 32, (400,))) == {"unused_rows": ("0",)}
    assert not _kinds(net, torch.randint(2, 32, (400,)))
    words = (torch.rand(400, 2) ** 3 * 15).long()  # pairs of which the rarest were not seen
    assert not _kinds(net, words)


def test_a_layer_that_is_made_anew_in_each_pass() -> None:
    """Where it is called is told; one that is kept outside is none."""
    kept = nn.Linear(WIDTH, WIDTH)
    anew = _Sequence(lambda self, x: self.head(nn.Linear(WIDTH, WIDTH)(x)), head=nn.Linear(WIDTH, 2))  # type: ignore[operator] # a module
    outside = _Sequence(lambda self, x: self.head(kept(x)), head=nn.Linear(WIDTH, 2))  # type: ignore[operator] # a module
    assert _kinds(anew, _sequences(), _sequences()) == {"unregistered": ("model",)}
    assert not _kinds(outside, _sequences(), _sequences())


class _Late(nn.Module):
    """Makes its first layer when it knows the width of what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Linear | None = None
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = nn.Linear(x.shape[-1], WIDTH)
        return self.last(self.first(x).tanh())  # type: ignore[no-any-return] # a module


def test_a_layer_that_the_first_pass_makes_is_not_in_the_optimizer() -> None:
    """It is taken out again, as it was not there before the check."""
    model = _Late()
    training = Training(
        model, [torch.randn(ROWS, 5)] * 4, lambda net, x: (net(x) - 1).square().mean(),
        torch.optim.SGD(model.parameters(), 0.1),
    )  # fmt: skip
    found = {each.kind: each.where for each in depthgauge.check(training, only=["signal"]).answers["signal"].findings}
    assert found["not_in_optimizer"] == ("first", "first.bias", "first.weight", "optimizer")
    assert vars(model)["first"] is None
    assert [name for name, _ in model.named_children()] == ["last"]


@pytest.mark.parametrize("again", [True, False])
def test_weights_that_go_through_a_softmax_again(again: bool) -> None:
    def act(self: _Sequence, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(1)  # type: ignore[operator] # a module
        return ((weights.softmax(1) if again else weights) * x).sum(1)

    found = _kinds(_Sequence(act, score=nn.Linear(WIDTH, 1)), _sequences())
    assert found == ({"softmax_twice": ("model", "score")} if again else {})


@pytest.mark.parametrize("way", ["triangle", "lengths", "causal", "relu"])
def test_scores_that_a_mask_makes_0(way: str) -> None:
    ends = (torch.arange(LENGTH) < torch.randint(2, LENGTH, (ROWS, 1)))[:, None]

    def act(self: _Sequence, x: Tensor) -> Tensor:
        scores = self.score(x) @ x.mT  # type: ignore[operator] # a module
        masked = {
            "triangle": scores.tril(),
            "lengths": scores * ends[: len(x)],
            "causal": scores.masked_fill(scores.new_ones(LENGTH, LENGTH).triu(1).bool(), -1e9),
            "relu": scores.relu(),
        }
        return (masked[way].softmax(2) @ x).mean(1)

    found = _kinds(_Sequence(act, score=nn.Linear(WIDTH, WIDTH)), _sequences())
    assert ("masked_by_zero" in found) is (way in {"triangle", "lengths"})


@pytest.mark.parametrize("every", [1, 4, LENGTH])
def test_a_state_without_its_gradient(every: int) -> None:
    """Cut between spans of several steps, it is a way to bound the memory."""

    def act(self: _Sequence, x: Tensor) -> Tensor:
        state = (torch.zeros(len(x), WIDTH), torch.zeros(len(x), WIDTH))
        for place in range(LENGTH):
            state = self.cell(x[:, place], state)  # type: ignore[operator] # a module
            if not (place + 1) % every:
                state = (state[0].detach(), state[1].detach()) if place + 1 < LENGTH else state
        return state[0]

    found = _kinds(_Sequence(act, cell=nn.LSTMCell(WIDTH, WIDTH)), _sequences())
    assert found == ({"cut_state": ("cell",)} if every == 1 else {})


def test_one_layer_in_several_places() -> None:
    """Not activations, which hold no weights, and not a layer that is called twice by a loop."""
    layer = nn.Linear(WIDTH, WIDTH)
    relu = nn.ReLU()
    assert _kinds(nn.Sequential(*[layer] * 3), _sequences()) == {"one_layer": ("0", "1", "2")}
    others = (part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), relu))
    assert not _kinds(nn.Sequential(*others), _sequences())


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override] # torch's own is loose
        return -gradient


@pytest.mark.parametrize("wrong", [True, False])
def test_a_gradient_of_the_wrong_sign(wrong: bool) -> None:
    """Turned for the task as well; for the adversary alone it is meant."""
    net = nn.ModuleDict({"body": nn.Linear(8, WIDTH), "task": nn.Linear(WIDTH, 3), "other": nn.Linear(WIDTH, 2)})

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = model["body"](batch[0]).tanh()  # type: ignore[index] # a ModuleDict
        turned = _Turned.apply(hidden)
        task = functional.cross_entropy(model["task"](turned if wrong else hidden), batch[1])  # type: ignore[index]
        return task + functional.cross_entropy(model["other"](turned), batch[1] % 2)  # type: ignore[index]

    training = Training(net, [(torch.randn(32, 8), torch.randint(3, (32,)))], loss)
    with training.untouched():
        found = list(reversing.findings(training, training.first(1)))
    assert [each.where for each in found] == ([("body",)] if wrong else [])


# -- through the question ----------------------------------------------------------------------------------------------


def _ask(model: nn.Module, loss: Any = None, trained: list[nn.Parameter] | None = None) -> Answer:
    centres = 2 * torch.randn(5, 12)
    labels = torch.randint(5, (30, 32))
    batches = [(centres[each] + torch.randn(32, 12), each) for each in labels]
    held = trained or [each for each in model.parameters() if each.requires_grad]
    training = Training(model, batches, loss, torch.optim.Adam(held, 3e-3))
    return depthgauge.check(training, only=["signal"]).answers["signal"]


def _faults(answer: Answer) -> dict[str, tuple[str, ...]]:
    kinds = QUESTION.all_kinds
    return {each.kind: each.where for each in answer.findings if kinds[each.kind].nature == "fault"}


class _Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(24, 24).requires_grad_(False)
        self.down, self.up = nn.Linear(24, 4, bias=False), nn.Linear(4, 24, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_an_adapter_around_a_frozen_layer_is_no_fault_and_a_frozen_head_is() -> None:
    """Whether the layer is new or not."""
    adapted = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), _Adapted(), nn.ReLU(), nn.Linear(24, 5))
    assert not _faults(_ask(adapted))
    headed = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))
    headed[4].requires_grad_(False)
    assert _faults(_ask(headed)) == {"frozen_layer": ("4",)}


class _Named(nn.Module):
    """A table of vectors, kept as it is, and layers under names that begin alike."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.tok = nn.Embedding(40, 12).requires_grad_(False)
        self.add_module(name, nn.Linear(12, 24))
        self.unused = nn.Linear(24, 24).requires_grad_(False)
        self.body, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        words = self.tok((x.abs() * 10).long().clamp(max=39)[:, :3]).mean(1)
        return self.head(self.body(self.get_submodule(self.name)(words).relu()).relu())  # type: ignore[no-any-return] # a module


@pytest.mark.parametrize(("name", "frozen"), [("token_mix", True), ("token_mix", False), ("mix", True)])
def test_a_new_layer_that_a_prefix_freezes_with_another(name: str, frozen: bool) -> None:
    """Frozen first layers by themselves, a frozen table and a layer that nothing uses are no fault."""
    model = _Named(name)
    model.get_submodule(name).requires_grad_(not frozen)
    found = _faults(_ask(model))
    assert found == ({"frozen_layer": ("token_mix",)} if frozen and name == "token_mix" else {})


def test_a_cut_is_told_once_and_named_by_what_was_called_last() -> None:
    """All that lies behind it is in one finding."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 24)
            self.third, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x).relu()).relu().detach()
            return self.head(self.third(x).relu())

    answer = _ask(Net())
    assert _faults(answer) == {"no_gradient": ("second", "first")}
    assert len(answer.findings) == 1


def test_copies_that_get_the_same_gradient_stay_one() -> None:
    """Members of an ensemble that began as copies, each with the same loss."""
    first = nn.Linear(12, 5)
    for second, found in ((copy.deepcopy(first), {"equal_units": ("0", "1")}), (nn.Linear(12, 5), {})):
        members = nn.ModuleList([first, second])
        loss = lambda model, batch: sum(functional.cross_entropy(each(batch[0]), batch[1]) for each in model)  # noqa: E731
        assert _faults(_ask(members, loss)) == found


def test_a_loss_s_own_number_that_no_group_holds() -> None:
    """A temperature; a critic's layer is another half, and left out."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.zeros(()))

        def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(scores * self.temperature.exp(), labels)

    scaled, critic = Scaled(), nn.Linear(5, 5)
    model = nn.Sequential(nn.Linear(12, 5))
    found = _faults(_ask(model, lambda net, batch: scaled(net(batch[0]), batch[1])))
    assert found == {"not_in_optimizer": ("loss.scaled.temperature", "loss", "optimizer")}
    assert not _faults(_ask(model, lambda net, batch: functional.cross_entropy(critic(net(batch[0])), batch[1])))


# -- the passage -------------------------------------------------------------------------------------------------------


def test_a_normalization_is_no_weight_layer_of_the_passage() -> None:
    """Its gains and biases are tensors of two dimensions where it normalizes over two."""
    model = nn.Sequential(nn.LayerNorm((4, 3)), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    training = Training(model, [(torch.randn(8, 4, 3), torch.randint(2, (8,)))])
    with training.untouched():
        assert passage(training, training.first(1)).layers == ["2", "4"]


def test_a_training_that_begins_slowly_is_not_held_back() -> None:
    """Four times the steps go half of the remedy's way, or more."""
    model = nn.Sequential(nn.Linear(12, 5), nn.Linear(5, 2))
    training = Training(model, [(torch.randn(8, 12), torch.randint(2, (8,)))])
    with training.untouched():
        seen = passage(training, training.first(1))

    def trial(name: str, after: float) -> Trial:
        return Trial(name, "", (2.0, 2.001), (after, after + 0.001), -2.0, 30)

    plain, remedy = trial("", 1.98), trial("gain", 1.0)
    for longer, held in ((None, True), (trial("", 1.9), True), (trial("", 1.2), False)):
        assert passed_by.Depth(seen, plain, (remedy,), longer=longer).held is held
