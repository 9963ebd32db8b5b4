"""That both layouts train the same rows for the same, and that the program measures them."""

import json
from pathlib import Path
from typing import Any

import pytest
import reference_layout
import torch
import training_step
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.losses import cat_weights
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.models.target import TargetOutput
from vllm_pard.training.options.config import CodConfig, LossConfig

LENGTH, NUM_DEPTHS, MASK_TOKEN_ID = 14, 5, 0
TOL = {"atol": 1e-4, "rtol": 1e-4}  # fp32 through two layers and an lm_head, in another order


def draft() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")


def test_both_layouts_train_the_same_rows_for_the_same() -> None:
    """With nothing dropped, but for the reference's rows that see no real token."""
    cod = CodConfig(num_depths=NUM_DEPTHS, retention=1, min_retention=1)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40, (LENGTH,), generator=generator)
    hidden, lm_head = torch.randn(LENGTH, 24, generator=generator), nn.Linear(24, 40, bias=False)
    log_probs = torch.rand(LENGTH, generator=generator).log()

    theirs = reference_layout.collate(tokens, cod, MASK_TOKEN_ID, generator)
    with torch.no_grad():
        losses = reference_layout.row_losses(draft(), theirs, hidden, lm_head)
    weights = reference_layout.cat_weights(log_probs, theirs)
    anchors = theirs.positions - theirs.segments
    keys = zip(anchors.tolist(), theirs.segments.tolist(), theirs.labels.tolist(), strict=True)
    wanted = {
        key[:2]: (loss, weight)
        for key, loss, weight in zip(keys, losses, weights, strict=True)
        if key[0] >= 0 and key[2] != reference_layout.IGNORED
    }

    model = ParallelDraft(draft(), mask_token_id=MASK_TOKEN_ID, loss=LossConfig(ce=0.1, kl=1.0), num_depths=NUM_DEPTHS)
    pack = {"tokens": tokens, "documents": tokens * 0, "is_trained": tokens >= 0, "draw": 0}
    batch = Collator(cod=cod, seed=0, vocab_size=40)([pack])
    rows, labelled = Rows(**batch["rows"]), batch["labelled"]
    of_rows = list(zip(rows.anchors[labelled].tolist(), rows.depths[labelled].tolist(), strict=True))
    assert sorted(wanted) == sorted(of_rows)
    torch.testing.assert_close(
        cat_weights(rows, log_probs)[labelled], torch.stack([wanted[row][1] for row in of_rows]), **TOL
    )
    with torch.no_grad():
        outputs = model(**batch, target=TargetOutput(hidden[:, :0], lambda: log_probs, hidden, lm_head))
    torch.testing.assert_close(outputs["loss"], sum(loss for loss, _ in wanted.values()), **TOL)


@pytest.mark.parametrize("length", [64, 100])
def test_both_drop_as_many_rows(length: int) -> None:
    cod = CodConfig(num_depths=16, retention=0.7, min_retention=0.1)
    kept = reference_layout.kept_rows(length, cod, torch.Generator().manual_seed(0))
    assert (kept // length).bincount().tolist() == list(cod.anchors_per_depth(length))
    places = {(row // length, row % length) for row in kept.tolist()}
    assert len(places) == len(kept)
    assert all((i - 1, (p - 1) % length) in places for i, p in places if i > 0)


def test_it_measures_both_at_a_tiny_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "training_step.json"
    assert training_step.main(["--lengths", "96", "--runs", "1", "--json", str(result)]) == 0
    document = json.loads(result.read_text())
    rows: dict[str, dict[str, Any]] = {row["method"]: row for row in document["rows"]}
    assert list(rows) == ["reference", "ours"]
    assert document["conditions"]["versions"]["torch"]
    for method, row in rows.items():
        assert 300 < row["rows"] < 96 * 4, method
        assert row["rows_per_second"] == pytest.approx(row["rows"] / row["seconds"], rel=0.01)
        assert 0 < row["collate_seconds"] < row["seconds"]
        assert row["peak_bytes"] >= 0
        assert row["ratio"] == pytest.approx(row["rows_per_second"] / rows["reference"]["rows_per_second"], rel=0.01)
    assert rows["reference"]["ratio"] == 1
    assert rows["reference"]["memory_ratio"] in (1, None)
    assert capsys.readouterr().out.count("rows_per_second") == 2


def test_a_mask_that_is_too_large_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"steps": [(100, 2.0, 0.5)], "peak_bytes": 10}
    monkeypatch.setattr(training_step, "measure_alone", lambda method, length: measured)
    monkeypatch.setattr(training_step, "free_memory", lambda: 16_000_000_000)
    skipped, ours = training_step.rows_of_length(4096, 1)
    assert skipped["skipped"].startswith("a mask of 65536 x 65536 and the kept part of it take 21.4 GB; 16.0 GB of")
    assert (ours["method"], ours["rows_per_second"], ours["ratio"]) == ("ours", 50.0, None)
    assert [row["method"] for row in training_step.rows_of_length(2048, 1)] == ["reference", "ours"]
