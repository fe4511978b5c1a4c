"""Sound trainings of public packages for the eighth set: configurations, nothing downloaded."""

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
def hugging_face_mamba_of_one_layer() -> Training:
    """A state space model over tokens, without attention and without places."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.MambaConfig(vocab_size=30, hidden_size=24, state_size=4, num_hidden_layers=1, conv_kernel=3)
    rows = tasks.text(vocabulary=30, length=10, count=768, following=2)
    batches = [{"input_ids": ids, "labels": ids} for ids in rows.split(16)]
    net = transformers.MambaForCausalLM(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=5e-3))


@add("transformers")
def hugging_face_distilbert_that_finds_spans() -> Training:
    """Where in a line an answer starts and ends: two labels a row are places, and there are no classes."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.DistilBertConfig(
        vocab_size=40, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=16, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    ids = torch.randint(4, 40, (1024, 12))
    start, long = torch.randint(9, (1024,)), torch.randint(1, 4, (1024,))
    rows = torch.arange(1024)
    ids[rows, start], ids[rows, start + long - 1] = 2, 3
    parts = zip(ids.split(32), start.split(32), (start + long - 1).split(32), strict=True)
    batches = [{"input_ids": i, "start_positions": s, "end_positions": e} for i, s, e in parts]
    net = transformers.DistilBertForQuestionAnswering(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=2e-3))


@add("transformers")
def hugging_face_swin_of_shifted_windows() -> Training:
    """Digits by attention within windows of four pixels, every other of which are shifted under a mask of -100."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.SwinConfig(
        image_size=8, patch_size=2, num_channels=1, embed_dim=24, depths=[2], num_heads=[2], window_size=2,
        drop_path_rate=0.0, num_labels=10,
    )  # fmt: skip
    images, labels = tasks.digits()
    pairs = zip(images.split(32), labels.split(32), strict=True)
    batches = [{"pixel_values": rows, "labels": digits} for rows, digits in pairs]
    net = transformers.SwinForImageClassification(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=3e-3))


@add("torch-geometric")
def atoms_by_networks_on_their_edges() -> Training:
    """Graphs of any size in one: weights of a message are what a network says of its edge, and sums are read out."""
    from torch_geometric.data import Batch, Data  # noqa: PLC0415 - may be missing
    from torch_geometric.nn import NNConv, global_add_pool  # noqa: PLC0415 - as above

    class Molecule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(4, 12)
            self.conv = NNConv(12, 12, nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 144)), aggr="mean")
            self.out = nn.Linear(12, 1)

        def forward(self, batch: Any) -> Tensor:
            h = self.enter(batch.x).relu()
            h = h + self.conv(h, batch.edge_index, batch.edge_attr).relu()
            return self.out(global_add_pool(h, batch.batch))

    worth, graphs = torch.randn(4), []
    for _ in range(320):
        size = int(torch.randint(3, 9, ()))
        kind = torch.randint(4, (size,))
        ring = torch.stack([torch.arange(size), torch.arange(size).roll(1)])
        edges = torch.cat([ring, ring.flip(0)], 1)
        y = (worth[kind].sum() + 0.3 * (kind == kind.roll(1)).sum()).view(1, 1) / 3
        x = functional.one_hot(kind, 4).float()
        graphs.append(Data(x=x, edge_index=edges, edge_attr=torch.rand(edges.shape[1], 2), y=y))
    batches = [Batch.from_data_list(graphs[i : i + 16]) for i in range(0, 320, 16)]
    net = Molecule()
    return Training(net, batches, lambda m, b: functional.mse_loss(m(b), b.y), optim.Adam(net.parameters(), lr=3e-3))


@add("peft", "transformers")
def scales_between_random_matrices_that_stay() -> Training:
    """A frozen network adapted by two vectors a layer, one of which starts at 0, around matrices as they were drawn."""
    import peft  # noqa: PLC0415 - may be missing
    import transformers  # noqa: PLC0415 - as above

    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=4,
        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    kind = torch.randint(4, (1024,))
    ids = torch.where(torch.rand(1024, 8) < 0.5, 1 + 9 * kind[:, None] + torch.randint(9, (1024, 8)), 38)
    base = transformers.RobertaForSequenceClassification(config).train()
    before = optim.AdamW(base.parameters(), lr=2e-3)
    for rows, labels in zip(ids.split(32), kind.split(32), strict=True):
        before.zero_grad()
        base(input_ids=rows, labels=labels % 2).loss.backward()
        before.step()
    vera = peft.VeraConfig(task_type="SEQ_CLS", r=16, target_modules=["query", "value"], vera_dropout=0.0)
    net = peft.get_peft_model(base, vera)
    pairs = zip(ids.split(32), kind.split(32), strict=True)
    batches = [{"input_ids": rows, "labels": labels} for rows, labels in pairs]
    trained = [p for p in net.parameters() if p.requires_grad]
    return Training(net, batches, own, optim.AdamW(trained, lr=5e-3))
