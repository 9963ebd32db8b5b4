"""The draft's copy of the target's hidden states."""

import pytest
import torch

from vllm_pard.serving.draft.target_states import TargetStates


def test_states_lie_side_by_side_at_one_place() -> None:
    states = TargetStates(8, torch.device("cpu"))
    with pytest.raises(ValueError, match="before its first step"):
        _ = states.rows
    states.take([torch.ones(3, 2), torch.full((3, 1), 5.0)])
    place = states.rows.data_ptr()
    states.take([torch.full((2, 2), 7.0), torch.full((2, 1), 9.0)])
    assert states.rows.data_ptr() == place
    assert states.rows[:4].tolist() == [[7, 7, 9], [7, 7, 9], [1, 1, 5], [0, 0, 0]]


@pytest.mark.parametrize("shape", [(9, 3), (2, 4)], ids=["more rows", "another width"])
def test_what_does_not_fit_is_refused(shape: tuple[int, int]) -> None:
    states = TargetStates(8, torch.device("cpu"))
    states.take([torch.zeros(8, 3)])
    with pytest.raises(ValueError, match=rf"{shape[0]} x {shape[1]} do not fit the buffer of \(8, 3\)"):
        states.take([torch.zeros(shape)])
