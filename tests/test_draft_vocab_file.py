import json
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.draft_vocab_file import DraftVocabError, coverage, most_frequent, read_draft_vocab

TEXTS = [[5, 5, 5, 2], [7, 2, 9, 1]]  # 5 three times, 2 twice, 1, 7 and 9 once


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text("[9, 2, 0]")
    assert read_draft_vocab(str(path)) == [0, 2, 9]
    assert read_draft_vocab(str(path), 10) == [0, 2, 9]
    with pytest.raises(DraftVocabError, match="has the token 9, but draft and target share 9 tokens only"):
        read_draft_vocab(str(path), 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is an empty list$"),
        ({"ids": [1]}, "holds dict$"),
        ([1, -2], "has -2 in it$"),
        ([1, True], "has True in it$"),
        ([1, "2"], "has '2' in it$"),
        ([3, 1, 3], "has 3 more than once$"),
    ],
)
def test_wrong_ids(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DraftVocabError, match=message):
        read_draft_vocab(str(path))


def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    with pytest.raises(DraftVocabError, match=r"can't read the draft vocabulary '.*ids.json': No such file"):
        read_draft_vocab(str(path))
    path.write_bytes(b"[1\xff]")
    with pytest.raises(DraftVocabError, match=r"it is not UTF-8 text$"):
        read_draft_vocab(str(path))
    path.write_text("[1,")
    with pytest.raises(DraftVocabError, match="is not valid JSON: "):
        read_draft_vocab(str(path))


@pytest.mark.parametrize(
    ("size", "always", "token_ids"),
    [
        (1, [], [5]),
        (3, [], [1, 2, 5]),
        (2, [30], [5, 30]),
        (1, [30, 40], [30, 40]),
        (3, [5], [1, 2, 5]),
        (99, [], [1, 2, 5, 7, 9]),
    ],
)
def test_most_frequent(size: int, always: list[int], token_ids: list[int]) -> None:
    assert most_frequent(TEXTS, size, always=always) == token_ids


def test_coverage() -> None:
    assert coverage(TEXTS, [5, 2, 30]) == 5 / 8
    assert coverage([], [5]) == 0
