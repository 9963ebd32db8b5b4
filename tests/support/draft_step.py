"""Inputs of `prepare_draft_inputs` for its tests and its benchmark, so that both lay out the same steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pard_kernels import FeatureRows, prepare_draft_inputs, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -(2**30)


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """What a step's tensors are sized by; token ids tell where they came from, so vocab_size is beyond them."""

    mask_token_id: int = 90
    vocab_size: int = 96
    max_model_len: int = 40
    max_blocks: int = 12
    num_slots: int = 8
    block_sizes: tuple[int, ...] = (4,)


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
    null_blocks: list[int] = field(default_factory=list)  # of the last group
    kept_rows: list[int] | None = None  # within its target rows; None is a chain
    num_carried: int = 0  # tokens up to the one whose feature its slot carries


def decode(slot: int, num_drafts: int, num_rejected: int, num_computed: int = 10) -> Request:
    """A verification step of K drafts after a step that drafted."""
    return Request(slot, num_computed, num_drafts + 1, num_rejected, 2 * num_drafts, num_computed + 1)


def step(
    requests: list[Request],
    num_drafts: int,
    sizes: StepSizes,
    device: str,
    *,
    caches_masks: bool = True,
    reads_target: bool = False,
) -> dict[str, Any]:
    """Arguments of a step; outputs are poisoned, every slot has its own blocks in every group."""
    num_reqs = len(requests)
    starts = [0, *torch.tensor([r.query_len for r in requests]).cumsum(0).tolist()]
    spans = torch.tensor([0, *(r.span for r in requests)])
    num_rows = int(spans.sum())
    positions: list[int] = []
    ids: list[int] = []
    kept_rows: list[int] = []
    for start, r in zip(starts, requests, strict=False):
        positions += range(r.num_computed, r.num_computed + r.query_len)
        ids += [(50 + r.token_offset + i) for i in range(r.query_len)]
        kept = list(range(r.query_len)) if r.kept_rows is None else r.kept_rows
        kept_rows += [start + row for row in kept] + [POISON] * (r.query_len - len(kept))
    is_tree = any(r.kept_rows is not None for r in requests)
    tensors = {
        "target_input_ids": torch.tensor(ids, dtype=torch.int32),
        "target_positions": torch.tensor(positions, dtype=torch.int64),
        "target_query_start_loc": torch.tensor(starts, dtype=torch.int32),
        "kept_rows": torch.tensor(kept_rows, dtype=torch.int32) if is_tree else None,
        "request_slots": torch.tensor([r.slot for r in requests]),
        "num_sampled": torch.tensor([int(r.has_bonus) for r in requests], dtype=torch.int32),
        "num_rejected": torch.tensor([r.num_rejected for r in requests], dtype=torch.int32),
        "last_sampled": torch.arange(80, 80 + sizes.num_slots).view(-1, 1),
        "all_token_ids": torch.arange(sizes.max_model_len, dtype=torch.int32).repeat(sizes.num_slots, 1),
        "query_start_loc": spans.cumsum(0).int(),
        "input_ids": torch.full((num_rows,), POISON, dtype=torch.int32),
        "positions": torch.full((num_rows,), POISON, dtype=torch.int64),
        "slot_mappings": torch.full((len(sizes.block_sizes), num_rows), POISON, dtype=torch.int64),
        "seq_lens": torch.full((num_reqs,), POISON, dtype=torch.int32),
        "sample_rows": torch.full((num_reqs, num_drafts), POISON, dtype=torch.int64),
    }
    scalars = {
        "block_sizes": sizes.block_sizes,
        "mask_token_id": sizes.mask_token_id,
        "vocab_size": sizes.vocab_size,
        "max_model_len": sizes.max_model_len,
        "caches_masks": caches_masks,
    }
    features = _features(requests, num_rows, sizes, first_carried=len(ids) + 3) if reads_target else None
    arguments = tensors | _cache(requests, sizes) | scalars | {"features": features}
    return {name: to_device(value, device) for name, value in arguments.items()}


def _cache(requests: list[Request], sizes: StepSizes) -> dict[str, Any]:
    """What the K/V cache has for each slot; block ids tell the group, the slot and the place."""
    num_slots, num_groups, num_ids = sizes.num_slots, len(sizes.block_sizes), sizes.num_slots * sizes.max_blocks
    tables = [1 + g * num_ids + torch.arange(num_ids).view(num_slots, -1).int() for g in range(num_groups)]
    num_blocks = torch.full((num_groups, num_slots), sizes.max_blocks, dtype=torch.int32)
    num_draft_kv = torch.full((num_slots,), POISON, dtype=torch.int32)
    for r in requests:
        if r.slot >= 0:
            num_draft_kv[r.slot] = r.num_draft_kv
            if num_groups:
                num_blocks[-1, r.slot] = sizes.max_blocks if r.num_blocks is None else r.num_blocks
                tables[-1][r.slot, r.null_blocks] = 0
    return {"block_tables": tuple(tables), "num_blocks": num_blocks, "num_draft_kv": num_draft_kv}


def _features(requests: list[Request], num_rows: int, sizes: StepSizes, *, first_carried: int) -> FeatureRows:
    """Outputs are poisoned, and what no request of the step carries."""
    num_carried = torch.full((sizes.num_slots,), POISON, dtype=torch.int32)
    for r in requests:
        if r.slot >= 0:
            num_carried[r.slot] = r.num_carried
    return FeatureRows(
        rows=torch.full((num_rows,), POISON, dtype=torch.int32),
        carries=torch.full((len(requests), 2), POISON, dtype=torch.int32),
        num_carried=num_carried,
        first_carried=first_carried,
    )


def compare(got: dict[str, Any]) -> dict[str, Any]:
    """Run kernel and twin on equal arguments, compare every tensor, return the twin's."""
    expected = copied(got)
    reference.prepare_draft_inputs(**expected)
    prepare_draft_inputs(**got)
    for name, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(got[name].cpu(), value.cpu()), name
    if expected["features"] is not None:
        for mine, twins in zip(got["features"][:3], expected["features"][:3], strict=True):
            assert torch.equal(mine.cpu(), twins)
    return expected


def to_device(value: Any, device: str) -> Any:
    """An argument there, tuples of tensors too."""
    return mapped(value, lambda tensor: tensor.to(device))


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments on the CPU, in memory of their own."""
    return {name: mapped(value, lambda tensor: tensor.cpu().clone()) for name, value in arguments.items()}


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """An argument with its tensors changed."""
    if isinstance(value, FeatureRows):
        return FeatureRows(*(mapped(part, change) for part in value))
    if isinstance(value, tuple):
        return tuple(mapped(part, change) for part in value)
    return change(value) if torch.is_tensor(value) else value
