"""Files, folders, globs and the hub."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from vllm_pard.training.data.config import DataError, SourceConfig
from vllm_pard.training.data.sources import Row, open_source

RECORDS = [{"text": "a", "more": {"x": None}}, {"text": "b\u2028c", "other": [1]}]


def rows(path: object, *, streaming: bool = False, **options: str) -> list[Row]:
    return list(open_source(SourceConfig(path=str(path), **options), streaming=streaming).read())


def texts(path: object, **options: str) -> list[str]:
    return [row.fields()["text"] for row in rows(path, **options)]


def test_json_lines(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    path.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\r\n\n{lines[1]}".encode())
    found = rows(path)
    assert [row.fields() for row in found] == RECORDS
    assert [row.place for row in found] == [f"line 1 of '{path}'", f"line 3 of '{path}'"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "line 2 of '.*a.jsonl' is not valid JSON: .* at column 9"),
        (b'{"text": "\xff"}', "line 2 of '.*a.jsonl' must be UTF-8 text; byte 10 of it is not"),
        (b"3", "line 2 of '.*a.jsonl' must be a JSON object; it is a int"),
    ],
)
def test_malformed_lines(line: bytes, message: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line)
    first, second = rows(path)
    assert first.fields() == {"text": "a"}
    with pytest.raises(DataError, match=message):
        second.fields()


def test_json_lists_and_lines(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS, indent=1))
    assert texts(path) == ["a", "b\u2028c"]
    assert rows(path)[1].place == f"record 2 of '{path}'"
    path.write_text("\n".join(json.dumps(record) for record in RECORDS))
    assert texts(path) == ["a", "b\u2028c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet(streaming: bool, tmp_path: Path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"text": "a", "n": 1}, {"text": "b", "n": None}]).to_parquet(path)
    found = rows(path, streaming=streaming)
    assert [row.fields() for row in found] == [{"text": "a", "n": 1}, {"text": "b"}]
    assert found[1].place == f"row 2 of '{path}'"
    assert list((tmp_path / "cache").rglob("*.arrow")) == [], "no copy is made"


def test_broken_parquet(tmp_path: Path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"can't read the data '.*a.parquet': "):
        rows(path)


def test_folders_and_their_splits(tmp_path: Path):
    for split, text in (("train", "a"), ("test", "b")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert texts(tmp_path) == ["a"]
    assert texts(tmp_path, split="test") == ["b"]
    with pytest.raises(DataError, match=r"has no split 'validation'; it has train, test"):
        rows(tmp_path, split="validation")


def test_globs_are_sorted(tmp_path: Path):
    for name in "bca":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    assert texts(tmp_path / "[ab].jsonl") == ["a", "b"]


def test_no_such_thing(tmp_path: Path):
    for path in ("none.jsonl", str(tmp_path / "none"), "none/*.jsonl", "~/none.parquet"):
        with pytest.raises(DataError, match=f"there is no data file '{path}'; check the path".replace("*", r"\*")):
            rows(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"can't read the data '.*empty': .*doesn't contain any data files"):
        rows(tmp_path / "empty")
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"must be one of .jsonl, .json, .parquet; got '.*a.csv'"):
        rows(tmp_path / "a.csv")


def test_a_hub_dataset_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"can't read the data 'nobody/nothing': .*; check the name, or"):
            rows("nobody/nothing", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset(streaming: bool, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        dataset = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = rows("org/name", streaming=streaming, split="train[:2]", name="small")
    assert [row.fields()["text"] for row in found] == ["a", "b"]
    assert found[1].place == "row 2 of 'org/name'"
    assert asked == [(("org/name", "small"), {"split": "train[:2]", "streaming": streaming})]


def test_an_empty_file_is_refused(tmp_path: Path, read):
    with pytest.raises(DataError, match=r"the data '.*a.jsonl' is empty: give it records to train on, or leave it out"):
        read(name="a.jsonl")


def test_state_changes_with_the_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    source = SourceConfig(path=str(path))
    before = open_source(source, streaming=False).state
    assert open_source(source, streaming=False).state == before
    path.write_text("{ }")
    assert open_source(source, streaming=False).state != before
