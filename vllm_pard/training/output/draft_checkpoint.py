"""A draft that is trained, in the files that engines read: config.json, weights, tokenizer, PARD-2's target_proj."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vllm_pard.draft_vocab_file import write_draft_vocab
from vllm_pard.files import write_whole
from vllm_pard.pard2 import FeatureConfig
from vllm_pard.target_proj import read_target_proj, write_target_proj

__all__ = ["DraftFiles"]

DRAFT_VOCAB = "draft_vocab.json"
DRAFT, PROJECTION = "draft.", "target_proj.weight"  # names of a ParallelDraft's parameters


@dataclass(frozen=True, kw_only=True)
class DraftFiles:
    """Writes and reads checkpoints of a `ParallelDraft`.

    Args:
        model: the draft inside it; for its config and the names of its weights.
        tokenizer: saved beside it.
        config_keys: what makes it a PARD draft, of `pard_config_keys` or `pard2_config_keys`.
        features: of PARD-2; None: PARD.
        vocabulary: the ids that it is trained to propose; None: all.
        dtype: of a finished draft. A checkpoint to go on from keeps the dtype that it is trained in.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config_keys: Mapping[str, Any]
    features: FeatureConfig | None
    vocabulary: Sequence[int] | None
    dtype: torch.dtype

    def save(self, folder: Path, weights: Mapping[str, Tensor], is_final: bool) -> None:
        """Write the weights of a ParallelDraft, by their names there."""
        folder.mkdir(parents=True, exist_ok=True)
        if is_final:
            weights = {name: weight.to(self.dtype) for name, weight in weights.items()}
        draft = {name.removeprefix(DRAFT): weight for name, weight in weights.items() if name.startswith(DRAFT)}
        dtype = str(next(iter(draft.values())).dtype).removeprefix("torch.")
        self.model.save_pretrained(folder, state_dict=draft)  # empties the dict
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors makes files that only their owner can read
        if PROJECTION in weights:
            write_target_proj(folder, weights[PROJECTION])
        self.tokenizer.save_pretrained(folder)
        keys = {**self.config_keys, "dtype": dtype}
        if self.vocabulary is not None:
            write_draft_vocab(folder / DRAFT_VOCAB, list(self.vocabulary))
            keys["draft_vocab"] = DRAFT_VOCAB
        self._add_to_config(folder / "config.json", keys)

    def load_into(self, module: nn.Module, folder: Path) -> None:
        """Read a checkpoint's weights back into a ParallelDraft, in place."""
        weights = {
            DRAFT + name: weight
            for path in sorted(folder.glob("model*.safetensors"))
            for name, weight in load_file(path).items()
        }
        if self.features is not None:
            width = self.model.get_input_embeddings().embedding_dim
            weights[PROJECTION] = read_target_proj(str(folder), self.features, width).weight
        parameters = dict(module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, weight in weights.items():
                parameters.pop(name).copy_(weight)
        # A tied weight is in the file once.
        loaded = {weight.data_ptr() for name, weight in module.named_parameters() if name not in parameters}
        if missing := [name for name, weight in parameters.items() if weight.data_ptr() not in loaded]:
            raise OSError(f"the checkpoint {folder.name} has no {missing[0]}")

    def _add_to_config(self, path: Path, keys: Mapping[str, Any]) -> None:
        config = json.loads(path.read_text(encoding="utf-8"))
        write_whole(path, json.dumps(config | keys, indent=2, sort_keys=True) + "\n")
