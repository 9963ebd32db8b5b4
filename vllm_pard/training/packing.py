"""Pack whole documents into rows of one length.

R rows · L tokens a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vllm_pard.demo.text.sample import Sample

__all__ = ["Document", "PackedRows", "encode", "pack"]

# Rows that are open for more documents while packing; 256 fill no row better than 64.
_OPEN_ROWS = 64


@dataclass(frozen=True)
class Document:
    """Token ids from BEGIN to END; the answer starts at `answer_start`."""

    tokens: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True)
class PackedRows:
    """Whole documents side by side."""

    tokens: Tensor  # int64 [R, L]; the pad id behind the last document
    documents: Tensor  # int64 [R, L]; number of the document within its row, -1 for padding
    is_answer: Tensor  # bool [R, L]; answer tokens and END

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def take(self, rows: Tensor) -> PackedRows:
        """The rows with these indices [B]."""
        return PackedRows(self.tokens[rows], self.documents[rows], self.is_answer[rows])


def encode(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Tokenize questions and answers apart, as an engine does, so that both agree on the border."""
    prompts = tokenizer([sample.prompt for sample in samples])["input_ids"]
    answers = tokenizer([sample.completion for sample in samples], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [
        Document((*prompt, *answer, end), answer_start=len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def pack(documents: Sequence[Document], length: int, pad_id: int) -> PackedRows:
    """Put each document into the fullest open row that still has room.

    Raises:
        ValueError: a document is longer than a row, or there is none.
    """
    if not documents:
        raise ValueError("pack needs at least one document; got none")
    closed: list[list[Document]] = []
    open_rows: list[tuple[int, list[Document]]] = []
    for document in documents:
        size = len(document.tokens)
        if size > length:
            raise ValueError(f"a document must fit into a row of {length} tokens; got one of {size}")
        room = [(used, i) for i, (used, _) in enumerate(open_rows) if used + size <= length]
        used, row = open_rows.pop(max(room)[1]) if room else (0, [])
        open_rows.append((used + size, [*row, document]))
        if len(open_rows) > _OPEN_ROWS:
            fullest = max(range(len(open_rows)), key=lambda i: open_rows[i][0])
            closed.append(open_rows.pop(fullest)[1])
    closed.extend(row for _, row in open_rows)
    return _to_rows(closed, length, pad_id)


def _to_rows(rows: list[list[Document]], length: int, pad_id: int) -> PackedRows:
    shape = (len(rows), length)
    tokens = torch.full(shape, pad_id, dtype=torch.int64)  # [R, L]
    documents = torch.full(shape, -1, dtype=torch.int64)  # [R, L]
    is_answer = torch.zeros(shape, dtype=torch.bool)  # [R, L]
    for r, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            stop = start + len(document.tokens)
            tokens[r, start:stop] = torch.tensor(document.tokens)
            documents[r, start:stop] = number
            is_answer[r, start + document.answer_start : stop] = True
            start = stop
    return PackedRows(tokens, documents, is_answer)
