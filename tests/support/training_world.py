"""A toy target, its tokenizer and questions with answers: enough to train a draft in seconds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS, MASK, VOCAB_SIZE = 256, 257, 264
LETTER_D = ord("d") - ord("!")
NUM_QUESTIONS = 120


def save_target(folder: Path, *, num_layers: int = 3, seed: int = 0) -> Path:
    """A random fp32 Llama with a byte-level tokenizer: <eos> is 256 and <mask> 257."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", mask_token="<mask>")
    tokenizer.save_pretrained(folder)


def save_questions(path: Path, num_questions: int = NUM_QUESTIONS) -> Path:
    """Questions whose answers go on counting letters: easy to learn, also several letters ahead."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = []
    for number in range(num_questions):
        first, length = number % 20, 6 + number % 5
        text = "".join(letters[(first + i) % 26] for i in range(3 + length))
        lines.append(json.dumps({"prompt": f"{number}: {text[:3]}", "answer": text[3:]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """A training config in which everything is small, as a mapping; the toy's files are made in `folder`."""
    if not (folder / "target").exists():
        save_target(folder / "target")
        save_questions(folder / "questions.jsonl")
    return {
        "target": str(folder / "target"),
        "prune_layers": 2,
        "output": str(folder / "run"),
        "dtype": "float32",
        "data": {"sources": [{"path": str(folder / "questions.jsonl")}], "max_length": 96},
        "cod": {"num_depths": 4},
        "evaluation": {"num_documents": 12},
        "trainer": {
            "max_steps": 24,
            "per_device_train_batch_size": 2,
            "learning_rate": 3e-3,
            "logging_steps": 2,
            "save_steps": 8,
            "bf16": False,
            "report_to": [],
        },
    } | changes
