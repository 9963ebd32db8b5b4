"""The kernel against its twin: token ids and positions are equal or wrong, so there is no tolerance."""

from dataclasses import replace
from functools import partial
from typing import Any

import draft_step
import pytest
import torch
from draft_step import Request, StepSizes, decode
from pard_kernels import prepare_draft_inputs, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = StepSizes()
MASK, MAX_LEN, MAX_BLOCKS, NUM_SLOTS = SIZES.mask_token_id, SIZES.max_model_len, SIZES.max_blocks, SIZES.num_slots

step = partial(draft_step.step, sizes=SIZES, device=DEVICE)


def run_both(requests: list[Request], num_drafts: int, caches_masks: bool = True) -> dict[str, Any]:
    """Run kernel and twin on equal inputs, compare every tensor, return the twin's."""
    got = step(requests, num_drafts, caches_masks=caches_masks)
    expected = {k: v.cpu().clone() if torch.is_tensor(v) else v for k, v in got.items()}
    reference.prepare_draft_inputs(**expected)
    prepare_draft_inputs(**got)
    for name, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(got[name].cpu(), value.cpu()), name
    return expected


def test_worked_example() -> None:
    """K = 3, one of three drafts accepted at positions 10..13: rows are draft 11, bonus 12, masks 13 14, padding."""
    out = run_both([decode(slot=2, num_drafts=3, num_rejected=2)], num_drafts=3)
    assert out["input_ids"].tolist() == [51, 82, MASK, MASK, 0, 0]
    assert out["positions"].tolist() == [11, 12, 13, 14, 15, 16]
    block = 2 * MAX_BLOCKS + 1
    assert out["slot_mapping"].tolist() == [(block + 2) * 4 + 3, *((block + 3) * 4 + i for i in range(3)), -1, -1]
    assert out["sample_rows"].tolist() == [[1, 2, 3]]
    assert out["seq_lens"].tolist() == [17]
    assert out["num_draft_kv"][2] == 13, "the bonus is counted, masks are not"


def test_masks_need_no_slots() -> None:
    """The worked example for an attention that takes new keys and values as they come: only real tokens have slots."""
    cached, not_cached = (run_both([decode(2, 3, 2)], 3, caches_masks=caches) for caches in (True, False))
    assert not_cached["slot_mapping"].tolist() == [*cached["slot_mapping"][:2].tolist(), -1, -1, -1, -1]
    del cached["slot_mapping"], not_cached["slot_mapping"], cached["caches_masks"], not_cached["caches_masks"]
    assert all(torch.equal(not_cached[name], v) for name, v in cached.items() if torch.is_tensor(v))


@pytest.mark.parametrize("num_drafts", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("num_rejected", [0, 1])
def test_verification_steps(num_drafts: int, num_rejected: int) -> None:
    requests = [decode(slot, num_drafts, num_rejected * num_drafts, 3 + slot) for slot in (5, 0, 3)]
    out = run_both(requests, num_drafts)
    assert (out["sample_rows"] >= 0).all()


@pytest.mark.parametrize(
    ("request_", "check"),
    [
        pytest.param(Request(1, 0, 9, 0, 9 + 4, 0), lambda o: o["input_ids"][9] == 81, id="whole prompt"),
        pytest.param(
            Request(1, 4, 6, 0, 6, 4, has_bonus=False), lambda o: MASK not in o["input_ids"], id="chunk that goes on"
        ),
        pytest.param(
            Request(1, 20, 1, 0, 30, 3), lambda o: o["input_ids"][:17].tolist() == list(range(3, 20)), id="backlog"
        ),
        pytest.param(
            Request(1, 20, 5, 0, 6, 3), lambda o: o["num_draft_kv"][1] == 9, id="catch-up that does not reach the bonus"
        ),
        pytest.param(
            Request(1, 20, 5, 1, 8, 30), lambda o: o["positions"][0] == 24, id="count beyond the target's is cut"
        ),
        pytest.param(
            Request(1, 33, 5, 0, 12, 34), lambda o: o["positions"][-1] == MAX_LEN - 1, id="end of the context"
        ),
        pytest.param(
            Request(1, 5, 5, 2, 8, 6, num_blocks=2), lambda o: (o["slot_mapping"] >= 0).sum() == 2, id="no block yet"
        ),
        pytest.param(
            Request(1, 9, 5, 0, 8, 10, null_blocks=[2]), lambda o: o["slot_mapping"][:2].tolist() == [-1, -1],
            id="block let go by a sliding window",
        ),
        pytest.param(
            Request(1, 9, 5, 0, 8, 10, token_offset=43), lambda o: o["input_ids"][3] == MASK, id="id beyond the draft's"
        ),
        pytest.param(Request(-1, 9, 5, 0, 8, 10), lambda o: (o["slot_mapping"] == -1).all(), id="dummy"),
    ],
)  # fmt: skip
def test_cases(request_: Request, check: Any) -> None:
    other = decode(slot=4, num_drafts=4, num_rejected=1)
    assert check(run_both([request_], num_drafts=4))
    run_both([other, request_, decode(slot=6, num_drafts=4, num_rejected=3)], num_drafts=4)


def test_random_steps() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(60):
        num_drafts, requests = draw(1, 5), []
        for slot in torch.randperm(NUM_SLOTS, generator=generator)[: draw(1, 6)].tolist():
            computed, query = draw(0, 25), draw(1, 8)
            requests.append(
                Request(
                    slot if draw(0, 9) else -1, computed, query, draw(0, query - 1), draw(num_drafts, 30),
                    draw(0, 30), has_bonus=bool(draw(0, 3)), num_blocks=draw(1, MAX_BLOCKS),
                )
            )  # fmt: skip
        run_both(requests, num_drafts, caches_masks=bool(draw(0, 1)))


@pytest.mark.parametrize("first_span", [1, 13, 14, 15, 28])
def test_two_forwards_of_a_step_lay_out_what_one_does(first_span: int) -> None:
    """13 tokens behind, a chunk of 16, the bonus and 3 masks: the second forward goes on where the first ended."""
    request = Request(1, num_computed=20, query_len=16, num_rejected=0, span=33, num_draft_kv=20 - 13)
    whole = run_both([request], num_drafts=4)
    first = run_both([replace(request, span=first_span)], num_drafts=4)
    num_draft_kv = int(first["num_draft_kv"][1])
    assert num_draft_kv == 7 + first_span
    second = run_both([replace(request, span=33 - first_span, num_draft_kv=num_draft_kv)], num_drafts=4)
    for name in ("input_ids", "positions", "slot_mapping"):
        assert torch.equal(second[name], whole[name][first_span:]), name
    assert second["sample_rows"].tolist() == [[29 - first_span + k for k in range(4)]]


def test_no_drafts() -> None:
    """A chunk of a prompt in a step for which vLLM wants none."""
    out = run_both([Request(1, 4, 6, 0, 6, 4, has_bonus=False), Request(3, 0, 9, 0, 9, 0, has_bonus=False)], 0)
    assert out["num_draft_kv"][[1, 3]].tolist() == [10, 9]


def test_long_span_takes_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("pard_kernels.prepare_draft_inputs")
    monkeypatch.setattr(module, "MAX_BLOCK_ROWS", 16)
    out = run_both([Request(1, 0, 33, 0, 37, 0), Request(-1, 0, 33, 0, 37, 0)], num_drafts=4)
    assert out["input_ids"][32:37].tolist() == [82, 81, MASK, MASK, MASK]


def test_shapes_are_checked() -> None:
    tensors = step([decode(1, 3, 0)], num_drafts=3)
    with pytest.raises(ValueError, match=r"asks for 1 requests; got request_slots \(2,\)"):
        prepare_draft_inputs(**(tensors | {"request_slots": torch.tensor([0, 1])}))
