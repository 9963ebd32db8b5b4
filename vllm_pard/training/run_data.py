"""The data of a run: what is trained, what is held out, and a line on both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from vllm_pard.checkpoint import load_tokenizer
from vllm_pard.training.data.documents import read_documents
from vllm_pard.training.data.packing import PackedDataset, StreamedPacks
from vllm_pard.training.data.selection import hold_out, hold_out_of_stream
from vllm_pard.training.options.arguments import num_draws
from vllm_pard.training.options.config import TrainConfigError
from vllm_pard.training.options.train_config import TrainConfig

__all__ = ["RunData", "read_data"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class RunData:
    """What is trained and what is held out."""

    tokenizer: PreTrainedTokenizerBase
    documents: Any  # a datasets.Dataset, or a stream
    evaluation: Any  # a datasets.Dataset
    packs: Any  # a PackedDataset, or StreamedPacks
    held_out: PackedDataset
    in_words: str


def read_data(config: TrainConfig, arguments: TrainingArguments, report: Report) -> RunData:
    """Tokenized with the target's tokenizer, or where there is none, the draft's.

    Raises:
        DataError: there is nothing to train on, or a record is malformed; the message says where.
        TrainConfigError: a stream without a length, or less data than a step takes.
    """
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
    held_out = PackedDataset(evaluation, **packing)
    return RunData(tokenizer, documents, evaluation, packs, held_out, "; ".join(lines))
