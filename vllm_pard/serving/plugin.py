"""vLLM's entry point (`vllm.general_plugins`): runs in every process of every user, so it is light and never raises."""

import logging


def register() -> None:
    """Make `{"method": "pard"}` known to vLLM; idempotent. What is wrong with PARD is said when PARD is asked for."""
    try:
        from vllm_pard.serving.patches import apply_patches

        apply_patches("every process")
    except Exception:  # an error here would end every vLLM command, also of those who never use PARD
        logging.getLogger("vllm.vllm_pard").warning('vllm_pard is off: {"method": "pard"} is unknown', exc_info=True)
