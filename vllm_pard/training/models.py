"""Stock Llama models of demo size."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["HEAD_SIZE", "ModelConfig", "build_model", "load_model", "save_model"]

# vLLM's attention back ends all take heads of 64.
HEAD_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size of one Llama model; heads have 64 channels, input and output embeddings are tied."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    max_positions: int = 1024

    def __post_init__(self) -> None:
        if self.hidden_size < HEAD_SIZE or self.hidden_size % HEAD_SIZE:
            raise ValueError(f"hidden_size must be a multiple of the head size {HEAD_SIZE}; got {self.hidden_size}")
        for name in ("num_layers", "intermediate_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}")


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A new fp32 model with random weights."""
    torch.manual_seed(seed)
    num_heads = config.hidden_size // HEAD_SIZE
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            head_dim=HEAD_SIZE,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        )
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


def load_model(folder: Path) -> LlamaForCausalLM:
    """Read a saved model into fp32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    dtype: torch.dtype,
    extra_config: dict[str, int | str],
) -> None:
    """Write a checkpoint with its tokenizer; `extra_config` is added to config.json.

    The model in memory stays as it is.
    """
    copy = LlamaForCausalLM(deepcopy(model.config))
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    for key, value in extra_config.items():
        setattr(copy.config, key, value)
    copy.to(dtype).save_pretrained(folder)
    # safetensors makes files that only their owner can read; these get packaged.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
