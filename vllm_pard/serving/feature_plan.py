"""Whether a PARD-2 draft is served dependent: by what it was trained for, and by what the engine can give it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm_pard.checkpoint import Loading, PardCheckpoint
from vllm_pard.config import ConfigError
from vllm_pard.pard2 import FeatureConfig, Mode, WantedMode
from vllm_pard.serving.target_layers import hook_layers
from vllm_pard.target_proj import target_proj_for


class FeaturePlan(NamedTuple):
    """What the draft reads of its target, None in independent mode; and why."""

    features: FeatureConfig | None
    reason: str

    @property
    def mode(self) -> Mode:
        return "independent" if self.features is None else "dependent"


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What of an engine decides whether it can give features."""

    takes_foreign_kv: bool  # keys and values that this engine has not computed
    find_target_class: Callable[[], type | None]  # vLLM's; it is imported, so it is asked for last

    @classmethod
    def of(cls, engine_args: Any, target_model_config: Any) -> "EngineFacts":
        from vllm.model_executor.model_loader.utils import get_model_cls

        return cls(
            takes_foreign_kv=takes_foreign_kv(engine_args),
            find_target_class=lambda: get_model_cls(target_model_config),
        )

    @classmethod
    def foretold(cls, target_config: Mapping[str, Any]) -> "EngineFacts":
        """Of an engine with no options but its models, from the target's config.json."""
        return cls(takes_foreign_kv=False, find_target_class=lambda: _class_of(target_config))

    def obstacle(self, features: FeatureConfig, num_layers: int) -> str | None:
        """Why a target of so many layers can't give its features here."""
        if self.takes_foreign_kv:
            return (
                "with a KV connector (--kv-transfer-config, --kv-offloading-size) the target does not compute all "
                "tokens, and features of the others are not there"
            )
        if not hook_layers(features.target_layers, num_layers):
            return None  # the output alone, which every model gives
        from vllm.model_executor.models.interfaces import supports_eagle3

        target_class = self.find_target_class()
        if target_class is not None and not supports_eagle3(target_class):
            return f"vLLM's {target_class.__name__} does not hand out hidden states of its layers (SupportsEagle3)"
        return None


def takes_foreign_kv(engine_args: Any) -> bool:
    """Whether a KV connector moves keys and values between engines, or to other memory."""
    return bool((engine_args.kv_transfer_config, engine_args.kv_offloading_size) != (None, None))


def plan_features(
    draft: PardCheckpoint,
    target: str,
    target_config: Mapping[str, Any],
    *,
    wanted: WantedMode,
    engine: EngineFacts,
    loading: Loading,
) -> FeaturePlan:
    """The mode of `draft` for the target of this name and Hugging Face config.

    Dependent unless independent is `wanted`, the pair does not allow it (`choose_mode`), target_proj is missing, or the
    engine has an obstacle. Raises PardError if dependent is `wanted` and not possible, or if target_proj is damaged.
    """
    target_proj, reason = target_proj_for(draft, target, target_config, wanted=wanted, loading=loading)
    if target_proj is None:
        return FeaturePlan(None, reason)
    num_layers = (target_config.get("text_config") or target_config)["num_hidden_layers"]
    obstacle = engine.obstacle(target_proj.features, num_layers)
    if obstacle is None:
        return FeaturePlan(target_proj.features, reason)
    if wanted == "dependent":
        raise ConfigError(f"dependent mode is not possible: {obstacle}; use independent mode")
    return FeaturePlan(None, obstacle)


def _class_of(target_config: Mapping[str, Any]) -> type | None:
    """vLLM's own class of the architecture, if it has one."""
    from vllm.model_executor.models.registry import ModelRegistry

    architecture, *_ = target_config.get("architectures") or [""]
    known = ModelRegistry.models.get(architecture)
    found: type | None = known and known.load_model_cls()
    return found
