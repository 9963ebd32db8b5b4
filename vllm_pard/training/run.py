"""A training run from its config to a draft that engines read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed

from vllm_pard.checkpoint import load_tokenizer
from vllm_pard.draft_vocab_file import read_draft_vocab
from vllm_pard.pard2 import FeatureConfig, pard2_config_keys, pard_config_keys
from vllm_pard.training.arguments import num_draws, training_arguments
from vllm_pard.training.collator import Collator
from vllm_pard.training.config import TrainConfigError
from vllm_pard.training.data.documents import read_documents
from vllm_pard.training.data.packing import PackedDataset, StreamedPacks
from vllm_pard.training.data.selection import frequent_tokens, hold_out, hold_out_of_stream
from vllm_pard.training.draft_card import write_receipt
from vllm_pard.training.draft_checkpoint import DraftFiles
from vllm_pard.training.held_out import HeldOut
from vllm_pard.training.parallel_draft import ParallelDraft
from vllm_pard.training.pard_trainer import PardTrainer
from vllm_pard.training.run_folder import RunFolder
from vllm_pard.training.starting_points import (
    check_mask_unused,
    find_mask_token,
    load_draft,
    load_model,
    new_model,
    prune_target,
)
from vllm_pard.training.target import ALL, Target, Vocabulary
from vllm_pard.training.train_config import TrainConfig
from vllm_pard.training.watch import Watch

__all__ = ["train"]

Report = Callable[[str], None]

BLOCK = 128  # FlexAttention's


def train(config: TrainConfig, report: Report, *, collator: type[Collator] = Collator) -> Path:
    """Run, or go on with what was interrupted; in several processes, each calls it.

    `collator` lays out the batches: another one makes an experiment of it.

    Returns:
        The folder with the draft: `config.output`.

    Raises:
        PardError: something that was asked for can't be; the message says what.
    """
    arguments = training_arguments(config, evaluates=True)
    report = report if arguments.process_index == 0 else _silent
    set_seed(config.seed)  # of weights that are new
    folder = RunFolder(Path(config.output))
    with arguments.main_process_first():
        checkpoint = folder.begin(asdict(config) | {"num_processes": arguments.world_size})
    data = _read_data(config, arguments, report)
    models = _load_models(config, arguments, data, report)
    trainer = _trainer(config, arguments, data, models, collator, report)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    if arguments.process_index == 0:
        write_receipt(
            folder.path,
            config,
            mask_token_id=models.mask_token_id,
            num_parameters=sum(parameter.numel() for parameter in models.draft.parameters()),
            num_processes=arguments.world_size,
            data=data.in_words,
            state=trainer.state,
            spent=trainer.watch.pace.spent,
        )
        report(f"the draft is in {config.output}")
    return folder.path


@dataclass(frozen=True)
class _Data:
    """What is trained and what is held out."""

    tokenizer: PreTrainedTokenizerBase
    documents: Any  # a datasets.Dataset, or a stream
    packs: Any
    held_out: PackedDataset
    in_words: str


@dataclass(frozen=True)
class _Models:
    draft: PreTrainedModel
    target: Target | None
    mask_token_id: int
    vocabulary: Vocabulary
    vocab_size: int


def _read_data(config: TrainConfig, arguments: TrainingArguments, report: Report) -> _Data:
    tokenizer = load_tokenizer(str(config.target or config.draft or config.new_model))
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        report(line)

    # The others find what the first has put into the cache.
    with arguments.main_process_first():
        documents = read_documents(config.data, tokenizer, note)
        if config.evaluation.sources:
            sources = replace(config.data, sources=config.evaluation.sources, streaming=False)
            evaluation = read_documents(sources, tokenizer, lambda line: note(f"evaluation: {line}"))
            evaluation = evaluation.select(range(min(len(evaluation), config.evaluation.num_documents)))
        elif config.data.streaming:
            documents, evaluation = hold_out_of_stream(documents, config.evaluation.num_documents)
        else:
            documents, evaluation = hold_out(documents, config.evaluation.num_documents, config.seed)
    packing: dict[str, Any] = {"max_length": config.data.max_length, "seed": config.seed}
    if config.data.streaming:
        if arguments.max_steps <= 0:
            raise TrainConfigError("a stream has no length: set trainer.max_steps, or data.streaming to false")
        packs: Any = StreamedPacks(documents, **packing, num_draws=num_draws(config, arguments, 0))
    else:
        once = PackedDataset(documents, **packing)
        note(once.in_words)
        packs = PackedDataset(documents, **packing, num_draws=num_draws(config, arguments, len(once)))
    return _Data(tokenizer, documents, packs, PackedDataset(evaluation, **packing), "; ".join(lines))


def _load_models(config: TrainConfig, arguments: TrainingArguments, data: _Data, report: Report) -> _Models:
    target_model = None
    if config.runs_target or config.prune_layers is not None:
        target_dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
        target_model = load_model(str(config.target), target_dtype)
    draft = _starting_point(config, target_model, report)
    if config.freeze_embeddings:
        for module in (draft.get_input_embeddings(), draft.get_output_embeddings()):
            module.requires_grad_(False)
    mask_token_id = find_mask_token(data.tokenizer, draft.config, config.mask_token_id)
    report(f"mask token {mask_token_id}, {data.tokenizer.convert_ids_to_tokens(mask_token_id)!r}")
    if not config.data.streaming:
        check_mask_unused(data.documents, mask_token_id)
    target = None
    if target_model is not None and config.runs_target:
        target = Target(
            target_model.to(arguments.device),
            layers=config.features.layers if config.features else (),
            attention=config.attention,
        )
    shared = min(draft.config.vocab_size, target_model.config.vocab_size if target_model else draft.config.vocab_size)
    vocabulary: Vocabulary = ALL if shared == draft.config.vocab_size else slice(shared)
    if config.draft_vocab is not None:
        vocabulary = torch.tensor(_draft_vocab(config.draft_vocab, data, shared))
        report(f"{len(vocabulary)} of {shared} tokens are trained")
    vocab_size = len(vocabulary) if isinstance(vocabulary, Tensor) else shared
    return _Models(draft, target, mask_token_id, vocabulary, vocab_size)


def _starting_point(config: TrainConfig, target: PreTrainedModel | None, report: Report) -> PreTrainedModel:
    """In float32, which an optimizer's small steps need; products are taken in bfloat16 where that is fast."""
    if config.new_model is not None:
        return new_model(config.new_model, config.seed, torch.float32)
    if config.prune_layers is not None and target is not None:
        return prune_target(target, config.prune_layers, dtype=torch.float32)
    if config.target is None:
        return load_model(str(config.draft), torch.float32)
    return load_draft(str(config.draft), config.target, torch.float32, report)


def _draft_vocab(wanted: str | int, data: _Data, vocab_size: int) -> list[int]:
    if isinstance(wanted, str):
        return read_draft_vocab(wanted, vocab_size)
    return frequent_tokens(data.documents, wanted, always=data.tokenizer.all_special_ids)


def _trainer(
    config: TrainConfig,
    arguments: TrainingArguments,
    data: _Data,
    models: _Models,
    collator: type[Collator],
    report: Report,
) -> PardTrainer:
    trimmed = models.vocabulary if isinstance(models.vocabulary, Tensor) else None
    layout: dict[str, Any] = {
        "vocab_size": models.vocab_size,
        "vocabulary": trimmed,
        "multiple": BLOCK if arguments.device.type == "cuda" else 1,
    }
    trainer = PardTrainer(
        ParallelDraft(
            models.draft,
            mask_token_id=models.mask_token_id,
            loss=config.loss,
            num_depths=config.cod.num_depths,
            features=config.features,
            target_dim=models.target.target_dim if models.target else 0,
            vocabulary=models.vocabulary,
            attention=config.attention,
        ),
        arguments,
        packs=data.packs,
        collator=collator(
            cod=config.cod,
            seed=config.seed,
            feature_dropout=config.features.dropout if config.features else None,
            **layout,
        ),
        held_out=HeldOut(
            [data.held_out[i] for i in range(len(data.held_out))],
            num_speculative_tokens=config.num_speculative_tokens,
            **layout,
        ),
        target=models.target,
        files=_files(config, data.tokenizer, models),
        watch=Watch(report),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _files(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, models: _Models) -> DraftFiles:
    keys: dict[str, Any] = {
        "mask_token_id": models.mask_token_id,
        "num_speculative_tokens": config.cod.num_depths,
    }
    features = None
    if config.features is not None and models.target is not None:
        features = FeatureConfig(
            target_layers=config.features.layers,
            scale=config.features.scale,
            target_dim=models.target.target_dim,
            has_bias=False,
            target=Path(str(config.target)).name,
        )
    return DraftFiles(
        model=models.draft,
        tokenizer=tokenizer,
        config_keys=pard_config_keys(**keys) if features is None else pard2_config_keys(**keys, features=features),
        features=features,
        vocabulary=models.vocabulary.tolist() if isinstance(models.vocabulary, Tensor) else None,
        dtype=getattr(torch, config.dtype),
    )


def _silent(line: str) -> None:
    """Of several processes, the first speaks."""
