"""Chain drafting on model runner V1, for machines without Triton: vLLM's own parallel drafting, our configuration."""

from typing import Any

from torch import Tensor, nn
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from vllm_pard.serving.draft.vocabulary import draft_token_ids, use_target_vocabulary


class PardProposer(DraftModelProposer):
    """vLLM's draft-model proposer, for drafts whose vocabulary is larger or smaller than the target's, or trimmed."""

    def __init__(self, vllm_config: Any, device: Any, runner: Any) -> None:
        super().__init__(vllm_config, device, runner)
        self._draft_vocab_size = int(self.draft_model_config.get_vocab_size())
        self._target_vocab_size = int(vllm_config.model_config.get_vocab_size())

    def _get_model(self) -> nn.Module:
        model: nn.Module = super()._get_model()
        token_ids = draft_token_ids(self.speculative_config.draft_vocab, self.device)
        use_target_vocabulary(model, self._draft_vocab_size, self._target_vocab_size, token_ids)
        return model

    def set_inputs_first_pass(self, *args: Any, **kwargs: Any) -> tuple[int, Tensor, Any]:
        """Replace ids that the draft does not know by the mask token; they can only be accepted as a target's own."""
        num_tokens, sample_indices, metadata = super().set_inputs_first_pass(*args, **kwargs)
        if self._draft_vocab_size < self._target_vocab_size:
            ids = self.input_ids[:num_tokens]
            ids.masked_fill_(ids >= self._draft_vocab_size, self.parallel_drafting_token_id)
        return num_tokens, sample_indices, metadata
