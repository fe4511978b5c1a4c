"""A user's training: what it is fed, its loss, and that it is left as it was; every command takes the same modules."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
import shutil
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inputs_of_users as users
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import depthgauge
from depthgauge import Training, models, nested, roofline
from depthgauge.cli import main
from depthgauge.factories import Input, TargetError
from depthgauge.restoring import restored
from depthgauge.studies.gradient_flow import architectures
from depthgauge.study import Case, Context
from depthgauge.workload import DrawnLabels, Inputs, WorkloadError, default_loss, inputs

SPECS = {f"inputs_of_users:{factory.__name__}": said for factory, said in users.TAKEN.items()}


# -- the root package --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_root_offers_the_training_and_imports_no_torch() -> None:
    code = "import sys, depthgauge; assert 'Training' in dir(depthgauge); assert 'torch' not in sys.modules;"
    code += "from depthgauge import Training; assert callable(depthgauge.parallel.same); print(Training.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "depthgauge.workload"
    with pytest.raises(AttributeError, match="module 'depthgauge' has no attribute 'training_'"):
        _ = depthgauge.training_


# -- what a module takes, the same for all -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "said"), SPECS.items(), ids=lambda value: str(value).partition(":")[2] or None)
def test_every_command_takes_what_people_have(
    spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = models.training(spec, batch=16)
    assert nested.describe(training.first()[0]) == said
    case = Case.of({"part": "architectures", "model": spec, "batch": 16, "norm": None, "residual": None, "seed": 0})
    rows = list(architectures.PART.run([case], Context()))
    moments = {row.direction: np.asarray(row.value) for row in rows if row.metric == "second_moment"}
    assert all((moments[direction] > 0).all() for direction in ("forward", "backward"))
    made_up = roofline.Ceilings("cpu", 1, {"float32": 1e11}, 1e10, 1e11)
    monkeypatch.setattr(roofline, "ceilings", lambda _device: made_up)
    monkeypatch.setattr(import_module("depthgauge.cli.profile"), "render_profiles", lambda _out: None)
    monkeypatch.chdir(tmp_path)
    words = ["profile", spec, "--seconds", "0.01", "--batch", "16", "--out", "profiled"]
    result = CliRunner().invoke(main, words, prog_name="depthgauge")
    assert result.exit_code == 0, result.output


def test_what_the_user_says_comes_first() -> None:
    training = models.training("inputs_of_users:Images", asked=Input((3, 8, 8)), batch=4)
    assert str(training.first()[0]) == "--input-shape: float32 4 x 3 x 8 x 8"
    tagged = models.training("inputs_of_users:Tagger", asked=Input((20,), tokens=9), batch=4)
    (batch,) = tagged.first()
    assert str(batch) == "--tokens: int64 4 x 20"
    assert 0 <= batch.args[0].min() <= batch.args[0].max() == 8
    with pytest.raises(TargetError, match=r"makes a Training, which has batches of its own: leave --input-shape out"):
        models.training("inputs_of_users:from_a_list", asked=Input((7,)))


@pytest.mark.parametrize(
    ("asked", "text"), [(Input((3, 32, 32)), "3x32x32"), (Input((40,), 500), "40 tokens below 500")]
)
def test_an_input_is_spelled_and_read(asked: Input, text: str) -> None:
    assert str(asked) == text
    assert Input.parse(text) == asked


def test_a_run_takes_an_input_shape_and_resumes_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(users.__file__, tmp_path / "nets_of_a_user.py")
    monkeypatch.chdir(tmp_path)
    words = ["run", "gradient_flow", "--model", "nets_of_a_user:Images", "--input-shape", "2,6,6", "--seeds", "2"]
    result = CliRunner().invoke(main, [*words, "--workers", "0", "--out", "out"], prog_name="depthgauge")
    assert result.exit_code == 0, result.output
    report = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "--model nets_of_a_user:Images --input-shape 2,6,6" in report
    again = CliRunner().invoke(main, [*words, "--workers", "0", "--out", "out"], prog_name="depthgauge")
    assert "0 cases measured" in again.output
    alone = CliRunner().invoke(main, ["run", "--input-shape", "2,6,6"], prog_name="depthgauge")
    assert alone.exit_code == 2
    assert "--input-shape describes a model's inputs: name the model by --model" in alone.output


def test_data_of_a_study_are_not_replaced_by_an_input_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(users.__file__, tmp_path / "nets_of_a_user.py")
    monkeypatch.chdir(tmp_path)
    words = ["run", "initialization", "--model", "nets_of_a_user:Images", "--input-shape", "2,6,6", "--workers", "0"]
    result = CliRunner().invoke(main, words, prog_name="depthgauge")
    assert result.exit_code == 2
    assert "the study uses data of its own, which --input-shape cannot replace" in result.output


def test_what_a_model_brings_along_is_cut_to_the_batch() -> None:
    assert nested.examples(models.training("inputs_of_users:Rows", batch=5).first()[0]) == 5
    assert nested.examples(models.training("inputs_of_users:Rows", batch=500).first()[0]) == 16
    graph = models.training("inputs_of_users:Graph", batch=5).first()[0]
    assert [len(part) for part in graph.args] == [100, 2]  # nodes and edges are no examples of one batch


def test_a_module_that_says_nothing_is_asked_for_nothing() -> None:
    assert inputs(nn.Linear(2, 2), generator=torch.Generator()) is None


# -- batches and loss --------------------------------------------------------------------------------------------------


class Counted:
    """An iterable that knows how many batches were taken of it."""

    def __init__(self, restarts: bool) -> None:
        self.taken, self.restarts = 0, restarts

    def __iter__(self) -> Iterator[int]:
        for number in range(100):
            self.taken += 1
            yield number


@pytest.mark.parametrize("one_way", [True, False])
def test_no_more_batches_are_consumed_than_asked_for(one_way: bool) -> None:
    source = Counted(restarts=not one_way)
    training = Training(nn.Linear(1, 1), iter(source) if one_way else source)
    assert training.first(2) == [0, 1]
    assert training.first() == [0]
    assert source.taken == 2
    assert training.first(3) == [0, 1, 2]
    assert source.taken == (3 if one_way else 5)


def test_a_shuffling_loader_moves_no_generator() -> None:
    training = users.from_a_loader()
    before = torch.get_rng_state()
    training.first(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_goes_over_the_batches_again_and_again() -> None:
    model = nn.Linear(2, 2)
    assert list(itertools.islice(Training(model, [1, 2, 3]).stream(), 5)) == [1, 2, 3, 1, 2]
    once = Training(model, iter([1, 2, 3]))
    assert list(itertools.islice(once.stream(), 3)) == [1, 1, 1]  # no more is taken than was asked for
    assert once.first(2) == [1, 2]
    assert list(itertools.islice(once.stream(), 3)) == [1, 2, 1]
    with pytest.raises(WorkloadError, match="its batches are empty"):
        next(Training(model, []).stream())


def test_a_stream_leaves_a_loaders_order_as_it_was() -> None:
    generator = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=2, shuffle=True, generator=generator)  # type: ignore[arg-type]  # a tensor has items, too
    before = generator.get_state()
    stream = Training(nn.Linear(2, 2), loader).stream()
    seen = torch.cat(list(itertools.islice(stream, 8)))
    assert sorted(seen[:8].tolist()) == sorted(seen[8:].tolist()) == list(range(8))
    assert seen[:8].tolist() != seen[8:].tolist()
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert torch.equal(before, generator.get_state())


def test_too_few_batches_are_told() -> None:
    assert Training(nn.Linear(1, 1), [7]).first(3) == [7]
    with pytest.raises(WorkloadError, match="its batches are empty: there is nothing to train on"):
        Training(nn.Linear(1, 1), []).first()

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("row 7")

    with pytest.raises(WorkloadError, match="its batches cannot be read: KeyError: 'row 7'"):
        Training(nn.Linear(1, 1), broken()).first(2)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Training(3, []), "Training takes a torch.nn.Module, not a int"),
        (lambda: Training(nn.Linear(1, 1), torch.zeros(3)), "an iterable of batches, not a Tensor: one batch is "),
        (lambda: Training(nn.Linear(1, 1), {"x": 1}), "an iterable of batches, not a dict"),
        (lambda: Training(nn.Linear(1, 1), None), "an iterable of batches, not a NoneType"),
        (lambda: Training(nn.Linear(1, 1), [], loss=3), r"loss is called as loss\(model, batch\), not a int"),
        (lambda: Training(nn.Linear(1, 1), [], optimizer=[]), "takes one torch.optim.Optimizer, not a list"),
    ],
)
def test_what_is_no_training_is_told(make: Callable[[], Training], told: str) -> None:
    with pytest.raises(WorkloadError, match=told):
        make()


def test_the_default_loss_is_cross_entropy_by_hand() -> None:
    x, y = users.floats(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    model = nn.Linear(4, 3)
    by_hand = -model(x).log_softmax(-1)[torch.arange(6), y].mean()
    assert torch.allclose(default_loss(model, (x, y)), by_hand)
    assert torch.allclose(default_loss(model, [x, y.to(torch.uint8)]), by_hand)
    sequences, labels = users.floats(2, 5, 4), users.tokens(2, 5) % 3
    last = default_loss(model, (sequences, labels))
    assert torch.allclose(last, -model(sequences).log_softmax(-1).gather(-1, labels[..., None]).mean())
    pixels, segments = users.floats(2, 4, 5, 6), users.tokens(2, 5, 6) % 4
    assert torch.allclose(
        default_loss(nn.Identity(), (pixels, segments)), -pixels.log_softmax(1).gather(1, segments[:, None]).mean()
    )


def test_an_outputs_own_loss_is_used_as_it_is() -> None:
    x = users.floats(3, 1, 28, 28)
    model = users.WithItsLoss()
    assert torch.equal(default_loss(model, x), model(x).loss)
    assert torch.equal(default_loss(model, {"x": x}), model(x).loss)


class _Mapped(dict[str, torch.Tensor]):
    """A mapping whose entries are attributes, as some packages have it: what it lacks is a KeyError."""

    def __getattr__(self, name: str) -> torch.Tensor:
        return self[name]


class _Answering(nn.Linear):
    def __init__(self, **entries: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(4, 3)
        self._entries = entries

    def forward(self, x: torch.Tensor) -> Any:
        scores = super().forward(x)
        return _Mapped({name: make(scores) for name, make in self._entries.items()})


def test_a_mapping_is_asked_for_its_loss_as_a_mapping() -> None:
    x = users.floats(6, 4)
    drawn = DrawnLabels(torch.Generator().manual_seed(0))
    with_loss = _Answering(logits=lambda scores: scores, loss=lambda scores: scores.square().mean())
    assert torch.equal(drawn(with_loss, Inputs.of(x)), with_loss(x)["loss"])
    assert torch.equal(default_loss(with_loss, x), with_loss(x)["loss"])
    without = _Answering(logits=lambda scores: scores)
    labels = torch.randint(3, (6,), generator=torch.Generator().manual_seed(0))
    by_hand = nn.functional.cross_entropy(without(x)["logits"], labels)
    assert torch.equal(drawn(without, Inputs.of(x)), by_hand)
    assert torch.equal(default_loss(without, (x, labels)), by_hand)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (users.floats(6, 4), r"no pair \(x, y\) has no labels, and the output no loss: give Training a loss"),
        ((users.floats(6, 4), users.floats(6, 3)), "cross-entropy takes class numbers, and the targets are float32"),
        ((users.floats(6, 4), torch.ones(6, dtype=torch.bool)), "and the targets are bool"),
        ((users.floats(6, 4), torch.ones(5, dtype=torch.int64)), r"scores of shape \(6, 3\) do not say which"),
        (
            (users.floats(6, 3, 4), torch.zeros(6, 3, dtype=torch.int64)),
            r"scores of shape \(6, 3, 3\) do not say which",
        ),
    ],
)
def test_what_cross_entropy_cannot_mean_is_refused(batch: Any, told: str) -> None:
    with pytest.raises(WorkloadError, match=told):
        default_loss(nn.Linear(4, 3), batch)


def test_a_loss_is_one_number() -> None:
    model = nn.Linear(4, 3)
    batch = users.floats(6, 4)
    with pytest.raises(WorkloadError, match=r"the loss has the shape \(6, 3\), where one number was expected"):
        Training(model, [batch], lambda model, batch: model(batch)).value(batch)
    with pytest.raises(WorkloadError, match="the loss is a float, where a tensor"):
        Training(model, [batch], lambda *_: 3.0).value(batch)  # type: ignore[arg-type,return-value]
    assert Training(model, [batch], lambda model, batch: model(batch).sum()[None, None]).value(batch).shape == ()


@pytest.mark.parametrize("model", [nn.Flatten(), nn.Linear(4, 3).requires_grad_(requires_grad=False)])
def test_a_loss_without_a_gradient_is_told(model: nn.Module) -> None:
    batch = users.floats(6, 4)
    training = Training(model, [batch], lambda model, batch: model(batch).sum())
    with pytest.raises(WorkloadError, match="the loss depends on no parameter that trains, so that it has no gradient"):
        training.value(batch)
    with torch.no_grad():
        assert training.value(batch) == model(batch).sum()


# -- left as it was ----------------------------------------------------------------------------------------------------


def state(training: Training) -> Any:
    """All that a user could see of a training."""
    model, optimizer = training.model, training.optimizer
    assert optimizer is not None
    return copy.deepcopy(
        {
            "tensors": {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()},
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "wanted": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            "modes": {name: module.training for name, module in model.named_modules()},
            "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
            "modules": [name for name, _ in model.named_modules()],
            "optimizer": optimizer.state_dict(),
        }
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_a_training_is_left_as_it_was(steps_before: int, optimizer: Any) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(7, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, users.CLASSES))
    training = Training(model, list(users.pairs(2)), optimizer=optimizer(model.parameters(), lr=0.1))

    def step() -> None:
        assert training.optimizer is not None
        training.value(training.first()[0]).backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()

    for _ in range(steps_before):
        step()
    parameters = list(model.parameters())
    before, generators = state(training), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    with training.untouched():
        step()
        random.random()
        np.random.random()  # noqa: NPY002
        model.eval()
        model[0].weight.requires_grad_(False)
        model[3].register_forward_hook(lambda *_: None)
        model[3].weight.data.fill_(float("nan"))
        model[1].running_mean = torch.ones(8)
        model.append(nn.ReLU())
        model.double()
        training.optimizer.param_groups[0]["lr"] = 7.0  # type: ignore[union-attr]
        assert not same(state(training), before)
    assert same(state(training), before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    after = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(generators[:2], after[:2], strict=True))
    assert generators[2] == after[2]


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sparse gradients", "traced"])
def test_a_training_of_an_unusual_kind_is_left_as_it_was(kind: str) -> None:
    tokens = users.tokens(4, 6)
    model: Any = nn.Sequential(nn.Embedding(9, 8, sparse=kind == "sparse gradients"), nn.Linear(8, users.CLASSES))
    if kind == "traced":
        model = torch.jit.trace(model, tokens)
    batch = (tokens, tokens % users.CLASSES)
    training = Training(model, [batch], optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    def step() -> None:
        training.value(batch).backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()  # type: ignore[union-attr]

    step()
    before = [(p.detach().clone(), p.grad.to_dense().clone()) for p in model.parameters()]  # type: ignore[union-attr]
    with training.untouched():
        step()
        assert not all(torch.equal(p, value) for p, (value, _) in zip(model.parameters(), before, strict=True))
    for p, (value, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad.to_dense(), gradient)


def test_an_optimizer_with_lists_in_its_state_is_left_as_it_was() -> None:
    x = torch.randn(8, 4)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    training = Training(model, [(x, torch.randint(3, (8,)))], optimizer=optimizer)

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        value = training.value(training.first()[0])
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(evaluate)  # type: ignore[arg-type]
    before = state(training)
    with training.untouched():
        optimizer.step(evaluate)  # type: ignore[arg-type]
        assert not same(state(training), before)
    assert same(state(training), before)


def test_a_loaders_own_generator_is_left_as_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.randn(8, 4))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True, generator=generator)
    before = generator.get_state()
    first = Training(nn.Linear(4, 3), loader).first()[0][0]
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(next(iter(loader))[0], first)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_each_call_computes_anew_is_left_as_it_was(norm: Any) -> None:
    model = norm(nn.Linear(4, 3))
    x, labels = torch.randn(8, 4), torch.randint(3, (8,))
    training = Training(model, [(x, labels)], optimizer=torch.optim.SGD(model.parameters(), 0.5))
    training.value((x, labels))
    before = model.weight
    value = before.detach().clone()
    with training.untouched():
        training.value((x, labels)).backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()  # type: ignore[union-attr]
        training.value((x, labels))
        assert not torch.equal(model.weight, value)
    assert model.weight is before
    assert torch.equal(model.weight, value)


@pytest.mark.parametrize("names", [("wide", "base"), ("base", "wide")])
def test_expanded_buffers_are_left_as_they_were(names: tuple[str, str]) -> None:
    model, base = nn.Linear(4, 3), torch.arange(4.0)[None]
    for name in names:
        model.register_buffer(name, base if name == "base" else base.expand(8, 4))
    training = Training(model, [])
    with training.untouched():
        base.add_(1)
        nn.init.zeros_(model.weight)
    assert torch.equal(base, torch.arange(4.0)[None])
    assert model.weight.any()


def test_a_lazy_layer_that_got_its_sizes_within_can_be_used() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with Training(model, []).untouched():
        model(torch.ones(4, 5))
    assert model(torch.ones(2, 5)).shape == (2, 3)
    assert type(model[0]) is nn.Linear


def test_what_a_loss_and_an_optimizer_hold_beside_the_model_is_left_as_it_was() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return (self.scale * elsewhere * model(batch)).square().mean()

    model, loss, elsewhere = nn.Linear(4, 3), Scaled(), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters(), elsewhere], 0.5)
    training = Training(model, [torch.randn(8, 4)], loss, optimizer)
    with training.untouched():
        training.value(training.first()[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert loss.scale != 1
        assert elsewhere != 1
    assert (loss.scale.item(), loss.calls.item(), elsewhere.item()) == (1, 0, 1)
    assert loss.scale.grad is None
    assert elsewhere.grad is None


def test_attributes_that_become_layers_and_parameters_that_become_attributes_are_put_back() -> None:
    model = nn.Linear(4, 3)
    model.head = None
    weight = model.weight
    with Training(model, []).untouched():
        model.head = nn.Linear(3, 2)  # takes the attribute away
        del model.weight
        model.weight = torch.zeros(3, 4)  # type: ignore[assignment] # an attribute in a parameter's place
    assert vars(model)["head"] is None
    assert "head" not in dict(model.named_modules())
    assert model.weight is weight


def test_hooks_of_every_kind_are_left_as_they_were() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    heard: list[str] = []
    before = model.weight.register_hook(lambda _gradient: heard.append("before"))
    with Training(model, [], optimizer=optimizer).untouched():
        before.remove()
        model.weight.register_hook(lambda _gradient: heard.append("tensor"))
        model.bias.register_hook(lambda _gradient: heard.append("tensor without one before"))
        model.bias.register_post_accumulate_grad_hook(lambda _parameter: heard.append("accumulated"))
        model.register_state_dict_post_hook(lambda *_: heard.append("state"))
        optimizer.register_step_pre_hook(lambda *_: heard.append("step"))
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    model.state_dict()
    assert heard == ["before"]


def test_a_training_is_left_as_it_was_also_when_it_fails() -> None:
    training = users.with_a_loss()
    before = state(training)

    def fail() -> None:
        with training.untouched():
            training.value(training.first()[0]).backward()  # type: ignore[no-untyped-call]
            training.optimizer.step()  # type: ignore[union-attr]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(state(training), before)


# -- structures --------------------------------------------------------------------------------------------------------


def test_scores_are_logits_or_the_first_floating_tensor() -> None:
    a, b, number = torch.zeros(2), torch.ones(3), torch.arange(4)
    assert nested.scores(a) is a
    assert nested.scores((number, [None, b], a)) is b
    assert nested.scores({"hidden": a, "logits": b}) is b
    assert nested.scores(users.Output(b)) is b
    with pytest.raises(nested.NoTensorError, match="it returns a tuple without any floating-point tensor"):
        nested.scores((number, None))


def test_structures_that_refer_to_themselves_end() -> None:
    looped: list[Any] = [torch.zeros(2)]
    looped.append(looped)
    assert [place for place, _ in nested.tensors(looped)] == ["0"]
    shared = torch.zeros(1)
    assert [place for place, _ in nested.tensors({"a": [shared], "b": [shared]})] == ["a.0", "b.0"]


def test_a_structure_is_mapped_as_it_is() -> None:
    value = {"a": (torch.ones(1), 3), "b": [users.Scored(torch.ones(2), None)]}
    doubled = nested.mapped(value, lambda tensor: tensor * 2)
    assert doubled["a"][0] == 2
    assert doubled["a"][1] == 3
    assert isinstance(doubled["b"][0], users.Scored)
    assert list(itertools.chain.from_iterable(tensor.tolist() for _, tensor in nested.tensors(doubled))) == [2, 2, 2]


class _Encoding(UserDict[str, torch.Tensor]):
    def __getattr__(self, name: str) -> torch.Tensor:
        return self.data[name]


@pytest.mark.parametrize("kind", [dict, _Encoding])
def test_a_loss_may_take_a_batch_apart(kind: Any) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        labels = batch.pop("labels")
        return nn.functional.cross_entropy(model(**batch), labels)

    batch = kind({"input": torch.randn(8, 4), "labels": torch.randint(3, (8,))})
    training = Training(nn.Linear(4, 3), [batch], loss)
    assert training.value(batch) == training.value(batch)
    assert list(batch) == ["input", "labels"]


def test_a_dictionary_is_mapped_to_one_of_its_type() -> None:
    batch = _Encoding({"x": torch.ones(2), "y": torch.zeros(2)})
    doubled = nested.mapped(batch, lambda tensor: tensor * 2)
    assert type(doubled) is _Encoding
    assert doubled.x.tolist() == [2, 2]
    assert batch.x.tolist() == [1, 1]


def test_what_a_scheduler_looks_at_is_left_as_it_was() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with Training(model, [], optimizer=optimizer).untouched():
        optimizer.step()
    with pytest.warns(UserWarning, match="before `optimizer.step"):  # no step was made
        scheduler.step()


def test_schedulers_inside_of_a_scheduler_are_left_as_they_were() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    rates = torch.optim.lr_scheduler
    inner = [rates.ConstantLR(optimizer, 0.5, 3), rates.CosineAnnealingLR(optimizer, 10)]
    scheduler = rates.SequentialLR(optimizer, inner, [2])
    before = [copy.deepcopy(each.state_dict()) for each in inner]
    with restored([model], optimizer, scheduler):
        for _ in range(4):
            optimizer.step()
            scheduler.step()
        assert [each.state_dict() for each in inner] != before
    assert [each.state_dict() for each in inner] == before


def test_hooks_that_a_first_call_adds_and_the_flag_that_says_so_go_together() -> None:
    class Capturing(nn.Linear):
        """A model that hooks itself at its first call, as those of transformers do."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not getattr(self, "_hooked", False):
                self.register_forward_hook(lambda _m, _i, output: output + 1)
                self._hooked = True
            return super().forward(x)

    model, x = Capturing(3, 3), torch.randn(2, 3)
    with Training(model, []).untouched():
        model(x)
        again = model(x)
    assert not hasattr(model, "_hooked")
    model(x)
    assert torch.equal(model(x), again)


def test_a_loss_that_writes_into_its_batch_gets_copies() -> None:
    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return model(batch[0].div_(255)).sum()

    x = torch.rand(4, 3) * 255
    kept = x.clone()
    training = Training(nn.Linear(3, 1), [[x]], loss)
    assert len({training.value(training.first()[0]).item() for _ in range(3)}) == 1
    assert torch.equal(x, kept)


class _Example:
    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.parts, self.inner = x, {"y": x.clone()}, SimpleNamespace()


@dataclasses.dataclass
class _Record:
    x: torch.Tensor
    parts: dict[str, torch.Tensor]


def _graphs() -> Any:
    data = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor([[0, 1], [1, 0]])
    return data.Batch.from_data_list([data.Data(x=torch.ones(2, 3), edge_index=edges, parts={"y": torch.ones(2, 3)})])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: _Example(torch.ones(2, 3)),
        lambda: [_Record(torch.ones(2, 3), {"y": torch.ones(2, 3)})],
        lambda: {"a": (_Example(torch.ones(2, 3)), "b")},
        _graphs,
    ],
)
def test_objects_of_a_batch_are_a_calls_own(make: Any, in_place: bool) -> None:
    def one(batch: Any) -> Any:
        batch = batch[0] if isinstance(batch, list) else batch
        return batch["a"][0] if isinstance(batch, dict) else batch

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        given = one(batch)
        if in_place:
            given.x.mul_(2)
        else:
            given.x = torch.cat([given.x, 2 * given.x])
        value = model(given.x).sum() + given.parts["y"].sum()
        given.parts["y"] = 0 * given.parts["y"]
        return value

    batch = make()
    training = Training(nn.Linear(3, 1), [batch], loss)
    assert len({training.value(batch).item() for _ in range(3)}) == 1
    assert torch.equal(one(batch).x, torch.ones(2, 3))
    assert torch.equal(one(batch).parts["y"], torch.ones(2, 3))
    assert training.writes == in_place


def test_what_cannot_be_copied_is_handed_on_as_it_is() -> None:
    class Single:
        def __init__(self) -> None:
            self.x = torch.ones(1)

        def __copy__(self) -> Any:
            raise TypeError("there is one")

    class Slots:
        __slots__ = ("x",)

    frozen, circle = dataclasses.make_dataclass("Frozen", ["x"], frozen=True)(torch.ones(1)), _Example(torch.ones(1))
    circle.inner.back = circle
    assert [nested.copied(each) is each for each in (Single(), Slots(), frozen, nn.Linear(1, 1))] == [True] * 4
    again = nested.copied([circle, circle])
    assert again[0] is again[1] is not circle


def test_an_update_hands_a_closure_to_an_optimizer_that_takes_one() -> None:
    x, model = torch.randn(8, 4), nn.Linear(4, 3)
    batch = (x, torch.randint(3, (8,)))
    training = Training(model, [batch], optimizer=torch.optim.LBFGS(model.parameters(), lr=0.1))
    before = training.value(batch).item()
    training.update(batch)
    assert training.value(batch).item() < before


def test_a_loss_that_is_a_module_without_parts_is_the_loss() -> None:
    """Which is false where truth is asked for, as every empty container."""

    class Square(nn.ModuleDict):
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch[0]).square().mean()

    model, batch = nn.Linear(3, 2), (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(Training(model, [batch], Square()).value(batch), model(batch[0]).square().mean())


def test_drawn_labels_follow_the_scores_to_their_device() -> None:
    loss = DrawnLabels(torch.Generator().manual_seed(0))
    batch = Inputs((torch.ones(4, 3),))
    assert loss(nn.Linear(3, 2), batch).device.type == "cpu"
    assert loss(nn.Linear(3, 2, device="meta"), batch.to("meta")).device.type == "meta"
