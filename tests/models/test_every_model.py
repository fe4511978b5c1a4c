"""What must hold of every model; each at its small preset."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from depthgauge import data, models

every_model = pytest.mark.parametrize("name", models.names())


def small(name: str, **parameters: Any) -> nn.Module:
    return models.build(name, preset="small", **parameters)


def outputs_of(name: str) -> int:
    return 1 if name == "linear_regression" else 10


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype(name: str, dtype: torch.dtype) -> None:
    out = small(name).to(dtype)(models.example(name, preset="small", batch=2).to(dtype))
    assert out.shape == (2, outputs_of(name))
    assert out.dtype == dtype
    assert out.isfinite().all()


@every_model
def test_a_batch_of_one_is_a_row_of_a_larger_batch(name: str) -> None:
    model = small(name).double().eval()
    x = models.example(name, preset="small", batch=3).double()
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2], rtol=1e-10, atol=1e-12)


@every_model
def test_gradients_reach_every_parameter(name: str) -> None:
    model = small(name, init="he")
    model(models.example(name, preset="small", batch=8)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@every_model
def test_evaluation_is_repeatable_and_leaves_the_state_alone(name: str) -> None:
    model = small(name, **({"dropout": 0.5} if "dropout" in models.entry(name).arguments else {}))
    x = models.example(name, preset="small", batch=4)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    assert torch.equal(model(x), model(x))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.train()
    out = model(x)
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        assert not torch.equal(out, model(x))
    buffers = dict(model.named_buffers())
    assert all(not torch.equal(before[key], value) for key, value in buffers.items())


@every_model
def test_saved_weights_load_with_weights_only(name: str) -> None:
    model, other = small(name, seed=1).eval(), small(name, seed=2).eval()
    x = models.example(name, preset="small", batch=2)
    assert not torch.equal(model(x), other(x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(x), other(x))


@every_model
def test_layers_are_named_in_the_order_in_which_they_run(name: str) -> None:
    model = small(name)
    ran: list[str] = []
    for layer, module in models.layers(model):
        module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    model(models.example(name, preset="small", batch=2))
    assert list(dict.fromkeys(ran)) == [layer for layer, _ in models.layers(model)]  # recurrent ones run at every step
    assert {f"{layer}.weight" for layer, _ in models.layers(model)} <= set(model.state_dict())


@every_model
def test_every_weight_matrix_is_in_a_layer(name: str) -> None:
    model = small(name)
    of_layers = {p for _, module in models.layers(model) for p in module.parameters(recurse=False)}
    assert {p for p in model.parameters() if p.dim() > 1} <= of_layers


@every_model
def test_slots_do_not_rename_layers(name: str) -> None:
    arguments = models.entry(name).arguments
    changes: dict[str, Any] = {"activation": "tanh", "norm": "layer"}
    changed = small(name, **{key: value for key, value in changes.items() if key in arguments})
    assert [layer for layer, _ in models.layers(changed)] == [layer for layer, _ in models.layers(small(name))]


@every_model
def test_export_keeps_the_names(name: str) -> None:
    model = small(name).eval()
    if name in {"resnet50", "resnext50_32x4d", "googlenet", "vgg19", "vgg16", "vgg13", "resnet34", "lstm"}:
        pytest.skip("made of the same parts as a smaller one, and slow to trace")
    exported = torch.export.export(model, (models.example(name, preset="small", batch=2),))
    assert set(exported.state_dict) == set(model.state_dict())


@every_model
def test_same_seed_same_weights(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = small(name, seed=3), small(name, seed=3), small(name, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in first.state_dict().items())


SLOTS = {"lenet5": {"init": "xavier"}, "nin": {"activation": "leaky_relu"}}


@every_model
def test_32_real_examples_can_be_overfitted(name: str) -> None:
    """To every label right, within 300 steps of Adam; the values of linear regression to 1 % of their variance.

    NiN's class maps end in the activation: a map that ReLU has set to zero everywhere gets no gradient, and among ten
    classes one usually is. It learns with an activation that is nowhere flat.
    """
    x, y = data.load("mnist5k").train[:32]
    model = small(name, **{"init": "he", **SLOTS.get(name, {})})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if name == "nin" else 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        out = model(x)
        if name == "linear_regression":
            target = (y[:, None] - y.float().mean()) / y.float().std()
            loss, fitted = mse_loss(out, target), bool(mse_loss(out, target) < 0.01)
        else:
            loss, fitted = cross_entropy(out, y), bool((out.argmax(1) == y).all())
        if fitted:
            return
        loss.backward()
        optimizer.step()
    pytest.fail(f"{name}: loss {loss.item():.3g} after 300 steps")


@every_model
def test_replicas_can_be_batched(name: str) -> None:
    """Two models with other weights, run as one by torch.func, give what each gives alone."""
    x = models.example(name, preset="small", batch=2).double()
    replicas = [small(name, seed=seed).double().eval() for seed in (1, 2)]
    stacked = torch.func.stack_module_state(replicas)
    skeleton = small(name, device="meta").eval()
    together = torch.func.vmap(lambda tensors: torch.func.functional_call(skeleton, tensors, (x,)), in_dims=0)(
        {**stacked[0], **stacked[1]}
    )
    torch.testing.assert_close(together, torch.stack([replica(x) for replica in replicas]), rtol=1e-9, atol=1e-11)
