"""Sound trainings of public packages on which the checks' thresholds may be set: configurations, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import own
from benchmarks.fault_zoo.tasks import digits, loader, text
from depthgauge import Training

SOUNDS = Sounds()


@SOUNDS.add("transformers")
def hugging_face_llama() -> Training:
    """A Llama of two layers; batches are mappings, the loss is the model's own."""
    import transformers  # noqa: PLC0415 - may be missing

    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    ).train()  # fmt: skip
    batches = [{"input_ids": rows, "labels": rows} for rows in text(length=16).split(32)]
    return Training(model, batches, own, torch.optim.AdamW(model.parameters(), lr=5e-3))


@SOUNDS.add("transformers")
def hugging_face_bert() -> Training:
    """A BERT that classifies texts, with padding and dropout."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).train()
    tokens = torch.randint(2, 40, (1024, 12))
    labels = (torch.randn(40)[tokens].sum(1) > 0).long()
    lengths = torch.randint(8, 13, (1024, 1))
    mask = (torch.arange(12) < lengths).long()
    pairs = zip(tokens.masked_fill(mask == 0, 0).split(32), mask.split(32), labels.split(32), strict=True)
    batches = [{"input_ids": rows, "attention_mask": held, "labels": told} for rows, held, told in pairs]
    return Training(model, batches, own, torch.optim.AdamW(model.parameters(), lr=2e-3))


@SOUNDS.add("x-transformers")
def x_transformers_decoder() -> Training:
    """A decoder with gated linear units; its wrapper returns the loss."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper  # noqa: PLC0415 - may be missing

    layers = Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, ff_glu=True)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=32, max_seq_len=32, attn_layers=layers))
    batches = list(text(length=16).split(32))
    return Training(model, batches, lambda model, batch: model(batch), torch.optim.AdamW(model.parameters(), lr=3e-3))


@SOUNDS.add("vit-pytorch", "torchvision")
def vision_transformer() -> Training:
    """A vision transformer of vit-pytorch on digits, in four patches of sixteen pixels."""
    from vit_pytorch import ViT  # noqa: PLC0415 - may be missing

    model = ViT(image_size=8, patch_size=4, num_classes=10, dim=32, depth=2, heads=4, mlp_dim=64, channels=1)
    return Training(model, loader(*digits(), batch=32), optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3))


@SOUNDS.add("torch-geometric")
def graph_attention() -> Training:
    """Attention along edges; the batch is torch-geometric's own object, the same in each step."""
    from torch_geometric.data import Data  # noqa: PLC0415 - may be missing
    from torch_geometric.nn import GATConv  # noqa: PLC0415 - as above

    labels = torch.randint(3, (300,))
    ends = torch.randint(300, (2, 6000))
    kept = (labels[ends[0]] == labels[ends[1]]) | (torch.rand(6000) < 0.1)
    nodes = torch.randn(300, 12) + 0.7 * functional.one_hot(labels, 12)
    graph = Data(x=nodes, edge_index=ends[:, kept], y=labels)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GATConv(12, 8, heads=4)
            self.second = GATConv(32, 3)

        def forward(self, graph: Any) -> Tensor:
            return self.second(self.first(graph.x, graph.edge_index).relu(), graph.edge_index)

    def loss(model: nn.Module, graph: Any) -> Tensor:
        return functional.cross_entropy(model(graph), graph.y)

    model = Net()
    return Training(model, [graph], loss, torch.optim.Adam(model.parameters(), lr=1e-2))
