"""The FLOPs of a training step, counted by hand on a tiny pair."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import training_mfu
from shapes import LLAMA_3_2_1B, PairShape

TINY = replace(
    LLAMA_3_2_1B,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    vocab_size=128,
)
# q, o: 64 x 64; k, v: 64 x 32; three of 64 x 32; two norms
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 32 + 2 * 64
HEAD = 64 * 128


def test_flops_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[float, dict[str, Any]]] = []
    real = training_mfu.flops

    def flops(draft: Any, target: Any, batch: dict[str, Any]) -> float:
        counted.append((real(draft, target, batch), batch))
        return counted[-1][0]

    monkeypatch.setattr(training_mfu, "flops", flops)
    monkeypatch.setattr(training_mfu, "WARM_UPS", 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    pair = PairShape(TINY, replace(TINY, num_hidden_layers=2))
    row = training_mfu.measure(pair, 40, 4, 1, device="cpu")
    (needed, batch), *_ = counted
    labelled, positions, rows = len(batch["labels"]), len(batch["positions"]), len(batch["rows"]["anchors"])
    of_target = 40 * 24 * LAYER + (40 + positions) * HEAD
    assert needed == 2 * of_target + 6 * (rows * 2 * LAYER + labelled * HEAD)
    assert (row["rows"], row["labelled_rows"], row["mfu"]) == (rows, labelled, None)
    assert labelled > 40 > positions - 1
