"""Greedy answers of the target, many prompts at a time.

B prompts a batch · L tokens of the longest prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import training_samples
from vllm_pard.training.demo_pair.recipe import AnswersConfig

__all__ = ["answer_records", "greedy_answers"]

Report = Callable[[str], None]


def answer_records(
    config: AnswersConfig, target: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, report: Report
) -> list[dict[str, Any]]:
    """Answers to new questions of the trained families, in the fields that `vllm-pard generate` writes."""
    samples = training_samples(config.num_questions, config.seed)
    answers = greedy_answers(
        target,
        tokenizer([sample.prompt for sample in samples])["input_ids"],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        report=report,
    )
    return [
        {
            "prompt": sample.prompt,
            "text": tokenizer.decode(answer, skip_special_tokens=True),
            "finish_reason": "stop" if answer[-1] == tokenizer.eos_token_id else "length",
        }
        for sample, answer in zip(samples, answers, strict=True)
    ]


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    report: Report,
) -> list[list[int]]:
    """Complete each prompt up to and including END, or up to `max_new_tokens`."""
    settings = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), batch_size):
        chosen = by_length[start : start + batch_size]
        tokens, attention_mask = _pad_left([prompts[i] for i in chosen], model.config.pad_token_id)
        inputs = {"input_ids": tokens.to(model.device), "attention_mask": attention_mask.to(model.device)}
        generated = model.generate(**inputs, generation_config=settings)
        for i, row in zip(chosen, generated[:, tokens.shape[1] :].tolist(), strict=True):
            answers[i] = _up_to_end(row, model.config.eos_token_id)
        report(f"{min(start + batch_size, len(prompts))} of {len(prompts)} answers")
    return answers


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [B, L]."""
    length = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    attention_mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return tokens, attention_mask


def _up_to_end(tokens: list[int], end_id: int) -> list[int]:
    return tokens[: tokens.index(end_id) + 1] if end_id in tokens else tokens
