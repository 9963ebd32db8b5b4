"""Which columns make which document, and what of it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_pard.demo import demo_path
from vllm_pard.prompts import prompt_token_ids
from vllm_pard.training.data.config import DataError
from vllm_pard.training.data.documents import read_documents

QUESTION, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
CHAT = "<s>user\nWhy?</s>\n<s>assistant\nSo.</s>\n"


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [QUESTION, ANSWER]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"conversation": [{"human": "Why?", "assistant": "So."}]},
        {"conversations": [QUESTION, ANSWER], "text": None},
        {"prompt": "Why?", "text": "So."},
        {"question": "Why?", "answer": "So.", "id": 3},
        {"instruction": "Why?", "input": "", "output": "So."},
        {"prompt": "Why?", "response": "So."},
        {"prompt": "Why?", "completion": "So."},
    ],
    ids=lambda record: "-".join(record),
)
def test_chats_and_pairs(record, read):
    result = read(record)
    assert result.texts == [CHAT]
    assert result.trained == ["So.</s>"]


def test_an_input_belongs_to_its_instruction(read):
    assert "user\nAdd.\n\n1 and 2</s>" in read({"instruction": "Add.", "input": "1 and 2", "output": "3"}).texts[0]


def test_every_turn_of_a_chat_is_trained_and_what_follows_the_last_is_not_kept(read):
    turns = [QUESTION, ANSWER, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Yes."}, QUESTION]
    result = read({"messages": turns})
    assert result.texts == [f"{CHAT}<s>user\nAnd?</s>\n<s>assistant\nYes.</s>\n"]
    assert result.trained == ["So.</s>Yes.</s>"]


def test_a_chat_that_the_assistant_opens(read):
    result = read({"messages": [ANSWER, QUESTION, ANSWER]})
    assert result.texts == [f"<s>assistant\nSo.</s>\n{CHAT}"]
    assert result.trained == ["So.</s>"]


def test_empty_turns_are_context(read):
    empty = {"role": "assistant", "content": " "}
    assert read({"messages": [QUESTION, empty, QUESTION, ANSWER]}).trained == ["So.</s>"]


def test_text_is_trained_but_for_its_first_token(read):
    result = read({"text": "Once."})
    assert result.texts == ["Once.<eos>"]
    assert result.trained == ["nce.<eos>"]


def test_pairs_without_a_template_are_text_and_answer(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = None
    result = read({"prompt": "Why?", "answer": " So."})
    assert result.texts == ["Why? So.<eos>"]
    assert result.trained == [" So.<eos>"]


def test_all_tokens_are_trained_by_option(read):
    assert read({"messages": [QUESTION, ANSWER]}, train_on="all").trained == [CHAT.removeprefix("<s>")]


@pytest.mark.parametrize(("reason", "end"), [("stop", "</s>"), ("length", "")])
def test_generated_answers_to_chats(reason, end, read):
    result = read({"id": "1", "messages": [QUESTION], "text": "So.", "num_tokens": 3, "finish_reason": reason})
    assert result.texts == [f"<s>user\nWhy?</s>\n<s>assistant\nSo.{end}"]
    assert result.trained == [f"So.{end}"]


@pytest.mark.parametrize(("reason", "end"), [("stop", ["<|end|>"]), ("length", [])])
@pytest.mark.parametrize("chat", [False, True])
def test_generated_answers_have_the_tokens_of_the_engine(chat, reason, end, tmp_path, make_config):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_path("target"))
    prompt = {"messages": [{"role": "user", "content": "2 + 2?"}]} if chat else {"prompt": "Question: 2 + 2?\nAnswer:"}
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": "1", **prompt, "text": " It is 4.", "finish_reason": reason}))
    (document,) = read_documents(make_config(str(path)), tokenizer, print)
    prompt_ids = prompt_token_ids(tokenizer, prompt.get("prompt"), prompt.get("messages"))
    answer_ids = tokenizer(" It is 4.", add_special_tokens=False).input_ids + tokenizer.convert_tokens_to_ids(end)
    assert document["tokens"] == prompt_ids + answer_ids
    assert document["is_trained"] == [False] * len(prompt_ids) + [True] * len(answer_ids)


def test_several_answers_to_a_prompt_are_several_records(read):
    records = [{"id": f"p-{n}", "messages": [QUESTION], "text": f"So {n}.", "finish_reason": "stop"} for n in range(3)]
    result = read(*records)
    assert result.trained == ["So 0.</s>", "So 1.</s>", "So 2.</s>"]
    assert len(set(result.dataset["prompt"])) == 1


def test_an_end_that_a_text_brings_is_not_doubled(read):
    assert read({"text": "Once.<eos>"}).texts == ["Once.<eos>"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "So.", "score": 1}, 'fits no format: its columns are "answer", "score"; accepted are "messages", '),
        ({"prompt": "Why?"}, 'fits no format: its columns are "prompt"; accepted'),
        ({}, "its columns are none"),
        ([1], "must be a JSON object; it is a list"),
        ({"text": 3}, 'needs a text as its "text"; got 3'),
        ({"messages": []}, 'needs a list of messages as its "messages"; got \\[\\]'),
        ({"messages": ["Why?"]}, 'needs messages of {"role", "content"}.*; got \'Why\\?\''),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "needs a text in each message; got \\[{"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "\ud83d"}]}, r"not Unicode text: take '\\ud83d' out"),
        ({"prompt": "\ud83d", "text": "x", "finish_reason": "stop"}, "not Unicode text"),
    ],
)
def test_wrong_records(record, message, read):
    with pytest.raises(DataError, match=message) as error:
        read({"text": "Once."}, record)
    assert "line 2 of '" in str(error.value)
    assert 'malformed: "skip"' in str(error.value)
    skipped = read({"text": "Once."}, record, malformed="skip")
    assert skipped.texts == ["Once.<eos>"]
    assert "left out: 1 malformed (the first: line 2 of '" in skipped.lines[0]


def test_a_chat_needs_a_template_whatever_may_be_skipped(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = None
    for record in ({"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION], "text": "So.", "finish_reason": "stop"}):
        with pytest.raises(DataError, match=r"^line 1 of .* is a chat, and the tokenizer has no chat template: take"):
            read(record, malformed="skip")


def test_a_template_may_refuse_a_chat(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"line 1 of .*: the chat template refuses it: roles must alternate"):
        read({"messages": [QUESTION, ANSWER]})


def test_paths_may_be_relative(read, data_file, make_config, bytes_tokenizer, monkeypatch, tmp_path: Path):
    data_file({"text": "Once."})
    monkeypatch.chdir(tmp_path)
    assert len(read_documents(make_config("data.jsonl"), bytes_tokenizer, print)) == 1
