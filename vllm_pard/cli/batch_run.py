"""Answer a batch of prompts and write each answer as soon as it is there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_pard.cli.batch import Batch
from vllm_pard.cli.batch_verdict import BatchVerdict
from vllm_pard.cli.batch_vllm import vllm_events
from vllm_pard.cli.progress import Progress
from vllm_pard.files import OutputError, RecordWriter
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt


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
        events = vllm_events(batch)
    with Progress(Console(stderr=True, highlight=False), len(batch.prompts), "prompts answered") as progress:
        run = _Run(batch, writer, progress)
        for event in events:
            run.take(event)
    return run.num_refused


class _Run:
    """What a batch's events come to."""

    def __init__(self, batch: Batch, writer: RecordWriter | None, progress: Progress) -> None:
        self._batch, self._writer, self._progress = batch, writer, progress
        self._asked = {prompt.id: prompt for prompt in batch.prompts}
        self._verdict: BatchVerdict | None = None
        self._notes: list[str] = []
        self._num_finished = self._num_tokens = self.num_refused = 0

    def take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "starting":
                self._progress.announce("starting the engine")
            case "ready":
                self._begin(event)
            case "finished":
                self._num_finished += 1
                self._num_tokens += len(event["token_ids"])
                _write_answer(self._asked[event["id"]], event, self._writer)
            case "refused":
                self.num_refused += 1
                self._progress.say(f"{event['id']} was refused: {event['message']}", style="red")
            case "costs" if self._verdict:
                self._verdict.add_costs(event)
            case "progress":
                self._notes = _speed(event["num_tokens"], event["seconds"], AcceptanceStats(**event["stats"]))
                self._warn(AcceptanceStats(**event["stats"]))
            case "done":
                self._end(event)
                return
        self._progress.update(self._num_finished + self.num_refused, *self._notes)

    def _begin(self, event: dict[str, Any]) -> None:
        for line in event["notes"]:
            self._progress.say(line, style="dim")
        self._progress.announce("answering")
        if k := event.get("num_speculative_tokens"):
            self._verdict = BatchVerdict(k, _measure_command(self._batch))

    def _warn(self, stats: AcceptanceStats) -> None:
        if self._verdict and (warning := self._verdict.warning(stats)):
            self._progress.say(warning, style="yellow")

    def _end(self, event: dict[str, Any]) -> None:
        stats = AcceptanceStats(**event["stats"])
        speed = _speed(self._num_tokens, event["seconds"], stats)
        self._progress.say(", ".join([f"{self._num_tokens} tokens in {event['seconds']:.1f} s", *speed]))
        if self._verdict and stats.num_drafts:
            self._progress.say(self._verdict.final(stats))


def _speed(num_tokens: int, seconds: float, stats: AcceptanceStats) -> list[str]:
    words = [f"{num_tokens / seconds:.1f} tokens/s"]
    return [*words, f"mean acceptance length {stats.mean_acceptance_length:.2f}"] if stats.num_drafts else words


def _measure_command(batch: Batch) -> str:
    draft = (batch.speculative or {}).get("model")
    return " ".join(["vllm-pard doctor", str(batch.options["model"]), *([str(draft)] if draft else []), "--measure"])


def _write_answer(prompt: Prompt, event: dict[str, Any], writer: RecordWriter | None) -> None:
    if writer is None:
        print(f"[{prompt.id}] {event['text'].strip()}\n", flush=True)
        return
    answer = {"text": event["text"], "num_tokens": len(event["token_ids"]), "finish_reason": event["finish_reason"]}
    writer.write(prompt.as_record | answer)
