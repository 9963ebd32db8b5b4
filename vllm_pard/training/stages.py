"""The stages of the demo pair: each reads the folders before it and writes its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import training_samples
from vllm_pard.training.autoregressive import next_token_loss
from vllm_pard.training.cod_loss import parallel_loss
from vllm_pard.training.generate import greedy_answers
from vllm_pard.training.models import build_model, load_model, save_model
from vllm_pard.training.packing import Document, PackedRows, encode, pack
from vllm_pard.training.recipe import AnswersConfig, ArConfig, CodStageConfig, TextConfig
from vllm_pard.training.tokenizer import train_tokenizer
from vllm_pard.training.trainer import TrainingLog, train

__all__ = [
    "ANSWERS_FILE",
    "answer_questions",
    "make_tokenizer",
    "read_answers",
    "train_ar",
    "train_cod",
    "training_documents",
]

ANSWERS_FILE = "answers.json"

Report = Callable[[str], None]


def make_tokenizer(config: TextConfig, folder: Path) -> dict[str, Any]:
    """Train and save the tokenizer."""
    samples = training_samples(config.num_documents, config.seed)[: config.num_tokenizer_documents]
    tokenizer = train_tokenizer((sample.prompt + sample.completion for sample in samples), config.vocab_size)
    tokenizer.save_pretrained(folder)
    return {"vocab_size": len(tokenizer)}


def train_ar(
    config: ArConfig,
    documents: list[Document],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    checkpoint: Path,
    report: Report,
) -> dict[str, Any]:
    """Train a new model on next tokens and save it in fp32."""
    model = build_model(config.model, tokenizer, config.seed)
    loss_of_step = next_token_loss(model, documents, config.phases, tokenizer.pad_token_id, config.seed)
    log = train(model, loss_of_step, config.schedule, checkpoint, report)
    save_model(model, tokenizer, folder, dtype=torch.float32, extra_config={})
    num_slots = sum(phase.num_steps * phase.batch_size * phase.length for phase in config.phases)
    return _training_result(model, log, num_slots)


def train_cod(
    config: CodStageConfig,
    start: Path,
    documents: list[Document],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    checkpoint: Path,
    report: Report,
) -> dict[str, Any]:
    """Go on from the model in `start` with COD rows and save it in fp32."""
    model = load_model(start)
    fitting = [document for document in documents if len(document.tokens) <= config.length]
    packed: PackedRows = pack(fitting, config.length, tokenizer.pad_token_id)
    loss_of_step = parallel_loss(
        model,
        packed,
        config.cod,
        mask_id=tokenizer.mask_token_id,
        answers_only=config.answers_only,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    log = train(model, loss_of_step, config.schedule, checkpoint, report)
    save_model(model, tokenizer, folder, dtype=torch.float32, extra_config={})
    num_slots = config.schedule.num_steps * config.batch_size * config.length
    rows = config.schedule.num_steps * config.batch_size * sum(config.cod.rows_per_depth(config.length))
    return {**_training_result(model, log, num_slots), "num_cod_rows": rows}


def answer_questions(
    config: AnswersConfig,
    target: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    report: Report,
) -> dict[str, Any]:
    """Let the target answer new questions of the training split."""
    samples = training_samples(config.num_questions, config.seed)
    prompts = tokenizer([sample.prompt for sample in samples])["input_ids"]
    answers = greedy_answers(
        target, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, report=report
    )
    (folder / ANSWERS_FILE).write_text(json.dumps(list(zip(prompts, answers, strict=True))))
    num_ended = sum(answer[-1] == tokenizer.eos_token_id for answer in answers)
    return {"num_questions": len(samples), "num_ended": num_ended, "num_tokens": sum(map(len, answers))}


def read_answers(folder: Path) -> list[Document]:
    """Documents made of the questions and the target's answers to them."""
    pairs = json.loads((folder / ANSWERS_FILE).read_text())
    return [Document((*prompt, *answer), answer_start=len(prompt)) for prompt, answer in pairs]


def training_documents(config: TextConfig, tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """The tokenized corpus."""
    return encode(training_samples(config.num_documents, config.seed), tokenizer)


def _training_result(model: LlamaForCausalLM, log: TrainingLog, num_slots: int) -> dict[str, Any]:
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_steps": log.step,
        "num_token_slots": num_slots,
        "training_time_s": round(log.wall_time_s, 1),
        "loss_curve": log.losses,
    }
