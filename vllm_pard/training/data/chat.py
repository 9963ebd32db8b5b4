"""Chats as the target sees them: its own template, cut where answers begin and end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from vllm_pard.training.data.config import DataError
from vllm_pard.training.data.formats import Message

__all__ = ["ChatTemplate", "Piece"]

LAST_ANSWER_ONLY = "chats of which only the last answer is trained, as the chat template rewrites earlier ones"
OPENED = re.compile(r"<[^<>\s]+>\s*$")
MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
PROBE = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"})


class Piece(NamedTuple):
    """A part of a document. Each is tokenized by itself: an engine knows a prompt before its answer begins."""

    content: str | list[int]  # text, or token ids
    is_answer: bool = False
    with_special_tokens: bool = False  # as the tokenizer puts them around a text


class ChatTemplate:
    """A tokenizer's chat template with `options`, and the token that ends an answer."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._tokenizer, self._options = tokenizer, {"tokenize": False, **options}
        self.exists = bool(tokenizer.chat_template)
        self._tail = self._tail_of_an_answer() if self.exists else ""
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        ends = [i for i in tokenizer(self._tail, add_special_tokens=False).input_ids if i in special]
        self._writes_end = bool(ends)
        self.end_id: int | None = ends[0] if ends else tokenizer.eos_token_id

    @property
    def end(self) -> list[Piece]:
        """What a model writes behind an answer; nothing if the tokenizer has no such token."""
        return [] if self.end_id is None else [Piece([self.end_id], is_answer=True)]

    def prompt(self, messages: Sequence[Message]) -> str:
        """A chat up to where the assistant begins."""
        return self._render(messages, add_generation_prompt=True)

    def pieces(self, messages: list[Message]) -> tuple[list[Piece], str | None]:
        """A chat up to its last answer, none if it has no answer; and what to report of it."""
        answers = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
        if not any(messages[i]["content"].strip() for i in answers):
            return [], None
        messages = messages[: answers[-1] + 1]
        if MARKS_ANSWERS.search(self._tokenizer.get_chat_template()):
            return self._marked(messages), None
        pieces = self._by_prefixes(messages, answers)
        if pieces:
            return pieces, None
        return self._last_answer(messages), LAST_ANSWER_ONLY if len(answers) > 1 else None

    def _by_prefixes(self, messages: list[Message], answers: list[int]) -> list[Piece]:
        """An answer is what its chat has more than its prompt; nothing if a shorter chat is no start of a longer."""
        whole, position, pieces = self._render(messages), 0, []
        for i in answers:
            prompt = self.prompt(messages[:i])
            upto = self._render(messages[: i + 1]) if i < answers[-1] else whole
            if not whole.startswith(prompt) or not whole.startswith(upto) or not position <= len(prompt) < len(upto):
                return []
            is_answer = bool(messages[i]["content"].strip())
            pieces += [Piece(whole[position : len(prompt)]), Piece(whole[len(prompt) : len(upto)], is_answer)]
            position = len(upto)
        return pieces if self._writes_end else self._ended(pieces)

    def _ended(self, pieces: list[Piece]) -> list[Piece]:
        *earlier, last = pieces
        return [*earlier, Piece(str(last.content).removesuffix(self._tail), last.is_answer), *self.end]

    def _last_answer(self, messages: list[Message]) -> list[Piece]:
        """As an engine sees it: the prompt, what the model wrote, the end."""
        pieces = self._by_prefixes(messages, [len(messages) - 1])
        if pieces:
            return pieces
        prompt, answer = self.prompt(messages[:-1]), messages[-1]["content"]
        # A prompt may open the thoughts that the answer has whole.
        opened = OPENED.search(prompt)
        answer = answer.removeprefix(opened.group()) if opened else answer
        return [Piece(prompt), Piece(answer, is_answer=True), *self.end]

    def _marked(self, messages: list[Message]) -> list[Piece]:
        """A template that says itself which tokens are the assistant's."""
        options = self._options | {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self._apply(messages, options)
        marked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        runs = groupby(marked, key=lambda pair: bool(pair[1]))
        return [Piece([token_id for token_id, _ in run], is_answer) for is_answer, run in runs]

    def _tail_of_an_answer(self) -> str:
        try:
            return self._render(PROBE).rpartition("answer")[2]
        except DataError:  # a template may want more than a question
            return ""

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        return str(self._apply(messages, options | self._options))

    def _apply(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Any:
        try:
            return self._tokenizer.apply_chat_template(list(messages), **options)
        except Exception as error:  # a chat template is anyone's code
            raise DataError(f"the chat template refuses it: {error}") from error
