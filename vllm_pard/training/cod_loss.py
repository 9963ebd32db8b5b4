"""The loss of a parallel draft: cross-entropy over all kept rows (PARD, arXiv 2504.18583).

B sequences · L tokens a sequence · R rows a sequence · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import LlamaForCausalLM

from vllm_pard.training.autoregressive import IGNORED, batch_rows
from vllm_pard.training.cod import CodConfig, CodRows, build_rows
from vllm_pard.training.cod_attention import attention_mask
from vllm_pard.training.packing import PackedRows

__all__ = ["cod_logits", "parallel_loss"]


def cod_logits(model: LlamaForCausalLM, rows: CodRows, mask: Tensor | BlockMask) -> Tensor:
    """One forward over all rows. [B, R] -> [B, R, V]"""
    logits: Tensor = model(
        input_ids=rows.tokens, position_ids=rows.positions, attention_mask=mask, use_cache=False
    ).logits
    return logits


def parallel_loss(
    model: LlamaForCausalLM,
    packed: PackedRows,
    config: CodConfig,
    *,
    mask_id: int,
    answers_only: bool,
    batch_size: int,
    seed: int,
) -> Callable[[int], Tensor]:
    """The loss of each step: mean cross-entropy over the kept rows that have a label, all depths alike."""

    def loss_of(rows: CodRows, mask: Tensor | BlockMask) -> Tensor:
        logits = cod_logits(model, rows, mask)
        return F.cross_entropy(logits.flatten(0, 1), rows.labels.flatten(), ignore_index=IGNORED)

    compiled = torch.compile(loss_of, dynamic=False)
    implementation = model.config._attn_implementation

    def loss_of_step(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = packed.take(batch_rows(len(packed), batch_size, step, seed))
        rows = build_rows(batch, config, mask_id, answers_only, generator)
        loss: Tensor = compiled(rows, attention_mask(rows, implementation))
        return loss

    return loss_of_step
