"""Greedy answers of the target, decoded with the draft by one of two engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from vllm_pard.bench.prompt_sets import PromptSet
from vllm_pard.checkpoint import load_tokenizer
from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.cli.evaluation.question import Models
from vllm_pard.errors import PardError, first_sentence
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt, prompt_token_ids
from vllm_pard.reference.engine import ReferenceEngine
from vllm_pard.reference.models import best_device, eos_token_ids, load_model
from vllm_pard.training.evaluation.draft_replay import Answered

BATCH_SIZE = 8  # of the reference engine

Tell = Callable[[str, int], None]  # a task, and how many of all prompts are done


class LoadedModels(NamedTuple):
    """Weights for a replay."""

    draft: PreTrainedModel
    target: PreTrainedModel | None


@dataclass(frozen=True)
class Asked:
    """A task: the token ids of its prompts by id, and why others have none."""

    name: str
    prompts: dict[str, list[int]]
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """Answers to a task, what the engine counted meanwhile, and why prompts were refused."""

    answers: list[Answered]
    stats: AcceptanceStats
    refused: dict[str, str]


def load_models(models: Models, dtype: str, *, with_target: bool) -> LoadedModels:
    """Of Transformers, on the GPU where there is one."""
    device = best_device()
    draft = load_model(models.checkpoint.path, dtype, device)
    return LoadedModels(draft, load_model(models.question.target, dtype, device) if with_target else None)


def tokenized(models: Models, tasks: Sequence[PromptSet]) -> list[Asked]:
    """As for bench, chats are without thinking, as published figures are."""
    tokenizer = load_tokenizer(models.question.target)

    def ids_of(prompt: Prompt) -> list[int]:
        return prompt_token_ids(tokenizer, prompt.text, prompt.messages, enable_thinking=False)

    asked = []
    for task in tasks:
        prompts, refused = {}, {}
        for prompt in task.prompts:
            try:
                prompts[prompt.id] = ids_of(prompt)
            except ValueError as error:  # a chat without a chat template
                refused[prompt.id] = first_sentence(error)
        asked.append(_some_left(Asked(task.name, prompts, refused)))
    return asked


def decode_with_reference(
    models: Models, loaded: LoadedModels, asked: Sequence[Asked], tell: Tell
) -> dict[str, Decoded]:
    """A few prompts at a time, dependent where the draft is to be."""
    target, max_tokens = loaded.target, models.question.max_tokens
    assert target is not None
    room = target.config.get_text_config(decoder=True).max_position_embeddings
    asked = [_fitting(task, room, max_tokens) for task in asked]
    engine = ReferenceEngine(
        target,
        loaded.draft,
        **models.drafting.options,
        num_speculative_tokens=models.max_length,
        batch_size=BATCH_SIZE,
        max_length=max(len(ids) for task in asked for ids in task.prompts.values()) + max_tokens,
    )
    decoded, num_done = {}, 0
    for task in asked:
        num_done += len(task.refused)
        prompts, answers, stats = list(task.prompts.values()), [], AcceptanceStats()
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[start : start + BATCH_SIZE]
            found = engine.generate(batch, max_new_tokens=max_tokens, eos_token_ids=eos_token_ids(target))
            answers += [Answered(ids, each.token_ids) for ids, each in zip(batch, found, strict=True)]
            stats = sum((each.stats for each in found), stats)
            num_done += len(batch)
            tell(task.name, num_done)
        decoded[task.name] = Decoded(answers, stats, task.refused)
    return decoded


def decode_with_vllm(models: Models, asked: Sequence[Asked], tell: Tell) -> tuple[dict[str, Decoded], dict[str, Any]]:
    """In a process of its own, dependent where that is asked and possible; also what the engine says of itself."""
    question = models.question
    speculative: dict[str, Any] = {"method": "pard", "model": models.checkpoint.path}
    speculative["num_speculative_tokens"] = models.max_length
    if "dependent" not in models.modes:
        speculative["mode"] = "independent"
    options = {"model": question.target, "dtype": question.dtype, "speculative_config": speculative} | question.options
    decoded, num_done = {}, 0
    with EngineProcess(options, verbose=question.verbose) as engine:
        about = engine.wait_until_ready()
        for task in asked:
            decoded[task.name] = _answers_of(engine, task, question.max_tokens, num_done, tell)
            num_done += len(task.prompts) + len(task.refused)
    return decoded, about


def _answers_of(engine: EngineProcess, task: Asked, max_tokens: int, num_before: int, tell: Tell) -> Decoded:
    requests = [{"id": prompt_id, "token_ids": ids} for prompt_id, ids in task.prompts.items()]
    answers, refused, stats = {}, dict(task.refused), AcceptanceStats()
    for event in engine.generate(requests, {"max_tokens": max_tokens, "temperature": 0.0}):
        match event["event"]:
            case "finished":
                answers[event["id"]] = Answered(task.prompts[event["id"]], event["token_ids"])
            case "refused":
                refused[event["id"]] = event["message"]
            case "done":
                stats = AcceptanceStats(**event["stats"])
        tell(task.name, num_before + len(answers) + len(refused))
    left = {prompt_id: ids for prompt_id, ids in task.prompts.items() if prompt_id in answers}
    _some_left(replace(task, prompts=left, refused=refused))
    return Decoded([answers[prompt_id] for prompt_id in left], stats, refused)


def _fitting(task: Asked, room: int, max_tokens: int) -> Asked:
    """Without prompts that leave no room for an answer."""
    refused = {
        prompt_id: f"the target has room for {room} tokens; {len(ids)} prompt tokens and {max_tokens} new ones are more"
        for prompt_id, ids in task.prompts.items()
        if len(ids) + max_tokens > room
    }
    prompts = {prompt_id: ids for prompt_id, ids in task.prompts.items() if prompt_id not in refused}
    return _some_left(Asked(task.name, prompts, task.refused | refused))


def _some_left(task: Asked) -> Asked:
    if not task.prompts:
        prompt_id, reason = next(iter(task.refused.items()))
        raise PardError(f"all prompts of {task.name} are refused; {prompt_id!r}: {reason}")
    return task
