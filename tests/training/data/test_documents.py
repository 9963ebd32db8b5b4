"""Length limits, reports, the cache and streams."""

from __future__ import annotations

import pytest

from vllm_pard.training.data import documents
from vllm_pard.training.data.config import DataConfig, DataError, SourceConfig
from vllm_pard.training.data.documents import read_documents


def text(size: int) -> dict[str, str]:
    """Of so many tokens, with EOS."""
    return {"text": "x" * (size - 1)}


def test_long_documents_are_truncated(read):
    long_prompt = {"prompt": "p" * 20, "text": "a", "finish_reason": "stop"}
    cut_answer = {"prompt": "p" * 5, "text": "a" * 10, "finish_reason": "stop"}
    result = read(text(10), text(11), text(12), long_prompt, cut_answer, max_length=10)
    assert result.texts == ["x" * 9 + "<eos>", "x" * 10, "x" * 10, "p" * 5 + "a" * 5]
    assert result.trained[-1] == "a" * 5
    assert result.lines == [
        "documents: 4, tokens: 40, trained tokens: 32; cut to the length of a row: 3; "
        "left out: 1 with a prompt longer than a row"
    ]


def test_long_documents_are_dropped_by_option(read):
    result = read(
        text(10), text(11), {"prompt": "p" * 20, "text": "a", "finish_reason": "stop"}, max_length=10, too_long="drop"
    )
    assert result.texts == ["x" * 9 + "<eos>"]
    assert result.lines == ["documents: 1, tokens: 10, trained tokens: 9; left out: 2 longer than a row"]


def test_nothing_to_train_on(read):
    with pytest.raises(
        DataError, match='read, left out: 1 longer than a row; give records with answers, and a "max_le'
    ):
        read(text(11), max_length=10, too_long="drop")
    with pytest.raises(DataError, match=r"left out: 1 malformed \(the first: line 1 of '.*' fits no format"):
        read({"x": 1}, malformed="skip")


def test_columns_and_their_types(read):
    dataset = read(text(10)).dataset
    assert {name: str(feature) for name, feature in dataset.features.items()} == {
        "tokens": "List(Value('int32'))",
        "is_trained": "List(Value('bool'))",
        "prompt": "Value('int64')",
    }


def test_equal_prompts_have_equal_digests(read):
    chats = [{"question": question, "answer": answer} for question, answer in ("ab", "ac", "bb")]
    first, second, third = read(*chats).dataset["prompt"]
    assert first == second != third
    assert first == read(chats[0], train_on="all").dataset["prompt"][0]
    one, other, same = read({"text": "one"}, {"text": "other"}, {"text": "one"}).dataset["prompt"]
    assert one == same != other


def test_a_second_reading_comes_from_the_cache(read, bytes_tokenizer, monkeypatch):
    first = read(text(10), {"x": 1}, {"text": " "}, malformed="skip")
    monkeypatch.setattr(documents.Reader, "read", None)
    path = first.lines[0].partition("line 2 of '")[2].partition("'")[0]
    config = DataConfig(sources=(SourceConfig(path=path),), max_length=200, malformed="skip")
    lines = []
    again = read_documents(config, bytes_tokenizer, lines.append)
    assert lines == first.lines
    assert again[:] == first.dataset[:]


@pytest.mark.parametrize("change", ["file", "options", "template", "tokenizer"])
def test_the_cache_knows_what_documents_depend_on(change, bytes_tokenizer, data_file, make_config):
    path = data_file({"question": "Why?", "answer": "So."})
    first = read_documents(make_config(path), bytes_tokenizer, print)
    config = make_config(path, train_on="all" if change == "options" else "answers")
    if change == "file":
        data_file({"question": "Why?", "answer": "No."})
    elif change == "template":
        bytes_tokenizer.chat_template = bytes_tokenizer.chat_template.replace("assistant", "helper")
    elif change == "tokenizer":
        bytes_tokenizer.add_tokens(["Why"])
    second = read_documents(config, bytes_tokenizer, print)
    assert first[:] != second[:]


def test_a_failed_reading_leaves_nothing_in_the_cache(read, tmp_path):
    with pytest.raises(DataError, match=r"^line 2 of"):
        read(text(10), {"x": 1})
    assert list((tmp_path / "cache").rglob("*.arrow")) == []


def test_a_full_disk(read, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write", no_space)
    with pytest.raises(DataError, match=r"can't keep tokenized data in .*cache: .*No space left on device; make room"):
        read(text(10))


def test_streams_give_the_same_documents_again_and_again(read, bytes_tokenizer, data_file, make_config):
    records = [{"text": f"number {number}"} for number in range(2500)]
    whole = read(*records)
    lines = []
    stream = read_documents(make_config(data_file(*records), streaming=True), bytes_tokenizer, lines.append)
    for _ in range(2):
        rows = [document._asdict() for document in stream]
        assert rows == whole.dataset.to_list()
    assert lines == whole.lines, "said once"


def test_a_stream_without_a_trained_token(bytes_tokenizer, data_file, make_config):
    stream = read_documents(make_config(data_file({"text": " "}), streaming=True), bytes_tokenizer, print)
    with pytest.raises(DataError, match="no token to train on: 1 records were read, left out: 1 without an answer"):
        list(stream)


def test_sources_take_turns_and_may_be_limited(bytes_tokenizer, data_file):
    many = data_file(*({"text": f"a{number}"} for number in range(5)), name="a.jsonl")
    few = data_file({"text": "b0"}, {"text": "b1"}, name="b.jsonl")
    sources = (SourceConfig(path=many, max_samples=4), SourceConfig(path=few))
    rows = read_documents(DataConfig(sources=sources, max_length=9), bytes_tokenizer, print)
    assert [bytes_tokenizer.decode(row["tokens"][:2]) for row in rows] == ["a0", "b0", "a1", "b1", "a2", "a3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, '"max_length" of the data must be a whole number of at least 2; got 1'),
        ({"too_long": "cut"}, "\"too_long\" of the data must be truncate or drop; got 'cut'"),
        ({"train_on": "answer"}, "must be answers or all"),
        ({"malformed": True}, "must be refuse or skip"),
        ({"sources": ()}, "at least one file"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(DataError, match=message):
        DataConfig(**{"sources": (SourceConfig(path="x"),), "max_length": 8} | options)


def test_wrong_sources():
    with pytest.raises(DataError, match=r'"max_samples" of the data must be .* of at least 1; got 0'):
        SourceConfig(path="x", max_samples=0)
    with pytest.raises(DataError, match="it is empty"):
        SourceConfig(path="")
