"""The question of the signal: planted faults are found where they are, sound trainings are left alone."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training
from depthgauge.checking import Answer, Status
from depthgauge.checking.questions.signal import QUESTION, absent, remedies
from depthgauge.checking.questions.signal.depth import passage
from depthgauge.checking.questions.signal.holders import unregistered
from depthgauge.checking.questions.signal.units import Units, variation
from depthgauge.checking.questions.signal.wiring import is_new

IN, WIDTH, CLASSES = 12, 24, 5


@pytest.fixture(autouse=True)
def _drawn() -> None:
    torch.manual_seed(0)


def _batches(count: int = 30) -> list[tuple[Tensor, Tensor]]:
    centres = 2 * torch.randn(CLASSES, IN)
    labels = torch.randint(CLASSES, (count, 32))
    return [(centres[each] + torch.randn(32, IN), each) for each in labels]


def _he(model: nn.Module, gain: float = math.sqrt(2)) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=gain / math.sqrt(part.in_features))
            nn.init.zeros_(part.bias)
    return model


def _mlp(depth: int = 3, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    parts: list[nn.Module] = []
    for layer in range(depth):
        parts += [nn.Linear(WIDTH if layer else IN, WIDTH), act()]
    return nn.Sequential(*parts, nn.Linear(WIDTH, CLASSES))


def _training(model: nn.Module, loss: Any = None, lr: float = 3e-3) -> Training:
    return Training(model, _batches(), loss, torch.optim.Adam(model.parameters(), lr))


def _ask(training: Training) -> Answer:
    answer = depthgauge.check(training, only=["signal"]).answers["signal"]
    assert all(finding.kind in QUESTION.all_kinds for finding in answer.findings)
    return answer


def _faults(answer: Answer) -> dict[str, tuple[str, ...]]:
    found = (each for each in answer.findings if QUESTION.all_kinds[each.kind].nature == "fault")
    return {finding.kind: finding.where for finding in found}


# -- faults of the wiring ----------------------------------------------------------------------------------------------


class _Parts(nn.Module):
    """An encoder, parts that something is wrong with, and a head."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.encoder = nn.Linear(IN, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        if wrong == "unused":
            self.spare = nn.Linear(WIDTH, WIDTH)
        if wrong == "list":
            self.blocks = [nn.Linear(WIDTH, WIDTH)]
        if wrong == "tensor":
            self.scale = torch.ones(WIDTH, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.wrong == "no_grad":
            with torch.no_grad():
                x = self.encoder(x).relu()
        else:
            x = self.encoder(x).relu()
        if self.wrong == "list":
            x = self.blocks[0](x).relu()
        if self.wrong == "tensor":
            x = x * self.scale
        return self.head(x.detach() if self.wrong == "detached" else x)


@pytest.mark.parametrize(
    ("wrong", "kind", "where", "word"),
    [
        ("unused", "no_gradient", "spare", "not called"),
        ("detached", "no_gradient", "encoder", "cut off"),
        ("no_grad", "no_gradient", "encoder", "torch.no_grad"),
        ("list", "unregistered", "blocks.0.weight", "768"),
        ("tensor", "unregistered", "scale", "24 parameters"),
    ],
)
def test_parameters_without_gradient_and_tensors_without_owner_are_named(
    wrong: str, kind: str, where: str, word: str
) -> None:
    """Each with its reason, broken."""
    if word == "768":
        word = f"{WIDTH * WIDTH + WIDTH} parameters"
    answer = _ask(_training(_Parts(wrong)))
    assert answer.status is Status.BROKEN
    assert where in _faults(answer)[kind]
    assert word in answer.says


def test_the_twin_without_a_fault_is_fine() -> None:
    """And the answer has its figure with an interval around it."""
    answer = _ask(_training(_Parts("")))
    assert answer.status is Status.FINE
    assert not answer.findings
    assert answer.low < answer.value < answer.high
    assert "reaches the input" in answer.says


def test_a_head_replaced_after_the_optimizer_was_built() -> None:
    """The optimizer holds what the model no longer has."""
    model = _mlp()
    optimizer = torch.optim.Adam(model.parameters())
    model[6] = nn.Linear(WIDTH, CLASSES)
    assert "6" in _faults(_ask(Training(model, _batches(), optimizer=optimizer)))["stale_parameters"]


def test_an_optimizer_over_a_copy_is_the_signals() -> None:
    """The others cannot be asked."""
    model = _mlp()
    optimizer = torch.optim.Adam(copy.deepcopy(model).parameters())
    checked = depthgauge.check(Training(model, _batches(), optimizer=optimizer))
    assert checked.answers["signal"].status is Status.BROKEN
    assert checked.answers["signal"].where == ("optimizer",)
    assert checked.answers["data"].status is Status.UNDECIDED


def test_a_new_layer_that_no_group_holds_is_a_fault_and_a_trained_one_below_is_none() -> None:
    """Only the head of a new model in the optimizer, or of a trained one."""
    model = _mlp()
    training = Training(model, _batches(), optimizer=torch.optim.Adam(model[6].parameters()))
    assert "0" in _faults(_ask(training))["not_in_optimizer"]
    with torch.no_grad():
        for name, each in model.named_parameters():
            each.mul_(1.5 if name.endswith("weight") else 1.0).add_(0.01)
    answer = _ask(training)
    assert not _faults(answer)
    assert [finding.kind for finding in answer.findings] == ["left_out"]


def test_a_new_layer_frozen_between_others_is_found() -> None:
    """With torch's own weights and with He's."""
    for model in (_mlp(4), _he(_mlp(4))):
        model[4].requires_grad_(False)  # type: ignore[index] # a Sequential
        assert _faults(_ask(_training(model))) == {"frozen_layer": ("4",)}


def test_a_head_tied_by_a_copy_is_found() -> None:
    """By equal bits in an embedding and a linear layer."""

    def model(copied: bool) -> nn.Sequential:
        net = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(8 * 4, 8), nn.ReLU(), nn.Linear(8, 20))
        net[4].weight = nn.Parameter(net[0].weight.detach().clone()) if copied else net[0].weight
        return net

    batches = [(torch.randint(20, (16, 4)), torch.randint(20, (16,))) for _ in range(8)]
    for copied, found in ((True, {"tied_by_copy"}), (False, set())):
        net = model(copied)
        answer = _ask(Training(net, batches, optimizer=torch.optim.Adam(net.parameters())))
        assert set(_faults(answer)) == found


def test_where_a_nan_begins_is_named() -> None:
    """The root of zero has an infinite slope."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        penalty = (0 * model[2].weight).square().sum().sqrt()  # type: ignore[index] # a Sequential
        return functional.cross_entropy(model(batch[0]), batch[1]) + penalty

    assert "2" in _faults(_ask(_training(_mlp(), loss)))["nonfinite"]


# -- faults of the passage ---------------------------------------------------------------------------------------------


def test_weights_too_small_are_found_and_the_remedy_is_tried() -> None:
    """The loss before and after, from the same steps; He's weights of the same network are fine."""
    model = _he(_mlp(6), 0.1)
    answer = _ask(_training(model))
    finding = answer.findings[0]
    assert (finding.kind, finding.status) == ("vanishing", Status.BROKEN)
    assert finding.tried is not None
    assert finding.tried.after < finding.tried.before - 0.1
    assert "1.41" in answer.advice
    assert set(answer.where) == {"0", "2", "4", "6", "8", "10", "12"}
    assert next(iter(answer.tables["remedies"]["remedy"])) == "none"
    assert QUESTION.draw(answer) is not None
    assert _ask(_training(_he(_mlp(6)))).status is Status.FINE


def test_a_forgotten_skip_is_tried() -> None:
    """Blocks that hand on nothing of what they get; with the skip nothing is found."""

    class Block(nn.Module):
        def __init__(self, skip: float) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            self.skip = skip

        def forward(self, x: Tensor) -> Tensor:
            return self.skip * x + self.branch(x)

    def model(skip: float) -> nn.Sequential:
        ends = nn.Linear(IN, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        return nn.Sequential(ends[0], *(Block(skip) for _ in range(12)), *ends[1:])

    answer = _ask(_training(model(0.0)))
    assert {"1", "12"} <= set(_faults(answer)["missing_skip"])
    assert "return x + block(x)" in answer.advice
    assert not _faults(_ask(_training(model(1.0))))


def test_dead_units_are_counted_exactly() -> None:
    """A layer whose units are all zero is the reason of a gradient of zero."""
    model = _he(_mlp(3))
    nn.init.constant_(model[2].bias, -50.0)  # type: ignore[index] # a Sequential
    answer = _ask(_training(model))
    assert answer.status is Status.BROKEN
    assert answer.where[0] == "2"
    model[2].bias.data[: WIDTH // 4] = 0.0  # type: ignore[index] # as above
    units = Units()
    units.note(_training(model).value(_batches(1)[0]), dict(model.named_parameters()))
    assert units.layers["2", 0].dead[WIDTH // 4 :].all()
    assert not units.layers["2", 0].dead[: WIDTH // 4].all()


def test_saturated_units_are_found() -> None:
    """Tanh of weights a hundred times too large."""
    answer = _ask(_training(_he(_mlp(3, nn.Tanh), 100.0)))
    assert "saturated_units" in _faults(answer)


def test_units_of_equal_weights_are_found() -> None:
    """A constant initialization makes a layer one unit."""
    model = _mlp(2)
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.constant_(part.weight, 0.1)
            nn.init.zeros_(part.bias)
    last = model[4]
    nn.init.normal_(last.weight[:, :1]).expand_as(last.weight)
    with torch.no_grad():
        last.weight.copy_(torch.randn(CLASSES, 1).expand_as(last.weight))
    assert {"0", "2"} <= set(_equal(_ask(_training(model))))


def _equal(answer: Answer) -> list[str]:
    return [name for finding in answer.findings if finding.kind == "equal_units" for name in finding.where]


def test_the_passage_of_orthogonal_layers_is_the_gains_power() -> None:
    """Linear layers that are g times orthogonal multiply signal and gradient by g each."""
    gain, depth = 0.5, 6
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(depth))).double()
    for layer in model:
        nn.init.orthogonal_(layer.weight, gain)
    batch = torch.randn(8, 16, dtype=torch.float64)
    training = Training(model, [batch], lambda model, batch: model(batch).square().sum())
    with training.untouched():
        seen = passage(training, [batch])
    assert seen.decades == pytest.approx((depth - 1) * math.log10(gain), abs=1e-5)
    assert list(seen.table["gain"]) == pytest.approx([gain] * depth)
    steps = seen.table["forward_decades"].diff().dropna()
    assert list(steps) == pytest.approx([math.log10(gain)] * (depth - 1), abs=1e-5)


def test_variation_is_the_share_that_differs() -> None:
    """Of examples c + d with d of mean 0: d^2 / (c^2 + d^2)."""
    hidden = torch.tensor([[3.0 + 1.0], [3.0 - 1.0]])
    assert variation(hidden) == pytest.approx(1 / 10)
    assert math.isnan(variation(hidden[:1]))


# -- sound trainings ---------------------------------------------------------------------------------------------------


class _LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(IN, CLASSES).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, IN))
        self.up = nn.Parameter(torch.zeros(CLASSES, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class _Sometimes(nn.Module):
    """Layers of which each pass leaves out some."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(IN, IN) for _ in range(3))
        self.head = nn.Linear(IN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if torch.rand(()) < 0.5:
                x = x + layer(x).relu()
        return self.head(x)


def _target_network() -> Training:
    online, target = _mlp(2), _mlp(2).requires_grad_(False)
    model = nn.ModuleDict({"online": online, "target": target, "predictor": nn.Linear(CLASSES, CLASSES)})

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0]
        seen = model["predictor"](model["online"](x + 0.1))  # type: ignore[index] # a ModuleDict
        return (seen - model["target"](x)).square().mean()  # type: ignore[index] # as above

    return _training(model, loss)


def _other_half() -> Training:
    judge = _he(nn.Sequential(nn.Linear(CLASSES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)))
    return _training(_mlp(2), lambda model, batch: functional.softplus(-judge(model(batch[0]))).mean())


def _slope_of_inputs() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        value = model(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return (slope.sum(1) - value.sum(1)).square().mean()

    return _training(_mlp(2, nn.Tanh), loss)


def _closed(rate: float) -> Training:
    model = _mlp(2)
    nn.init.zeros_(model[4].weight)
    return _training(model, lr=rate)


def _copied_blocks() -> Training:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 9))
    batches = [(tokens, tokens[:, 0]) for tokens in torch.randint(9, (6, 8, 4))]
    loss = lambda model, batch: functional.cross_entropy(model(batch[0])[:, 1], batch[1])  # noqa: E731 - as users do
    return Training(model, batches, loss, torch.optim.Adam(model.parameters()))


def _half() -> Training:
    model = _mlp(2).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in _batches()]
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: _training(_LowRank()), id="low_rank"),
        pytest.param(lambda: _training(_Sometimes()), id="stochastic_depth"),
        pytest.param(_target_network, id="target_network"),
        pytest.param(_other_half, id="adversarial"),
        pytest.param(_slope_of_inputs, id="gradient_of_inputs"),
        pytest.param(functools.partial(_closed, 3e-3), id="zero_head"),
        pytest.param(functools.partial(_closed, 0.0), id="zero_head_before_warm_up"),
        pytest.param(_copied_blocks, id="copied_blocks"),
        pytest.param(_half, id="bfloat16"),
    ],
)
def test_sound_trainings_have_no_fault(make: Callable[[], Training]) -> None:
    """Neither are they undecided."""
    answer = _ask(make())
    assert not _faults(answer)
    assert answer.status in {Status.FINE, Status.LOOK}


@pytest.mark.parametrize("model", [nn.Identity(), _LowRank().requires_grad_(False)])
def test_models_that_do_not_train_are_undecided(model: nn.Module) -> None:
    """Never a false comfort."""
    batches = [torch.randn(4, IN, requires_grad=True)]
    answer = _ask(Training(model, batches, lambda model, batch: model(batch).sum()))
    assert answer.status is Status.UNDECIDED


def test_a_loss_that_raises_later_is_no_exception() -> None:
    """Batches after the fourth are those of a search alone."""
    batches = _batches(6)
    batches[5] = (torch.randn(3, IN + 1), torch.zeros(3, dtype=torch.int64))
    model = _Parts("unused")
    answer = _ask(Training(model, batches, optimizer=torch.optim.Adam(model.parameters())))
    assert "spare" in _faults(answer)["no_gradient"]


# -- what is left behind -----------------------------------------------------------------------------------------------


def _state(training: Training) -> tuple[Any, ...]:
    model, optimizer = training.model, training.optimizer
    assert optimizer is not None
    tensors = [*model.parameters(), *model.buffers(), *unregistered(training).values()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    states = [value.clone() for each in optimizer.state.values() for value in each.values()]
    return (
        [each.detach().clone() for each in (*tensors, *states)],
        [None if each.grad is None else each.grad.clone() for each in tensors],
        (hooks, [part.training for part in model.modules()]),
        [torch.get_rng_state()],
    )


def test_the_training_is_left_bit_for_bit_as_it_was() -> None:
    """Also where remedies are tried, and a tensor that no one registered held a gradient."""
    model = nn.Sequential(_he(_mlp(6), 0.1), nn.BatchNorm1d(CLASSES), nn.Dropout(0.1))
    model.temperature = torch.ones(1, requires_grad=True)  # type: ignore[assignment] # as a user might
    training = _training(
        model, lambda model, batch: functional.cross_entropy(model(batch[0]) * model.temperature, batch[1])
    )
    training.value(training.first()[0]).backward()
    assert training.optimizer is not None
    training.optimizer.step()
    before = _state(training)
    answer = _ask(training)
    assert "remedies" in answer.tables
    after = _state(training)
    for old, new in zip((*before[0], *before[1], *before[3]), (*after[0], *after[1], *after[3]), strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert before[2] == after[2]


class _Packaged(nn.Module):
    """A model as of a package: its body behind a checkpoint that no gradient enters, or a head that is not used."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            with torch.no_grad():  # as a reentrant checkpoint whose inputs want no gradient
                hidden = self.body(x)
        else:
            hidden = self.body(x)
        self.unused(hidden)
        return self.head(hidden.relu())


@pytest.mark.parametrize("checkpointed", [True, False])
def test_what_a_package_s_model_cuts_is_told_from_what_it_leaves_unused(
    checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absent, "of_a_package", lambda module: isinstance(module, _Packaged))
    model = _Packaged(checkpointed)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    training = Training(model, batches, None, torch.optim.SGD(model.parameters(), 0.1))
    found = {each.kind: each.where for each in depthgauge.check(training, only=["signal"]).answers["signal"].findings}
    assert found["unused_by_package"] == ("unused",)
    assert ("no_gradient" in found) is checkpointed
    if checkpointed:
        assert "body" in found["no_gradient"]


def test_new_layers_are_told_from_trained_ones_by_their_numbers() -> None:
    fresh = (nn.LSTM(4, 16), nn.GRU(4, 16), nn.Embedding(50, 8), nn.Linear(20, 30), nn.Conv2d(3, 8, 3))
    assert all(map(is_new, fresh))
    for layer in fresh:
        with torch.no_grad():
            for each in layer.parameters():
                each.mul_(2.5).add_(0.3)
    assert not any(map(is_new, fresh))
    assert not is_new(nn.ReLU())


class _Routed(nn.Module):
    """Experts, of which the router picks the first for every batch, or another one from batch to batch."""

    def __init__(self, fair: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))
        self.calls, self.fair = 0, fair

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.experts[int(x[0, 0] * 1e3) % 2 if self.fair else 0](x)


@pytest.mark.parametrize(("fair", "kind"), [(False, "no_gradient"), (True, "idle_expert")])
def test_experts_that_nothing_reaches_are_told(fair: bool, kind: str) -> None:
    model = _Routed(fair)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(16)]
    training = Training(model, batches, None, torch.optim.SGD(model.parameters(), 0.1))
    found = depthgauge.check(training, only=["signal"]).answers["signal"].findings
    assert any(each.kind == kind and "experts" in " ".join(each.where) for each in found)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU])
def test_every_remedy_is_laid_over_the_training_and_taken_away_again(activation: type[nn.Module]) -> None:
    rows = nn.Embedding(30, 16)
    with torch.no_grad():
        rows.weight.mul_(10)
    model = nn.Sequential(rows, nn.Flatten(), nn.Linear(64, 12), activation(), nn.Linear(12, 12), activation(),
                          nn.Linear(12, 3))  # fmt: skip
    batch = torch.randint(30, (16, 4)), torch.randint(3, (16,))
    training = Training(model, [batch], None, torch.optim.SGD(model.parameters(), 0.1))
    before, changed = training.value(batch).item(), []
    assert remedies.far_rows(model) == ["0"]
    for name, says, lay in remedies.remedies(training, batch, ("2",)):
        with training.untouched(), torch.no_grad():
            lay(model)
            changed.append((name, training.value(batch).item() != before))
            assert remedies.far_rows(model) == ([] if name.startswith(remedies.OF_ROWS) else ["0"])
        assert says
        assert training.value(batch).item() == before
    assert all(yes for _, yes in changed)
    assert len(changed) == {nn.Sigmoid: 5, nn.Tanh: 5, nn.ReLU: 4}[activation]
