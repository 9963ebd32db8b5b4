from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from vllm_pard.demo.text.corpus import EVALUATION_SPLITS, evaluation_samples
from vllm_pard.demo.text.sample import SPECIAL_TOKENS
from vllm_pard.training.demo_pair.tokenizer import train_tokenizer

FREE_TEXTS = ("Grüße, 世界! 🙂", "\tdef f(x):\r\n    return x ** 2\n\n", "  two  spaces ", "3.14159e-10", "")


@pytest.mark.parametrize("text", FREE_TEXTS)
def test_free_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("split", EVALUATION_SPLITS)
def test_documents_survive_the_round_trip(tokenizer, split):
    for sample in evaluation_samples(split, 20, seed=0):
        text = sample.prompt + sample.completion
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens_have_the_first_ids_and_begin_stands_in_front(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
    assert ids == (0, 1, 2, 3)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"].count(tokenizer.bos_token_id) == 1


def test_each_digit_is_one_token(tokenizer):
    tokens = tokenizer.tokenize("1234567890 007")
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("1234567890007")
    assert not [t for t in tokenizer.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t) and t.isascii()]


def test_the_vocabulary_is_exactly_as_large_as_asked(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 2048


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Question: What is 12 + 30?\nAnswer:"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template


def test_chat_turns_become_documents(tokenizer):
    turns = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "The answer is 2."},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|>Question: What is 1 + 1?\nAnswer: The answer is 2.<|end|><|begin|>Question: And 2 + 2?\nAnswer:"
    )


def test_a_system_message_goes_in_front_of_the_question(tokenizer):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|begin|>Question: Be brief. Why?\nAnswer:"


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="should give 100000 tokens"):
        train_tokenizer(["only this"], vocab_size=100_000)
