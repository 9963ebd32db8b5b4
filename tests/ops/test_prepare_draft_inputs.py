"""The kernel against its twin: token ids and positions are equal or wrong, so there is no tolerance."""

from dataclasses import replace
from functools import partial
from typing import Any

import draft_step
import pytest
import torch
from draft_step import DEVICE, POISON, Request, StepSizes, compare, decode
from pard_kernels import prepare_draft_inputs
from pard_kernels.prepare_draft_inputs import launch

SIZES = StepSizes()
MASK, MAX_LEN, MAX_BLOCKS, NUM_SLOTS = SIZES.mask_token_id, SIZES.max_model_len, SIZES.max_blocks, SIZES.num_slots

step = partial(draft_step.step, device=DEVICE)


def run_both(requests: list[Request], num_drafts: int, sizes: StepSizes = SIZES, **options: bool) -> dict[str, Any]:
    return compare(step(requests, num_drafts, sizes, **options))


def test_worked_example() -> None:
    """K = 3, one of three drafts accepted at positions 10..13: rows are draft 11, bonus 12, masks 13 14, padding."""
    out = run_both([decode(slot=2, num_drafts=3, num_rejected=2)], num_drafts=3)
    assert out["input_ids"].tolist() == [51, 82, MASK, MASK, 0, 0]
    assert out["positions"].tolist() == [11, 12, 13, 14, 15, 16]
    block = 2 * MAX_BLOCKS + 1
    assert out["slot_mappings"][0].tolist() == [(block + 2) * 4 + 3, *((block + 3) * 4 + i for i in range(3)), -1, -1]
    assert out["sample_rows"].tolist() == [[1, 2, 3]]
    assert out["seq_lens"].tolist() == [17]
    assert out["num_draft_kv"][2] == 13, "the bonus is counted, masks are not"


def test_masks_need_no_slots() -> None:
    """The worked example for an attention that takes new keys and values as they come: only real tokens have slots."""
    cached, not_cached = (run_both([decode(2, 3, 2)], 3, caches_masks=caches) for caches in (True, False))
    assert not_cached["slot_mappings"][0].tolist() == [*cached["slot_mappings"][0, :2].tolist(), -1, -1, -1, -1]
    del cached["slot_mappings"], not_cached["slot_mappings"], cached["caches_masks"], not_cached["caches_masks"]
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
            Request(1, 5, 5, 2, 8, 6, num_blocks=2), lambda o: (o["slot_mappings"] >= 0).sum() == 2, id="no block yet"
        ),
        pytest.param(
            Request(1, 9, 5, 0, 8, 10, null_blocks=[2]), lambda o: o["slot_mappings"][0, :2].tolist() == [-1, -1],
            id="block let go by a sliding window",
        ),
        pytest.param(
            Request(1, 9, 5, 0, 8, 10, token_offset=43), lambda o: o["input_ids"][3] == MASK, id="id beyond the draft's"
        ),
        pytest.param(Request(-1, 9, 5, 0, 8, 10), lambda o: (o["slot_mappings"] == -1).all(), id="dummy"),
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
            rejected = draw(0, query - 1)
            kept = torch.randperm(query, generator=generator)[: query - rejected].sort().values.tolist()
            requests.append(
                Request(
                    slot if draw(0, 9) else -1, computed, query, rejected, draw(num_drafts, 30) if draw(0, 4) else 0,
                    draw(0, 30), has_bonus=bool(draw(0, 3)), num_blocks=draw(1, MAX_BLOCKS),
                    kept_rows=kept if draw(0, 1) else None, num_carried=computed if draw(0, 1) else draw(0, 25),
                )
            )  # fmt: skip
        sizes = replace(SIZES, block_sizes=((), (4,), (16, 4), (8, 4, 8))[draw(0, 3)])
        arguments = step(
            requests, num_drafts, caches_masks=bool(draw(0, 1)), sizes=sizes, reads_target=bool(draw(0, 2))
        )
        num_rows = len(arguments["input_ids"])
        arguments["input_ids"] = arguments["input_ids"][: num_rows - draw(0, 1) * draw(0, num_rows)]
        compare(arguments)


@pytest.mark.parametrize("first_span", [1, 13, 14, 15, 28])
def test_two_forwards_of_a_step_lay_out_what_one_does(first_span: int) -> None:
    """13 tokens behind, a chunk of 16, the bonus and 3 masks: the second forward goes on where the first ended."""
    request = Request(1, num_computed=20, query_len=16, num_rejected=0, span=33, num_draft_kv=20 - 13)
    whole = run_both([request], num_drafts=4)
    first = run_both([replace(request, span=first_span)], num_drafts=4)
    num_draft_kv = int(first["num_draft_kv"][1])
    assert num_draft_kv == 7 + first_span
    second = run_both([replace(request, span=33 - first_span, num_draft_kv=num_draft_kv)], num_drafts=4)
    for name in ("input_ids", "positions", "slot_mappings"):
        assert torch.equal(second[name], whole[name][..., first_span:]), name
    assert second["sample_rows"].tolist() == [[29 - first_span + k for k in range(4)]]


def test_no_drafts() -> None:
    """A chunk of a prompt in a step for which vLLM wants none."""
    out = run_both([Request(1, 4, 6, 0, 6, 4, has_bonus=False), Request(3, 0, 9, 0, 9, 0, has_bonus=False)], 0)
    assert out["num_draft_kv"][[1, 3]].tolist() == [10, 9]


def test_a_bonus_that_is_read_without_drafts_is_stored() -> None:
    """One that finds room, since the host knows only how many tokens are missing at most."""
    out = run_both([Request(2, 10, 4, 2, 3, 11)], num_drafts=0)
    assert out["input_ids"].tolist() == [51, 82, 0]
    assert (out["slot_mappings"][0, :2] >= 0).all()
    assert out["num_draft_kv"][2] == 13


def test_long_span_and_many_drafts_take_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "BLOCK_ROWS", 16)
    monkeypatch.setattr(launch, "BLOCK_K", 4)
    out = run_both([Request(1, 0, 33, 0, 38, 0), Request(-1, 0, 33, 0, 38, 0)], num_drafts=6)
    assert out["input_ids"][32:38].tolist() == [82, 81, *[MASK] * 4]
    assert out["sample_rows"].tolist() == [[33, 34, 35, 36, 37, 37], [38] * 6]


def test_kept_rows_of_a_tree() -> None:
    """Ten rows of a tree at positions 10..19, of which the root, its second child and that one's third are kept."""
    tree = Request(2, 10, 10, 7, 6, 11, kept_rows=[0, 2, 7])
    other = decode(slot=4, num_drafts=3, num_rejected=1)
    out = run_both([other, tree], num_drafts=3)
    assert out["input_ids"].tolist()[6:] == [52, 57, 82, MASK, MASK, 0]
    assert out["positions"].tolist()[6:] == [11, 12, 13, 14, 15, 16]
    assert out["num_draft_kv"][2] == 14
    chain = run_both([other], num_drafts=3)
    for name in ("input_ids", "positions", "seq_lens"):
        assert torch.equal(out[name][: len(chain[name])], chain[name]), "a chain names its first rows"


def test_layers_in_several_groups() -> None:
    """Blocks of 16 and of 4 tokens; the second group has none yet for positions from 12 on."""
    sizes = replace(SIZES, block_sizes=(16, 4))
    out = run_both([Request(2, 10, 4, 0, 6, 11, num_blocks=3)], num_drafts=3, sizes=sizes)
    block, small = 1 + 2 * MAX_BLOCKS, 1 + (NUM_SLOTS + 2) * MAX_BLOCKS
    assert out["slot_mappings"].tolist() == [
        [16 * block + position for position in range(11, 16)] + [16 * (block + 1)],
        [4 * (small + 2) + 3, -1, -1, -1, -1, -1],
    ]
    assert out["num_draft_kv"][2] == 12, "the group with the least room counts"


def test_groups_without_layers_of_the_draft_are_left_alone() -> None:
    whole = run_both([decode(2, 3, 2)], 3, sizes=replace(SIZES, block_sizes=(8, 4)))
    arguments = step([decode(2, 3, 2), Request(-1, 0, 4, 0, 6, 0)], 3, sizes=replace(SIZES, block_sizes=(8, 4, 4)))
    arguments["block_tables"] = (None, arguments["block_tables"][1], None)
    out = compare(arguments)
    assert (out["slot_mappings"][[0, 2]] == POISON).all()
    assert torch.equal(out["slot_mappings"][1, :6], whole["slot_mappings"][1])
    assert out["num_draft_kv"][2] == whole["num_draft_kv"][2]


def test_without_a_cache_nothing_is_stored() -> None:
    sizes = replace(SIZES, block_sizes=())
    out, cached = (run_both([decode(2, 3, 2)], 3, sizes=s) for s in (sizes, SIZES))
    assert out["num_draft_kv"][2] == 0
    assert all(torch.equal(out[name], cached[name]) for name in ("input_ids", "positions", "seq_lens", "sample_rows"))


@pytest.mark.parametrize("num_rows", [0, 3, 6, 10, 15])
def test_no_launch_writes_past_its_buffers(num_rows: int) -> None:
    """The starts promise 18 rows to three requests, the second a dummy."""
    requests = [decode(1, 3, 0), replace(decode(1, 3, 0), slot=-1), decode(4, 3, 3)]
    arguments = step(requests, 3, sizes=SIZES)
    whole = arguments["input_ids"]
    arguments["input_ids"] = whole[:num_rows]
    out = compare(arguments)
    for name in ("positions", "slot_mappings"):
        assert (out[name][..., num_rows:] == POISON).all(), name
        assert (out[name][..., :num_rows] != POISON).all(), name
    assert (whole[num_rows:] == POISON).all()
    assert ((out["sample_rows"] >= 0) & (out["sample_rows"] < max(num_rows, 1))).all()


@pytest.mark.parametrize("num_draft_kv", [5, 30])
def test_requests_without_rows(num_draft_kv: int) -> None:
    """At the start, between others and at the end; 14 of 15 tokens of the target's step are kept."""
    none = Request(3, 10, 5, 1, 0, num_draft_kv)
    others = [decode(1, 4, 2), decode(4, 4, 0), decode(5, 4, 4)]
    alone = run_both(others, num_drafts=4)
    for place in range(4):
        out = run_both([*others[:place], none, *others[place:]], num_drafts=4)
        assert all(torch.equal(out[name], alone[name]) for name in ("input_ids", "positions", "slot_mappings"))
        assert out["num_draft_kv"][3] == min(num_draft_kv, 14)
        assert out["seq_lens"][place] == 0
        assert (out["sample_rows"] < 24).all()


def test_a_batch_padded_to_a_graph() -> None:
    """Two requests in a graph of four: what tells of the target's step ends with the second."""
    requests = [decode(1, 4, 2), decode(4, 4, 0), *[Request(-1, 0, 1, 0, 8, 0)] * 2]
    named = run_both(requests, num_drafts=4)
    arguments = step(requests, num_drafts=4, sizes=SIZES)
    for name in ("request_slots", "num_sampled", "num_rejected"):
        arguments[name][2:] = 1  # another step's
        arguments[name] = arguments[name][:2]
    out = compare(arguments)
    for name in ("input_ids", "positions", "slot_mappings", "seq_lens", "sample_rows", "num_draft_kv"):
        assert torch.equal(out[name], named[name]), name


@pytest.mark.parametrize("num_first", [1, 2])
def test_a_batch_in_two_calls(num_first: int) -> None:
    """Requests from `num_first` on in a call of their own: slices of all that tells of the target's step."""
    requests = [decode(1, 4, 2), Request(6, 4, 9, 0, 14, 4), Request(4, 10, 10, 7, 8, 11, kept_rows=[0, 2, 7])]
    sizes = replace(SIZES, block_sizes=(8, 4))
    whole = run_both(requests, num_drafts=4, sizes=sizes)
    halves = step(requests, num_drafts=4, sizes=sizes)
    first_row = int(halves["query_start_loc"][num_first])
    for requests_of, rows in (
        (slice(0, num_first), slice(0, first_row)),
        (slice(num_first, None), slice(first_row, None)),
    ):
        per_request = ("request_slots", "num_sampled", "num_rejected", "seq_lens", "sample_rows")
        half = halves | {name: halves[name][requests_of] for name in per_request}
        half |= {name: halves[name][..., rows] for name in ("input_ids", "positions", "slot_mappings")}
        stop = None if requests_of.stop is None else requests_of.stop + 1
        starts = slice(requests_of.start, stop)
        half["target_query_start_loc"] = halves["target_query_start_loc"][starts]
        half["query_start_loc"] = halves["query_start_loc"][starts] - rows.start
        compare(half)
        if rows.start:
            half["sample_rows"] += rows.start
    for name in ("input_ids", "positions", "slot_mappings", "seq_lens", "sample_rows", "num_draft_kv"):
        assert torch.equal(halves[name].cpu(), whole[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_slots": torch.tensor([0, 1])}, r"asks for 1 requests; got request_slots \(2,\)"),
        ({"seq_lens": torch.zeros(0)}, r"asks for 1 requests; .* seq_lens \(0,\)"),
        ({"positions": torch.zeros(5)}, r"input_ids has 6 rows, so positions .* got \(5,\) and \(1, 6\)"),
        ({"slot_mappings": torch.zeros(1, 5)}, r"input_ids has 6 rows, so positions .* got \(6,\) and \(1, 5\)"),
        ({"block_sizes": (4, 4)}, r"1 block_tables want as many block_sizes .* got \(4, 4\), \(1, 8\) and \(1, 6\)"),
        ({"num_blocks": torch.zeros(0, 8)}, r"1 block_tables want as many"),
        ({"slot_mappings": torch.zeros(0, 6)}, r"1 block_tables want as many"),
        ({"kept_rows": torch.zeros(3)}, r"an entry for each of 4 target rows; got \(3,\)"),
        ({"block_tables": (torch.zeros(8, 24)[:, ::2],)}, r"block_tables must be contiguous in their last dimension"),
        ({"sample_rows": torch.zeros(1, 6)[:, ::2]}, r"sample_rows must be contiguous; got strides"),
    ],
)
def test_shapes_are_checked(change: dict[str, Any], message: str) -> None:
    arguments = step([decode(1, 3, 0)], num_drafts=3, sizes=SIZES)
    with pytest.raises(ValueError, match=message):
        prepare_draft_inputs(**(arguments | change))
