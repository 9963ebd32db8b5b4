"""What the demo pair learns from: documents, a tokenizer, and a config.json for each new model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from transformers import LlamaConfig, PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import training_samples
from vllm_pard.demo.text.sample import Sample
from vllm_pard.files import write_whole
from vllm_pard.training.demo_pair.recipe import ModelSize, TextConfig
from vllm_pard.training.demo_pair.tokenizer import train_tokenizer

__all__ = ["HEAD_SIZE", "chat_records", "digest", "make_tokenizer", "write_model_config", "write_records"]

HEAD_SIZE = 64

Record = dict[str, Any]


def chat_records(config: TextConfig) -> list[Record]:
    """The documents as chats, most of one question."""
    rng = Random(config.seed)
    sizes = [
        rng.randint(2, config.max_exchanges) if rng.random() < config.chat_share else 1
        for _ in range(config.num_documents)
    ]
    samples = iter(training_samples(sum(sizes), config.seed))
    return [{"messages": [turn for _ in range(size) for turn in _turns(next(samples))]} for size in sizes]


def make_tokenizer(config: TextConfig) -> PreTrainedTokenizerFast:
    """Trained on questions and answers of the corpus."""
    samples = training_samples(config.num_tokenizer_questions, config.seed)
    return train_tokenizer((sample.prompt + sample.completion for sample in samples), config.vocab_size)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One JSON object a line; the file is whole or not there."""
    write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def digest(records: Sequence[Record]) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]


def write_model_config(size: ModelSize, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that `new_model` of a training config takes."""
    num_heads = size.hidden_size // HEAD_SIZE
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=HEAD_SIZE,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _turns(sample: Sample) -> list[dict[str, str]]:
    return [{"role": "user", "content": sample.question}, {"role": "assistant", "content": sample.answer}]
