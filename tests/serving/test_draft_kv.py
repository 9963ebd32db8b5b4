"""The host's bound is never below the device's exact need, whatever happens between drafting steps."""

from typing import Any

import numpy as np
import pytest
import torch
from draft_kv_world import World

from vllm_pard.serving.draft.kv import DraftKV, StepRequests


def step(
    computed: list[int], lens: list[int], *, prefill: bool = True, sample: bool = True, slots: list[int] | None = None
) -> StepRequests:
    return StepRequests(
        slots=np.array(range(len(lens)) if slots is None else slots),
        query_lens=np.array(lens),
        num_computed=np.array(computed),
        is_prefill=np.full(len(lens), prefill),
        will_sample=np.full(len(lens), sample),
    )


def decode(lens: list[int]) -> StepRequests:
    return step([20] * len(lens), lens, prefill=False)


def plan(kv: DraftKV, requests: StepRequests, *, num_drafts: int = 4, max_num_rows: int = 100) -> Any:
    forwards = kv.plan(requests, slice(None), num_drafts=num_drafts, max_num_rows=max_num_rows, max_model_len=60)
    return [spans.tolist() for spans in forwards]


@pytest.fixture
def kv() -> DraftKV:
    return DraftKV(3, torch.device("cpu"))


def test_prompt_then_verification(kv: DraftKV) -> None:
    prompts = step([0, 16], [7, 3])
    kv.enter(prompts)
    assert kv.num_tokens.tolist() == [0, 16, 0], "the prefix cache holds the draft's keys and values too"
    assert plan(kv, prompts) == [[11, 7]], "prompt, bonus and three masks"
    assert plan(kv, decode([5, 5])) == [[8, 8]], "2K rows: the last bonus is already there"


def test_chunks_have_no_masks(kv: DraftKV) -> None:
    assert plan(kv, step([0], [16], sample=False)) == [[16]]
    assert plan(kv, step([16], [3])) == [[7]]


def test_prompts_are_read_without_drafts(kv: DraftKV) -> None:
    assert plan(kv, step([0], [16]), num_drafts=0) == [[16]]
    assert plan(kv, decode([1])) == [[5]], "the bonus was not read"


def test_skipped_steps_are_caught_up(kv: DraftKV) -> None:
    plan(kv, step([0], [5]))
    for _ in range(6):
        kv.skip(decode([1]), slice(0, 1))
    assert plan(kv, decode([1])) == [[6 + 1 - 1 + 4]]
    assert plan(kv, decode([5])) == [[8]]


def test_what_exceeds_a_forward_takes_several(kv: DraftKV) -> None:
    kv.skip(decode([50, 1, 20]), slice(None))
    forwards = plan(kv, decode([1, 1, 1]), max_num_rows=24)
    assert len(forwards) > 2
    assert all(sum(rows) <= 24 and min(rows) >= 1 for rows in forwards)
    caught_up = np.sum(forwards[:-1], axis=0) + np.array(forwards[-1]) - 4
    assert (caught_up >= np.array([51, 2, 21])).all(), "every missing token has its row"
    assert plan(kv, decode([5, 5, 5]), max_num_rows=24) == [[8, 8, 8]]


def test_spans_end_with_the_context(kv: DraftKV) -> None:
    assert plan(kv, step([0], [58])) == [[60]]


@pytest.mark.parametrize(
    ("computed", "is_new"),
    [
        pytest.param(16, False, id="the next chunk"),
        pytest.param(0, True, id="begun anew"),
        pytest.param(12, True, id="resumed from the prefix cache"),
        pytest.param(32, True, id="another prompt, of which the prefix cache has more"),
    ],
)
def test_start_and_resumption(kv: DraftKV, computed: int, is_new: bool) -> None:
    """Whatever the requests are called: a name may come again in the same slot."""
    first = step([0], [16], sample=False)
    kv.enter(first)
    kv.num_tokens[0] = 9  # as a forward that had no room for more would leave it
    kv.skip(first, slice(0, 1))
    second = step([computed], [2])
    kv.enter(second)
    assert kv.num_tokens[0] == (computed if is_new else 9)
    assert plan(kv, second) == [[2 + 4 + (0 if is_new else 16)]]


def test_a_prompt_after_an_answer_is_new(kv: DraftKV) -> None:
    kv.enter(step([0], [16]))
    kv.num_tokens[0] = 17
    kv.enter(decode([5]))
    kv.enter(step([25], [2]))
    assert kv.num_tokens[0] == 25, "although the answer had been thought to reach just as far"


def test_too_many_requests_for_a_forward(kv: DraftKV) -> None:
    with pytest.raises(
        ValueError, match=r"3 requests with 4 draft tokens each needs 15 rows; max_num_batched_tokens=14"
    ):
        plan(kv, decode([1, 1, 1]), max_num_rows=14)


@pytest.mark.parametrize("seed", range(5))
def test_random_schedules(seed: int) -> None:
    """2,000 steps each: chunks, preemptions, prefix hits, any K, aborts, slots used again."""
    world = World(seed)
    for _ in range(2000):
        world.step()
    assert set(world.seen) == {
        "skipped decodes", "catch-up forwards", "drafts", "prefix hits", "finished or aborted", "preempted"
    }  # fmt: skip
    assert min(world.seen.values()) > 20, world.seen
