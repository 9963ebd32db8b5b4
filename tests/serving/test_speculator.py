"""What ranks that draft each by themselves have to share."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("has_trees", [False, True], ids=["chains", "trees"])
@pytest.mark.parametrize("estimates", [False, True], ids=["drafts", "drafts and confidences"])
def test_ranks_agree_on_all_that_verification_reads(
    monkeypatch: pytest.MonkeyPatch, estimates: bool, has_trees: bool
) -> None:
    """With other confidences or trees, ranks would lay out other rows to verify."""
    from vllm_pard.serving.draft import group
    from vllm_pard.serving.tree.trees import Trees

    class OfRankZero:
        def broadcast(self, tensor: torch.Tensor) -> None:
            tensor.fill_(7)

    monkeypatch.setattr(group.parallel_state, "get_tp_group", OfRankZero)
    state = SimpleNamespace(gpu=torch.zeros(2, 5, dtype=torch.int32))
    trees = Trees(2, 3, 8, torch.device("cpu"), SimpleNamespace(all_token_ids=state, total_len=state))
    drafting: Any = SimpleNamespace(
        acceptance_estimator=object() if estimates else None,
        draft_tokens=torch.zeros(2, 3).long(),
        draft_token_confidence_probs=torch.zeros(2, 3),
        trees=trees if has_trees else None,
    )
    group.agree(drafting)
    assert (drafting.draft_tokens == 7).all()
    assert (drafting.draft_token_confidence_probs == (7 if estimates else 0)).all()
    for tensor in (trees.depths, trees.parents, trees.ancestors):
        assert (tensor == 7).all() == has_trees
