"""Loads the draft through vLLM: with which attention, in which vocabulary, with which lm_head."""

from typing import Any

from torch import nn
from vllm.config import set_current_vllm_config
from vllm.config.compilation import CUDAGraphMode
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import get_attn_backend

from vllm_pard.config import NUM_CANDIDATES
from vllm_pard.serving.draft.head import GreedyHead, choose_head
from vllm_pard.serving.draft.model import draft_vllm_config, load
from vllm_pard.serving.draft.vocabulary import draft_token_ids, use_target_vocabulary

logger = init_logger("vllm.vllm_pard")

# Modules of backends of vLLM that take a request for a decode up to 1 + K rows and for a prefill above, which no CUDA
# graph of theirs can replay; a draft step has 2K rows. (Names would not do: ROCm's calls itself FLASH_ATTN.)
# tests/serving/test_draft_loading.py reads them from vLLM's sources.
BACKENDS = "vllm.v1.attention.backends"
LIMIT_DECODES = frozenset({"flashinfer", "hpc_attn", "rocm_aiter_fa", "rocm_octave_attn", "turboquant_attn"})


def load_draft(speculator: Any) -> tuple[nn.Module, GreedyHead | None]:
    """The draft, answering in the target's vocabulary, and its head; None: the model's logits choose the tokens."""
    spec, vllm_config = speculator.speculative_config, speculator.vllm_config
    backend = spec.attention_backend or replacement_backend(vllm_config, speculator.depth)
    module = load(draft_vllm_config(vllm_config, backend))
    draft_vocab_size = int(spec.draft_model_config.get_vocab_size())
    target_vocab_size = int(vllm_config.model_config.get_vocab_size())
    token_ids = draft_token_ids(spec.draft_vocab, speculator.device)
    head = None
    if speculator.draft_logits is None and not speculator.use_acceptance_estimator:
        head = choose_head(
            module,
            num_tokens=min(draft_vocab_size, target_vocab_size),
            token_ids=token_ids,
            k=1 if speculator.trees is None else NUM_CANDIDATES,
            use_int8=spec.draft_head_int8,
            max_num_rows=speculator.max_num_reqs * speculator.depth,
            group=get_tp_group(),
        )
    # Logits are still asked for where no head chooses the tokens.
    use_target_vocabulary(module, draft_vocab_size, target_vocab_size, None if head is not None else token_ids)
    return module, head


def replacement_backend(vllm_config: Any, depth: int) -> AttentionBackendEnum | None:
    """CUSTOM where the draft's graphs can't be captured on the backend that vLLM would choose, else None."""
    wants_graphs = vllm_config.compilation_config.cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
    if depth < 2 or not wants_graphs or vllm_config.speculative_config.enforce_eager:
        return None
    given = selected_backend(draft_vllm_config(vllm_config, None))
    if not limits_decodes(given):
        return None
    try:
        selected_backend(draft_vllm_config(vllm_config, AttentionBackendEnum.CUSTOM))
    except ValueError as error:
        logger.warning("PARD: the draft runs without full CUDA graphs on %s: %s", given.__name__, error)
        return None
    logger.info(
        "PARD: the draft's attention is CUSTOM, since %s can't replay its %d rows a request from a CUDA graph; "
        '"attention_backend" in the speculative config chooses another',
        given.__name__,
        2 * depth,
    )
    return AttentionBackendEnum.CUSTOM


def limits_decodes(backend: type[Any]) -> bool:
    """Whether its metadata builder, or one that this one is built on, knows decodes of 1 + K rows only."""
    modules = {cls.__module__ for cls in backend.get_builder_cls().__mro__}
    return bool(modules & {f"{BACKENDS}.{name}" for name in LIMIT_DECODES})


def selected_backend(config: Any) -> type[Any]:
    """What vLLM chooses for the draft's layers under `config`. Raises ValueError if that can't run them."""
    model = config.model_config
    with set_current_vllm_config(config):
        backend: type[Any] = get_attn_backend(
            model.get_head_size(),
            model.dtype,
            config.cache_config.cache_dtype,
            num_heads=model.get_num_attention_heads(config.parallel_config),
            has_sliding_window=model.get_sliding_window() is not None,
        )
    return backend
