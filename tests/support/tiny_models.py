"""Tiny random fp32 Llamas with a byte-level tokenizer: real checkpoints that load in a second."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 320
MASK_TOKEN_ID = 300
EOS_TOKEN_ID = 301


def save_tokenizer(folder: Path, rename: dict[int, str] | None = None) -> None:
    """A byte-level tokenizer without merges: 256 bytes, then named specials up to VOCAB_SIZE."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = dict(enumerate(alphabet)) | (rename or {})
    core = Tokenizer(models.BPE(vocab={token: token_id for token_id, token in names.items()}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(folder)


def save_llama(folder: Path, seed: int, *, vocab_size: int = VOCAB_SIZE, config: dict[str, Any] | None = None) -> Path:
    """Save a random two-layer Llama; `config` adds keys to config.json, such as pard_token."""
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=EOS_TOKEN_ID,
            pad_token_id=EOS_TOKEN_ID,
            tie_word_embeddings=True,
            initializer_range=0.08,
        )
    )
    return save_model(llama, folder, config)


def save_model(model: PreTrainedModel, folder: Path, config: dict[str, Any] | None = None) -> Path:
    """Save with a tokenizer, fp32 weights and extra config keys."""
    model.save_pretrained(folder)
    save_tokenizer(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return folder


def save_pair(folder: Path, *, draft_vocab_size: int = VOCAB_SIZE) -> tuple[Path, Path]:
    """A target and a PARD draft that agrees with it often, not always: the target's weights with some noise."""
    target = save_llama(folder / "target", seed=0)
    llama = LlamaForCausalLM.from_pretrained(target)
    llama.resize_token_embeddings(draft_vocab_size, mean_resizing=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator) * parameter.std()
    draft = save_model(llama, folder / "draft", {"pard_token": MASK_TOKEN_ID, "spd_type": "pard"})
    return target, draft


def sharpen(draft: Path, folder: Path) -> Path:
    """A copy of the tiny draft, whose own distributions are so flat that trees of it would all be of depth one."""
    shutil.copytree(draft, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 6.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_adapter(folder: Path, target: Path, modules: tuple[str, ...], seed: int) -> str:
    """A LoRA adapter of a target, in the format of PEFT, that changes its outputs."""
    rank, generator = 8, torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in LlamaForCausalLM.from_pretrained(target).named_modules():
        if name.rpartition(".")[2] in modules:
            num_out, num_in = module.weight.shape
            for part, shape in (("A", (rank, num_in)), ("B", (num_out, rank))):
                key = f"base_model.model.{name}.lora_{part}.weight"
                tensors[key] = 0.3 * torch.randn(shape, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def edit_config(source: Path, folder: Path, **changes: Any) -> str:
    """A copy of a checkpoint with other config.json entries; None removes one."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return str(folder)
