"""Look-alikes of AMD's public drafts and of their targets: their files, keys and vocabularies, a few megabytes each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Architecture = Literal["llama", "qwen2", "qwen3"]

MODELS: dict[Architecture, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
DRAFT_SIZE, TARGET_SIZE = 16, 24
TARGET_LAYERS = (-1, -8, -16, -24)
WEIGHT, BIAS = "target_proj.weight", "target_proj.bias"


@dataclass(frozen=True, kw_only=True)
class PublicDraft:
    """A draft, and a target that it is for."""

    name: str
    architecture: Architecture
    vocab_size: int
    mask_token_id: int
    is_tied: bool
    target: str
    num_target_layers: int
    target_vocab_size: int
    is_pard2: bool = False

    @property
    def short_name(self) -> str:
        return self.name.partition("/")[2]


PUBLIC_DRAFTS = (
    PublicDraft(
        name="amd/PARD-Llama-3.2-1B", architecture="llama", vocab_size=128256, mask_token_id=128020, is_tied=True,
        target="meta-llama/Llama-3.1-8B-Instruct", num_target_layers=2, target_vocab_size=128256,
    ),
    PublicDraft(  # its mask token is not known: any reserved one
        name="amd/PARD-Llama-4-1B", architecture="llama", vocab_size=202048, mask_token_id=201000, is_tied=True,
        target="meta-llama/Llama-4-Scout-17B-16E-Instruct", num_target_layers=2, target_vocab_size=202048,
    ),
    PublicDraft(
        name="amd/PARD-DeepSeek-R1-Distill-Qwen-1.5B", architecture="qwen2", vocab_size=151936, mask_token_id=151665,
        is_tied=False,
        target="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", num_target_layers=2, target_vocab_size=152064,
    ),
    PublicDraft(
        name="amd/PARD-Qwen2.5-0.5B", architecture="qwen2", vocab_size=151936, mask_token_id=151665, is_tied=True,
        target="Qwen/Qwen2.5-7B-Instruct", num_target_layers=2, target_vocab_size=152064,
    ),
    PublicDraft(
        name="amd/PARD-Qwen3-0.6B", architecture="qwen3", vocab_size=151936, mask_token_id=151670, is_tied=True,
        target="Qwen/Qwen3-8B", num_target_layers=2, target_vocab_size=151936,
    ),
    PublicDraft(
        name="amd/PARD2-Llama-3.1-8B", architecture="llama", vocab_size=128256, mask_token_id=128020, is_tied=True,
        target="meta-llama/Llama-3.1-8B-Instruct", num_target_layers=32, target_vocab_size=128256, is_pard2=True,
    ),
    PublicDraft(
        name="amd/PARD2-Qwen3-8B", architecture="qwen3", vocab_size=151936, mask_token_id=151670, is_tied=True,
        target="Qwen/Qwen3-8B", num_target_layers=36, target_vocab_size=151936, is_pard2=True,
    ),
    PublicDraft(
        name="amd/PARD2-Qwen3-14B", architecture="qwen3", vocab_size=151936, mask_token_id=151670, is_tied=True,
        target="Qwen/Qwen3-14B", num_target_layers=40, target_vocab_size=151936, is_pard2=True,
    ),
)  # fmt: skip


def make_model(
    architecture: Architecture, *, seed: int, vocab_size: int, hidden_size: int, num_layers: int, is_tied: bool
) -> PreTrainedModel:
    make_config, make = MODELS[architecture]
    torch.manual_seed(seed)
    config = make_config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the least that vLLM's attention takes on a CPU
        max_position_embeddings=256,
        tie_word_embeddings=is_tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model: PreTrainedModel = make(config).eval()
    return model


def make_draft(draft: PublicDraft) -> PreTrainedModel:
    return make_model(
        draft.architecture,
        seed=0,
        vocab_size=draft.vocab_size,
        hidden_size=DRAFT_SIZE,
        num_layers=2,
        is_tied=draft.is_tied,
    )


def make_target(draft: PublicDraft) -> PreTrainedModel:
    return make_model(
        draft.architecture,
        seed=1,
        vocab_size=draft.target_vocab_size,
        hidden_size=TARGET_SIZE,
        num_layers=draft.num_target_layers,
        is_tied=True,
    )


def make_weight(target_dim: int = len(TARGET_LAYERS) * TARGET_SIZE) -> torch.Tensor:
    """[DRAFT_SIZE, target_dim]"""
    return torch.randn(DRAFT_SIZE, target_dim, generator=torch.Generator().manual_seed(2)).bfloat16()


def draft_keys(draft: PublicDraft) -> dict[str, Any]:
    """What AMD's trainers add to config.json."""
    if not draft.is_pard2:
        return {"pard_token": draft.mask_token_id, "spd_type": "pard"}
    return {
        "pard_token": draft.mask_token_id,
        "spd_type": "pard2",
        "pard2": True,
        "pard2_scale": 0.02,
        "pard2_proj_bias": False,
        "pard2_target_dim": len(TARGET_LAYERS) * TARGET_SIZE,
        "pard2_target_layers": list(TARGET_LAYERS),
    }


def save_draft(
    draft: PublicDraft,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "1GB",
    keys: dict[str, Any] | None = None,
    warp_model: Any = ...,
) -> Path:
    """`keys` of config.json in place of the trainer's; `warp_model` instead of its target_proj, None for no file."""
    model = make_draft(draft).to(dtype)
    if draft.is_pard2 and draft.is_tied:  # the exporter writes the tied lm_head as well
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    edit_config(folder, {"tie_word_embeddings": draft.is_tied} | (draft_keys(draft) if keys is None else keys))
    if warp_model is ...:
        warp_model = {WEIGHT: make_weight()} if draft.is_pard2 else None
    if warp_model is not None:
        torch.save(warp_model, folder / "warp_model.bin")
    return folder


def save_target(draft: PublicDraft, folder: Path) -> Path:
    make_target(draft).save_pretrained(folder)
    return folder


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def hub_folder(cache: Path, name: str) -> Path:
    """Where the hub's cache keeps the one revision of a repository that it has; files are put there by the caller."""
    repository = cache / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    return repository / "snapshots" / revision
