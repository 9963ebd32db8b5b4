"""What `vllm-pard evaluate` measures: an engine decodes each task, and its answers are replayed at every K and mode."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from transformers import AutoConfig

from vllm_pard.bench.prompt_sets import PromptSet
from vllm_pard.bench.reference_engine import readable_memory_errors
from vllm_pard.cli.evaluation.decoding import (
    Decoded,
    LoadedModels,
    Tell,
    decode_with_reference,
    decode_with_vllm,
    load_models,
    tokenized,
)
from vllm_pard.cli.evaluation.question import Models
from vllm_pard.cli.progress import Progress
from vllm_pard.conditions import conditions, portable
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.pard2 import Mode
from vllm_pard.silence import without_progress_bars, without_warnings
from vllm_pard.training.evaluation.draft_replay import DraftReplay, check_replay


@dataclass(frozen=True)
class Evaluation:
    """Rows of task, mode, K and counts; under which conditions they hold; why prompts were refused, by task and id."""

    conditions: dict[str, Any]
    rows: list[dict[str, Any]]
    refused: dict[str, dict[str, str]]


def measure(models: Models, tasks: Sequence[PromptSet]) -> Evaluation:
    """Decode and replay, telling how far it is."""
    if models.target_proj is not None:
        check_replay(models.target_proj)
    words = "starting the engine"
    num_prompts = sum(len(task.prompts) for task in tasks)
    with (
        readable_memory_errors(),
        without_warnings(),
        without_progress_bars(),
        Progress(num_prompts, lambda: words) as progress,
    ):
        progress.show(0)

        def tell(name: str, num_done: int) -> None:
            nonlocal words
            words = f"{name}: {num_done} of {num_prompts} prompts answered"
            progress.show(num_done)

        decoded, loaded, mode = _decode(models, tasks, tell)
        words = "replaying the answers"
        rows = _replay(models, loaded, decoded, mode)
        dtype = str(loaded.draft.dtype).removeprefix("torch.")
    refused = {name: result.refused for name, result in decoded.items() if result.refused}
    return Evaluation(_conditions(models, tasks, dtype, mode), rows, refused)


def _decode(models: Models, tasks: Sequence[PromptSet], tell: Tell) -> tuple[dict[str, Decoded], LoadedModels, Mode]:
    """The answers, the weights to replay them with, and the mode in which the engine has drafted.

    vLLM's engine and these weights are never in memory together.
    """
    question, asked = models.question, tokenized(models, tasks)
    if question.reference:
        loaded = load_models(models, question.dtype, with_target=True)
        return decode_with_reference(models, loaded, asked, tell), loaded, models.drafting.mode or "independent"
    decoded, about = decode_with_vllm(models, asked, tell)
    loaded = load_models(models, about.get("dtype", question.dtype), with_target=models.target_proj is not None)
    return decoded, loaded, about.get("mode") or "independent"


def _replay(
    models: Models, loaded: LoadedModels, decoded: dict[str, Decoded], decoded_mode: Mode
) -> list[dict[str, Any]]:
    target_config: Any = AutoConfig.from_pretrained(models.question.target).get_text_config(decoder=True)
    replay = DraftReplay(
        loaded.draft,
        mask_token_id=models.checkpoint.mask_token_id,
        num_speculative_tokens=models.max_length,
        vocab_size=target_config.vocab_size,
        draft_vocab=models.checkpoint.read_draft_vocab(),
        target=loaded.target,
        target_proj=models.target_proj,
    )
    rows = []
    for task, result in decoded.items():
        for mode in models.modes:
            stats = replay.acceptance(result.answers, models.lengths, mode=mode)
            for k in models.lengths:
                is_decoded = (mode, k) == (decoded_mode, models.max_length)
                rows.append(_row(task, mode, k, stats[k], result) | (_as_decoded(result) if is_decoded else {}))
    return rows


def _row(task: str, mode: Mode, k: int, stats: AcceptanceStats, result: Decoded) -> dict[str, Any]:
    return {
        "task": task,
        "mode": mode,
        "num_speculative_tokens": k,
        "acceptance_length": round(stats.mean_acceptance_length, 4),
        "acceptance_by_position": [round(share, 4) for share in stats.acceptance_by_position],
        **asdict(stats),
        "num_prompts": len(result.answers),
        "num_refused": len(result.refused),
        "num_tokens": sum(len(each.answer) for each in result.answers),
    }


def _as_decoded(result: Decoded) -> dict[str, Any]:
    return {
        "decoded": asdict(result.stats),
        "decoded_acceptance_length": round(result.stats.mean_acceptance_length, 4),
    }


def _mode_reason(models: Models) -> str | None:
    """Of a PARD-2 draft; a result is read elsewhere."""
    if models.drafting.reason is None:
        return None
    names = (models.question.target, models.checkpoint.path)
    return reduce(lambda reason, name: reason.replace(name, portable(name)), names, models.drafting.reason)


def _conditions(models: Models, tasks: Sequence[PromptSet], dtype: str, decoded_mode: Mode) -> dict[str, Any]:
    question = models.question
    return conditions() | {
        "target": portable(question.target),
        "draft": portable(models.checkpoint.path),
        "mask_token_id": models.checkpoint.mask_token_id,
        "format": models.checkpoint.format,
        "modes": list(models.modes),
        "decoded_mode": decoded_mode,
        "mode_reason": _mode_reason(models),
        "engine": "reference" if question.reference else "vllm",
        "engine_options": question.options,
        "dtype": question.dtype,
        "weight_dtype": dtype,
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "enable_thinking": False,
        "seed": question.seed,
        "num_threads": torch.get_num_threads(),
        "tasks": [
            {
                "name": task.name,
                "source": task.source,
                "available": task.num_available,
                "num_prompts": len(task.prompts),
            }
            for task in tasks
        ],
    }
