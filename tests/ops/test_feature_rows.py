"""Which of the target's features each draft row reads (PARD-2): the rule, and the kernel against its twin."""

from typing import Any

import pytest
import torch
from draft_step import DEVICE, POISON, Request, StepSizes, compare, decode, step
from pard_kernels import FeatureRows, prepare_draft_inputs

SIZES = StepSizes()


def feature_rows(requests: list[Request], num_drafts: int) -> FeatureRows:
    features: FeatureRows = compare(step(requests, num_drafts, SIZES, DEVICE, reads_target=True))["features"]
    return features


def test_worked_example() -> None:
    """K = 3, one of three drafts accepted at 10..13: draft 11 reads 10, bonus 12 and masks read 11, padding nothing."""
    features = feature_rows([decode(slot=2, num_drafts=3, num_rejected=2)], num_drafts=3)
    nothing = features.nothing
    assert features.rows.tolist() == [0, 1, 1, 1, nothing, nothing]
    assert features.carries.tolist() == [[1, features.first_carried + 2]], "11 is the last token that is kept"
    assert features.num_carried[2] == 12


def test_the_rows_of_several_requests_are_their_own() -> None:
    features = feature_rows([decode(5, 3, 0), decode(0, 3, 3), decode(3, 3, 1)], num_drafts=3)
    assert features.rows[:6].tolist() == [0, 1, 2, 3, 3, 3]
    assert features.rows[6:9].tolist() == [4, 4, 4], "the bonus at 11 reads 10"
    assert features.rows[12:18].tolist() == [8, 9, 10, 10, 10, features.nothing]
    assert features.carries[:, 0].tolist() == [3, 4, 10]


def test_the_first_token_reads_nothing() -> None:
    features = feature_rows([Request(1, 0, 4, 0, 4 + 3, 0)], num_drafts=3)
    assert features.rows.tolist() == [features.nothing, 0, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(("num_carried", "is_read"), [(6, True), (5, False), (7, False), (0, False), (POISON, False)])
def test_a_chunk_goes_on_with_what_its_slot_carries(num_carried: int, is_read: bool) -> None:
    """Tokens 6..8: token 6 reads the feature of 5, if that is the one that is carried."""
    chunk = Request(3, 6, 3, 0, 3, 6, has_bonus=False, num_carried=num_carried)
    features = feature_rows([decode(1, 3, 1), chunk], num_drafts=0)
    carried = features.first_carried + 3
    assert features.rows[6:].tolist() == [carried if is_read else features.nothing, 4, 5]
    assert features.carries[1].tolist() == [6, carried]
    assert features.num_carried[3] == 9


def test_the_bonus_of_a_step_without_drafts_is_read_by_the_next_step() -> None:
    """One token at 7 was verified; the draft has read the first 7, so its next row is that token's."""
    features = feature_rows([Request(4, 7, 1, 0, 6, 7, num_carried=7)], num_drafts=3)
    carried = features.first_carried + 4
    assert features.rows.tolist() == [carried, 0, 0, 0, features.nothing, features.nothing]


def test_tokens_from_before_the_carried_one_read_nothing() -> None:
    """At the end of the context rows are read again whose features are gone."""
    features = feature_rows([Request(1, 33, 5, 0, 12, 34, num_carried=33)], num_drafts=4)
    carried, nothing = features.first_carried + 1, features.nothing
    assert features.rows.tolist() == [*[nothing] * 5, carried, 0, 1, 2, 3, 4, 4]


def test_kept_rows_of_a_tree() -> None:
    """Ten rows of a tree at positions 10..19, of which the root, its second child and that one's third are kept."""
    features = feature_rows([decode(4, 3, 1), Request(2, 10, 10, 7, 6, 11, kept_rows=[0, 2, 7])], num_drafts=3)
    assert features.rows[6:].tolist() == [4, 6, 11, 11, 11, features.nothing]
    assert features.carries[1].tolist() == [11, features.first_carried + 2]


def test_a_dummy_reads_and_carries_nothing() -> None:
    features = feature_rows([Request(-1, 9, 5, 0, 8, 10)], num_drafts=4)
    assert (features.rows == features.nothing).all()
    assert features.carries.tolist() == [[features.nothing, features.nothing]], "a copy to itself"
    assert (features.num_carried == POISON).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(5, dtype=torch.int32)}, r"must have 6 rows, 1 carries .*; got \(5,\)"),
        ({"carries": torch.zeros(0, 2, dtype=torch.int32)}, r"1 carries .* got \(6,\), \(0, 2\)"),
        ({"num_carried": torch.zeros(3, dtype=torch.int32)}, r"for 8 slots; .* \(3,\)"),
        ({"rows": torch.zeros(6, dtype=torch.int64)}, "rows of features must be contiguous int32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = step([decode(2, 3, 2)], 3, SIZES, DEVICE, reads_target=True)
    arguments["features"] = arguments["features"]._replace(**change)
    with pytest.raises(ValueError, match=message):
        prepare_draft_inputs(**arguments)
