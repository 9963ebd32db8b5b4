"""The bytes of a step, counted by hand from the demo pair's sizes."""

from pathlib import Path

import pytest
import torch

from vllm_pard.bench import roof
from vllm_pard.bench.methods import METHODS, Models, parse_contenders
from vllm_pard.bench.options import BenchmarkError
from vllm_pard.bench.roof import ModelBytes, Roof, copy_bandwidth, model_bytes, weight_dtype
from vllm_pard.demo import demo_path

BANDWIDTH = 1e10
# hidden 256, 6 layers, 4 heads of 64, 768 neurons, vocabulary 2048, tied
TARGET = 2048 * 256 + 6 * (4 * 256 * 256 + 3 * 256 * 768 + 2 * 256) + 256
# hidden 192, 1 layer, 3 heads of 64, 384 neurons
DRAFT = 2048 * 192 + (4 * 192 * 192 + 3 * 192 * 384 + 2 * 192) + 192


@pytest.fixture
def models() -> Models:
    return Models(target=str(demo_path("target")))


def test_bytes_of_the_demo_pair() -> None:
    assert model_bytes(str(demo_path("target")), torch.float32) == ModelBytes(
        weights=4 * TARGET, kv_per_token=4 * 2 * 6 * 256
    )  # fmt: skip
    assert model_bytes(str(demo_path("draft")), torch.bfloat16) == ModelBytes(
        weights=2 * DRAFT, kv_per_token=2 * 2 * 192
    )  # fmt: skip


@pytest.mark.parametrize(("method", "num_draft_forwards"), [("none", 0), ("pard:8", 1), ("draft_model:8", 8)])
def test_a_step_reads_the_target_once_and_the_draft_as_often_as_it_runs(
    method: str, num_draft_forwards: int, models: Models
) -> None:
    (contender,) = parse_contenders(method, METHODS, models, None)
    target_step = 4 * TARGET + 3 * 100 * 4 * 2 * 6 * 256
    draft_step = 4 * DRAFT + 3 * 100 * 4 * 2 * 192
    speed = Roof(bandwidth=BANDWIDTH, models=models, dtype=torch.float32).tokens_per_second(contender, 3, 100)
    assert speed == pytest.approx(3 * BANDWIDTH / (target_step + num_draft_forwards * draft_step))


def test_no_roof_where_the_draft_is_not_known(models: Models) -> None:
    (contender,) = parse_contenders("eagle3:3", METHODS, Models(target=models.target, eagle3_head="a/head"), None)
    assert Roof(bandwidth=BANDWIDTH, models=models, dtype=torch.float32).tokens_per_second(contender, 1, 1) is None


def test_untied_embeddings_are_not_read(tmp_path: object) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100,
        tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(str(tmp_path))
    found = model_bytes(str(tmp_path), torch.float32)
    assert found is not None
    assert found.weights == 4 * (100 * 16 + 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16 + 16)  # one of two vocabularies


def test_dtypes(models: Models) -> None:
    for keeps_float32 in (False, True):
        assert weight_dtype(models, "float16", keeps_float32=keeps_float32) is torch.float16
        assert weight_dtype(models, "auto", keeps_float32=keeps_float32) is torch.bfloat16
        with pytest.raises(BenchmarkError, match="--dtype must be"):
            weight_dtype(models, "nn", keeps_float32=keeps_float32)


def test_vllm_halves_a_float32_checkpoint(tiny_pair: tuple[Path, Path]) -> None:
    models = Models(target=str(tiny_pair[0]))
    assert weight_dtype(models, "auto", keeps_float32=False) is torch.bfloat16
    assert weight_dtype(models, "auto", keeps_float32=True) is torch.float32


def test_copy_bandwidth_counts_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roof, "_time_copies", lambda copy, device: [0.5, 1.0, 9.0])
    monkeypatch.setattr(roof, "COPY_BYTES", {"cpu": 4000})
    assert copy_bandwidth("cpu", 1) == 8000


def test_copies_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roof, "COPY_SECONDS", 0.0)
    monkeypatch.setattr(roof, "COPY_BYTES", {"cpu": 2**20})
    assert copy_bandwidth("cpu", 1) > 1e6
