"""Sound trainings of public packages on which the checks are scored: configurations, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import Sounds
from benchmarks.fault_zoo.losses import own
from benchmarks.fault_zoo.tasks import digits, loader, signals, text
from depthgauge import Training

SOUNDS = Sounds()


def _gpt2() -> nn.Module:
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.GPT2Config(
        vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model.train()


@SOUNDS.add("transformers")
def hugging_face_gpt2() -> Training:
    """A GPT-2 of two layers, with dropout and tied embeddings."""
    model = _gpt2()
    batches = [{"input_ids": rows, "labels": rows} for rows in text(length=16).split(32)]
    return Training(model, batches, own, torch.optim.AdamW(model.parameters(), lr=3e-3))


@SOUNDS.add("transformers", "peft")
def low_rank_adapters_of_peft() -> Training:
    """Adapters on the attention of a GPT-2 that has learnt another language; the rest is frozen."""
    import peft  # noqa: PLC0415 - may be missing

    base = _gpt2()
    optimizer = torch.optim.AdamW(base.parameters(), lr=5e-3)
    for rows in (each for _ in range(5) for each in text(length=16).split(32)):
        optimizer.zero_grad()
        base(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    model = peft.get_peft_model(base, config)
    batches = [{"input_ids": rows, "labels": rows} for rows in text(length=16, following=2).split(32)]
    held = [each for each in model.parameters() if each.requires_grad]
    return Training(model, batches, own, torch.optim.AdamW(held, lr=5e-3))


@SOUNDS.add("transformers")
def hugging_face_vit() -> Training:
    """A vision transformer of Hugging Face, called with pixels by name."""
    import transformers  # noqa: PLC0415 - may be missing

    config = transformers.ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=10,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).train()
    images, labels = digits(1024)
    pairs = zip(images.split(32), labels.split(32), strict=True)
    batches = [{"pixel_values": rows, "labels": held} for rows, held in pairs]
    return Training(model, batches, own, torch.optim.AdamW(model.parameters(), lr=2e-3))


@SOUNDS.add("x-transformers")
def x_transformers_encoder() -> Training:
    """An encoder of continuous sequences with rotary positions, whose outputs are averaged."""
    from x_transformers import ContinuousTransformerWrapper, Encoder  # noqa: PLC0415 - may be missing

    layers = Encoder(dim=32, depth=2, heads=2, attn_dim_head=32, use_rmsnorm=True, rotary_pos_emb=True)
    net = ContinuousTransformerWrapper(dim_in=3, dim_out=4, max_seq_len=20, attn_layers=layers)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]).mean(1), batch[1])

    return Training(net, loader(*signals(), batch=32), loss, torch.optim.AdamW(net.parameters(), lr=3e-3))


@SOUNDS.add("vit-pytorch", "torchvision")
def simple_vision_transformer() -> Training:
    """Another vision transformer of vit-pytorch: no class token, fixed positions."""
    from vit_pytorch import SimpleViT  # noqa: PLC0415 - may be missing

    model = SimpleViT(image_size=8, patch_size=2, num_classes=10, dim=32, depth=2, heads=2, mlp_dim=64, channels=1)
    return Training(model, loader(*digits(), batch=32), optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@SOUNDS.add("torch-geometric")
def small_graphs() -> Training:
    """Graphs of unequal sizes, pooled to one number each: batches share no first dimension."""
    from torch_geometric.data import Data  # noqa: PLC0415 - may be missing
    from torch_geometric.loader import DataLoader  # noqa: PLC0415 - as above
    from torch_geometric.nn import GraphConv, global_mean_pool  # noqa: PLC0415 - as above

    def graph() -> Any:
        size = int(torch.randint(6, 14, ()))
        nodes, edges = torch.randn(size, 4), torch.randint(size, (2, 3 * size))
        return Data(x=nodes, edge_index=edges, y=(nodes[edges[0], 0].mean() > 0).long().reshape(1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GraphConv(4, 32)
            self.second = GraphConv(32, 32)
            self.head = nn.Linear(32, 2)

        def forward(self, graph: Any) -> Tensor:
            x = self.first(graph.x, graph.edge_index).relu()
            x = self.second(x, graph.edge_index).relu()
            return self.head(global_mean_pool(x, graph.batch))

    def loss(model: nn.Module, graph: Any) -> Tensor:
        return functional.cross_entropy(model(graph), graph.y)

    model = Net()
    batches = DataLoader([graph() for _ in range(512)], batch_size=32, shuffle=True)
    return Training(model, batches, loss, torch.optim.Adam(model.parameters(), lr=5e-3))
