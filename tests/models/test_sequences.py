"""Recurrent networks against PyTorch's own, and what a transformer may see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depthgauge import data, models


@pytest.mark.parametrize(("name", "kind"), [("rnn", nn.RNN), ("lstm", nn.LSTM)])
@pytest.mark.parametrize("depth", [1, 3])
def test_recurrent_model_equals_pytorchs(name: str, kind: type[nn.RNNBase], depth: int) -> None:
    model = models.build(name, input_shape=(9, 4), classes=3, depth=depth, width=5, each_step=True).double()
    theirs = kind(4, 5, num_layers=depth, batch_first=True).double()
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            getattr(theirs, f"weight_ih_l{number}").copy_(layer.input.weight)
            getattr(theirs, f"weight_hh_l{number}").copy_(layer.state.weight)
            getattr(theirs, f"bias_ih_l{number}").copy_(layer.input.bias)
            getattr(theirs, f"bias_hh_l{number}").zero_()
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x), model.output(theirs(x)[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["rnn", "lstm", "transformer"])
def test_tokens_rows_and_images(name: str) -> None:
    small = {"width": 8, "classes": 3, "depth": 2} | ({"heads": 2} if name == "transformer" else {})
    tokens = models.build(name, input_shape=(6,), vocabulary=5, each_step=True, **small)
    assert tokens(torch.randint(5, (2, 6))).shape == (2, 6, 3)
    rows = models.build(name, input_shape=(6, 4), vocabulary=None, each_step=False, **small)
    image = models.build(name, input_shape=(1, 6, 4), vocabulary=None, each_step=False, **small)
    x = torch.randn(2, 6, 4)
    assert rows(x).shape == (2, 3)
    assert torch.equal(rows(x), image(x[:, None]))


@pytest.mark.parametrize("name", ["rnn", "lstm", "transformer"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_step_depends_on_all_before_it_and_on_none_after(name: str, order: str) -> None:
    extra = {"heads": 2, "order": order} if name == "transformer" else {}
    model = models.build(
        name, input_shape=(6, 4), vocabulary=None, each_step=True, classes=3, width=8, depth=2, **extra
    ).double()
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(model, x)[0, :, :, 0].abs().sum(dim=(1, 3))  # (step out, step in)
    assert torch.equal(jacobian > 0, torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize("fused", [True, False])
def test_attention_equals_pytorchs(fused: bool) -> None:
    ours = models.build("transformer", preset="small", width=8, heads=2, fused=fused).blocks[0].attention.double()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj = ours.project
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    masked = torch.ones(5, 5).triu(1).bool()
    by_theirs, _ = theirs(x, x, x, attn_mask=masked, need_weights=False)
    torch.testing.assert_close(ours(x), by_theirs, rtol=1e-12, atol=1e-12)


def test_qk_norm_is_a_layer_norm_of_each_head_s_queries_and_keys() -> None:
    options = {"preset": "small", "width": 8, "heads": 2, "qk_norm": True}
    ours, fused = (
        models.build("transformer", **options, fused=it).blocks[0].attention.double() for it in (False, True)
    )
    with torch.no_grad():
        for norm in (ours.norm_q, ours.norm_k):
            norm.weight.uniform_(0.5, 2.0)
    fused.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in ours.qkv(x).chunk(3, -1))
    q, k = (
        (part - part.mean(-1, keepdim=True)) / (part.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        for part in (q, k)
    )
    scores = (q * ours.norm_q.weight) @ (k * ours.norm_k.weight).mT / 2
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(ours.logits(x), scores, rtol=1e-12, atol=1e-12)
    expected = ours.project((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)


def test_embedding_and_output_share_their_weight_in_a_language_model() -> None:
    model = models.build("transformer", input_shape=(8,), classes=11, vocabulary=11, depth=1, width=8, heads=2)
    assert model.output.weight is model.reader.embedding.weight
    other = models.build("transformer", input_shape=(8,), classes=3, vocabulary=11, depth=1, width=8, heads=2)
    assert other.output.weight is not other.reader.embedding.weight


@pytest.mark.parametrize(
    ("name", "extra"), [("rnn", {}), ("lstm", {}), ("transformer", {"depth": 1, "heads": 4, "init": "gpt2"})]
)
def test_language_models_learn_from_the_plays(name: str, extra: dict[str, object]) -> None:
    """Better than the frequencies of characters after 60 steps: what precedes a character is used."""
    plays = data.load("shakespeare", context=32)
    model = models.build(
        name,
        input_shape=plays.input_shape,
        classes=plays.classes,
        vocabulary=plays.vocabulary,
        each_step=True,
        width=64,
        seed=0,
        **extra,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for index in list(data.batches(len(plays.train), 32, torch.Generator().manual_seed(0)))[:60]:
        x, y = plays.train[index]
        loss = nn.functional.cross_entropy(model(x).mT, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, y = plays.test[:500]
        held_out = nn.functional.cross_entropy(model(x).mT, y).item()
    assert held_out < plays.truth["memoryless_loss"].item() - 0.3


@pytest.mark.parametrize("name", ["mlp", "rnn", "lstm", "transformer"])
def test_signals_are_read_step_by_step(name: str) -> None:
    signals = data.load("mnist1d", n=20, n_test=10)
    preset = {"preset": "small"} if name == "transformer" else {}
    model = models.build(name, **preset, input_shape=signals.input_shape, classes=10, seed=0)
    assert model(signals.train.x).shape == (20, 10)
