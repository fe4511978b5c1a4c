"""Modules of other public packages: transformers of many kinds, graphs, flows, state spaces, images, time series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.entry import Case, Entry, case, first, squares


def next_token(model: nn.Module) -> Tensor:
    """Cross-entropy of logits for tokens, predicted from themselves."""
    tokens = torch.randint(0, 20, (2, 8))
    return functional.cross_entropy(first(model(tokens)).flatten(0, 1), tokens.flatten())


def x_transformer(*, wrapped: bool = False, **layers: Any) -> Callable[[], Case]:
    """A decoder of x-transformers."""

    def build() -> Case:
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

        attention = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **layers)
        model = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=attention)
        if wrapped:
            return case(AutoregressiveWrapper(model), lambda m: m(torch.randint(0, 20, (2, 9))))
        return case(model, next_token)

    return build


def continuous() -> Case:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    model = ContinuousTransformerWrapper(
        dim_in=4, dim_out=3, max_seq_len=8, attn_layers=Encoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    )
    return case(model, squares(2, 6, 4))


def vit(name: str, module: str, **settings: Any) -> Callable[[], Case]:
    """A vision transformer of vit-pytorch."""

    def build() -> Case:
        import importlib

        import vit_pytorch  # noqa: F401 # all of it, or nothing: a part would be found after the whole has failed

        kind = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
        return case(kind(**settings), squares(2, 3, 16, 16))

    return build


VIT = {"image_size": 16, "patch_size": 8, "num_classes": 3, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}


def graph(kind: str, *size: Any, **settings: Any) -> Callable[[], Case]:
    """Two layers of a graph convolution, ReLU between them."""

    def build() -> Case:
        from torch_geometric import nn as layers

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                make = getattr(layers, kind)
                self.first, self.second = make(5, 8, *size, **settings), make(8, 3, *size, **settings)

            def forward(self, x: Tensor, edges: Tensor) -> Tensor:
                return self.second(self.first(x, edges).relu(), edges)

        return case(Net(), lambda m: m(torch.randn(6, 5), torch.randint(0, 6, (2, 12))).square().mean())

    return build


def gin() -> Case:
    from torch_geometric.nn import GIN, global_mean_pool

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = GIN(5, 8, 2, norm="batch_norm"), nn.Linear(8, 3)

        def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
            return self.head(global_mean_pool(self.body(x, edges), batch))

    def loss(model: nn.Module) -> Tensor:
        return model(torch.randn(6, 5), torch.randint(0, 6, (2, 12)), torch.tensor([0, 0, 0, 1, 1, 1])).square().mean()

    return case(Net(), loss)


def heterogeneous() -> Case:
    from torch_geometric.nn import HeteroConv, SAGEConv

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kinds = {("a", "to", "b"): SAGEConv((5, 4), 8), ("b", "to", "a"): SAGEConv((4, 5), 8)}
            self.layer, self.head = HeteroConv(kinds), nn.Linear(8, 2)

        def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> Tensor:
            return self.head(torch.cat(list(self.layer(x, edges).values())))

    def loss(model: nn.Module) -> Tensor:
        edges = torch.randint(0, 3, (2, 7))
        x = {"a": torch.randn(3, 5), "b": torch.randn(3, 4)}
        return model(x, {("a", "to", "b"): edges, ("b", "to", "a"): edges}).square().mean()

    return case(Net(), loss)


def schnet() -> Case:
    from torch_geometric.nn.models.schnet import CFConv, GaussianSmearing

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spread = GaussianSmearing(0.0, 5.0, 6)
            self.filter = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 8))
            self.layer, self.head = CFConv(5, 3, 8, self.filter, 5.0), nn.Linear(3, 1)

        def forward(self, x: Tensor, edges: Tensor, length: Tensor) -> Tensor:
            return self.head(self.layer(x, edges, length, self.spread(length)))

    return case(Net(), lambda m: m(torch.randn(6, 5), torch.randint(0, 6, (2, 12)), torch.rand(12)).square().mean())


def equivariant() -> Case:
    from e3nn import o3
    from e3nn.nn import Gate

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            gate = Gate("4x0e", [torch.relu], "2x0e", [torch.sigmoid], "2x1o")
            self.tensor = o3.FullyConnectedTensorProduct("4x0e + 1x1o", "1x0e + 1x1o", gate.irreps_in)
            self.gate, self.out = gate, o3.Linear(gate.irreps_out, "1x0e")

        def forward(self, x: Tensor, directions: Tensor) -> Tensor:
            return self.out(self.gate(self.tensor(x, directions)))

    return case(Net(), lambda m: m(torch.randn(5, 7), torch.randn(5, 4)).square().mean())


def egnn() -> Case:
    from egnn_pytorch import EGNN

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = EGNN(dim=8), EGNN(dim=8)

        def forward(self, x: Tensor, place: Tensor) -> Tensor:
            return self.second(*self.first(x, place))[0]

    return case(Net(), lambda m: m(torch.randn(1, 5, 8), torch.randn(1, 5, 3)).square().mean())


def rearranged() -> Case:
    from einops.layers.torch import EinMix, Rearrange, Reduce

    model = nn.Sequential(
        Rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
        EinMix("b t c -> b t d", weight_shape="c d", bias_shape="d", c=12, d=8),
        nn.GELU(),
        Reduce("b t d -> b d", "mean"),
        nn.Linear(8, 3),
    )
    return case(model, squares(2, 3, 4, 4))


def mamba() -> Case:
    from mambapy.mamba import Mamba, MambaConfig

    return case(Mamba(MambaConfig(d_model=8, n_layers=2, d_state=4)), squares(2, 5, 8))


def xlstm() -> Case:
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    matrix = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(conv1d_kernel_size=2, qkv_proj_blocksize=2, num_heads=2))
    scalar = sLSTMBlockConfig(
        slstm=sLSTMLayerConfig(backend="vanilla", num_heads=2, conv1d_kernel_size=2), feedforward=FeedForwardConfig()
    )
    model = xLSTMBlockStack(
        xLSTMBlockStackConfig(
            mlstm_block=matrix, slstm_block=scalar, context_length=6, num_blocks=2, embedding_dim=16, slstm_at=[1]
        )
    )
    return case(model, squares(2, 6, 16))


def closed_form() -> Case:
    from ncps.torch import CfC
    from ncps.wirings import AutoNCP

    model = CfC(4, AutoNCP(10, 3))
    return case(model, lambda m: m(torch.randn(2, 5, 4))[0].square().mean())


def spiking() -> Case:
    import snntorch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fires = nn.Linear(8, 16), snntorch.Leaky(beta=0.9)
            self.second, self.reads = nn.Linear(16, 3), snntorch.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            one, two, spikes = self.fires.init_leaky(), self.reads.init_leaky(), []
            for _ in range(3):
                fired, one = self.fires(self.first(x), one)
                _, two = self.reads(self.second(fired), two)
                spikes.append(two)
            return torch.stack(spikes)

    return case(Net(), squares(4, 8))


def neural_ode(*, adjoint: bool) -> Callable[[], Case]:
    """A differential equation whose right side is a network."""

    def build() -> Case:
        import torchdiffeq

        solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

        class Slope(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

            def forward(self, _time: Tensor, y: Tensor) -> Tensor:
                return self.net(y)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.slope, self.head = Slope(), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(solve(self.slope, x, torch.tensor([0.0, 1.0]), method="rk4")[-1])

        return case(Net(), squares(3, 4))

    return build


def fourier() -> Case:
    from neuralop.models import FNO

    return case(FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=4, n_layers=2), squares(2, 1, 8, 8))


def flow() -> Case:
    from nflows import distributions, flows, transforms

    steps = [
        part
        for _ in range(2)
        for part in (
            transforms.ReversePermutation(features=4),
            transforms.MaskedAffineAutoregressiveTransform(features=4, hidden_features=8),
        )
    ]
    model = flows.Flow(transforms.CompositeTransform(steps), distributions.StandardNormal([4]))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = model

        def forward(self, x: Tensor) -> Tensor:
            return -self.flow.log_prob(x).mean()

    return case(Net(), lambda m: m(torch.randn(5, 4)))


def gaussian_process() -> Case:
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.features = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
            self.mean, self.kernel = (
                gpytorch.means.ConstantMean(),
                gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()),
            )

        def forward(self, x: Tensor) -> Any:
            z = self.features(x)
            return gpytorch.distributions.MultivariateNormal(self.mean(z), self.kernel(z))

    x, y = torch.randn(6, 3), torch.randn(6)
    model = Process(x, y, gpytorch.likelihoods.GaussianLikelihood())
    model.train()

    def loss(m: nn.Module) -> Tensor:
        return -gpytorch.mlls.ExactMarginalLogLikelihood(m.likelihood, m)(m(x), y)

    return case(model, loss)


def medical(name: str, *shape: int, **settings: Any) -> Callable[[], Case]:
    """A network of MONAI."""

    def build() -> Case:
        from monai.networks import nets

        return case(getattr(nets, name)(**settings), squares(*shape))

    return build


def matched() -> Case:
    from kornia.feature import HardNet

    return case(HardNet(pretrained=False), squares(2, 1, 32, 32))


def quantized_codes() -> Case:
    from vector_quantize_pytorch import ResidualVQ

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.codes, self.decode = (
                nn.Linear(8, 4),
                ResidualVQ(dim=4, num_quantizers=2, codebook_size=8),
                nn.Linear(4, 8),
            )

        def forward(self, x: Tensor) -> Tensor:
            quantized, _, loss = self.codes(self.encode(x))
            return self.decode(quantized).square().mean() + loss.sum()

    return case(Net(), lambda m: m(torch.randn(2, 6, 8)))


def mixture() -> Case:
    from st_moe_pytorch import MoE, SparseMoEBlock

    model = SparseMoEBlock(MoE(dim=8, num_experts=4, gating_top_n=2), add_ff_before=True)

    def loss(m: nn.Module) -> Tensor:
        out = m(torch.randn(1, 6, 8))
        return out.outputs.square().mean() + out.total_aux_loss

    return case(model, loss)


def timm(name: str) -> Callable[[], Case]:
    """An image classifier of timm, not pretrained."""

    def build() -> Case:
        import timm as package

        model = package.create_model(name, pretrained=False, num_classes=3, drop_path_rate=0.1)
        return case(model, squares(2, 3, 32, 32))

    return build


def diffusion() -> Case:
    from denoising_diffusion_pytorch import GaussianDiffusion1D, Unet1D

    model = GaussianDiffusion1D(
        Unet1D(dim=8, dim_mults=(1, 2), channels=2, attn_heads=2, attn_dim_head=4), seq_length=8, timesteps=10
    )
    return case(model, lambda m: m(torch.rand(2, 2, 8)))


def tabular() -> Case:
    from pytorch_tabnet.tab_network import TabNet

    groups = torch.eye(6)
    model = TabNet(6, 3, n_d=4, n_a=4, n_steps=2, group_attention_matrix=groups)
    return case(model, lambda m: sum(part.square().mean() for part in m(torch.randn(8, 6))))


def tensordicts() -> Case:
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential

    model = TensorDictSequential(
        TensorDictModule(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), in_keys=["state"], out_keys=["hidden"]),
        TensorDictModule(nn.Linear(8, 2), in_keys=["hidden"], out_keys=["action"]),
    )
    return case(model, lambda m: m(TensorDict(state=torch.randn(4, 8), batch_size=[4]))["action"].square().mean())


def actor() -> Case:
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal

    net = nn.Sequential(MLP(in_features=4, out_features=4, num_cells=[8]), NormalParamExtractor())
    inner = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    model = ProbabilisticActor(
        inner, in_keys=["loc", "scale"], out_keys=["action"], distribution_class=TanhNormal, return_log_prob=True
    )
    return case(model, lambda m: m(TensorDict(observation=torch.randn(5, 4), batch_size=[5]))["action_log_prob"].mean())


ARCHITECTURES = (
    Entry("decoder", x_transformer(), package="x-transformers"),
    Entry(
        "decoder: rotary, RMSNorm, GLU, grouped queries",
        x_transformer(rotary_pos_emb=True, use_rmsnorm=True, ff_glu=True, attn_kv_heads=1),
        package="x-transformers",
    ),
    Entry(
        "decoder: ALiBi, query-key norm, sandwich norm",
        x_transformer(alibi_pos_bias=True, attn_qk_norm=True, sandwich_norm=True),
        package="x-transformers",
    ),
    Entry("`AutoregressiveWrapper`", x_transformer(wrapped=True), package="x-transformers"),
    Entry("`ContinuousTransformerWrapper`", continuous, package="x-transformers"),
    Entry("`ViT`", vit("ViT", "vit", **VIT), package="vit-pytorch"),
    Entry("`SimpleViT`", vit("SimpleViT", "simple_vit", **VIT), package="vit-pytorch"),
    Entry("`CaiT`", vit("CaiT", "cait", **VIT, cls_depth=1), package="vit-pytorch"),
    Entry("ResNet", timm("resnet10t"), package="timm"),
    Entry("EfficientNet", timm("efficientnet_lite0"), package="timm"),
    Entry("ConvNeXt", timm("convnext_atto"), package="timm"),
    Entry("GCN", graph("GCNConv"), package="torch-geometric"),
    Entry("GAT", graph("GATConv"), package="torch-geometric"),
    Entry("GATv2", graph("GATv2Conv"), package="torch-geometric"),
    Entry("GraphSAGE", graph("SAGEConv"), package="torch-geometric"),
    Entry("graph transformer", graph("TransformerConv"), package="torch-geometric"),
    Entry(
        "Chebyshev filters",
        graph("ChebConv", 3),
        package="torch-geometric",
        expected="partly",
        why="filters of higher order do not run on a graph without the edges for them",
    ),
    Entry("GIN with pooling", gin, package="torch-geometric"),
    Entry("`HeteroConv`", heterogeneous, package="torch-geometric"),
    Entry("SchNet's continuous filters", schnet, package="torch-geometric"),
    Entry("tensor products and gates", equivariant, package="e3nn"),
    Entry("EGNN", egnn, package="egnn-pytorch"),
    Entry("`Rearrange`, `Reduce`, `EinMix`", rearranged, package="einops"),
    Entry(
        "Mamba in plain PyTorch",
        mamba,
        package="mambapy",
        expected="partly",
        why="`dt_proj` is used by its weight alone",
    ),
    Entry("xLSTM, matrix and scalar blocks", xlstm, package="xlstm"),
    Entry(
        "closed-form continuous-time network",
        closed_form,
        package="ncps",
        expected="partly",
        why="`ff1` and `ff2` are used by their weights alone",
    ),
    Entry("leaky integrate-and-fire neurons", spiking, package="snntorch"),
    Entry("neural ODE", neural_ode(adjoint=False), package="torchdiffeq"),
    Entry("neural ODE, adjoint method", neural_ode(adjoint=True), package="torchdiffeq"),
    Entry("Fourier neural operator", fourier, package="neuraloperator"),
    Entry("masked autoregressive flow", flow, package="nflows"),
    Entry(
        "deep-kernel Gaussian process",
        gaussian_process,
        package="gpytorch",
        expected="partly",
        why="a kernel returns a lazy matrix, no tensor",
    ),
    Entry(
        "`UNet`",
        medical("UNet", 1, 1, 8, 8, spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)),
        package="monai",
    ),
    Entry(
        "`SegResNet`",
        medical(
            "SegResNet",
            1,
            1,
            8,
            8,
            8,
            in_channels=1,
            out_channels=2,
            init_filters=8,
            blocks_down=(1, 1),
            blocks_up=(1,),
        ),
        package="monai",
    ),
    Entry("`HardNet`", matched, package="kornia"),
    Entry("residual vector quantization", quantized_codes, package="vector-quantize-pytorch"),
    Entry("sparse mixture of experts", mixture, package="st-moe-pytorch"),
    Entry("denoising diffusion", diffusion, package="denoising-diffusion-pytorch"),
    Entry("TabNet", tabular, package="pytorch-tabnet"),
    Entry("`TensorDictModule`", tensordicts, package="tensordict"),
    Entry("`ProbabilisticActor`", actor, package="torchrl"),
)
