"""Sound trainings of public packages for the seventh set: configurations, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from benchmarks.fault_zoo import tasks
from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import own
from depthgauge import Training

SOUNDS = Sounds()
add = SOUNDS.add


@add("transformers")
def hugging_face_albert_of_one_layer_thrice() -> Training:
    """Sentences of two kinds of words, by one layer that is run three times, and a pooler with a tanh."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.AlbertConfig(
        vocab_size=50, embedding_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_labels=4,
        num_attention_heads=2, max_position_embeddings=32, classifier_dropout_prob=0.0,
    )  # fmt: skip
    kind = torch.randint(4, (1024,))
    ids = torch.where(torch.rand(1024, 10) < 0.5, 12 * kind[:, None] + torch.randint(12, (1024, 10)), 49)
    pairs = zip(ids.split(32), kind.split(32), strict=True)
    batches = [{"input_ids": rows, "labels": labels} for rows, labels in pairs]
    net = transformers.AlbertForSequenceClassification(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=2e-3))


@add("peft", "transformers")
def three_scales_learnt_by_peft() -> Training:
    """A small OPT that has read text of one kind, whose activations alone are rescaled for another."""
    import peft  # noqa: PLC0415 - may be missing
    import transformers  # noqa: PLC0415 - as above

    config = transformers.OPTConfig(
        vocab_size=30, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, dropout=0.0,
        max_position_embeddings=32, word_embed_proj_dim=32,
    )  # fmt: skip
    base = transformers.OPTForCausalLM(config).train()
    before = optim.AdamW(base.parameters(), lr=5e-3)
    for rows in tasks.text(vocabulary=30, length=12, count=1600, following=2).split(32):
        before.zero_grad()
        base(input_ids=rows, labels=rows).loss.backward()
        before.step()
    names = {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]}
    net = peft.get_peft_model(base, peft.IA3Config(task_type="CAUSAL_LM", **names))
    batches = [{"input_ids": i, "labels": i} for i in tasks.text(vocabulary=30, length=12, following=2).split(32)]
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, batches, own, optim.AdamW(trained, lr=2e-2))


@add("torch-geometric")
def few_labels_on_one_graph_with_jumps() -> Training:
    """One graph as the only batch, labels of one node in eight, and all layers' states at the end."""
    from torch_geometric.nn import GraphSAGE  # noqa: PLC0415 - may be missing

    kind = torch.randint(4, (240,))
    one, other = torch.randint(240, (2, 6000))
    near = kind[one] == kind[other]
    keep = near | (torch.rand(6000) < 0.1)
    edges = torch.stack([one[keep], other[keep]])
    x = torch.randn(4, 12)[kind] + 1.5 * torch.randn(240, 12)
    told = torch.rand(240) < 0.125
    net = GraphSAGE(12, 24, num_layers=3, out_channels=4, dropout=0.3, jk="cat")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch["x"], batch["edges"])[batch["told"]], batch["kind"][batch["told"]])

    batch = {"x": x, "edges": edges, "told": told, "kind": kind}
    return Training(net, [batch], loss, optim.Adam(net.parameters(), lr=1e-2, weight_decay=5e-4))


@add("x-transformers")
def wrapped_words_that_may_not_see_all() -> Training:
    """Words by x-transformers with norms by one number, gated branches and scores of normalized keys."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper  # noqa: PLC0415 - may be missing

    layers = Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, use_scalenorm=True, attn_qk_norm=True, ff_glu=True)
    net = AutoregressiveWrapper(TransformerWrapper(num_tokens=30, max_seq_len=16, attn_layers=layers))
    rows = tasks.loader(tasks.text(vocabulary=30, length=16, following=2), batch=32)
    return Training(net, rows, lambda m, b: m(b[0]), optim.AdamW(net.parameters(), lr=3e-3))


@add("lightning")
def lightning_module_of_its_own_step() -> Training:
    """A Lightning module whose `training_step` returns the loss among other things."""
    import lightning  # noqa: PLC0415 - may be missing

    class Digits(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Mish(), nn.Linear(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> dict[str, Tensor]:
            scores = self(batch[0])
            right = (scores.argmax(1) == batch[1]).float().mean()
            return {"loss": functional.cross_entropy(scores, batch[1]), "accuracy": right}

        def configure_optimizers(self) -> optim.Optimizer:
            return optim.RAdam(self.parameters(), lr=5e-3)

    net = Digits()
    rows = tasks.loader(*tasks.digits())
    return Training(net, rows, lambda m, b: m.training_step(b, 0)["loss"], net.configure_optimizers())
