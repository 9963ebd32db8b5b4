"""All documents of a training config: in Arrow files that are mapped into memory, or as a stream."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from vllm_pard.errors import first_sentence
from vllm_pard.silence import without_dataset_bars
from vllm_pard.training.data.config import DataConfig, DataError, Document
from vllm_pard.training.data.reading import LEFT_OUT, Reader, Reading
from vllm_pard.training.data.sources import Row, Source, open_source

__all__ = ["DocumentStream", "columns", "read_documents"]

BATCH_SIZE = 1000  # records that are tokenized in one call
REPORT_EVERY = 20_000  # records
# Part of the cache's key: another number where the same records give other documents.
FORMAT = 1

Report = Callable[[str], None]


class Counts:
    """What has been read, in numbers."""

    def __init__(self) -> None:
        self.num_records = self.num_documents = self.num_tokens = self.num_trained = 0
        self._notes: Counter[str] = Counter()
        self._first_detail = ""

    def add_notes(self, notes: Sequence[str], detail: str) -> None:
        """Count a record."""
        self.num_records += 1
        self._notes.update(notes)
        self._first_detail = self._first_detail or detail

    def add_tokens(self, is_trained: Any, lengths: Any) -> None:
        """Count documents by their marks bool [N] and lengths int [D]; empty ones don't count."""
        self.num_documents += int(np.count_nonzero(lengths))
        self.num_tokens += int(np.sum(lengths))
        self.num_trained += int(np.count_nonzero(is_trained))

    def check(self) -> None:
        """Raise DataError if there is nothing to learn from."""
        if not self.num_trained:
            raise DataError(
                f"the data has no token to train on: {self.num_records} records were read, {self._left_out}; give "
                'records with answers, and a "max_length" that has room for prompt and answer'
            )

    @property
    def in_words(self) -> str:
        """One line."""
        parts = [f"documents: {self.num_documents}, tokens: {self.num_tokens}, trained tokens: {self.num_trained}"]
        parts += [f"{note}: {count}" for note, count in self._notes.items() if note not in LEFT_OUT]
        return "; ".join([*parts, self._left_out])

    @property
    def _left_out(self) -> str:
        counts = [f"{self._notes[note]} {note}" for note in LEFT_OUT if self._notes[note]]
        first = f" (the first: {self._first_detail})" if self._first_detail else ""
        return f"left out: {', '.join(counts) or 'none'}{first}"


class DocumentStream:
    """Documents one after another; each pass reads the records anew and gives the same."""

    def __init__(self, config: DataConfig, sources: Sequence[Source], tokenizer: Any, report: Report) -> None:
        self._config, self._sources, self._tokenizer, self._report = config, sources, tokenizer, report

    def __iter__(self) -> Iterator[Document]:
        counts = Counts()
        for reading in _readings(self._config, self._sources, self._tokenizer):
            counts.add_notes(reading.notes, reading.detail)
            counts.add_tokens(reading.document.is_trained, [len(reading.document.tokens)])
            if reading.document.tokens:
                yield reading.document
        counts.check()
        self._report(counts.in_words)
        self._report = lambda line: None  # later passes say nothing new


def read_documents(config: DataConfig, tokenizer: Any, report: Report) -> Any:
    """All documents, and a line on them.

    Returns a `datasets.Dataset` with the columns tokens (int32), is_trained (bool) and prompt (int64), kept in the
    cache of `datasets` for the next run and for other processes; with `config.streaming` a DocumentStream.

    Raises:
        DataError: a file or dataset can't be read, has nothing in it or no token to train on, a record is malformed.
    """
    sources = [open_source(source, streaming=config.streaming) for source in config.sources]
    if config.streaming:
        return DocumentStream(config, sources, tokenizer, report)
    dataset = _cached(config, sources, tokenizer, report)
    counts, lengths = Counts(), []
    for _, is_trained, batch in columns(dataset):
        counts.add_tokens(is_trained, batch)
        lengths.append(batch)
    for batch in dataset.select_columns(["notes", "detail"]).iter(BATCH_SIZE):
        for notes, detail in zip(batch["notes"], batch["detail"], strict=True):
            counts.add_notes(notes, detail)
    counts.check()
    report(counts.in_words)
    if counts.num_documents < len(dataset):
        dataset = dataset.select(np.flatnonzero(np.concatenate(lengths)))
    return dataset.select_columns(["tokens", "is_trained", "prompt"])


def columns(documents: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Many documents' tokens int [N], is_trained bool [N] and lengths int [D], of a Dataset or of any Documents.

    D documents · N tokens of them all
    """
    if hasattr(documents, "with_format"):
        for batch in documents.select_columns(["tokens", "is_trained"]).with_format("arrow").iter(BATCH_SIZE):
            yield flat(batch)
        return
    for document in documents:
        yield np.array(document.tokens), np.array(document.is_trained), np.array([len(document.tokens)])


def flat(table: Any) -> tuple[Any, Any, Any]:
    """The same of an Arrow table."""
    tokens, is_trained = (table[name].combine_chunks() for name in ("tokens", "is_trained"))
    lengths = np.diff(tokens.offsets.to_numpy())
    return tokens.flatten().to_numpy(), is_trained.flatten().to_numpy(zero_copy_only=False), lengths


def _cached(config: DataConfig, sources: Sequence[Source], tokenizer: Any, report: Report) -> Any:
    """Every record's reading, also of those that are left out, so that a later run can say the same of them."""
    import datasets

    def generate() -> Iterator[dict[str, Any]]:
        for number, reading in enumerate(_readings(config, sources, tokenizer), start=1):
            if number % REPORT_EVERY == 0:
                report(f"{number} records are tokenized")
            yield {**reading.document._asdict(), "notes": reading.notes, "detail": reading.detail}

    tokens, is_trained, notes = (datasets.Sequence(datasets.Value(kind)) for kind in ("int32", "bool", "string"))
    features = {"tokens": tokens, "is_trained": is_trained, "prompt": datasets.Value("int64")}
    features |= {"notes": notes, "detail": datasets.Value("string")}
    key = _fingerprint(config, sources, tokenizer)
    try:
        with without_dataset_bars():
            return datasets.Dataset.from_generator(generate, features=datasets.Features(features), fingerprint=key)
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, DataError):
            raise cause from None
        raise DataError(
            f"can't keep tokenized data in {datasets.config.HF_DATASETS_CACHE}: {first_sentence(cause)}; make room "
            "there, or set HF_DATASETS_CACHE to another folder"
        ) from error


def _fingerprint(config: DataConfig, sources: Sequence[Source], tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [FORMAT, config, [source.state for source in sources], tokenizer.special_tokens_map]
    parts += [tokenizer.chat_template, backend.to_str() if backend else sorted(tokenizer.get_vocab().items())]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _readings(config: DataConfig, sources: Sequence[Source], tokenizer: Any) -> Iterator[Reading]:
    reader = Reader(config, tokenizer)
    limits = [source.max_samples for source in config.sources]
    rows = _in_turn([_rows(source, limit) for source, limit in zip(sources, limits, strict=True)])
    while batch := list(islice(rows, BATCH_SIZE)):
        yield from reader.read(batch)


def _rows(source: Source, max_samples: int | None) -> Iterator[Row]:
    rows = islice(source.read(), max_samples)
    first = next(rows, None)
    if first is None:
        raise DataError(f"the data {source.name!r} is empty: give it records to train on, or leave it out")
    yield first
    yield from rows


def _in_turn(iterators: list[Iterator[Row]]) -> Iterator[Row]:
    """One of each, again and again, until all are at their end: a stream of several sources mixes them."""
    while iterators:
        rows = [next(iterator, None) for iterator in iterators]
        iterators = [iterator for iterator, row in zip(iterators, rows, strict=True) if row is not None]
        yield from filter(None, rows)
