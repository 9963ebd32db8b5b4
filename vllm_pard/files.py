"""Files that survive Ctrl-C and crashes."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from vllm_pard.errors import PardError

Writer = TypeVar("Writer", bound="RecordWriter")
RECORD_START = b'{"id": '


class OutputError(PardError):
    """An output file can't be written."""


def check_writable(path: Path) -> None:
    """Find out before the work, not after it."""
    if path.is_dir():
        raise OutputError(f"can't write {str(path)!r}: it is a folder; name a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"can't write {str(path)!r}: it needs a folder that exists and may be written to")


def check_folder(path: Path) -> None:
    """Find out before the work whether files can be written into a folder, which need not exist yet."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise OutputError(f"can't write into {str(path)!r}: {str(existing)!r} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise OutputError(
            f"can't write into {str(path)!r}: {str(existing)!r} may not be written to; name another folder"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file entirely or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"can't write {str(path)!r}: {error.strerror}") from error


def read_text(path: Path, kind: str, error: type[PardError]) -> str:
    """The text of a UTF-8 file; `error` says what is wrong with "the `kind` file"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"the {kind} file {str(path)!r} must be UTF-8 text; byte {wrong.start} is not") from wrong
    except OSError as wrong:
        raise error(f"can't read the {kind} file {str(path)!r}: {wrong.strerror}") from wrong


class RecordWriter:
    """Appends one JSON object a line, each on disk before the next is begun; a file without any is removed.

    With `resume`, goes on with an earlier file: its finished records stay and `finished_ids` names them. A last line
    that a crash has cut short is dropped, when the first new record comes: until then nothing is changed.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        is_old = path.exists()
        if path.is_dir() or not is_old:
            check_writable(path)
        self._path, self._is_old = path, is_old
        self.finished_ids: set[str] = set()
        self._cut_at: int | None = None  # bytes of an earlier file that stay; None: all of them
        try:
            if resume and is_old:
                self._read_finished(path)
            self._file = open(path, "a" if resume else "x", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        except FileExistsError as error:
            raise OutputError(
                f"the output file {str(path)!r} exists; give --resume to go on with it, or another name"
            ) from error
        except OSError as error:
            raise OutputError(f"can't write the output file {str(path)!r}: {error.strerror}") from error

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, which has an "id"."""
        if self._cut_at is not None:
            self._file.truncate(self._cut_at)
            self._cut_at = None
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self.finished_ids.add(record["id"])

    def check(self, record: dict[str, Any]) -> None:
        """Raise OutputError where a record of an earlier file may not stay; a subclass knows."""

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._is_old and self._path.stat().st_size == 0:
            self._path.unlink()

    def _read_finished(self, path: Path) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                self.finished_ids.add(record["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise self._no_record(number) from error
            self.check(record)
        if rest:
            if not rest.startswith(RECORD_START[: len(rest)]):
                raise self._no_record(len(lines) + 1)
            self._cut_at = sum(len(line) + 1 for line in lines)

    def _no_record(self, number: int) -> OutputError:
        return OutputError(
            f"can't go on with {str(self._path)!r}: line {number} is not a record of vllm-pard generate; "
            "give another --output"
        )
