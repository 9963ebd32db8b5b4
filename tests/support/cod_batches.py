"""Packs of random documents, and tiny fp32 models whose logits differ from row to row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 61
MASK = 60  # no document has it
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 8,
        "head_dim": 8,
    },
    "gemma2": {"model_type": "gemma2", "head_dim": 8},
}


def tiny_model(
    kind: str = "llama", *, seed: int = 0, vocab_size: int = VOCAB_SIZE, attention: str = "sdpa", **changes: Any
) -> PreTrainedModel:
    """Three layers, four heads that share two keys; weights large enough that every row gives other logits."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **KINDS[kind],
        **changes,
    }
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # ones and zeros hide a norm or a bias that is left out
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "gemma" not in kind), std=0.2)
    return model.eval()


def pack_of(documents: Iterable[tuple[Sequence[int], Sequence[bool]]], *, num_padding: int = 0, draw: int = 0) -> dict:
    """An item of a PackedDataset: each document is its tokens, and which of them are trained."""
    documents = list(documents)
    lengths = torch.tensor([len(tokens) for tokens, _ in documents], dtype=torch.int64)
    padding = [0] * num_padding
    return {
        "tokens": torch.tensor([*(token for tokens, _ in documents for token in tokens), *padding], dtype=torch.int64),
        "documents": torch.cat(
            [torch.arange(len(documents)).repeat_interleave(lengths), torch.full((num_padding,), -1)]
        ),
        "is_trained": torch.tensor([*(bool(flag) for _, flags in documents for flag in flags), *[False] * num_padding]),
        "pack": draw,
        "draw": draw,
    }


def random_pack(
    lengths: Sequence[int], *, seed: int = 0, num_padding: int = 0, draw: int = 0, vocab_size: int = VOCAB_SIZE - 1
) -> dict:
    """Documents of a prompt and an answer, the longer ones with a second question between two answers."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for length in lengths:
        tokens = torch.randint(vocab_size, (length,), generator=generator).tolist()
        prompt, gap = length // 4, range(length // 2, length // 2 + 2) if length > 9 else ()
        documents.append((tokens, [place >= prompt and place not in gap for place in range(length)]))
    return pack_of(documents, num_padding=num_padding, draw=draw)
