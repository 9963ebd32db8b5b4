"""Tiny fp32 targets whose layers mix kinds of attention, and drafts for them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import EOS_TOKEN_ID, MASK_TOKEN_ID, VOCAB_SIZE, save_model

WINDOW = 32
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": EOS_TOKEN_ID,
    "initializer_range": 0.08,
}
GEMMA = {"query_pre_attn_scalar": 64}
# Config class, kinds of layers (s: sliding window, f: full attention), its other keys.
TARGETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "ffff", {}),
    "olmo3": ("Olmo3Config", "ssff", {}),
    "gemma2": ("Gemma2Config", "sfsf", GEMMA),
    "gemma3": ("Gemma3TextConfig", "sssf", GEMMA),
}


def save_target(kind: str, folder: Path, *, window: int = WINDOW) -> Path:
    return save_model(_random_model(kind, window), folder)


def save_target_of(architecture: str, folder: Path, *, is_tied: bool) -> Path:
    """Four layers of full attention of an architecture, by Transformers' name for it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        **COMMON | {"num_hidden_layers": 4, "tie_word_embeddings": is_tied}
    )
    return save_model(_from_config(config), folder)


def save_draft(folder: Path, *, num_kv_heads: int) -> Path:
    """A plain draft, two layers of full attention, that knows nothing of its target."""
    keys = {"num_hidden_layers": 2, "num_key_value_heads": num_kv_heads}
    torch.manual_seed(1)
    config = transformers.Qwen3Config(**COMMON | keys)
    return save_model(_from_config(config), folder, {"pard_token": MASK_TOKEN_ID})


def save_draft_of_its_kind(kind: str, folder: Path, *, window: int = WINDOW) -> Path:
    """The target itself as a draft: it mixes kinds of attention as well, and its drafts are accepted."""
    return save_model(_random_model(kind, window), folder, {"pard_token": MASK_TOKEN_ID})


def _random_model(kind: str, window: int) -> Any:
    config_class, layers, keys = TARGETS[kind]
    names = {"s": "sliding_attention", "f": "full_attention"}
    if kind != "llama":
        keys = keys | {"layer_types": [names[layer] for layer in layers], "sliding_window": window}
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**COMMON | {"num_hidden_layers": len(layers)} | keys)
    model = _from_config(config)
    if "query_pre_attn_scalar" in keys:
        # Gemma multiplies embeddings by this, and a large one is all that counts: such a target repeats itself.
        model.get_input_embeddings().weight.data /= config.hidden_size**0.5
    return model


def _from_config(config: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
