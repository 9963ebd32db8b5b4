"""What trees can't be had with, found before a model is loaded."""

from typing import Any

from vllm_pard.config import NUM_CANDIDATES, ConfigError, PardConfig, TreeConfig
from vllm_pard.serving.feature_plan import takes_foreign_kv


def check_tree(wanted: PardConfig, engine_args: Any, target_model_config: Any, *, runner: str) -> None:
    """Give the target the attention that takes a mask. Raises ConfigError where trees can't be had."""
    if wanted.tree is None:
        return
    obstacle = (
        _of_options(wanted)
        or _of_engine(engine_args, runner)
        or _of_target(target_model_config)
        or _of_attention(engine_args)
    )
    if obstacle is not None:
        raise ConfigError(f'"tree" {obstacle}, or leave "tree" out')


def num_draft_tokens(tree: TreeConfig | None, num_depths: int) -> int:
    """Of a step, at most: the nodes of a tree. Raises ConfigError if fewer exist, unless their number is chosen."""
    if tree is None:
        return num_depths
    most: int = sum(NUM_CANDIDATES**depth for depth in range(1, min(num_depths, 3) + 1))
    if tree.nodes > most and not tree.is_chosen:
        raise ConfigError(f'a "tree" {num_depths} deep has at most {most} nodes; got {tree.nodes}')
    return min(tree.nodes, most)


def _of_options(wanted: PardConfig) -> str | None:
    given = wanted.upstream
    for name in ("num_speculative_tokens_per_batch_size", "enable_adaptive_verification"):
        if given.get(name):
            return f'and "{name}" both choose what is verified: leave one of them out'
    if given.get("draft_sample_method") not in (None, "greedy"):
        asked = given["draft_sample_method"]
        return f'takes the likeliest tokens of a draft, and "draft_sample_method" is {asked!r}: leave it'
    if given.get("rejection_sample_method") not in (None, "standard"):
        return (
            f'has its own verification, and "rejection_sample_method" is {given["rejection_sample_method"]!r}: leave it'
        )
    return None


def _of_engine(engine_args: Any, runner: str) -> str | None:
    if runner != "v2":
        return "needs model runner V2: install Triton, and leave VLLM_USE_V2_MODEL_RUNNER"
    if getattr(engine_args, "enable_lora", False):
        return "does not go with LoRA, whose rows vLLM takes for a chain: leave enable_lora"
    if takes_foreign_kv(engine_args):
        return (
            "does not go with a KV connector, which saves keys and values before the kept ones are moved: leave "
            "--kv-transfer-config and --kv-offloading-size"
        )
    return None


def _of_target(config: Any) -> str | None:
    kinds = {
        "latent attention (MLA)": config.use_mla,
        "states besides keys and values (Mamba, convolutions)": config.has_inner_state,
        "an encoder": config.is_encoder_decoder,
        "positions of several dimensions (M-RoPE), which are not those of its rows": config.uses_mrope,
    }
    found = next((kind for kind, is_there in kinds.items() if is_there), None)
    return found and f"does not go with a target that has {found}: take another target"


def _of_attention(engine_args: Any) -> str | None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    asked = engine_args.attention_backend or engine_args.attention_config.backend
    if asked is None or str(asked).lower() == "auto":
        engine_args.attention_backend = AttentionBackendEnum.CUSTOM
        return None
    name = str(getattr(asked, "name", asked)).upper()
    return None if name == "CUSTOM" else f"needs attention backend CUSTOM, and {name} is asked for: leave it"
