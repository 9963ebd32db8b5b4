"""The models of a run: the draft as it starts, the target or what is kept of it, mask token and vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from vllm_pard.checkpoint import load_config
from vllm_pard.draft_vocab_file import read_draft_vocab
from vllm_pard.training.data.documents import columns
from vllm_pard.training.data.selection import frequent_tokens
from vllm_pard.training.models.starting_points import (
    check_mask_unused,
    check_tokens_known,
    find_mask_token,
    load_draft,
    load_model,
    new_model,
    prune_target,
)
from vllm_pard.training.models.target import ALL, Target, Vocabulary, check_layers
from vllm_pard.training.models.target_cache import CachedTarget, CacheShape, TargetCache
from vllm_pard.training.models.target_caching import Packs, data_digest, fill, vocabulary_digest, weights_digest
from vllm_pard.training.options.config import TrainConfigError
from vllm_pard.training.options.train_config import TrainConfig
from vllm_pard.training.run_data import RunData

__all__ = ["RunModels", "load_models"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class RunModels:
    """What a run trains, and what it is trained against."""

    draft: PreTrainedModel
    target: Target | CachedTarget | None
    mask_token_id: int
    vocabulary: Vocabulary
    vocab_size: int


def load_models(config: TrainConfig, arguments: TrainingArguments, data: RunData, report: Report) -> RunModels:
    """Raises PardError where these models and this data do not go together."""
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32

    @once
    def target_model() -> PreTrainedModel:
        return load_model(str(config.target), dtype)

    draft = _starting_point(config, target_model, report)
    if config.freeze_embeddings:
        for module in (draft.get_input_embeddings(), draft.get_output_embeddings()):
            module.requires_grad_(False)
    mask_token_id = find_mask_token(data.tokenizer, draft.config, config.mask_token_id)
    report(f"mask token {mask_token_id}, {data.tokenizer.convert_ids_to_tokens(mask_token_id)!r}")
    if not config.data.streaming:
        check_mask_unused(data.documents, mask_token_id)
        check_tokens_known(data.documents, draft.config.vocab_size)
    vocabulary, vocab_size = _vocabulary(config, data, draft, report)

    def load_target() -> Target:
        layers = config.features.layers if config.features else ()
        return Target(target_model().to(arguments.device), layers=layers, attention=config.attention)

    target: Target | CachedTarget | None = None
    if config.runs_target and config.target_cache is None:
        target = load_target()
    elif config.runs_target:
        shape = _cache_shape(config, data, vocab_size, dtype)
        target = _cached(config, arguments, data, shape, vocabulary, load_target, report)
    return RunModels(draft, target, mask_token_id, vocabulary, vocab_size)


def _starting_point(
    config: TrainConfig, target_model: Callable[[], PreTrainedModel], report: Report
) -> PreTrainedModel:
    """In float32, which an optimizer's small steps need; products are taken in bfloat16 where that is fast."""
    if config.new_model is not None:
        return new_model(config.new_model, config.seed, torch.float32)
    if config.prune_layers is not None:
        return prune_target(target_model(), config.prune_layers, dtype=torch.float32)
    if config.target is None:
        return load_model(str(config.draft), torch.float32)
    return load_draft(str(config.draft), config.target, torch.float32, report)


def _vocabulary(config: TrainConfig, data: RunData, draft: PreTrainedModel, report: Report) -> tuple[Vocabulary, int]:
    """The ids that are trained, all of them known to both models, and how many they are."""
    ours = draft.config.vocab_size
    theirs = _target_size(config, "vocab_size") if config.target is not None else ours
    shared = min(ours, theirs)
    if ours != theirs:
        report(f"the target has {theirs} vocabulary rows and the draft {ours}; both learn the first {shared}")
    if config.draft_vocab is None:
        return ALL if ours == theirs else slice(shared), shared
    if isinstance(config.draft_vocab, str):
        ids = read_draft_vocab(config.draft_vocab, shared)
    else:
        ids = frequent_tokens(data.documents, config.draft_vocab, always=data.tokenizer.all_special_ids)
    line = f"{len(ids)} of {shared} tokens are trained"
    if not config.data.streaming:
        line += f", {_share(data.documents, ids):.1%} of those in answers"
    report(line)
    return torch.tensor(ids), len(ids)


def _share(documents: Any, ids: list[int]) -> float:
    """Of the trained tokens, those that the draft may propose."""
    wanted, num_known, num_trained = torch.tensor(ids), 0, 0
    for tokens, is_trained, _ in columns(documents):
        trained = torch.from_numpy(tokens[is_trained])
        num_known += int(torch.isin(trained, wanted).sum())
        num_trained += len(trained)
    if not num_known:
        raise TrainConfigError(
            f"draft_vocab must hold tokens of the answers; none of its {len(ids)} is among the {num_trained} trained "
            "ones: make it from answers like these (vllm-pard vocabulary), or leave it out"
        )
    return num_known / num_trained


def _target_size(config: TrainConfig, name: str) -> int:
    """vocab_size, hidden_size or num_hidden_layers, of which no weights need to be loaded."""
    fields = load_config(str(config.target))
    size = (fields.get("text_config") or fields).get(name)
    if not isinstance(size, int):
        raise TrainConfigError(f"the config.json of the target {config.target!r} needs {name}; it has {size!r}")
    return size


def _cache_shape(config: TrainConfig, data: RunData, vocab_size: int, dtype: torch.dtype) -> CacheShape:
    layers = config.features.layers if config.features else ()
    check_layers(layers, _target_size(config, "num_hidden_layers"))
    return CacheShape(
        num_packs=len(_packs(config, data)),
        max_length=config.data.max_length,
        target_dim=len(layers) * _target_size(config, "hidden_size"),
        top_k=min(config.target_top_k, vocab_size) if config.loss.distils else 0,
        dtype=dtype,
    )


def _packs(config: TrainConfig, data: RunData) -> Packs:
    """On held-out packs the target is asked for its features alone."""
    return Packs(data.packs, data.held_out) if config.features else Packs(data.packs)


def _cached(
    config: TrainConfig,
    arguments: TrainingArguments,
    data: RunData,
    shape: CacheShape,
    vocabulary: Vocabulary,
    load_target: Callable[[], Target],
    report: Report,
) -> CachedTarget:
    """Kept from an earlier run, or computed now; the target is not needed after it."""
    layers = config.features.layers if config.features else ()
    kept = TargetCache(Path(str(config.target_cache)), shape)
    made_for = {
        "target": str(config.target),
        "the target's files with digest": weights_digest(str(config.target)),
        "data with digest": data_digest(data.documents),
        "held-out data with digest": data_digest(data.evaluation) if config.features else None,
        "data.max_length": shape.max_length,
        "features.layers": list(layers),
        "target_top_k": shape.top_k,
        "trained vocabulary": vocabulary_digest(vocabulary) if shape.top_k else None,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "packs": shape.num_packs,
        "target_dim": shape.target_dim,
    }
    with arguments.main_process_first():
        kept.begin(made_for)
    report(kept.in_words)
    fill(kept, _packs(config, data), load_target, vocabulary, arguments, report)
    return CachedTarget(kept, tuple(layers))
