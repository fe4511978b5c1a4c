"""Sound trainings of public packages for the sixth set: configurations, nothing downloaded."""

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
def hugging_face_t5() -> Training:
    """An encoder and a decoder that shift labels themselves; what is padding is left out of the loss."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    read = tasks.text(vocabulary=38, length=8, count=1024, following=3) + 2
    there = torch.arange(8) < torch.randint(4, 9, (1024, 1))
    code = torch.randperm(38) + 2
    labels = code[read - 2].masked_fill(~there, -100)
    names = ("input_ids", "attention_mask", "labels")
    columns = (read.masked_fill(~there, 0).split(32), there.long().split(32), labels.split(32))
    batches = [dict(zip(names, parts, strict=True)) for parts in zip(*columns, strict=True)]
    net = transformers.T5ForConditionalGeneration(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0))


@add("transformers")
def hugging_face_electra_of_tags() -> Training:
    """Tags of tokens, half of which are pieces of words and have no label; embeddings are narrower than the body."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.ElectraConfig(
        vocab_size=60, embedding_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, num_labels=5, hidden_dropout_prob=0.1,
    )  # fmt: skip
    ids = torch.randint(60, (1024, 12))
    kind = torch.randint(5, (60,))
    labels = kind[ids].masked_fill(torch.rand(1024, 12) < 0.5, -100)
    pairs = zip(ids.split(32), labels.split(32), strict=True)
    batches = [{"input_ids": rows, "labels": tags} for rows, tags in pairs]
    net = transformers.ElectraForTokenClassification(config).train()
    return Training(net, batches, own, optim.AdamW(net.parameters(), lr=3e-3))


@add("torch-geometric")
def isomorphism_network_of_sums() -> Training:
    """Graphs told by sums over neighbours and nodes, whose epsilon starts at 0 and is learnt."""
    from torch_geometric.data import Data  # noqa: PLC0415 - may be missing
    from torch_geometric.loader import DataLoader  # noqa: PLC0415 - as above
    from torch_geometric.nn import GINConv, global_add_pool  # noqa: PLC0415 - as above

    def ring(pieces: int) -> Any:
        """Nodes on one ring, or on two."""
        size = 2 * int(torch.randint(4, 8, ()))
        part = size // pieces
        nodes = torch.arange(size)
        after = nodes // part * part + (nodes + 1) % part
        edges = torch.cat([torch.stack([nodes, after]), torch.stack([after, nodes])], 1)
        marked = torch.zeros(size, 2)
        marked[:, 0] = 1
        marked[torch.tensor([0, 1 if pieces == 1 else part]), 1] = 1
        return Data(x=marked, edge_index=edges, y=torch.tensor([pieces - 1]))

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(
                GINConv(nn.Sequential(nn.Linear(wide, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24)), 0.0, True)
                for wide in (2, 24)
            )
            self.out = nn.Linear(24, 2)

        def forward(self, graph: Any) -> Tensor:
            h = graph.x
            for conv in self.convs:
                h = functional.relu(conv(h, graph.edge_index))
            return self.out(global_add_pool(h, graph.batch))

    net = Sums()
    batches = DataLoader([ring(1 + i % 2) for i in range(384)], batch_size=32, shuffle=True)
    return Training(
        net, batches, lambda m, b: functional.cross_entropy(m(b), b.y), optim.Adam(net.parameters(), lr=3e-3)
    )
