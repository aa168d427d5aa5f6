"""Published architectures, small and drawn anew, and real text and pictures to train them on. Needs transformers."""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

MASK, FIRST_LETTER = 3, 4  # ids below are for what is no letter

BODY = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
VISION = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
STACK = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}  # of an encoder or a decoder
PATCHES = {"image_size": 32, "patch_size": 4, "num_labels": 10}


@dataclass(frozen=True)
class Architecture:
    """A model of transformers: its class, what its configuration is given, its task, and a usual rate with AdamW."""

    model: str
    config: str
    settings: dict[str, Any]
    task: str
    rate: float = 1e-3


def _language(name: str, rate: float = 1e-3, **more: Any) -> Architecture:
    return Architecture(
        f"{name}ForCausalLM", f"{name}Config", {**BODY, "max_position_embeddings": 128, **more}, "next", rate
    )


ARCHITECTURES = {
    "GPT-2": Architecture(
        "GPT2LMHeadModel", "GPT2Config", {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 128}, "next"
    ),
    "Llama": _language("Llama"),
    "Mistral": _language("Mistral", 6e-4, num_key_value_heads=2),
    "Qwen2": _language("Qwen2", num_key_value_heads=2),
    "Gemma": _language("Gemma", 5e-4, num_key_value_heads=1, head_dim=24),
    "GPT-NeoX": _language("GPTNeoX"),
    "Phi": _language("Phi"),
    "OPT": Architecture(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 192,
            "word_embed_proj_dim": 96,
        },
        "next",
    ),
    "BLOOM": Architecture(
        "BloomForCausalLM", "BloomConfig", {"hidden_size": 96, "n_layer": 3, "n_head": 4}, "next", 6e-4
    ),
    "Mamba": Architecture(
        "MambaForCausalLM", "MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "next"
    ),
    "BERT": Architecture("BertForMaskedLM", "BertConfig", BODY, "masked"),
    "ALBERT": Architecture("AlbertForMaskedLM", "AlbertConfig", {**BODY, "embedding_size": 48}, "masked"),
    "RoBERTa": Architecture(
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**BODY, "pad_token_id": 1, "num_labels": 8},
        "letters",
        5e-4,
    ),
    "DistilBERT": Architecture(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 96, "n_layers": 2, "n_heads": 4, "hidden_dim": 192, "num_labels": 8},
        "letters",
        5e-4,
    ),
    "T5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "continue",
    ),
    "BART": Architecture(
        "BartForConditionalGeneration",
        "BartConfig",
        {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in STACK.items()} | {"d_model": 64},
        "continue",
    ),
    "ViT": Architecture("ViTForImageClassification", "ViTConfig", {**VISION, **PATCHES}, "pictures"),
    "BEiT": Architecture("BeitForImageClassification", "BeitConfig", {**VISION, **PATCHES}, "pictures"),
    "Swin": Architecture(
        "SwinForImageClassification",
        "SwinConfig",
        {**PATCHES, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "pictures",
    ),
    "ConvNeXt": Architecture(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32, 64], "depths": [1, 2, 1], "num_stages": 3, "patch_size": 2, "num_labels": 10},
        "pictures",
        2e-3,
    ),
    "ResNet": Architecture(
        "ResNetForImageClassification",
        "ResNetConfig",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64],
            "depths": [1] * 3,
            "layer_type": "basic",
            "num_labels": 10,
        },
        "pictures",
        2e-3,
    ),
    "MobileNetV2": Architecture(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"image_size": 32, "depth_multiplier": 0.25, "num_labels": 10},
        "pictures",
        2e-3,
    ),
}


def make_model(architecture: Architecture) -> nn.Module:
    """The model as transformers draws it."""
    import transformers

    transformers.logging.set_verbosity_error()
    sizes = {} if architecture.task == "pictures" else {"vocab_size": letters()[2]}
    config = getattr(transformers, architecture.config)(**architecture.settings, **sizes)
    model: nn.Module = getattr(transformers, architecture.model)(config)
    return model


@cache
def letters() -> tuple[Tensor, Tensor, int]:
    """Python's manual letter by letter, the ids of its eight most frequent small letters, and how many there are."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    kinds = {letter: place + FIRST_LETTER for place, letter in enumerate(sorted(set(text)))}
    frequent = torch.tensor([kinds[letter] for letter in "etaoinsr"])
    return torch.tensor([kinds[letter] for letter in text]), frequent, len(kinds) + FIRST_LETTER


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's pictures of digits [N, 3, 32, 32], and which they are [N]."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16.0
    wide = F.interpolate(images, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1)
    return (wide - 0.3) / 0.38, torch.tensor(bunch.target)


def batch_of(task: str, random: torch.Generator, *, shuffled: bool) -> dict[str, Tensor]:
    """What a model is called with, its labels included; `shuffled` takes the labels from other examples."""

    def mixed(labels: Tensor) -> Tensor:
        return labels[torch.randperm(len(labels), generator=random)] if shuffled else labels

    if task == "pictures":
        images, kinds = digits()
        pick = torch.randint(0, len(images), (32,), generator=random)
        return {"pixel_values": images[pick], "labels": mixed(kinds[pick])}
    text, frequent, _ = letters()
    start = torch.randint(0, len(text) - 65, (16,), generator=random)
    tokens = torch.stack([text[at : at + 64] for at in start.tolist()])
    given, labels = tokens, tokens
    if task == "masked":
        hidden = torch.rand(tokens.shape, generator=random) < 0.15
        given, labels = tokens.masked_fill(hidden, MASK), tokens.masked_fill(~hidden, -100)
        labels = torch.where(hidden, mixed(tokens), labels)
    elif task == "letters":  # which of eight letters comes most often
        labels = mixed((tokens[:, :, None] == frequent).sum(dim=1).argmax(dim=1))
    elif task == "continue":
        given, labels = tokens[:, :32].contiguous(), mixed(tokens[:, 32:].contiguous())
    elif shuffled:
        labels = mixed(tokens)
    return {"input_ids": given, "attention_mask": torch.ones_like(given), "labels": labels}
