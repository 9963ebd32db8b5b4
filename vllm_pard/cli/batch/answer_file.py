"""The output file of `vllm-pard generate`: each answer with its settings, and only such beside it."""

from pathlib import Path
from typing import Any

from vllm_pard.cli.batch.batch import Batch
from vllm_pard.files import OutputError, RecordWriter
from vllm_pard.prompts import Prompt


class AnswerFile(RecordWriter):
    """Takes a batch's answers; an earlier file's must be answers to the same prompts, with the same settings."""

    def __init__(self, path: Path, batch: Batch, *, resume: bool) -> None:
        self._settings = batch.settings
        self._asked = {prompt.id: prompt for prompt in batch.prompts}
        self._num_without_settings = 0  # of earlier versions; nothing can be said of them
        super().__init__(path, resume=resume)

    @property
    def left(self) -> list[Prompt]:
        """The prompts without an answer."""
        return [prompt for prompt in self._asked.values() if prompt.id not in self.finished_ids]

    @property
    def progress(self) -> str:
        """How many prompts have an answer."""
        return f"{len(self._asked) - len(self.left)} of {len(self._asked)} prompts are finished in {self._path}"

    @property
    def notes(self) -> list[str]:
        """What to say of an earlier file before going on with it."""
        if not self.finished_ids:
            return []
        num_left = len(self.left)
        notes = [f"{self.progress}; {num_left or 'none'} {'is' if num_left < 2 else 'are'} left"]
        if self._num_without_settings:
            notes.append(f"{self._num_without_settings} of its records don't say with which settings they were made")
        return notes

    @property
    def interruption(self) -> str:
        """What is kept, and how to go on."""
        return f"{self.progress}; --resume goes on" if self.finished_ids else "no prompt was finished"

    def write(self, record: dict[str, Any]) -> None:
        super().write(record | {"settings": self._settings})

    def check(self, record: dict[str, Any]) -> None:
        prompt = self._asked.get(record["id"])
        if prompt and any(record.get(key) != value for key, value in prompt.as_record.items()):
            raise self._can_not_go_on(
                f"its answer {prompt.id!r} is to another prompt than the one asked now", "prompts"
            )
        theirs = record.get("settings")
        if not isinstance(theirs, dict):
            self._num_without_settings += 1
            return
        for key in theirs | self._settings:
            if theirs.get(key) != self._settings.get(key):
                difference = f"its answers were made with {key} {theirs.get(key)!r}, and now it is "
                raise self._can_not_go_on(f"{difference}{self._settings.get(key)!r}", "options")

    def _can_not_go_on(self, reason: str, same: str) -> OutputError:
        return OutputError(f"can't go on with {str(self._path)!r}: {reason}; give another --output, or the same {same}")
