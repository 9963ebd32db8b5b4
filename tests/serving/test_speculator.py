"""Parts of the speculator that need no engine."""

from typing import Any

import pytest
import torch


@pytest.mark.parametrize("estimates", [False, True], ids=["drafts", "drafts and confidences"])
def test_ranks_agree_on_all_that_verification_reads(monkeypatch: pytest.MonkeyPatch, estimates: bool) -> None:
    """Where every rank drafts by itself: with other confidences, ranks would lay out other rows to verify."""
    from vllm_pard.serving import speculator

    class OfRankZero:
        def broadcast(self, tensor: torch.Tensor) -> None:
            tensor.fill_(7)

    monkeypatch.setattr(speculator, "get_tp_group", OfRankZero)
    drafting: Any = speculator.PardSpeculator.__new__(speculator.PardSpeculator)
    drafting.draft_group = object()
    drafting.acceptance_estimator = object() if estimates else None
    drafting.draft_tokens, drafting.draft_token_confidence_probs = torch.zeros(2, 3).long(), torch.zeros(2, 3)
    drafting._agree()
    assert (drafting.draft_tokens == 7).all()
    assert (drafting.draft_token_confidence_probs == (7 if estimates else 0)).all()
