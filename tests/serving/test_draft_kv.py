"""The host's bound is never below the device's exact need, whatever happens between drafting steps."""

import numpy as np
import pytest

from vllm_pard.serving.draft.kv import DraftBacklog


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def enter(backlog: DraftBacklog, names: list[str], computed: np.ndarray, lens: np.ndarray, prefill: bool) -> np.ndarray:
    flags = np.full(len(names), prefill)
    return backlog.enter(np.arange(len(names)), names, computed, lens, flags, np.ones(len(names), dtype=bool))


def plan(backlog: DraftBacklog, lens: np.ndarray, *, num_drafts: int = 4, max_rows: int = 100, sample: bool = True):
    slots = np.arange(len(lens))
    return [
        rows.tolist()
        for rows in backlog.plan(slots, lens, np.full(len(lens), sample), num_drafts, max_rows, max_model_len=60)
    ]


def test_prompt_then_verification() -> None:
    backlog = DraftBacklog(2)
    assert enter(backlog, ["a", "b"], array(0, 16), array(7, 3), prefill=True).all()
    assert plan(backlog, array(7, 3)) == [[11, 7]], "prompt, bonus and three masks"
    assert not enter(backlog, ["a", "b"], array(7, 19), array(5, 5), prefill=False).any()
    assert plan(backlog, array(5, 5)) == [[8, 8]], "2K rows: the last bonus is already there"


def test_chunks_have_no_masks() -> None:
    backlog = DraftBacklog(1)
    assert plan(backlog, array(16), sample=False) == [[16]]
    assert plan(backlog, array(3)) == [[7]]


def test_skipped_steps_are_caught_up() -> None:
    backlog = DraftBacklog(1)
    plan(backlog, array(5))
    for _ in range(6):
        backlog.skip(np.array([0]), array(1))
    assert plan(backlog, array(1)) == [[6 + 1 - 1 + 4]]
    assert plan(backlog, array(5)) == [[8]]


def test_a_backlog_larger_than_a_forward_takes_several() -> None:
    backlog = DraftBacklog(3)
    backlog.skip(np.arange(3), array(50, 1, 20))
    forwards = plan(backlog, array(1, 1, 1), max_rows=24)
    assert len(forwards) > 2
    assert all(sum(rows) <= 24 and min(rows) >= 1 for rows in forwards)
    caught_up = np.sum(forwards[:-1], axis=0) + np.array(forwards[-1]) - 4
    assert (caught_up >= array(51, 2, 21)).all(), "every pending token has its row"
    assert plan(backlog, array(5, 5, 5), max_rows=24) == [[8, 8, 8]]


def test_spans_end_with_the_context() -> None:
    assert plan(DraftBacklog(1), array(58)) == [[60]]


@pytest.mark.parametrize(
    ("name", "computed", "is_new"),
    [
        pytest.param("a", 12, False, id="same request goes on"),
        pytest.param("b", 12, True, id="another takes the slot"),
        pytest.param("a", 0, True, id="resumed from nothing"),
        pytest.param("a", 11, True, id="resumed from the prefix cache, all but the bonus"),
    ],
)
def test_start_and_resumption(name: str, computed: int, is_new: bool) -> None:
    backlog = DraftBacklog(1)
    enter(backlog, ["a"], array(0), array(11), prefill=True)  # reaches 11 tokens and a bonus
    backlog.skip(np.array([0]), array(11))
    assert enter(backlog, [name], array(computed), array(2), prefill=True).tolist() == [is_new]
    assert plan(backlog, array(2)) == [[2 + 4 + (0 if is_new else 11)]]


def test_too_many_requests_for_a_forward() -> None:
    with pytest.raises(
        ValueError, match=r"3 requests with 4 draft tokens each needs 15 rows; max_num_batched_tokens=14"
    ):
        plan(DraftBacklog(3), array(1, 1, 1), max_rows=14)
