from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import training_samples
from vllm_pard.training.demo_pair.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    samples = training_samples(12_000, seed=0)
    return train_tokenizer((sample.prompt + sample.completion for sample in samples), vocab_size=2048)


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """An fp32 model with weights large enough that every row gives other logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()
