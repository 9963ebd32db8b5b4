"""What is verified on model runner V1 where there is nothing to verify."""

from unittest.mock import Mock

import torch


def test_a_step_without_drafts_is_sampled_as_without_a_draft_model() -> None:
    """Logits of 32 requests are some megabytes, and vLLM's rejection sampler copies them twice."""
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    from vllm_pard.serving.v1.rejection_sampler import PardRejectionSampler

    sampler, logits, wishes = Mock(logprobs_mode="raw_logprobs"), torch.zeros(2, 8), object()
    metadata = SpecDecodeMetadata.make_dummy([[], []], torch.device("cpu"))
    sampled = PardRejectionSampler(sampler).forward(metadata, None, logits, wishes)
    assert sampled is sampler.return_value
    sampler.assert_called_once_with(logits=logits, sampling_metadata=wishes)
    assert sampler.call_args.kwargs["logits"] is logits
