"""Hugging Face: models by configuration, random weights, nothing downloaded; Trainer, peft, Accelerate, diffusers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import STEPS, Case, Entry, case, first

WORDS = 40


def _built(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made.train()


def words(*shape: int) -> Tensor:
    """Tokens, none of them special."""
    return torch.randint(3, WORDS, shape)


def next_word(model: nn.Module) -> Tensor:
    """The model's own loss of two sequences of six tokens."""
    tokens = words(2, 6)
    return model(input_ids=tokens, labels=tokens).loss


def language(family: str, head: str = "ForCausalLM", **sizes: Any) -> Callable[[], Case]:
    """A language model of two layers and width 16, its sizes under the names that most families use."""
    settings = {
        "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | sizes  # fmt: skip
    return lambda: case(_built(family + head, family + "Config", **settings), next_word)


def gpt2_model() -> nn.Module:
    """GPT-2 of two layers."""
    return _built(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def gpt2() -> Case:
    return case(gpt2_model(), next_word)


def gpt2_checkpointing() -> Case:
    model = gpt2_model()
    model.gradient_checkpointing_enable()
    return case(model, next_word)


def gpt2_generating() -> Case:
    def train(case: Case) -> list[float]:
        numbers = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            loss = case.loss(case.model)
            loss.backward()
            case.optimizer.step()
            case.model.eval()
            made = case.model.generate(words(1, 3), max_new_tokens=4, do_sample=True, pad_token_id=0)
            case.model.train()
            numbers += [loss.item(), float(made.sum())]
        return numbers

    return case(gpt2_model(), next_word, train)


def t5() -> Case:
    model = _built(
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=WORDS,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return case(model, next_word)


def bart() -> Case:
    model = _built(
        "BartForConditionalGeneration", "BartConfig", vocab_size=WORDS, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=2,
    )  # fmt: skip
    return case(model, next_word)


def classified(model: str, config: str, *shape: int, key: str = "pixel_values", **settings: Any) -> Callable[[], Case]:
    """A classifier of images or sounds with three labels."""

    def loss(module: nn.Module) -> Tensor:
        labels = torch.randint(0, 3, (shape[0],))
        return module(**{key: torch.randn(shape)}, labels=labels).loss

    return lambda: case(_built(model, config, num_labels=3, **settings), loss)


VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
}


def whisper() -> Case:
    model = _built(
        "WhisperForConditionalGeneration", "WhisperConfig", vocab_size=WORDS, d_model=16, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        num_mel_bins=8, max_source_positions=10, max_target_positions=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return case(model, lambda m: m(input_features=torch.randn(2, 8, 20), labels=words(2, 5)).loss)


def clip() -> Case:
    text = {
        "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {**VISION, "num_hidden_layers": 1, "patch_size": 8}
    model = _built("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=8)

    def loss(m: nn.Module) -> Tensor:
        return m(input_ids=words(2, 6), pixel_values=torch.randn(2, 3, 16, 16), return_loss=True).loss

    return case(model, loss)


def wav2vec() -> Case:
    model = _built(
        "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", vocab_size=WORDS, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(8, 8),
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_labels=3, classifier_proj_size=8,
        apply_spec_augment=False, layerdrop=0.0,
    )  # fmt: skip
    return case(model, lambda m: m(torch.randn(2, 400), labels=torch.randint(0, 3, (2,))).loss)


def trainer() -> Case:
    """`transformers.Trainer`, its optimizer given."""
    model = gpt2_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def train(case: Case) -> list[float]:
        import transformers

        rows = [{"input_ids": row, "labels": row} for row in words(8, 6)]
        with tempfile.TemporaryDirectory() as folder:
            settings = transformers.TrainingArguments(
                output_dir=folder, per_device_train_batch_size=2, max_steps=STEPS, logging_steps=1, report_to=[],
                save_strategy="steps", save_steps=2, use_cpu=True, disable_tqdm=True, gradient_accumulation_steps=2,
            )  # fmt: skip
            loop = transformers.Trainer(case.model, settings, train_dataset=rows, optimizers=(case.optimizer, None))
            loop.train()
        return [entry["loss"] for entry in loop.state.log_history if "loss" in entry]

    return case(model, next_word, train, optimizer=optimizer)


def adapted(make: Callable[[Any, nn.Module], nn.Module]) -> Callable[[], Case]:
    """GPT-2 with an adapter of peft's."""

    def build() -> Case:
        import peft

        model = make(peft, gpt2_model())
        return case(model, next_word, optimizer=torch.optim.AdamW(p for p in model.parameters() if p.requires_grad))

    return build


def lora(peft: Any, model: nn.Module, **more: Any) -> nn.Module:
    """Low-rank adapters at the attention's input."""
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True, **more)
    return peft.get_peft_model(model, settings)


def prefix(peft: Any, model: nn.Module) -> nn.Module:
    """A learned prompt before the tokens."""
    return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def ia3(peft: Any, model: nn.Module) -> nn.Module:
    """Learned scales of activations."""
    chosen = {"target_modules": ["c_attn", "mlp.c_fc"], "feedforward_modules": ["mlp.c_fc"]}
    return peft.get_peft_model(model, peft.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True, **chosen))


def accelerated(*, watched: str) -> Callable[[], Case]:
    """Accelerate's prepared model and optimizer, with accumulation."""

    def build() -> Case:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = gpt2_model()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        prepared, prepared_optimizer = accelerator.prepare(model, optimizer)

        def train(case: Case) -> list[float]:
            losses = []
            for _ in range(2 * STEPS):
                with accelerator.accumulate(prepared):
                    loss = next_word(prepared)
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                    prepared_optimizer.step()
                    prepared_optimizer.zero_grad()
                losses.append(loss.item())
            return losses

        return case(prepared, next_word, train, optimizer=prepared_optimizer if watched == "prepared" else optimizer)

    return build


def unet() -> Case:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    return case(model, lambda m: m(torch.randn(2, 1, 8, 8), torch.tensor([3, 7])).sample.square().mean())


def autoencoder() -> Case:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), latent_channels=2, norm_num_groups=4)
    return case(model, lambda m: m(torch.randn(2, 1, 8, 8), sample_posterior=True).sample.square().mean())


def diffusion_transformer() -> Case:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        sample_size=8,
        norm_num_groups=2,
    )

    def loss(m: nn.Module) -> Tensor:
        return m(torch.randn(2, 2, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])).sample.square().mean()

    return case(model, loss)


def sentences() -> Case:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling

    model = SentenceTransformer(modules=[Pooling(16, "mean"), Dense(16, 4)], device="cpu")

    def loss(m: nn.Module) -> Tensor:
        features = {"token_embeddings": torch.randn(2, 5, 16), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
        return first(m(features)["sentence_embedding"]).square().mean()

    return case(model, loss)


_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS = (
    Entry("BERT, masked words", language("Bert", "ForMaskedLM"), package="transformers"),
    Entry(
        "DistilBERT",
        language("DistilBert", "ForMaskedLM", dim=16, hidden_dim=32, n_layers=2, n_heads=2),
        package="transformers",
    ),
    Entry(
        "DeBERTa v2",
        language("DebertaV2", "ForMaskedLM", relative_attention=True, pos_att_type=["p2c", "c2p"]),
        package="transformers",
    ),
    Entry("GPT-2 (`Conv1D`)", gpt2, package="transformers"),
    Entry("GPT-2, gradient checkpointing", gpt2_checkpointing, package="transformers"),
    Entry("GPT-2, `generate` between steps", gpt2_generating, package="transformers"),
    Entry("GPT-NeoX", language("GPTNeoX"), package="transformers"),
    Entry("LLaMA", language("Llama"), package="transformers"),
    Entry("Mistral", language("Mistral"), package="transformers"),
    Entry("Qwen 3", language("Qwen3", head_dim=8), package="transformers"),
    Entry("Gemma 2", language("Gemma2", head_dim=8), package="transformers"),
    Entry("Phi-3", language("Phi3"), package="transformers"),
    Entry("Mixtral (mixture of experts)", language("Mixtral", **_EXPERTS), package="transformers"),
    Entry(
        "Mamba",
        language("Mamba", state_size=4, conv_kernel=2),
        package="transformers",
        expected="partly",
        why="`conv1d` and `dt_proj` are used by their weights alone",
    ),
    Entry("RWKV", language("Rwkv", attention_hidden_size=16), package="transformers"),
    Entry("T5", t5, package="transformers"),
    Entry("BART", bart, package="transformers"),
    Entry("Whisper", whisper, package="transformers"),
    Entry("Wav2Vec 2", wav2vec, package="transformers"),
    Entry("CLIP", clip, package="transformers"),
    Entry(
        "ViT",
        classified("ViTForImageClassification", "ViTConfig", 2, 3, 16, 16, patch_size=8, **VISION),
        package="transformers",
    ),
    Entry(
        "Swin",
        classified(
            "SwinForImageClassification",
            "SwinConfig",
            2,
            3,
            16,
            16,
            patch_size=2,
            window_size=2,
            image_size=16,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
        ),
        package="transformers",
    ),
    Entry(
        "ConvNeXt",
        classified(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            2,
            3,
            16,
            16,
            hidden_sizes=[4, 8],
            depths=[1, 1],
            num_stages=2,
            patch_size=2,
        ),
        package="transformers",
    ),
    Entry(
        "ResNet",
        classified(
            "ResNetForImageClassification",
            "ResNetConfig",
            2,
            3,
            32,
            32,
            embedding_size=4,
            hidden_sizes=[4, 8],
            depths=[1, 1],
        ),
        package="transformers",
    ),
    Entry("`Trainer`, accumulation, checkpoints", trainer, "loop", "transformers"),
    Entry("LoRA on GPT-2", adapted(lora), "wrapper", "peft"),
    Entry("DoRA on GPT-2", adapted(lambda peft, model: lora(peft, model, use_dora=True)), "wrapper", "peft"),
    Entry("prompt tuning on GPT-2", adapted(prefix), "wrapper", "peft"),
    Entry("IA3 on GPT-2", adapted(ia3), "wrapper", "peft"),
    Entry("the prepared optimizer, accumulation", accelerated(watched="prepared"), "loop", "accelerate"),
    Entry("the optimizer before `prepare`", accelerated(watched="bare"), "loop", "accelerate"),
    Entry("`UNet2DModel`", unet, package="diffusers"),
    Entry("`AutoencoderKL`", autoencoder, package="diffusers"),
    Entry("`DiTTransformer2DModel`", diffusion_transformer, package="diffusers"),
    Entry("pooling and dense layers of a sentence encoder", sentences, package="sentence-transformers"),
)
