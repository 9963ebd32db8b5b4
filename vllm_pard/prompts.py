"""Prompts from the command line, from text files and from JSON lines."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_pard.errors import PardError
from vllm_pard.files import read_text


class PromptError(PardError):
    """A prompt can't be read."""


@dataclass(frozen=True)
class Prompt:
    """Either a text to continue or a chat to answer."""

    id: str
    text: str | None = None
    messages: list[dict[str, str]] | None = None
    sample: int = 0  # which of several answers; each has an id of its own

    @property
    def as_record(self) -> dict[str, Any]:
        """The fields that the output repeats."""
        content = {"prompt": self.text} if self.messages is None else {"messages": self.messages}
        return {"id": self.id, **content}


def collect_prompts(texts: list[str], path: Path | None, *, chat: bool) -> list[Prompt]:
    """All prompts; with `chat`, each plain text becomes a user's message."""
    prompts = [Prompt(id=f"prompt-{number}", text=text) for number, text in enumerate(texts, start=1)]
    for prompt in prompts:
        if not str(prompt.text).strip():
            raise PromptError("--prompt needs a text; got an empty one")
    if path is not None:
        prompts += read_prompts(path)
    if not prompts:
        raise PromptError("there is nothing to answer: give --prompt TEXT or --prompts FILE")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"every prompt needs an id of its own; {prompt.id!r} comes twice")
        seen.add(prompt.id)
        _check_unicode(prompt)
    return [_as_chat(prompt) for prompt in prompts] if chat else prompts


def with_samples(prompts: list[Prompt], num_samples: int) -> list[Prompt]:
    """Each prompt so many times. The first keeps its id, so that a file of single answers can be added to."""
    return [
        replace(prompt, id=f"{prompt.id}#{sample + 1}", sample=sample) if sample else prompt
        for sample in range(num_samples)
        for prompt in prompts
    ]


def read_prompts(path: Path) -> list[Prompt]:
    """A text file has a prompt a line, a .jsonl file an object with "prompt" or "messages"; blank lines don't count."""
    # Not splitlines: a JSON text may hold other line separators as they are.
    lines = read_text(path, "prompt", PromptError).split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise PromptError(f"the prompt file {str(path)!r} has no prompts")
    if path.suffix == ".jsonl":
        return [_parse_line(path, number, line) for number, line in numbered]
    return [Prompt(id=f"line-{number}", text=line.rstrip("\r")) for number, line in numbered]


def prompt_token_ids(
    tokenizer: Any, text: str | None, messages: list[dict[str, str]] | None, **template_options: Any
) -> list[int]:
    """A chat ends where the assistant begins; a text gets the tokenizer's usual special tokens.

    `template_options` are for the chat template, e.g. `enable_thinking`; a template ignores what it does not know.
    """
    if messages is None:
        return list(tokenizer(text).input_ids)
    options = {"add_generation_prompt": True, "return_dict": False} | template_options
    return list(tokenizer.apply_chat_template(messages, **options))


def _parse_line(path: Path, number: int, line: str) -> Prompt:
    place = f"line {number} of {str(path)!r}"
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{place} is not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(fields, dict) or ("prompt" in fields) == ("messages" in fields):
        raise PromptError(f'{place} must be an object with either "prompt" or "messages"')
    prompt_id = str(fields.get("id", f"line-{number}"))
    if "messages" in fields:
        return Prompt(id=prompt_id, messages=_check_messages(place, fields["messages"]))
    if not isinstance(fields["prompt"], str) or not fields["prompt"].strip():
        raise PromptError(f'{place} needs a text as its "prompt"; got {fields["prompt"]!r}')
    return Prompt(id=prompt_id, text=fields["prompt"])


def _check_messages(place: str, messages: Any) -> list[dict[str, str]]:
    is_chat = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )
    if not is_chat or not messages:
        raise PromptError(f'{place} needs "messages" to be a list of {{"role": TEXT, "content": TEXT}}')
    checked: list[dict[str, str]] = messages
    return checked


def _check_unicode(prompt: Prompt) -> None:
    """JSON and command lines can hold halves of surrogate pairs, which no tokenizer takes and no file keeps."""
    try:
        json.dumps(prompt.as_record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise PromptError(f"the prompt {prompt.id!r} is not Unicode text: take {half!r} out of it") from error


def _as_chat(prompt: Prompt) -> Prompt:
    if prompt.text is None:
        return prompt
    return Prompt(id=prompt.id, messages=[{"role": "user", "content": prompt.text}])
