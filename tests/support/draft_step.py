"""Inputs of `prepare_draft_inputs` for its tests and its benchmark, so that both lay out the same steps."""

from dataclasses import dataclass, field
from typing import Any

import torch

POISON = -(2**30)


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """What a step's tensors are sized by; token ids tell where they came from, so vocab_size is beyond them."""

    mask_token_id: int = 90
    vocab_size: int = 96
    block_size: int = 4
    max_model_len: int = 40
    max_blocks: int = 12
    num_slots: int = 8


@dataclass
class Request:
    """One request of a step, in numbers; -1 as slot makes it a dummy."""

    slot: int
    num_computed: int
    query_len: int
    num_rejected: int
    span: int
    num_draft_kv: int
    has_bonus: bool = True
    num_blocks: int | None = None  # all of them
    token_offset: int = 0
    null_blocks: list[int] = field(default_factory=list)


def decode(slot: int, num_drafts: int, num_rejected: int, num_computed: int = 10) -> Request:
    """A verification step of K drafts after a step that drafted."""
    return Request(slot, num_computed, num_drafts + 1, num_rejected, 2 * num_drafts, num_computed + 1)


def step(
    requests: list[Request], num_drafts: int, sizes: StepSizes, device: str, *, caches_masks: bool = True
) -> dict[str, Any]:
    """Tensors of a step; outputs are poisoned, every slot has its own blocks."""
    num_slots, max_blocks = sizes.num_slots, sizes.max_blocks
    lens = torch.tensor([0, *(r.query_len for r in requests)])
    spans = torch.tensor([0, *(r.span for r in requests)])
    num_rows = int(spans.sum())
    block_table = torch.arange(1, num_slots * max_blocks + 1, dtype=torch.int32).view(num_slots, max_blocks).clone()
    num_blocks = torch.full((num_slots,), max_blocks, dtype=torch.int32)
    num_draft_kv = torch.full((num_slots,), POISON, dtype=torch.int32)
    positions: list[int] = []
    ids: list[int] = []
    for r in requests:
        positions += range(r.num_computed, r.num_computed + r.query_len)
        ids += [(50 + r.token_offset + i) for i in range(r.query_len)]
        if r.slot >= 0:
            num_blocks[r.slot] = max_blocks if r.num_blocks is None else r.num_blocks
            num_draft_kv[r.slot] = r.num_draft_kv
            block_table[r.slot, r.null_blocks] = 0
    tensors = {
        "target_input_ids": torch.tensor(ids, dtype=torch.int32),
        "target_positions": torch.tensor(positions, dtype=torch.int64),
        "target_query_start_loc": lens.cumsum(0).int(),
        "request_slots": torch.tensor([r.slot for r in requests]),
        "num_sampled": torch.tensor([int(r.has_bonus) for r in requests], dtype=torch.int32),
        "num_rejected": torch.tensor([r.num_rejected for r in requests], dtype=torch.int32),
        "last_sampled": torch.arange(80, 80 + num_slots).view(-1, 1),
        "all_token_ids": torch.arange(sizes.max_model_len, dtype=torch.int32).repeat(num_slots, 1),
        "block_table": block_table,
        "num_blocks": num_blocks,
        "num_draft_kv": num_draft_kv,
        "query_start_loc": spans.cumsum(0).int(),
        "input_ids": torch.full((num_rows,), POISON, dtype=torch.int32),
        "positions": torch.full((num_rows,), POISON, dtype=torch.int64),
        "slot_mapping": torch.full((num_rows,), POISON, dtype=torch.int64),
        "seq_lens": torch.full((len(requests),), POISON, dtype=torch.int32),
        "sample_rows": torch.full((len(requests), num_drafts), POISON, dtype=torch.int64),
    }
    scalars = {
        "block_size": sizes.block_size,
        "mask_token_id": sizes.mask_token_id,
        "vocab_size": sizes.vocab_size,
        "max_model_len": sizes.max_model_len,
        "caches_masks": caches_masks,
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()} | scalars
