"""Requests in the places of a graph."""

import numpy as np
import torch


def test_who_is_where() -> None:
    """Three requests of 3, 12 and 5 rows in eight places of 4, two of which stay empty."""
    from vllm_pard.serving.draft.places import Places, count_places

    counts = count_places(np.array([3, 12, 5]), 4)
    places = Places.of(counts, 8, 4, torch.device("cpu"))
    assert places.owners.tolist() == places.host_owners.tolist() == [0, 1, 1, 1, 2, 2, 3, 4]
    assert places.lasts.tolist() == [0, 3, 5]
    assert places.rows_behind.tolist() == [0, 8, 4, 0, 4, 0, 0, 0]
    assert places.starts.tolist() == [0, 4, 16, 24, 28, 32]
    assert places.starts.dtype == places.rows_behind.dtype == torch.int32


def test_what_requests_have_is_handed_out() -> None:
    from vllm_pard.serving.draft.places import Places

    places = Places.of(np.array([1, 2]), 4, 4, torch.device("cpu"))
    seq_lens = torch.tensor([30, 20, 4, 99, 99])
    places.hand_out(seq_lens)
    assert seq_lens.tolist() == [30, 20, 20, 4, 99]
    table = torch.tensor([[7, 8], [1, 2], [3, 4], [5, 6]])
    places.hand_out_blocks(table, first=1)
    assert table.tolist() == [[1, 2], [3, 4], [3, 4], [5, 6]]
