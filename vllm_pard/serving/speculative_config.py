"""From the user's `{"method": "pard", ...}` to the object that vLLM carries through its processes.

Unpickled by engine and worker processes before any plugin runs: importing this module must have no side effect.
"""

import os
from typing import Any, Literal

from vllm.config.speculative import SpeculativeConfig
from vllm.config.utils import config
from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_pard.catalog import choose_draft
from vllm_pard.checkpoint import PardCheckpoint, check_tokenizers
from vllm_pard.config import ConfigError, PardConfig, check_num_speculative_tokens
from vllm_pard.draft_vocab import read_draft_vocab
from vllm_pard.serving import compat
from vllm_pard.serving.draft_length import extend_draft

logger = init_logger("vllm.vllm_pard")

Runner = Literal["v1", "v2"]

WORKER_CLS = "vllm_pard.serving.worker.PardWorker"


@config
class PardSpeculativeConfig(SpeculativeConfig):
    """A draft-model config that PardWorker recognises.

    To vLLM its method stays "draft_model", which keeps lookahead slots, draft K/V planning, asynchronous scheduling
    and metrics as they are for any draft model.
    """

    mask_token_id: int = -1
    """Token id that fills the K - 1 open draft positions."""
    draft_vocab: str | None = None
    """File with the token ids that may be drafted; None drafts all."""
    draft_head_int8: bool = False
    """Whether a greedy draft reads its lm_head in 8 bits: goes with `quantization="fp8"`, on V2."""
    runner: Runner = "v2"
    """The model runner this was planned for: V2 drafts with PardSpeculator, V1 with vLLM's parallel drafting."""

    def verify_equal_vocab_size_if_draft_model(self) -> None:
        """Accept any sizes: `build` has compared the tokenizers, and drafting keeps to the common ids."""

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        """Rows that a draft forward adds to a request's scheduled tokens: the bonus token and K - 1 masks."""
        return int(self.num_speculative_tokens)

    @property
    def serves_every_sampling_param(self) -> bool:
        """Whether min_p and logit_bias are served: V2 verifies with them, V1 on a CPU doesn't draft for them."""
        return self.runner == "v2" or current_platform.is_cpu()

    def __repr__(self) -> str:
        return (
            f"PardSpeculativeConfig(method='pard', draft={self.model!r}, "
            f"num_speculative_tokens={self.num_speculative_tokens}, mask_token_id={self.mask_token_id}, "
            f"runner={self.runner!r})"
        )


def build(engine_args: Any, target_model_config: Any, target_parallel_config: Any) -> PardSpeculativeConfig:
    """Check everything that can be known before a model is loaded, and build the config.

    Raises a PardError with one sentence: unsupported vLLM, unknown or wrong option, no draft for the target, a draft
    that is not a PARD draft or has another tokenizer, or an engine option that PARD can't be combined with.
    """
    if reason := compat.unsupported_reason():
        raise ConfigError(reason)
    compat.check_hooks(compat.CONFIG_HOOKS)
    wanted = PardConfig.from_mapping(_with_spec_flags(engine_args))
    _check_parallelism(target_parallel_config)
    runner = planned_runner()
    _check_num_drafts(wanted, runner)
    _check_adapters(wanted, engine_args)
    _check_draft_length(wanted, runner)
    _check_draft_tensor_parallelism(wanted, target_parallel_config.tensor_parallel_size, runner)
    draft, num_speculative_tokens = _choose_draft(wanted, target_model_config)
    result = PardSpeculativeConfig(
        method="draft_model",
        model=draft.path,
        num_speculative_tokens=num_speculative_tokens,
        parallel_drafting=runner == "v1",
        mask_token_id=draft.mask_token_id,
        draft_vocab=_check_draft_vocab(wanted, draft, target_model_config, target_parallel_config, runner),
        draft_head_int8=str(wanted.upstream.get("quantization")).startswith("fp8"),
        runner=runner,
        target_model_config=target_model_config,
        target_parallel_config=target_parallel_config,
        **wanted.upstream,
    )
    if result.method != "draft_model":
        raise ConfigError(
            f"vLLM takes the draft {draft.path!r} for method {result.method!r} because of its name; rename the folder"
        )
    if runner == "v1":
        # vLLM's own proposer reads the mask token from the draft's config.
        result.draft_model_config.hf_config.mask_token_id = draft.mask_token_id
    else:
        extend_draft(result.draft_model_config, target_model_config.max_model_len)
    target_parallel_config.worker_cls = WORKER_CLS
    logger.info(
        "PARD: draft %s, K=%d draft tokens in one forward, mask token %d, model runner %s",
        draft.path,
        num_speculative_tokens,
        draft.mask_token_id,
        runner.upper(),
    )
    return result


def planned_runner() -> Runner:
    """The model runner vLLM will choose: V2 unless there is no Triton or the user says otherwise."""
    from vllm.triton_utils.importing import HAS_TRITON

    forced = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if forced is not None:
        return "v2" if forced.strip().lower() in ("1", "true") else "v1"
    return "v2" if HAS_TRITON else "v1"


def _with_spec_flags(engine_args: Any) -> dict[str, Any]:
    given = dict(engine_args.speculative_config)
    for flag, key, value in (
        ("--spec-model", "model", getattr(engine_args, "spec_model", None)),
        ("--spec-tokens", "num_speculative_tokens", getattr(engine_args, "spec_tokens", None)),
    ):
        if value is None:
            continue
        if key in given:
            raise ConfigError(f'{flag} and "{key}" in the speculative config say the same thing: give one of them')
        given[key] = value
    return given


def _check_parallelism(parallel_config: Any) -> None:
    if parallel_config.worker_cls not in ("auto", WORKER_CLS):
        raise ConfigError(
            f"PARD brings its own worker class, but worker_cls is already {parallel_config.worker_cls!r}: "
            f"leave worker_cls out, or use {compat.UPSTREAM_ALTERNATIVE}"
        )
    for name, words in (
        ("pipeline_parallel_size", "pipeline parallelism"),
        ("decode_context_parallel_size", "decode context parallelism"),
        ("prefill_context_parallel_size", "prefill context parallelism"),
    ):
        if (size := getattr(parallel_config, name, 1)) > 1:
            raise ConfigError(f"PARD does not support {words}; got {name}={size}: use tensor parallelism instead")


def _check_draft_length(wanted: PardConfig, runner: Runner) -> None:
    if runner == "v2" and wanted.upstream.get("max_model_len") is not None:
        raise ConfigError('on model runner V2 the draft reads as far as the target: leave "max_model_len" out')


def _check_num_drafts(wanted: PardConfig, runner: Runner) -> None:
    if wanted.upstream.get("num_speculative_tokens_per_batch_size") is None:
        return
    if runner == "v1":
        raise ConfigError(
            '"num_speculative_tokens_per_batch_size" needs model runner V2, which needs Triton; '
            "leave it out on this machine"
        )
    if wanted.upstream.get("enable_adaptive_verification"):
        raise ConfigError(
            '"num_speculative_tokens_per_batch_size" and "enable_adaptive_verification" both choose how many drafts '
            "are verified: leave one of them out"
        )


def _check_adapters(wanted: PardConfig, engine_args: Any) -> None:
    if wanted.upstream.get("enable_adaptive_verification") and getattr(engine_args, "enable_lora", False):
        raise ConfigError(
            '"enable_adaptive_verification" chooses on the device which drafts are verified, and adapters of the '
            "lm_head are placed by the host: leave it out, or leave enable_lora out"
        )


def _check_draft_tensor_parallelism(wanted: PardConfig, target_size: int, runner: Runner) -> None:
    size = wanted.upstream.get("draft_tensor_parallel_size")
    if size is None or size == target_size:
        return
    if size != 1:
        raise ConfigError(f'"draft_tensor_parallel_size" must be 1 or the target\'s {target_size}; got {size!r}')
    if runner == "v1":
        raise ConfigError(
            f'on model runner V1 "draft_tensor_parallel_size" must be the target\'s {target_size}; got 1: leave it out'
        )
    if wanted.upstream.get("draft_sample_method") == "probabilistic":
        raise ConfigError(
            '"draft_sample_method": "probabilistic" needs a draft as parallel as the target: '
            'leave "draft_tensor_parallel_size" out'
        )


def _check_draft_vocab(
    wanted: PardConfig, draft: PardCheckpoint, target_model_config: Any, target_parallel_config: Any, runner: Runner
) -> str | None:
    if wanted.draft_vocab is None:
        return None
    read_draft_vocab(wanted.draft_vocab, min(draft.vocab_size, target_model_config.get_vocab_size()))
    needs_logits = runner == "v1" or wanted.upstream.get("draft_sample_method") == "probabilistic"
    is_sharded = wanted.upstream.get("draft_tensor_parallel_size") != 1
    if needs_logits and is_sharded and target_parallel_config.tensor_parallel_size > 1:
        raise ConfigError(
            '"draft_vocab" under tensor parallelism needs model runner V2 and greedy drafts: leave "draft_vocab" out'
        )
    return os.path.abspath(wanted.draft_vocab)


def _choose_draft(wanted: PardConfig, target_model_config: Any) -> tuple[PardCheckpoint, int]:
    target, revision = target_model_config.model, wanted.upstream.get("revision")
    draft, num_speculative_tokens = choose_draft(
        target,
        target_model_config.hf_config.to_dict(),
        draft=wanted.model,
        revision=revision,
        num_speculative_tokens=wanted.num_speculative_tokens,
        mask_token_id=wanted.mask_token_id,
    )
    check_num_speculative_tokens(num_speculative_tokens)
    if note := check_tokenizers(
        target_model_config.tokenizer or target,
        draft.path,
        target_revision=target_model_config.tokenizer_revision,
        draft_revision=revision,
    ):
        logger.warning("PARD: %s and %s share a tokenizer family, but %s", target, draft.path, note)
    return draft, num_speculative_tokens
