"""Formats of records, known by their columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm_pard.training.data.config import DataError
from vllm_pard.training.data.sources import Row

__all__ = ["Answer", "Chat", "Message", "Sample", "Text", "parse"]

Message = dict[str, Any]

CHAT_COLUMNS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "question", "instruction")
ANSWER_COLUMNS = ("answer", "response", "completion", "output", "text")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}  # ShareGPT's words
ACCEPTED = (
    '"messages", "conversations" or "conversation" (chats); "prompt" or "messages" with "text" and "finish_reason" '
    f"(as vllm-pard generate writes); one of {', '.join(PROMPT_COLUMNS)} with one of {', '.join(ANSWER_COLUMNS)}; "
    'or "text" alone'
)


class Chat(NamedTuple):
    """Every assistant's message is an answer."""

    messages: list[Message]


class Answer(NamedTuple):
    """The text that a model wrote after a prompt or a chat."""

    prompt: str | None
    messages: list[Message] | None
    text: str
    is_finished: bool  # or it was cut, and no end belongs behind it


class Text(NamedTuple):
    """No question, no answer."""

    text: str


Sample = Chat | Answer | Text


def parse(row: Row, *, has_chat_template: bool) -> Sample:
    """The sample that a row holds; a pair of prompt and answer is a chat where there is a template for one.

    Raises:
        DataError: the row fits no format.
    """
    fields = row.fields()
    chat_column = next((name for name in CHAT_COLUMNS if name in fields), None)
    prompt_column = next((name for name in PROMPT_COLUMNS if name in fields), None)
    answer_column = next((name for name in ANSWER_COLUMNS if name in fields), None)
    if "finish_reason" in fields and "text" in fields and (chat_column or "prompt" in fields):
        messages = _messages(row.place, chat_column, fields) if chat_column else None
        prompt = None if chat_column else _text(row.place, fields, "prompt")
        return Answer(prompt, messages, _text(row.place, fields, "text"), fields["finish_reason"] == "stop")
    if chat_column:
        return Chat(_messages(row.place, chat_column, fields))
    if prompt_column and answer_column:
        prompt, answer = _text(row.place, fields, prompt_column), _text(row.place, fields, answer_column)
        if prompt_column == "instruction" and fields.get("input"):  # Alpaca's
            prompt = f"{prompt}\n\n{_text(row.place, fields, 'input')}"
        if not has_chat_template:
            return Answer(prompt, None, answer, is_finished=True)
        return Chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    if answer_column == "text":
        return Text(_text(row.place, fields, "text"))
    found = ", ".join(json.dumps(str(name)) for name in fields) or "none"
    raise DataError(f"{row.place} fits no format: its columns are {found}; accepted are {ACCEPTED}")


def _messages(place: str, column: str, fields: dict[str, Any]) -> list[Message]:
    turns = fields[column]
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{place} needs a list of messages as its "{column}"; got {_short(turns)}')
    return [message for turn in turns for message in _turn(place, column, turn)]


def _turn(place: str, column: str, turn: Any) -> Iterable[Message]:
    if isinstance(turn, dict):
        turn = {key: value for key, value in turn.items() if value is not None}  # Arrow fills columns up
        if "role" in turn and "content" in turn:
            _check_texts(place, turn["role"], turn["content"])
            return [turn]
        if "from" in turn and "value" in turn:
            _check_texts(place, turn["from"], turn["value"])
            return [{"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}]
        if "human" in turn and "assistant" in turn:  # AMD's training code reads these
            _check_texts(place, turn["human"], turn["assistant"])
            return [
                {"role": "user", "content": turn["human"]},
                {"role": "assistant", "content": turn["assistant"]},
            ]
    raise DataError(
        f'{place} needs messages of {{"role", "content"}}, {{"from", "value"}} or {{"human", "assistant"}} in its '
        f'"{column}"; got {_short(turn)}'
    )


def _text(place: str, fields: dict[str, Any], column: str) -> str:
    text = fields[column]
    if not isinstance(text, str):
        raise DataError(f'{place} needs a text as its "{column}"; got {_short(text)}')
    _check_texts(place, text)
    return text


def _check_texts(place: str, *texts: Any) -> None:
    """JSON can hold halves of surrogate pairs, which no tokenizer takes."""
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{place} needs a text in each message; got {_short(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise DataError(f"{place} is not Unicode text: take {half!r} out of it") from error


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}..."
