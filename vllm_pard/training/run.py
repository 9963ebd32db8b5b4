"""A training run from its config to a draft that engines read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed

from vllm_pard.errors import first_sentence
from vllm_pard.files import OutputError
from vllm_pard.pard2 import FeatureConfig, pard2_config_keys, pard_config_keys
from vllm_pard.training.checked_stream import CheckedPacks
from vllm_pard.training.cod.block_mask import BLOCK
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.evaluation.held_out import HeldOut
from vllm_pard.training.loop.out_of_memory import fits
from vllm_pard.training.loop.pard_trainer import PardTrainer
from vllm_pard.training.loop.watch import Watch
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.models.target_cache import CachedTarget
from vllm_pard.training.options.arguments import training_arguments
from vllm_pard.training.options.train_config import TrainConfig
from vllm_pard.training.output.draft_card import write_receipt
from vllm_pard.training.output.draft_checkpoint import DraftFiles
from vllm_pard.training.output.run_folder import RunFolder
from vllm_pard.training.run_data import RunData, read_data
from vllm_pard.training.run_models import RunModels, load_models

__all__ = ["train"]

Report = Callable[[str], None]


def train(config: TrainConfig, report: Report, *, collator: type[Collator] = Collator) -> Path:
    """Run, or go on with what was interrupted; in several processes, each calls it.

    `collator` lays out the batches: another one makes an experiment of it.

    Returns:
        The folder with the draft: `config.output`.

    Raises:
        PardError: something that was asked for can't be; the message says what.
    """
    arguments = training_arguments(config)
    report = report if arguments.process_index == 0 else _silent
    folder = RunFolder(Path(config.output))
    with arguments.main_process_first():
        checkpoint = folder.begin(asdict(config) | {"num_processes": arguments.world_size})
    data = read_data(config, arguments, report)
    with fits(config, arguments, trains=False):
        models = load_models(config, arguments, data, report)
    set_seed(config.seed)  # of weights that are new
    with fits(config, arguments, trains=True):
        trainer = _trainer(config, arguments, data, models, collator, report)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    with _saving(folder.path):
        trainer.save_model(_internal_call=True)  # which does not upload: it has no README yet
        if arguments.process_index == 0:
            _write_beside(folder.path, config, arguments, data, models, trainer)
    report(f"the draft is in {config.output}")
    if arguments.push_to_hub and (address := trainer.push_to_hub()):
        report(f"and at {address}")
    return folder.path


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"the draft can't be written into {str(folder)!r} ({first_sentence(error)}): make room and run the same "
            "command again, all training is in the last checkpoint"
        ) from error


def _write_beside(
    folder: Path,
    config: TrainConfig,
    arguments: TrainingArguments,
    data: RunData,
    models: RunModels,
    trainer: PardTrainer,
) -> None:
    """What a finished draft has beside its model."""
    write_receipt(
        folder,
        config,
        mask_token_id=models.mask_token_id,
        num_parameters=sum(parameter.numel() for parameter in models.draft.parameters()),
        num_processes=arguments.world_size,
        data=data.in_words,
        state=trainer.state,
        spent=trainer.watch.pace.spent,
    )


def _trainer(
    config: TrainConfig,
    arguments: TrainingArguments,
    data: RunData,
    models: RunModels,
    collator: type[Collator],
    report: Report,
) -> PardTrainer:
    trimmed = models.vocabulary if isinstance(models.vocabulary, Tensor) else None
    layout: dict[str, Any] = {
        "vocab_size": models.vocab_size,
        "vocabulary": trimmed,
        "multiple": BLOCK if arguments.device.type == "cuda" else 1,
        "names_packs": isinstance(models.target, CachedTarget),
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
        packs=CheckedPacks(data.packs, models.mask_token_id, models.draft.config.vocab_size)
        if config.data.streaming
        else data.packs,
        collator=collator(
            cod=config.cod,
            seed=config.seed,
            feature_dropout=config.features.dropout if config.features else None,
            **layout,
        ),
        held_out=HeldOut(
            _held_out(data, models),
            num_speculative_tokens=config.num_speculative_tokens,
            **layout,
        ),
        target=models.target,
        files=_files(config, data.tokenizer, models),
        watch=Watch(report),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _held_out(data: RunData, models: RunModels) -> list[dict[str, Any]]:
    """All packs; in a cache of the target they come after those that are trained."""
    items = [data.held_out[i] for i in range(len(data.held_out))]
    first = len(data.packs.rows) if isinstance(models.target, CachedTarget) else 0
    return [item | {"pack": first + item["pack"]} for item in items]


def _files(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, models: RunModels) -> DraftFiles:
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
