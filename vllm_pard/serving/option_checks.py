"""Options that don't go together, found before a model is loaded: each is one sentence that says what to change."""

import os
from typing import Any, Literal

from pydantic import ValidationError
from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_pard.checkpoint import PardCheckpoint
from vllm_pard.config import ConfigError, PardConfig
from vllm_pard.draft_vocab_file import read_draft_vocab
from vllm_pard.serving import compat

logger = init_logger("vllm.vllm_pard")

Runner = Literal["v1", "v2"]
RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def check_options(
    wanted: PardConfig, target_model_config: Any, target_parallel_config: Any, runner: Runner, worker_cls: str
) -> None:
    """Raise ConfigError on the first option, of the draft or of the engine, that can't be had here."""
    _check_parallelism(target_parallel_config, worker_cls)
    _check_states(target_model_config)
    if runner == "v1":
        _check_v1(wanted, target_model_config)
    elif wanted.upstream.get("max_model_len") is not None:
        raise ConfigError('on model runner V2 the draft reads as far as the target: leave "max_model_len" out')
    if _is_given(wanted, "num_speculative_tokens_per_batch_size") and _is_given(wanted, "enable_adaptive_verification"):
        raise ConfigError(
            '"num_speculative_tokens_per_batch_size" and "enable_adaptive_verification" both choose how many drafts '
            "are verified: leave one of them out"
        )
    _check_draft_tensor_parallelism(wanted, target_parallel_config.tensor_parallel_size, runner)


def check_adapters(wanted: PardConfig, engine_args: Any) -> None:
    """Raise ConfigError where the engine could not tell which row of logits is whose adapter's."""
    if wanted.upstream.get("enable_adaptive_verification") and getattr(engine_args, "enable_lora", False):
        raise ConfigError(
            '"enable_adaptive_verification" chooses on the device which drafts are verified, and adapters of the '
            "lm_head are placed by the host: leave it out, or leave enable_lora out"
        )


def check_batched_tokens(engine_args: Any, max_model_len: int, num_speculative_tokens: int) -> None:
    """A step holds a request's verified tokens and the rows of its draft; refuse or warn where they have no room."""
    limit = engine_args.max_num_batched_tokens
    if limit is None:
        if engine_args.max_num_seqs is None:
            return
        limit = engine_args.max_num_seqs * max_model_len  # vLLM's own bound of its default
    k = num_speculative_tokens
    what_to_do = (
        f"give --max-num-batched-tokens {2 * k + 1} (2K + 1) or more for each request that decodes at once, "
        f"or at most {max((limit - 1) // 2, 1)} draft tokens"
    )
    if limit <= k:
        raise ConfigError(f"{k} draft tokens need a step of more than {k} tokens, and it has {limit}: {what_to_do}")
    if limit <= 2 * k:
        logger.warning("PARD: a step of %d tokens verifies %d of %d drafts: %s", limit, limit - k - 1, k, what_to_do)


def check_draft_vocab(
    wanted: PardConfig, draft: PardCheckpoint, target_model_config: Any, target_parallel_config: Any, runner: Runner
) -> str | None:
    """The absolute path of the draft vocabulary, given or the draft's own, read and checked; None if there is none."""
    path = draft.draft_vocab if wanted.draft_vocab is None else wanted.draft_vocab
    if path is None:
        return None
    read_draft_vocab(path, min(draft.vocab_size, target_model_config.get_vocab_size()))
    needs_logits = runner == "v1" or wanted.upstream.get("draft_sample_method") == "probabilistic"
    is_sharded = wanted.upstream.get("draft_tensor_parallel_size") != 1
    if needs_logits and is_sharded and target_parallel_config.tensor_parallel_size > 1:
        if wanted.draft_vocab is None:
            logger.warning("PARD: under tensor parallelism without greedy drafts on V2, the draft proposes all tokens")
            return None
        raise ConfigError(
            '"draft_vocab" under tensor parallelism needs model runner V2 and greedy drafts: leave "draft_vocab" out'
        )
    return os.path.abspath(path)


def in_one_sentence(error: ValidationError) -> ConfigError:
    """What vLLM's own check of the first wrong option says, with the option's name and value."""
    first = error.errors(include_url=False)[0]
    reason = " ".join(first["msg"].removeprefix("Value error, ").split()).rstrip(".")
    if not first["loc"]:
        return ConfigError(f"vLLM refuses the speculative config: {reason}")
    reason = reason.removeprefix("Input should be ")
    must_be = reason if reason[:1].isupper() else f"must be {reason}"
    return ConfigError(f'"{first["loc"][0]}" of the speculative config {must_be}; got {first["input"]!r}')


def _is_given(wanted: PardConfig, name: str) -> bool:
    return wanted.upstream.get(name) not in (None, False)


def _check_parallelism(parallel_config: Any, worker_cls: str) -> None:
    if parallel_config.worker_cls not in ("auto", worker_cls):
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


def _check_states(target_model_config: Any) -> None:
    if current_platform.is_cpu() and target_model_config.has_inner_state:
        raise ConfigError(
            f"the target {target_model_config.model!r} keeps states besides keys and values (Mamba, convolutions), "
            "which vLLM does not take back on a CPU where drafts are rejected: leave the draft out on this machine"
        )


def _check_v1(wanted: PardConfig, target_model_config: Any) -> None:
    asked = [
        f'"{name}"'
        for name in ("num_speculative_tokens_per_batch_size", "enable_adaptive_verification")
        if _is_given(wanted, name)
    ]
    if target_model_config.enable_prompt_embeds:
        asked.append("--enable-prompt-embeds with drafts")  # the first such request would end the engine
    if not asked:
        return
    forced = os.environ.get(RUNNER_VARIABLE)
    why = "which needs Triton" if forced is None else f"and {RUNNER_VARIABLE} is {forced!r}"
    raise ConfigError(f"{asked[0]} needs model runner V2, {why}: leave it out here")


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
