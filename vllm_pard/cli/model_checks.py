"""What can be known of a target and its draft before an engine starts; nothing heavy is imported, no hub is asked.

A hub model is left to the engine. What is refused here an engine would refuse, a while later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_pard.catalog import CatalogEntry, choose_draft, find_draft, model_folder
from vllm_pard.checkpoint import is_local, load_config
from vllm_pard.config import PardConfig
from vllm_pard.draft_vocab_file import read_draft_vocab
from vllm_pard.target_proj import check_mode

METHOD = "pard"
MISTRAL_CONFIG = "params.json"  # of Mistral's own format, which vLLM prefers
# Engine arguments after which a target's config.json is not what the engine goes by.
OTHER_CONFIG = ("config_format", "hf_config_path", "hf_overrides")


def engine_config(target: str, *, has_other_config: bool) -> dict[str, Any] | None:
    """The config.json of a local target if an engine will go by it."""
    if has_other_config or not is_local(target) or (Path(target) / MISTRAL_CONFIG).exists():
        return None
    return load_config(target)


def check_speculative(
    speculative: Mapping[str, Any] | None, target: str, target_config: Mapping[str, Any] | None
) -> None:
    """Raise PardError on a wrong key or value, and on a local draft that can't be used; other methods are vLLM's.

    Args:
        target_config: the target's config.json, if the engine will go by it; without it no draft is looked up.
    """
    if speculative is None or speculative.get("method") != METHOD:
        return
    wanted = PardConfig.from_mapping(speculative)
    if wanted.draft_vocab is not None:
        read_draft_vocab(wanted.draft_vocab)
    if wanted.model is None:
        entry = _known_draft(target, target_config)
        if entry is None or not is_local(entry.draft):
            return
    elif not is_local(model_folder(wanted.model)):
        return
    checkpoint, _ = choose_draft(target, target_config or {}, draft=wanted.model, mask_token_id=wanted.mask_token_id)
    if checkpoint.features is None or _has_shapes(target_config):
        check_mode(checkpoint, target, target_config or {}, wanted.mode)


def _has_shapes(config: Mapping[str, Any] | None) -> bool:
    """Whether they are written out, as for `_known_draft`."""
    config = config and (config.get("text_config") or config)
    return config is not None and {"hidden_size", "num_hidden_layers"} <= config.keys()


def _known_draft(target: str, config: Mapping[str, Any] | None) -> CatalogEntry | None:
    """The catalog's, where the config is written out: an engine fills gaps, and unwraps models of several parts."""
    if config is None or not {"architectures", "model_type", "vocab_size"} <= config.keys():
        return None
    architectures = config["architectures"] or [""]
    return find_draft(target, config) if str(architectures[0]).endswith("ForCausalLM") else None
