"""Answer a batch of prompts and write each answer as soon as it is there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from vllm_pard.checkpoint import is_local, load_config
from vllm_pard.cli.engine_client import EngineProcess
from vllm_pard.files import OutputError, RecordWriter
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.process import PARD_LOG_LINE
from vllm_pard.prompts import Prompt

Events = Iterator[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to answer, and with what."""

    options: dict[str, Any]  # of vLLM's LLM class
    speculative: dict[str, Any] | None
    prompts: list[Prompt]
    sampling: dict[str, Any]
    reference: bool
    verbose: bool


def run_batch(batch: Batch, output: Path | None, *, resume: bool) -> int:
    """Answer to a file or to the terminal; how many prompts the engine refused."""
    if output is None:
        if resume:
            raise OutputError("--resume goes on with a file; name it with --output")
        return _answer(batch, None)
    with RecordWriter(output, resume=resume) as writer:
        left = [prompt for prompt in batch.prompts if prompt.id not in writer.finished_ids]
        return _answer(replace(batch, prompts=left), writer) if left else 0


def _answer(batch: Batch, writer: RecordWriter | None) -> int:
    if batch.reference:
        from vllm_pard.cli.batch_reference import reference_events

        events = reference_events(batch)
    else:
        events = _vllm_events(batch)
    asked = {prompt.id: prompt for prompt in batch.prompts}
    num_refused = num_tokens = 0
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:-1], TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting the engine", total=len(asked))
        for event in events:
            match event["event"]:
                case "ready":
                    progress.update(task, description="answering")
                    for line in event["notes"]:
                        console.print(line, style="dim", markup=False)
                case "finished":
                    num_tokens += len(event["token_ids"])
                    _write_answer(asked[event["id"]], event, writer)
                    progress.advance(task)
                case "refused":
                    num_refused += 1
                    console.print(f"{event['id']} was refused: {event['message']}", style="red", markup=False)
                    progress.advance(task)
                case "done":
                    summary = _summary(num_tokens, event)
    console.print(summary, markup=False)
    return num_refused


def _vllm_events(batch: Batch) -> Events:
    options = batch.options
    if is_local(options["model"]):
        load_config(options["model"])  # a mistyped path is told at once, and in one sentence
    if batch.speculative is not None:
        options = options | {"speculative_config": batch.speculative}
    with EngineProcess(options, verbose=batch.verbose) as engine:
        engine.wait_until_ready()
        yield {"event": "ready", "notes": [f"vLLM: {line}" for line in engine.log_lines(PARD_LOG_LINE)]}
        requests = [{"id": prompt.id, "text": prompt.text, "messages": prompt.messages} for prompt in batch.prompts]
        yield from engine.generate(requests, batch.sampling)


def _write_answer(prompt: Prompt, event: dict[str, Any], writer: RecordWriter | None) -> None:
    if writer is None:
        print(f"[{prompt.id}] {event['text'].strip()}\n", flush=True)
        return
    answer = {"text": event["text"], "num_tokens": len(event["token_ids"]), "finish_reason": event["finish_reason"]}
    writer.write(prompt.as_record | answer)


def _summary(num_tokens: int, done: dict[str, Any]) -> str:
    seconds, stats = done["seconds"], AcceptanceStats(**done["stats"])
    speed = f"{num_tokens} tokens in {seconds:.1f} s, {num_tokens / seconds:.1f} tokens/s"
    return f"{speed}, mean acceptance length {stats.mean_acceptance_length:.2f}" if stats.num_drafts else speed
