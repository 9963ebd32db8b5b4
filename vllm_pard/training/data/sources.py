"""Records from files and from the hub, each with the place where it stands."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from vllm_pard.checkpoint import is_local
from vllm_pard.errors import first_sentence
from vllm_pard.training.data.config import DataError, SourceConfig

__all__ = ["Row", "Source", "open_source"]

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
INSTALL = "pip install 'datasets>=4.5'"


class Row(NamedTuple):
    """A record as it was read."""

    place: str  # for messages
    content: Any  # its fields, or bytes: a line of JSON that is not parsed yet

    def fields(self) -> dict[str, Any]:
        """The columns that hold something.

        Raises:
            DataError: the line is no JSON object in UTF-8.
        """
        content = self.content
        if isinstance(content, bytes):
            try:
                content = json.loads(content.decode())
            except UnicodeDecodeError as error:
                raise DataError(f"{self.place} must be UTF-8 text; byte {error.start} of it is not") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{self.place} is not valid JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(content, dict):
            raise DataError(f"{self.place} must be a JSON object; it is a {type(content).__name__}")
        return {key: value for key, value in content.items() if value is not None}


class Source(NamedTuple):
    """An entry of the data that was found."""

    name: str
    state: str  # another one where its content may be another
    read: Callable[[], Iterator[Row]]  # anew with each call


def open_source(config: SourceConfig, *, streaming: bool) -> Source:
    """Find the files or the hub dataset; nothing is read yet, but a hub dataset is downloaded unless `streaming`.

    Raises:
        DataError: there is no such file, folder, split or hub dataset.
    """
    path = os.path.expanduser(config.path)
    if not os.path.exists(path) and not glob.has_magic(path) and not _is_file_name(path):
        return _open_hub(config, streaming)
    files = _find_files(path, config)
    for file in files:
        if Path(file).suffix not in FILE_SUFFIXES:
            raise DataError(f"a data file must be one of {', '.join(FILE_SUFFIXES)}; got {file!r}")
    stats = [(file, os.stat(file)) for file in files]
    state = repr([(os.path.abspath(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats])
    return Source(config.path, state, lambda: chain.from_iterable(map(_read_file, files)))


def _is_file_name(path: str) -> bool:
    return is_local(path) or Path(path).suffix in FILE_SUFFIXES


def _find_files(path: str, config: SourceConfig) -> list[str]:
    if os.path.isdir(path):
        return _folder_files(path, config.split)
    files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not files:
        raise DataError(f"there is no data file {config.path!r}; check the path")
    return files


def _folder_files(path: str, split: str) -> list[str]:
    """The files of a split by the hub's rules for names; all of a folder that names none are its train split."""
    with _reading(path):
        splits = _datasets().load_dataset_builder(path).config.data_files
    if split not in splits:
        known = ", ".join(map(str, splits))
        raise DataError(f"the data folder {path!r} has no split {split!r}; it has {known}")
    return list(splits[split])


def _open_hub(config: SourceConfig, streaming: bool) -> Source:
    with _reading(config.path, "; check the name, or give a local file"):
        loaded = _datasets().load_dataset(config.path, config.name, split=config.split, streaming=streaming)
    # The cache keeps each revision in files of its own. Nothing that is streamed is kept.
    state = "" if streaming else repr([file["filename"] for file in loaded.cache_files])

    def read() -> Iterator[Row]:
        with _reading(config.path):
            for number, fields in enumerate(loaded, start=1):
                yield Row(f"row {number} of {config.path!r}", fields)

    return Source(config.path, f"{config} {state}", read)


def _read_file(file: str) -> Iterator[Row]:
    with _reading(file):
        if file.endswith(".jsonl"):
            yield from _read_lines(file)
        elif file.endswith(".parquet"):
            # Streamed in any case: only a hub dataset gains from a copy in the cache.
            options = {"data_files": [file], "split": "train", "streaming": True}
            for number, fields in enumerate(_datasets().load_dataset("parquet", **options), start=1):
                yield Row(f"row {number} of {file!r}", fields)
        else:
            yield from _read_list(file)


def _read_lines(file: str) -> Iterator[Row]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if content := line.strip():
                yield Row(f"line {number} of {file!r}", content)


def _read_list(file: str) -> Iterator[Row]:
    try:
        records = json.loads(Path(file).read_bytes())
    except json.JSONDecodeError:
        yield from _read_lines(file)  # objects a line are called .json too
        return
    for number, fields in enumerate(records if isinstance(records, list) else [records], start=1):
        yield Row(f"record {number} of {file!r}", fields)


@contextmanager
def _reading(name: str, advice: str = "") -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of the HTTP library, the hub's, Arrow's, the file system's: they share no base
        raise DataError(f"can't read the data {name!r}: {first_sentence(error)}{advice}") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"training data is read with the library `datasets`: {INSTALL}") from error
    return datasets
