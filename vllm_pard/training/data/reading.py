"""Records become documents: parsed, tokenized, marked and cut to a row's length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from vllm_pard.training.data.chat import ChatTemplate, Piece
from vllm_pard.training.data.config import DataConfig, DataError, Document
from vllm_pard.training.data.formats import Chat, Sample, Text, parse
from vllm_pard.training.data.sources import Row

__all__ = ["LEFT_OUT", "Reader", "Reading"]

EMPTY = "without an answer"
TOO_LONG = "longer than a row"
NOTHING_LEFT = "with a prompt longer than a row"
MALFORMED = "malformed"
LEFT_OUT = (EMPTY, TOO_LONG, NOTHING_LEFT, MALFORMED)
TRUNCATED = "cut to the length of a row"


class NoTemplateError(DataError):
    """No chat can be read, so there is nothing to gain from leaving one out."""


class Reading(NamedTuple):
    """What came of one record."""

    document: Document  # without tokens if the record is left out
    notes: list[str]  # what to count it as
    detail: str = ""  # what is wrong with it


class Draft(NamedTuple):
    """A record that is not tokenized yet; without pieces if it is left out."""

    pieces: list[Piece]
    notes: list[str]
    end_id: int | None = None  # what follows this token within an answer is the template's own, as a newline
    detail: str = ""


class Reader:
    """Reads records with one tokenizer."""

    def __init__(self, config: DataConfig, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._template = ChatTemplate(tokenizer, config.chat_template_options)
        self._eos = [] if tokenizer.eos_token_id is None else [Piece([tokenizer.eos_token_id], is_answer=True)]

    def read(self, rows: Sequence[Row]) -> list[Reading]:
        """All texts of the rows are tokenized in one call.

        Raises:
            DataError: a record is malformed and may not be skipped, or a chat finds no template.
        """
        drafts = [self._draft(row) for row in rows]
        tokens = iter(self._tokenize([piece for draft in drafts for piece in draft.pieces]))
        return [self._finish(draft, list(islice(tokens, len(draft.pieces)))) for draft in drafts]

    def _draft(self, row: Row) -> Draft:
        try:
            sample = parse(row, has_chat_template=self._template.exists)
            if not isinstance(sample, Text) and sample.messages is not None and not self._template.exists:
                raise NoTemplateError(
                    f"{row.place} is a chat, and the tokenizer has no chat template: take the tokenizer of an "
                    'instruct model, or records of "prompt" and "answer"'
                )
            return self._pieces(sample)
        except NoTemplateError:
            raise
        except DataError as error:
            message = str(error) if str(error).startswith(row.place) else f"{row.place}: {error}"
            if self._config.malformed == "refuse":
                raise DataError(f'{message} (or leave such records out with malformed: "skip")') from error
            return Draft([], [MALFORMED], detail=message)

    def _pieces(self, sample: Sample) -> Draft:
        if isinstance(sample, Chat):
            pieces, note = self._template.pieces(sample.messages)
            return Draft(pieces, [note] if note else [], self._template.end_id) if pieces else Draft([], [EMPTY])
        if not sample.text.strip():
            return Draft([], [EMPTY])
        if isinstance(sample, Text):
            return Draft([Piece(sample.text, is_answer=True, with_special_tokens=True), *self._eos], [])
        if sample.messages is not None:
            prompt, end = Piece(self._template.prompt(sample.messages)), self._template.end
        else:
            prompt, end = Piece(sample.prompt or "", with_special_tokens=True), self._eos
        return Draft([prompt, Piece(sample.text, is_answer=True), *(end if sample.is_finished else [])], [])

    def _tokenize(self, pieces: list[Piece]) -> list[list[int]]:
        """Token ids of each piece."""
        tokens = [[] if isinstance(piece.content, str) else piece.content for piece in pieces]
        for with_special_tokens in (False, True):
            texts = {
                i: piece.content
                for i, piece in enumerate(pieces)
                if isinstance(piece.content, str) and piece.with_special_tokens is with_special_tokens
            }
            if texts:
                encoded = self._tokenizer(
                    list(texts.values()),
                    add_special_tokens=with_special_tokens,
                    return_attention_mask=False,
                    verbose=False,  # of texts that are longer than the model takes
                )
                for i, token_ids in zip(texts, encoded.input_ids, strict=True):
                    tokens[i] = token_ids
        return tokens

    def _finish(self, draft: Draft, parts: list[list[int]]) -> Reading:
        if not parts:
            return Reading(Document([], []), draft.notes, draft.detail)
        if len(parts) > 1 and parts[-2][-1:] == parts[-1]:
            parts[-1] = []  # a text that brings its end with it
        tokens = list(chain.from_iterable(parts))
        prompt = _digest(_prompt_of(draft.pieces, parts) or tokens)
        trains_all = self._config.train_on == "all"
        is_trained = [True] * len(tokens) if trains_all else _mark_answers(draft, parts)
        is_trained[:1] = [False]  # nothing comes before it
        notes, max_length = draft.notes, self._config.max_length
        if len(tokens) > max_length:
            if self._config.too_long == "drop":
                return Reading(Document([], []), [TOO_LONG])
            tokens, is_trained, notes = tokens[:max_length], is_trained[:max_length], [*notes, TRUNCATED]
        if not any(is_trained):
            return Reading(Document([], []), [NOTHING_LEFT if len(tokens) == max_length else EMPTY])
        return Reading(Document(tokens, is_trained, prompt), notes)


def _mark_answers(draft: Draft, parts: list[list[int]]) -> list[bool]:
    """Answers up to and with their end token, also where a template keeps it out of the answer."""
    marks = [[piece.is_answer] * len(part) for piece, part in zip(draft.pieces, parts, strict=True)]
    for i, (piece, part) in enumerate(zip(draft.pieces, parts, strict=True)):
        if not piece.is_answer or draft.end_id is None:
            continue
        if draft.end_id in part:
            num_after = part[::-1].index(draft.end_id)
            marks[i] = [True] * (len(part) - num_after) + [False] * num_after
        elif i + 1 < len(parts) and parts[i + 1][:1] == [draft.end_id]:
            marks[i + 1][0] = True
    return list(chain.from_iterable(marks))


def _prompt_of(pieces: list[Piece], parts: list[list[int]]) -> list[int]:
    first = next((i for i, piece in enumerate(pieces) if piece.is_answer), 0)
    return list(chain.from_iterable(parts[:first]))


def _digest(tokens: list[int]) -> int:
    """64 bits, signed."""
    return int.from_bytes(hashlib.blake2b(array("q", tokens).tobytes(), digest_size=8).digest(), "little", signed=True)
