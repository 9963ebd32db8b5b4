"""The documents of the demo pair, and what the training data makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import is_held_out, training_samples
from vllm_pard.training.data.config import DataConfig, SourceConfig
from vllm_pard.training.data.documents import read_documents
from vllm_pard.training.demo_pair.recipe import ModelSize, TextConfig
from vllm_pard.training.demo_pair.text import chat_records, digest, write_model_config, write_records
from vllm_pard.training.models.starting_points import new_model

CONFIG = TextConfig(num_documents=400, chat_share=0.25, max_exchanges=3)


def test_a_share_of_the_documents_has_several_questions() -> None:
    sizes = [len(record["messages"]) // 2 for record in chat_records(CONFIG)]
    assert set(sizes) == {1, 2, 3}
    assert 0.15 < sum(size > 1 for size in sizes) / len(sizes) < 0.35
    alone = chat_records(replace(CONFIG, chat_share=0.0))
    assert {len(record["messages"]) for record in alone} == {2}


def test_every_question_of_a_chat_is_one_of_training() -> None:
    turns = [turn for record in chat_records(CONFIG) for turn in record["messages"]]
    questions = [turn["content"] for turn in turns if turn["role"] == "user"]
    assert not any(map(is_held_out, questions))
    samples = training_samples(len(questions), CONFIG.seed)
    assert questions == [sample.question for sample in samples]
    assert [turn["content"] for turn in turns if turn["role"] == "assistant"] == [sample.answer for sample in samples]


def test_documents_are_what_an_engine_sees(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A prompt and an answer apart, after those before: only answers and their ends are trained."""
    write_records(tmp_path / "documents.jsonl", chat_records(CONFIG)[:60])
    sources = (SourceConfig(path=str(tmp_path / "documents.jsonl")),)
    documents = read_documents(DataConfig(sources=sources, max_length=2000), tokenizer, lambda line: None)
    samples = iter(training_samples(200, CONFIG.seed))
    for record, document in zip(chat_records(CONFIG)[:60], documents, strict=True):
        tokens, trained = [], []
        for _ in range(len(record["messages"]) // 2):
            sample = next(samples)
            prompt = tokenizer(sample.prompt)["input_ids"]
            answer = [*tokenizer(sample.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            tokens += [*prompt, *answer]
            trained += [False] * len(prompt) + [True] * len(answer)
        assert (list(document["tokens"]), list(document["is_trained"])) == (tokens, trained)


def test_the_digest_is_that_of_the_text() -> None:
    records = chat_records(CONFIG)
    assert digest(records) == digest(chat_records(CONFIG))
    records[3]["messages"][1]["content"] += "!"
    assert digest(records) != digest(chat_records(CONFIG))


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(64, 1), (192, 3)])
def test_a_new_model_has_the_size_that_was_asked_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, hidden_size: int, num_heads: int
) -> None:
    size = ModelSize(hidden_size=hidden_size, num_layers=2, intermediate_size=96)
    folder = write_model_config(size, tokenizer, tmp_path)
    assert folder == tmp_path / f"llama-{hidden_size}-2-96"
    config = new_model(str(folder), 0, torch.float32).config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (hidden_size, 2, 96)
    assert (config.num_attention_heads, config.head_dim, config.vocab_size) == (num_heads, 64, len(tokenizer))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
