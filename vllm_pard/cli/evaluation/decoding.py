"""Greedy answers of the target, decoded with the draft by one of two engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_pard.checkpoint import load_tokenizer
from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.cli.evaluation.question import Models
from vllm_pard.errors import PardError
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt, prompt_token_ids
from vllm_pard.reference.engine import ReferenceEngine
from vllm_pard.reference.models import best_device, eos_token_ids, load_model
from vllm_pard.training.draft_replay import Answered

BATCH_SIZE = 8

Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Decoded:
    """Answers to one task, and what the engine counted meanwhile."""

    answers: list[Answered]
    stats: AcceptanceStats
    mode: str
    num_speculative_tokens: int
    num_refused: int


def decode_with_reference(models: Models, tasks: dict[str, list[Prompt]], tell: Tell) -> dict[str, Decoded]:
    """On Transformers, a few prompts at a time."""
    question, k = models.question, max(models.lengths)
    tokenizer = load_tokenizer(question.target)
    target, draft = (
        load_model(name, question.dtype, best_device()) for name in (question.target, models.checkpoint.path)
    )
    asked = {
        name: [prompt_token_ids(tokenizer, p.text, p.messages) for p in prompts] for name, prompts in tasks.items()
    }
    engine = ReferenceEngine(
        target,
        draft,
        method="pard" if models.target_proj is None else "pard2",
        num_speculative_tokens=k,
        mask_token_id=models.checkpoint.mask_token_id,
        target_proj=models.target_proj,
        batch_size=BATCH_SIZE,
        max_length=max(len(ids) for prompts in asked.values() for ids in prompts) + question.max_tokens,
    )
    decoded, num_done = {}, 0
    for name, prompts in asked.items():
        answers, stats = [], AcceptanceStats()
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[start : start + BATCH_SIZE]
            found = engine.generate(batch, max_new_tokens=question.max_tokens, eos_token_ids=eos_token_ids(target))
            answers += [Answered(ids, each.token_ids) for ids, each in zip(batch, found, strict=True)]
            stats = sum((each.stats for each in found), stats)
            num_done += len(batch)
            tell(name, num_done)
        decoded[name] = Decoded(answers, stats, models.modes[0], k, 0)
    return decoded


def decode_with_vllm(models: Models, tasks: dict[str, list[Prompt]], tell: Tell) -> dict[str, Decoded]:
    """In a process of its own. A PARD-2 draft drafts without features here."""
    question, k = models.question, max(models.lengths)
    tokenizer = load_tokenizer(question.target)
    speculative: dict[str, Any] = {"method": "pard", "model": models.checkpoint.path, "num_speculative_tokens": k}
    options = {"model": question.target, "dtype": question.dtype, "speculative_config": speculative} | question.options
    sampling = {"max_tokens": question.max_tokens, "temperature": 0.0, "top_p": 1.0, "seed": None}
    decoded, num_done = {}, 0
    with EngineProcess(options, verbose=question.verbose) as engine:
        engine.wait_until_ready()
        for name, prompts in tasks.items():
            by_id = {prompt.id: prompt for prompt in prompts}
            asked = [{"id": prompt.id, "text": prompt.text, "messages": prompt.messages} for prompt in prompts]
            answers: list[Answered] = []
            stats, num_refused = AcceptanceStats(), 0
            for event in engine.generate(asked, sampling):
                if event["event"] == "finished":
                    prompt = by_id[event["id"]]
                    ids = prompt_token_ids(tokenizer, prompt.text, prompt.messages)
                    answers.append(Answered(ids, event["token_ids"]))
                elif event["event"] == "refused":
                    num_refused += 1
                elif event["event"] == "done":
                    stats = AcceptanceStats(**event["stats"])
                tell(name, num_done + len(answers) + num_refused)
            num_done += len(prompts)
            if not answers:
                raise PardError(f"the engine refused all prompts of {name}: give it room with max_model_len")
            decoded[name] = Decoded(answers, stats, "independent", k, num_refused)
    return decoded
