from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vllm_pard.training.data.config import DataConfig, SourceConfig

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<eos>", "<s>", "</s>", "<bos>")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, four special ones, and a template like Qwen's and SmolLM2's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def data_file(tmp_path: Path) -> Callable[..., str]:
    def write(*records: Any, name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return str(path)

    return write


def config_of(*paths: str, max_length: int = 200, **options: Any) -> DataConfig:
    return DataConfig(sources=tuple(SourceConfig(path=path) for path in paths), max_length=max_length, **options)


@pytest.fixture
def make_config() -> Callable[..., DataConfig]:
    return config_of


class Read:
    """Documents as text, and what was reported."""

    def __init__(self, tokenizer: Any, documents: Any, lines: list[str]) -> None:
        self.dataset, self.lines = documents, lines
        rows = [(row["tokens"], row["is_trained"]) for row in documents]
        self.texts = [tokenizer.decode(tokens) for tokens, _ in rows]
        trained = [[t for t, is_trained in zip(*row, strict=True) if is_trained] for row in rows]
        self.trained = [tokenizer.decode(tokens) for tokens in trained]


@pytest.fixture
def read(bytes_tokenizer: Any, data_file: Callable[..., str]) -> Callable[..., Read]:
    """Write records to a file and read them."""
    from vllm_pard.training.data.documents import read_documents

    def call(*records: Any, name: str = "data.jsonl", **options: Any) -> Read:
        lines: list[str] = []
        config = config_of(data_file(*records, name=name), **options)
        return Read(bytes_tokenizer, read_documents(config, bytes_tokenizer, lines.append), lines)

    return call
