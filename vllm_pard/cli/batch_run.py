"""Answer a batch of prompts and write each answer as soon as it is there."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from vllm_pard.cli.answer_file import AnswerFile
from vllm_pard.cli.batch import Batch
from vllm_pard.cli.batch_vllm import vllm_events
from vllm_pard.cli.prompt_room import too_long
from vllm_pard.files import OutputError, RecordWriter
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt


def run_batch(batch: Batch, output: Path | None, *, resume: bool) -> int:
    """Answer to a file or to the terminal; how many prompts the engine refused."""
    if output is None:
        if resume:
            raise OutputError("--resume goes on with a file; name it with --output")
        with _saying_at_an_interrupt(lambda: "answers so far are above; --output FILE would keep them"):
            return _answer_fitting(batch, None)
    with AnswerFile(output, batch, resume=resume) as answers:
        for note in answers.notes:
            print(note, file=sys.stderr)
        with _saying_at_an_interrupt(lambda: answers.interruption):
            return _answer_fitting(replace(batch, prompts=answers.left), answers)


@contextmanager
def _saying_at_an_interrupt(words: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(words()) from error


def _answer_fitting(batch: Batch, writer: RecordWriter | None) -> int:
    """Refuse what surely has no room, and answer the others if there are any."""
    refused = too_long(batch.prompts, batch.options)
    console = Console(stderr=True, highlight=False)
    for prompt_id, message in refused.items():
        console.print(f"{prompt_id} was refused: {message}", style="red", markup=False, soft_wrap=True)
    fitting = [prompt for prompt in batch.prompts if prompt.id not in refused]
    return len(refused) + (_answer(replace(batch, prompts=fitting), writer) if fitting else 0)


def _answer(batch: Batch, writer: RecordWriter | None) -> int:
    if batch.reference:
        from vllm_pard.cli.batch_reference import reference_events

        events = reference_events(batch)
    else:
        events = vllm_events(batch)
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
