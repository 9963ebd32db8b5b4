"""Whole documents side by side in rows of one length.

R rows · L tokens a row · D documents · N tokens of them all
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from vllm_pard.training.data.config import DataError, Document
from vllm_pard.training.data.documents import columns, flat

__all__ = ["PackedDataset", "StreamedPacks", "pack"]

# A stream is packed in portions of so many rows; the emptiest quarter of a portion waits for the next.
ROWS_AT_ONCE = 64

Item = dict[str, Any]


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the documents of each row, best fit by decreasing length.

    Raises:
        DataError: a document is longer than a row.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    if order and lengths[order[0]] > max_length:
        raise DataError(f"a document must fit into a row of {max_length} tokens; got one of {lengths[order[0]]}")
    rows: list[list[int]] = []
    rooms: list[int] = []  # the different numbers of free tokens, ascending
    rows_with: dict[int, list[int]] = defaultdict(list)  # rows by their free tokens
    for document in order:
        size = int(lengths[document])
        place = bisect_left(rooms, size)
        if place == len(rooms):
            room, row = max_length, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms.pop(place)
        rows[row].append(document)
        if left := room - size:
            if not rows_with[left]:
                insort(rooms, left)
            rows_with[left].append(row)
    return rows


class PackedDataset(Dataset[Item]):
    """Packed rows in a new order each epoch.

    Item i, of `len(self)`, depends on the seed and i alone, so that a run that goes on sees what it would have seen:
    tokens (int64 [L]), documents (int64 [L], number within the row, -1 for padding), is_trained (bool [L]),
    pack (int, which row it is) and draw (int, i).
    """

    def __init__(
        self, documents: Any, *, max_length: int, seed: int, num_epochs: float = 1.0, num_draws: int | None = None
    ) -> None:
        """`documents` is what `read_documents` gives; `num_draws` items, or so many epochs of rows.

        Raises:
            DataError: there is no document, or one is longer than a row.
        """
        lengths = [batch for *_, batch in columns(documents)]
        if not lengths:
            raise DataError("packing needs at least one document; got none")
        all_lengths = np.concatenate(lengths).tolist()
        self.rows = pack(all_lengths, max_length)
        self.num_tokens = sum(all_lengths)
        self._documents = documents.select_columns(["tokens", "is_trained"]).with_format("arrow")
        self._max_length, self._seed = max_length, seed
        self._num_draws = round(num_epochs * len(self.rows)) if num_draws is None else num_draws
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._num_draws

    def __getitem__(self, draw: int) -> Item:
        if not 0 <= draw < self._num_draws:
            raise IndexError(f"there are {self._num_draws} draws; got number {draw}")
        epoch, place = divmod(draw, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, _permutation(len(self.rows), self._seed, epoch)
        return self.row(int(self._order[place])) | {"draw": draw}

    def row(self, number: int) -> Item:
        """A row by its number, as an item but for `draw`."""
        tokens, is_trained, lengths = flat(self._documents[self.rows[number]])
        return _item(tokens, is_trained, lengths, self._max_length) | {"pack": number}

    @property
    def in_words(self) -> str:
        """One line."""
        fill = self.num_tokens / (len(self.rows) * self._max_length)
        return f"{len(self.rows)} rows of {self._max_length} tokens, {fill:.1%} full"


class StreamedPacks(IterableDataset[Item]):
    """The items of a stream: portions of it are packed and shuffled, and it is read again until all draws are made.

    What comes depends on the stream and the seed alone. `pack` numbers the rows of a pass over the stream; passes are
    equal. Of several loader processes each packs the whole stream and yields its share.
    """

    def __init__(self, stream: Iterable[Document], *, max_length: int, seed: int, num_draws: int | None = None) -> None:
        """`num_draws` items; None: one pass over the stream."""
        self._stream, self._max_length, self._seed, self._num_draws = stream, max_length, seed, num_draws

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        num_workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        draw = 0
        while True:
            first_draw = draw
            for number, documents in enumerate(self._rows()):
                if draw == self._num_draws:
                    return
                if draw % num_workers == own:
                    yield self._item_of(documents) | {"pack": number, "draw": draw}
                draw += 1
            if self._num_draws is None:
                return
            if draw == first_draw:
                raise DataError("the stream has no document to train on")

    def _item_of(self, documents: list[Document]) -> Item:
        tokens = np.concatenate([document.tokens for document in documents])
        is_trained = np.concatenate([document.is_trained for document in documents])
        lengths = np.array([len(document.tokens) for document in documents])
        return _item(tokens, is_trained, lengths, self._max_length)

    def _rows(self) -> Iterator[list[Document]]:
        waiting: list[Document] = []
        num_waiting = number = 0
        for document in self._stream:
            waiting.append(document)
            num_waiting += len(document.tokens)
            if num_waiting >= ROWS_AT_ONCE * self._max_length:
                rows = self._pack(waiting)
                num_full = len(rows) - ROWS_AT_ONCE // 4
                waiting = [document for row in rows[num_full:] for document in row]
                rows = rows[:num_full]
                num_waiting = sum(len(document.tokens) for document in waiting)
                yield from (rows[i] for i in _permutation(len(rows), self._seed, number))
                number += 1
        yield from self._pack(waiting)

    def _pack(self, documents: list[Document]) -> list[list[Document]]:
        """Rows of documents, the emptiest last."""
        lengths = [len(document.tokens) for document in documents]
        rows = sorted(pack(lengths, self._max_length), key=lambda row: -sum(lengths[i] for i in row))
        return [[documents[i] for i in row] for row in rows]


def _permutation(size: int, *seeds: int) -> Any:
    """int64 [size]"""
    return np.random.default_rng(seeds).permutation(size)


def _item(tokens: Any, is_trained: Any, lengths: Any, max_length: int) -> Item:
    item = {
        "tokens": torch.zeros(max_length, dtype=torch.int64),  # [L]
        "documents": torch.full((max_length,), -1, dtype=torch.int64),  # [L]
        "is_trained": torch.zeros(max_length, dtype=torch.bool),  # [L]
    }
    values = {"tokens": tokens, "documents": np.repeat(np.arange(len(lengths)), lengths), "is_trained": is_trained}
    for name, value in values.items():
        item[name][: len(tokens)] = torch.from_numpy(value.copy())
    return item
