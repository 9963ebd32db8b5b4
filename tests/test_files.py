import json
from pathlib import Path

import pytest

from vllm_pard.files import OutputError, RecordWriter, check_folder, check_writable, write_whole


def records(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with RecordWriter(path, resume=False) as writer:
        writer.write({"id": "a", "text": "ä\u2028\n"})
        assert json.loads(path.read_text()) == {"id": "a", "text": "ä\u2028\n"}


def test_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists; give --resume"):
        RecordWriter(path, resume=False)
    assert path.read_text() == "precious"


def test_resume_keeps_what_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a", "text": "x\u2028y"}\n{"id": "b"}\n{"id": "c", "te')
    with RecordWriter(path, resume=True) as writer:
        assert writer.finished_ids == {"a", "b"}
        writer.write({"id": "c"})
        assert writer.finished_ids == {"a", "b", "c"}
    assert [json.loads(line)["id"] for line in path.read_text().split("\n")[:-1]] == ["a", "b", "c"]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "new.jsonl", resume=True) as writer:
        assert writer.finished_ids == set()
        writer.write({"id": "a"})
    assert records(tmp_path / "new.jsonl") == ["a"]


def test_no_empty_file_is_left_to_block_the_next_try(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "out.jsonl", resume=False):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["not json\n", '{"no": "id"}\n', "[1]\n", '{"id": [1]}\n', "a line without an end", '{"ids": "x"']
)
def test_resume_refuses_other_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(OutputError, match="line 1 is not a record"):
        RecordWriter(path, resume=True)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", '{"id": "a"}\n', '{"id": "a"}\n{"id": "b", "te', '{"id": "a"}\n{"i'])
def test_resume_changes_nothing_before_a_new_record(text: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with RecordWriter(path, resume=True):
        pass
    assert path.read_text() == text
    with RecordWriter(path, resume=True) as writer:
        writer.write({"id": "c"})
        writer.write({"id": "d"})
    assert records(path) == [*(["a"] if text else []), "c", "d"]


def test_a_subclass_judges_earlier_records(tmp_path: Path) -> None:
    class Picky(RecordWriter):
        def check(self, record: dict[str, object]) -> None:
            if record["id"] == "b":
                raise OutputError("no b")

    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "c')
    with pytest.raises(OutputError, match="no b"):
        Picky(path, resume=True)
    assert path.read_text().endswith('{"id": "c')


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="needs a folder that exists"):
        RecordWriter(tmp_path / "missing" / "out.jsonl", resume=False)
    with pytest.raises(OutputError, match="No such file or directory"):
        write_whole(tmp_path / "missing" / "out.json", "{}")
    with pytest.raises(OutputError, match="needs a folder that exists"):
        check_writable(tmp_path / "missing" / "out.json")
    check_writable(tmp_path / "out.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; name a file"):
        check_writable(tmp_path)
    for resume in (False, True):
        with pytest.raises(OutputError, match="it is a folder; name a file"):
            RecordWriter(tmp_path, resume=resume)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="/file' is a file; name a folder"):
            check_folder(path)
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_whole_leaves_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "out.json", "{}")
    write_whole(tmp_path / "out.json", "[]")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "[]"
