"""How many tokens a target has room for, as far as that is known without vLLM."""

from collections.abc import Mapping
from typing import Any


def context_length(config: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    """The longest prompt and answer that vLLM may take: as asked for, or as the target was made for; None if unclear.

    Args:
        config: the target's config.json.
        options: engine arguments.
    """
    given = options.get("max_model_len")
    if given is not None:
        return given if type(given) is int and given > 0 else None
    is_plain = not {"text_config", "language_config", "model_max_length"} & config.keys()
    if not is_plain or config.get("rope_scaling") or _is_scaled(config.get("rope_parameters")):
        return None
    made_for = config.get("max_position_embeddings")
    return made_for if type(made_for) is int and made_for > 0 else None


def _is_scaled(rope: object) -> bool:
    """Whether positions are stretched beyond max_position_embeddings, in any kind of layer."""
    if not isinstance(rope, Mapping):
        return False
    return (
        rope.get("rope_type", rope.get("type", "default")) != "default"
        or "factor" in rope
        or any(_is_scaled(value) for value in rope.values())
    )
