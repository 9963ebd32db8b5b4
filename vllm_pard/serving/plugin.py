"""vLLM's entry point (`vllm.general_plugins`): runs in every process of every user, so it is light and never raises."""

import logging
from typing import Any


def register() -> None:
    """Make `{"method": "pard"}` known to vLLM; idempotent. What is wrong with PARD is said when PARD is asked for."""
    try:
        from vllm_pard.serving.patches import METHOD, apply_patches

        apply_patches("every process")
        _offer(METHOD)
    except Exception:  # an error here would end every vLLM command, also of those who never use PARD
        logging.getLogger("vllm.vllm_pard").warning('vllm_pard is off: {"method": "pard"} is unknown', exc_info=True)


def _offer(method: str) -> None:
    """Add to the choices of `--spec-method`. vLLM loads plugins before it makes its parser, and keeps its choices."""
    from vllm.config.speculative import SpeculativeConfig
    from vllm.engine import arg_utils

    compute: Any = getattr(arg_utils, "_compute_kwargs", None)
    choices = compute(SpeculativeConfig)["method"].get("choices") if compute else None
    if choices is not None and method not in choices:
        choices.append(method)
