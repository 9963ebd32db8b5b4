"""What `vllm-pard evaluate` measures: an engine decodes each task, and its answers are replayed at every K and mode."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vllm_pard.bench.conditions import conditions, portable
from vllm_pard.bench.prompt_sets import load_prompts
from vllm_pard.cli.arguments import UsageError
from vllm_pard.cli.evaluation.decoding import Decoded, decode_with_reference, decode_with_vllm
from vllm_pard.cli.evaluation.question import Models, Question, find_models
from vllm_pard.cli.progress import Progress
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt
from vllm_pard.reference.models import best_device, load_model
from vllm_pard.silence import without_progress_bars, without_warnings
from vllm_pard.training.draft_replay import DraftReplay

DTYPES = {"half": "float16", "float": "float32"}  # vLLM's words in Transformers' words


@dataclass(frozen=True)
class Evaluation:
    """Rows of task, mode, K and counts, and under which conditions they hold."""

    conditions: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)


def measure(question: Question) -> Evaluation:
    """Decode and replay."""
    models = find_models(question)
    tasks = {task.name: task.prompts for task in _tasks(question)}
    state = {"words": "starting the engine"}
    num_prompts = sum(map(len, tasks.values()))
    with Progress(num_prompts, lambda: state["words"]) as progress, without_warnings(), without_progress_bars():
        progress.show(0)

        def tell(name: str, num_done: int) -> None:
            state["words"] = f"{name}: {num_done} of {num_prompts} prompts answered"
            progress.show(num_done)

        decode = decode_with_reference if question.reference else decode_with_vllm
        decoded = decode(models, tasks, tell)
        state["words"] = "replaying the answers"
        rows = [row for mode in models.modes for row in _replay(models, mode, decoded)]
    return Evaluation(_conditions(models, tasks), rows)


def _tasks(question: Question) -> list[Any]:
    tasks = [load_prompts(name, num_prompts=question.num_prompts, seed=question.seed) for name in question.tasks]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UsageError(f"every task needs a name of its own; got {', '.join(names)}")
    return tasks


def _replay(models: Models, mode: str, decoded: dict[str, Decoded]) -> list[dict[str, Any]]:
    question, checkpoint = models.question, models.checkpoint
    dtype = DTYPES.get(question.dtype, question.dtype)
    is_dependent = mode == "dependent"
    replay = DraftReplay(
        load_model(checkpoint.path, dtype, best_device()),
        mask_token_id=checkpoint.mask_token_id,
        num_speculative_tokens=max(models.lengths),
        target=load_model(question.target, dtype, best_device()) if is_dependent else None,
        target_proj=models.target_proj if is_dependent else None,
    )
    rows = []
    for task, result in decoded.items():
        stats = replay.acceptance(result.answers, models.lengths)
        rows += [_row(task, mode, k, stats[k], result) for k in models.lengths]
    return rows


def _row(task: str, mode: str, k: int, stats: AcceptanceStats, result: Decoded) -> dict[str, Any]:
    row = {
        "task": task,
        "mode": mode,
        "num_speculative_tokens": k,
        "acceptance_length": round(stats.mean_acceptance_length, 4),
        "acceptance_by_position": [round(share, 4) for share in stats.acceptance_by_position],
        **asdict(stats),
        "num_prompts": len(result.answers),
        "num_refused": result.num_refused,
    }
    if (mode, k) == (result.mode, result.num_speculative_tokens):
        row["decoded"] = asdict(result.stats)
        row["decoded_acceptance_length"] = round(result.stats.mean_acceptance_length, 4)
    return row


def _conditions(models: Models, tasks: dict[str, list[Prompt]]) -> dict[str, Any]:
    question = models.question
    return conditions() | {
        "target": portable(question.target),
        "draft": portable(models.checkpoint.path),
        "mask_token_id": models.checkpoint.mask_token_id,
        "mode": models.why if models.checkpoint.features else None,
        "engine": "reference" if question.reference else "vllm",
        "dtype": question.dtype,
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "seed": question.seed,
        "num_threads": torch.get_num_threads(),
        "tasks": {name: len(prompts) for name, prompts in tasks.items()},
    }
