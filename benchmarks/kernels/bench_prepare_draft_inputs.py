"""The layout of one draft forward: a verification step of every request, at different lengths."""

from collections.abc import Callable
from typing import Any

import pytest
from draft_step import StepSizes, decode, step
from pard_kernels import prepare_draft_inputs, reference

MAX_LEN, BLOCK_SIZE = 2048, 16
WRITTEN = ("input_ids", "positions", "slot_mappings", "seq_lens", "sample_rows")


def inputs(num_drafts: int, batch_size: int) -> dict[str, Any]:
    """Each request with another number of rejected drafts; repeating the step does the same work."""
    sizes = StepSizes(
        mask_token_id=4000,
        vocab_size=4096,
        block_sizes=(BLOCK_SIZE,),
        max_model_len=MAX_LEN,
        max_blocks=MAX_LEN // BLOCK_SIZE,
        num_slots=batch_size,
    )
    requests = [
        decode(slot, num_drafts, num_rejected=slot % (num_drafts + 1), num_computed=512 + 7 * slot)
        for slot in range(batch_size)
    ]
    return step(requests, num_drafts, sizes, "cpu")


@pytest.mark.parametrize("batch_size", [1, 16, 128])
@pytest.mark.parametrize("num_drafts", [4, 8, 16])
def test_prepare_draft_inputs(num_drafts: int, batch_size: int, measure: Callable[..., None]) -> None:
    tensors = inputs(num_drafts, batch_size)
    # One token id read for each row, and everything written once.
    num_bytes = tensors["input_ids"].nbytes + sum(tensors[name].nbytes for name in WRITTEN)
    measure(
        prepare_draft_inputs,
        reference.prepare_draft_inputs,
        lambda: inputs(num_drafts, batch_size),
        num_bytes=num_bytes,
        twin_on_cpu=True,
    )
