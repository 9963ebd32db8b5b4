"""Answer a batch of prompts and write each answer as soon as it is there."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_pard.cli.arguments import measure_command
from vllm_pard.cli.batch.answer_file import AnswerFile
from vllm_pard.cli.batch.batch import Batch
from vllm_pard.cli.batch.prompt_room import too_long
from vllm_pard.cli.batch.verdict import BatchVerdict
from vllm_pard.cli.batch.vllm_engine import vllm_events
from vllm_pard.cli.known_costs import cost_file, recall
from vllm_pard.cli.progress import Progress
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
        from vllm_pard.cli.batch.reference_engine import reference_events

        events = reference_events(batch)
    else:
        events = vllm_events(batch)
    state = _State(len(batch.prompts))
    with Progress(state.num_prompts, lambda: state.in_words) as progress:
        run = _Run(batch, writer, progress, state)
        for event in events:
            run.take(event)
    return state.num_refused


@dataclass
class _State:
    """How far a batch is."""

    num_prompts: int
    num_answered: int = 0
    num_refused: int = 0
    started: float | None = None  # when the engine was ready
    speed: str = ""

    @property
    def num_done(self) -> int:
        return self.num_answered + self.num_refused

    @property
    def in_words(self) -> str:
        if self.started is None:
            return "starting the engine"
        words = [f"{self.num_done} of {self.num_prompts} prompts answered", self.speed]
        if 0 < self.num_done < self.num_prompts:
            seconds = (time.monotonic() - self.started) / self.num_done * (self.num_prompts - self.num_done)
            words.append(f"{timedelta(seconds=round(seconds))} left")
        return ", ".join(filter(None, words))


class _Run:
    """What a batch's events come to."""

    def __init__(self, batch: Batch, writer: RecordWriter | None, progress: Progress, state: _State) -> None:
        self._batch, self._writer, self._progress, self._state = batch, writer, progress, state
        self._asked = {prompt.id: prompt for prompt in batch.prompts}
        self._verdict: BatchVerdict | None = None
        self._num_tokens = 0

    def take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                self._begin(event)
            case "finished":
                self._state.num_answered += 1
                self._num_tokens += len(event["token_ids"])
                _write_answer(self._asked[event["id"]], event, self._writer)
            case "refused":
                self._state.num_refused += 1
                self._progress.say(f"{event['id']} was refused: {event['message']}", style="red")
            case "costs" if self._verdict:
                self._verdict.add_costs(event)
            case "progress":
                stats = AcceptanceStats(**event["stats"])
                self._state.speed = _speed(event["num_tokens"], event["seconds"], stats)
                self._warn(stats, event["batch_size"])
            case "done":
                self._end(event)
                return
        self._progress.show(self._state.num_done)

    def _begin(self, event: dict[str, Any]) -> None:
        self._state.started = time.monotonic()
        for line in event["notes"]:
            self._progress.say(line, style="dim")
        if (k := event.get("num_speculative_tokens")) and self._batch.speculative:
            target, draft = self._batch.options["model"], self._batch.speculative.get("model")
            known = recall(cost_file(target, event, self._batch.options))
            self._verdict = BatchVerdict(k, measure_command(target, draft), known)

    def _warn(self, stats: AcceptanceStats, batch_size: int) -> None:
        if self._verdict and (warning := self._verdict.warning(stats, batch_size)):
            self._progress.say(warning, style="yellow")

    def _end(self, event: dict[str, Any]) -> None:
        self._progress.end()
        stats = AcceptanceStats(**event["stats"])
        speed = _speed(self._num_tokens, event["seconds"], stats)
        self._progress.say(f"{self._num_tokens} tokens in {event['seconds']:.1f} s, {speed}")
        if self._verdict and stats.num_drafts:
            self._progress.say(self._verdict.final(stats, event["batch_size"]))


def _speed(num_tokens: int, seconds: float, stats: AcceptanceStats) -> str:
    speed = f"{num_tokens / seconds:.1f} tokens/s"
    return f"{speed}, mean acceptance length {stats.mean_acceptance_length:.2f}" if stats.num_drafts else speed


def _write_answer(prompt: Prompt, event: dict[str, Any], writer: RecordWriter | None) -> None:
    if writer is None:
        print(f"[{prompt.id}] {event['text'].strip()}\n", flush=True)
        return
    answer = {"text": event["text"], "num_tokens": len(event["token_ids"]), "finish_reason": event["finish_reason"]}
    writer.write(prompt.as_record | answer)
