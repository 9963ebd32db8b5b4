"""How far a draft can read. A rotary table is as long as a model's config says, and nothing stops a read beyond it."""

from typing import Any

from vllm.logger import init_logger

from vllm_pard.config import ConfigError

logger = init_logger("vllm.vllm_pard")

# Rotary embeddings of which a longer table has the same first rows.
EXTENDABLE = {"default", "linear", "llama3"}


def extend_draft(draft_config: Any, target_max_model_len: int) -> None:
    """Let the draft read as far as the target on model runner V2, which drafts for every request.

    Beyond what it was trained for a draft guesses worse, which costs acceptance only. `draft_config` is vLLM's
    ModelConfig. Raises ConfigError where the rotary embedding depends on the longest position.
    """
    hf_config = draft_config.hf_config
    trained_length = getattr(hf_config, "max_position_embeddings", target_max_model_len)
    if trained_length < target_max_model_len:
        if not _rope_types(hf_config) <= EXTENDABLE:
            raise ConfigError(
                f"the draft {draft_config.model!r} has positions for {trained_length} tokens, and the target serves "
                f"up to {target_max_model_len}: add --max-model-len {trained_length}, or give a draft with more"
            )
        logger.warning(
            "PARD: the draft %s knows %d positions and the target serves up to %d: beyond, fewer drafts are accepted",
            draft_config.model,
            trained_length,
            target_max_model_len,
        )
        hf_config.max_position_embeddings = target_max_model_len
    draft_config.max_model_len = target_max_model_len  # or vLLM 0.33 takes the draft's for the target's


def _rope_types(hf_config: Any) -> set[str]:
    """Of the whole model, or of each kind of layer."""
    parameters = getattr(hf_config, "rope_parameters", None) or {}
    kinds = [kind for kind in parameters.values() if isinstance(kind, dict)] or [parameters]
    return {kind.get("rope_type", "default") for kind in kinds}
