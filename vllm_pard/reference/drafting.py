"""How the reference engine runs a PARD or PARD-2 draft: found by name, checked, with the weights of its mode."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_pard.catalog import choose_draft
from vllm_pard.checkpoint import PardCheckpoint
from vllm_pard.pard2 import Mode, WantedMode
from vllm_pard.target_proj import TargetProj, target_proj_for


@dataclass(frozen=True, kw_only=True)
class ParallelDrafting:
    """A draft and the mode that it is to be run in."""

    checkpoint: PardCheckpoint
    num_speculative_tokens: int
    target_proj: TargetProj | None  # of a PARD-2 draft in dependent mode
    reason: str | None  # for the mode of a PARD-2 draft

    @classmethod
    def find(
        cls,
        target: str,
        target_config: Mapping[str, Any],
        *,
        draft: str | None,
        wanted: WantedMode,
        num_speculative_tokens: int | None = None,
        mask_token_id: int | None = None,
    ) -> "ParallelDrafting":
        """As `choose_draft` and `target_proj_for`. Raises PardError where the pair does not fit as wanted."""
        checkpoint, k = choose_draft(
            target,
            target_config,
            draft=draft,
            num_speculative_tokens=num_speculative_tokens,
            mask_token_id=mask_token_id,
        )
        target_proj, reason = target_proj_for(checkpoint, target, target_config, wanted=wanted)
        return cls(
            checkpoint=checkpoint,
            num_speculative_tokens=k,
            target_proj=target_proj,
            reason=None if checkpoint.features is None else reason,
        )

    @property
    def mode(self) -> Mode | None:
        """None for PARD, which has no other."""
        if self.checkpoint.features is None:
            return None
        return "independent" if self.target_proj is None else "dependent"

    @property
    def options(self) -> dict[str, Any]:
        """Of the engine; the draft's weights and K are for the caller to give."""
        return {
            "method": self.checkpoint.format,
            "mask_token_id": self.checkpoint.mask_token_id,
            "target_proj": self.target_proj,
            "draft_vocab": self.checkpoint.read_draft_vocab(),
        }
