"""Templates of several kinds: where an answer begins and ends."""

from __future__ import annotations

import pytest

from vllm_pard.prompts import prompt_token_ids
from vllm_pard.training.data.config import DataError

CHAT = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Yes."},
]
TURN = "{{ '<s>' + m['role'] + '\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"


def marked(answer: str, rest: str) -> str:
    """A template that says which part is the assistant's."""
    mark = f"{{% generation %}}{answer}{{% endgeneration %}}{rest}"
    return (
        f"{{% for m in messages %}}{TURN}{{% if m['role'] == 'assistant' %}}{mark}"
        f"{{% else %}}{{{{ m['content'] + '</s>\\n' }}}}{{% endif %}}{{% endfor %}}{PROMPT}"
    )


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("{{ m['content'] + '</s>' }}", "{{ '\\n' }}"),
        ("{{ m['content'] + '</s>\\n' }}", ""),
        ("{{ m['content'] }}", "{{ '</s>\\n' }}"),
    ],
    ids=["end", "end and newline", "no end"],
)
def test_a_template_that_marks_answers(answer, rest, read, bytes_tokenizer):
    bytes_tokenizer.chat_template = marked(answer, rest)
    result = read({"messages": CHAT})
    assert result.texts == [
        "<s>user\nWhy?</s>\n<s>assistant\nSo.</s>\n<s>user\nAnd?</s>\n<s>assistant\nYes.</s>\n",
    ]
    assert result.trained == ["So.</s>Yes.</s>"]


# Like Qwen3's: thoughts are written in the last answer only.
THINKING = (
    "{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('>>')[-1] + '</s>\\n' }}{% else %}{{ m['content'] + '</s>\\n' }}{% endif %}{% endfor %}"
    + PROMPT
)  # fmt: skip


def test_a_template_that_rewrites_earlier_answers(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = THINKING
    thoughtful = [m | {"content": f"Hm>>{m['content']}"} if m["role"] == "assistant" else m for m in CHAT]
    result = read({"messages": thoughtful}, {"messages": thoughtful}, {"messages": thoughtful[:2]})
    assert result.texts[0].endswith("assistant\nSo.</s>\n<s>user\nAnd?</s>\n<s>assistant\nHm>>Yes.</s>\n")
    assert result.trained == ["Hm>>Yes.</s>", "Hm>>Yes.</s>", "Hm>>So.</s>"]
    assert (
        "; chats of which only the last answer is trained, as the chat template rewrites earlier ones: 2; left"
        in result.lines[0]
    )
    assert len(result.lines) == 1


def test_chats_whose_answers_are_not_rewritten_are_trained_whole(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = THINKING
    result = read({"messages": CHAT})
    assert result.trained == ["So.</s>Yes.</s>"]
    assert "rewrites" not in result.lines[0]


# Like DeepSeek-R1's: a prompt opens the thoughts, which a finished chat has no more.
OPENS_THOUGHTS = (
    "{% for m in messages %}" + TURN + "{{ m['content'].split('</think>')[-1] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n<think>\\n' }}{% endif %}"
)  # fmt: skip


def test_an_answer_follows_its_prompt_where_the_template_has_it_otherwise(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = OPENS_THOUGHTS
    for opened in ("", "<think>\n"):
        answer = {"role": "assistant", "content": f"{opened}Hm.</think>So."}
        result = read({"messages": [CHAT[0], answer]})
        assert result.texts == ["<s>user\nWhy?</s><s>assistant\n<think>\nHm.</think>So.</s>"]
        assert result.trained == ["Hm.</think>So.</s>"]
        assert "rewrites" not in result.lines[0], "there is no earlier answer"


def test_options_reach_the_template(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = (
        "{% for m in messages %}" + TURN + "{{ m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% if quick %}quick: {% endif %}{% endif %}"
    )
    record = {"messages": CHAT[:1], "text": "So.", "finish_reason": "stop"}
    result = read(record, chat_template_options={"quick": True})
    assert result.texts == ["<s>user\nWhy?</s><s>assistant\nquick: So.</s>"]
    (row,) = result.dataset
    prompt = prompt_token_ids(bytes_tokenizer, None, CHAT[:1], quick=True)
    assert row["tokens"][: len(prompt)] == prompt


def test_a_template_without_an_end_gets_the_tokenizers(read, bytes_tokenizer):
    bytes_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    result = read({"messages": CHAT})
    assert result.texts == ["user: Why?\nassistant: So.\nuser: And?\nassistant: Yes.<eos>"]
    assert result.trained == ["So.\nYes.<eos>"]


def test_each_chat_may_have_a_system_message(read):
    result = read({"messages": [{"role": "system", "content": "Be brief."}, *CHAT[:2]]})
    assert result.texts[0].startswith("<s>system\nBe brief.</s>\n<s>user")
    assert result.trained == ["So.</s>"]


def test_chats_without_an_answer_are_counted(read):
    empty = {"role": "assistant", "content": "\n"}
    records = [{"messages": CHAT[:1]}, {"messages": [CHAT[0], empty]}, {"messages": [CHAT[1]]}]
    answers = [{"prompt": "Why?", "text": "", "finish_reason": "stop"}, {"text": " "}]
    result = read(*records, *answers, {"messages": CHAT})
    assert len(result.texts) == 1
    assert result.lines[0].endswith("; left out: 5 without an answer")
    with pytest.raises(DataError, match="no token to train on: 3 records were read, left out: 3 without an answer; "):
        read(*records)
