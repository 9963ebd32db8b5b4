"""From the user's `{"method": "pard", ...}` to the object that vLLM carries through its processes.

Unpickled by engine and worker processes before any plugin runs: importing this module must have no side effect.
"""

import os
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from vllm.config.speculative import SpeculativeConfig
from vllm.config.utils import config
from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_pard.catalog import choose_draft
from vllm_pard.checkpoint import Loading, PardCheckpoint, check_tokenizers
from vllm_pard.config import SPEC_FLAGS, ConfigError, PardConfig, check_num_speculative_tokens
from vllm_pard.pard2 import FeatureConfig, Mode
from vllm_pard.serving import compat, hooks
from vllm_pard.serving.choice_plan import schedule_of, use_choice
from vllm_pard.serving.draft.positions import extend_draft
from vllm_pard.serving.feature_plan import EngineFacts, FeaturePlan, plan_features
from vllm_pard.serving.option_checks import (
    RUNNER_VARIABLE,
    Runner,
    check_adapters,
    check_batched_tokens,
    check_draft_vocab,
    check_options,
    in_one_sentence,
)
from vllm_pard.serving.target_layers import hook_layers
from vllm_pard.serving.tree.checks import check_tree, num_draft_tokens

logger = init_logger("vllm.vllm_pard")

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
    lengths: tuple[int, ...] = ()
    """Among which a step's number of draft tokens is chosen; empty: it is what vLLM schedules."""
    tree_depth: int | None = None
    """How far a tree looks ahead, whose nodes vLLM takes for the draft tokens; None: a chain."""
    features: FeatureConfig | None = None
    """What a PARD-2 draft in dependent mode reads of the target; None in independent mode, and for PARD drafts."""
    mode_reason: str | None = None
    """Why a PARD-2 draft has its mode; None for PARD drafts."""

    def verify_equal_vocab_size_if_draft_model(self) -> None:
        """Accept any sizes: `build` has compared the tokenizers, and drafting keeps to the common ids."""

    @property
    def draft_depth(self) -> int:
        """How far the draft looks ahead: a chain has one token at each depth, a tree may have several."""
        return int(self.tree_depth or self.num_speculative_tokens)

    @property
    def reads_target_states(self) -> bool:
        """Whether the draft reads the target's hidden states."""
        return self.features is not None

    @property
    def mode(self) -> Mode:
        """Of a PARD-2 draft; any other is independent."""
        return "independent" if self.features is None else "dependent"

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        """Rows that a draft forward adds to a request's scheduled tokens: the bonus token and K - 1 masks."""
        return self.draft_depth

    @property
    def serves_every_sampling_param(self) -> bool:
        """Whether min_p and logit_bias are served: V2 verifies with them, V1 on a CPU doesn't draft for them."""
        return self.runner == "v2" or current_platform.is_cpu()

    def __repr__(self) -> str:
        return (
            f"PardSpeculativeConfig(method='pard', draft={self.model!r}, "
            f"num_speculative_tokens={self.num_speculative_tokens}, mask_token_id={self.mask_token_id}, "
            f"mode={self.mode!r}, runner={self.runner!r})"
        )


def build(engine_args: Any, target_model_config: Any, target_parallel_config: Any) -> PardSpeculativeConfig | None:
    """Check everything that can be known before a model is loaded, and build the config; None for a pooling model.

    Raises a PardError with one sentence: unsupported vLLM, unknown or wrong option, no draft for the target, a draft
    that is not a PARD draft or has another tokenizer, or an engine option that PARD can't be combined with.
    """
    if reason := compat.unsupported_reason():
        raise ConfigError(reason)
    compat.check_hooks(hooks.CONFIG_HOOKS)
    wanted = PardConfig.from_mapping(_with_spec_flags(engine_args))
    if target_model_config.runner_type == "pooling":
        logger.warning("PARD: %s is served for pooling and generates no tokens: no draft", target_model_config.model)
        return None
    runner = planned_runner()
    check_options(wanted, target_model_config, target_parallel_config, runner, WORKER_CLS)
    check_adapters(wanted, engine_args)
    draft, num_depths = _choose_draft(wanted, target_model_config)
    plan = _plan_features(wanted, draft, engine_args, target_model_config)
    max_k = num_draft_tokens(wanted.tree, num_depths)
    check_batched_tokens(engine_args, target_model_config.max_model_len, max_k)
    check_tree(wanted, engine_args, target_model_config, runner=runner)
    lengths = use_choice(wanted, engine_args, max_k)
    draft_vocab = check_draft_vocab(wanted, draft, target_model_config, target_parallel_config, runner)
    try:
        result = PardSpeculativeConfig(
            method="draft_model",
            model=draft.path,
            num_speculative_tokens=max_k,
            tree_depth=None if wanted.tree is None else num_depths,
            lengths=lengths,
            parallel_drafting=runner == "v1",
            mask_token_id=draft.mask_token_id,
            draft_vocab=draft_vocab,
            draft_head_int8=str(wanted.upstream.get("quantization")).startswith("fp8"),
            runner=runner,
            features=plan.features,
            mode_reason=None if draft.features is None else plan.reason,
            target_model_config=target_model_config,
            target_parallel_config=target_parallel_config,
            **wanted.upstream,
            **(schedule_of(lengths, engine_args.max_num_seqs) if lengths and runner == "v2" else {}),
        )
    except ValidationError as error:
        raise in_one_sentence(error) from error
    _prepare_draft(result, draft, target_model_config)
    target_parallel_config.worker_cls = WORKER_CLS
    return result


def _prepare_draft(spec: PardSpeculativeConfig, draft: PardCheckpoint, target_model_config: Any) -> None:
    if spec.method != "draft_model":
        raise ConfigError(
            f"vLLM takes the draft {draft.path!r} for method {spec.method!r} because of its name; rename the folder"
        )
    if spec.features is not None:
        # vLLM asks the target for the layers that the draft's config names.
        ids = hook_layers(spec.features.target_layers, target_model_config.hf_text_config.num_hidden_layers)
        spec.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids = list(ids)
    if spec.runner == "v1":
        # vLLM's own proposer reads the mask token from the draft's config.
        spec.draft_model_config.hf_config.mask_token_id = draft.mask_token_id
    else:
        extend_draft(spec.draft_model_config, target_model_config.max_model_len)


def planned_runner() -> Runner:
    """The model runner vLLM will choose: V2 unless there is no Triton or the user says otherwise."""
    from vllm.triton_utils.importing import HAS_TRITON

    forced = os.environ.get(RUNNER_VARIABLE)
    if forced is not None:
        return "v2" if forced.strip().lower() in ("1", "true") else "v1"
    return "v2" if HAS_TRITON else "v1"


def _with_spec_flags(engine_args: Any) -> dict[str, Any]:
    given = dict(engine_args.speculative_config or {})
    for flag, key in SPEC_FLAGS.items():
        value = getattr(engine_args, flag.removeprefix("--").replace("-", "_"), None)
        if value is None:
            continue
        if key in given:
            raise ConfigError(f'{flag} and "{key}" in the speculative config say the same thing: give one of them')
        given[key] = value
    return given


def _choose_draft(wanted: PardConfig, target_model_config: Any) -> tuple[PardCheckpoint, int]:
    target, loading = target_model_config.model, _draft_loading(wanted, target_model_config)
    draft, num_speculative_tokens = choose_draft(
        target,
        target_model_config.hf_config.to_dict(),
        draft=wanted.model,
        loading=loading,
        num_speculative_tokens=wanted.num_speculative_tokens,
        mask_token_id=wanted.mask_token_id,
    )
    check_num_speculative_tokens(num_speculative_tokens)
    if note := check_tokenizers(
        target_model_config.tokenizer or target,
        draft.path,
        target_loading=replace(loading, revision=target_model_config.tokenizer_revision),
        draft_loading=loading,
    ):
        logger.warning("PARD: target %s, draft %s: %s", target, draft.path, note)
    return draft, num_speculative_tokens


def _draft_loading(wanted: PardConfig, target_model_config: Any) -> Loading:
    return Loading(
        revision=wanted.upstream.get("revision"),
        token=target_model_config.hf_token,
        trust_remote_code=target_model_config.trust_remote_code,
        skip_tokenizer=target_model_config.skip_tokenizer_init,
    )


def _plan_features(
    wanted: PardConfig, draft: PardCheckpoint, engine_args: Any, target_model_config: Any
) -> FeaturePlan:
    plan = plan_features(
        draft,
        target_model_config.model,
        target_model_config.hf_config.to_dict(),
        wanted=wanted.mode,
        engine=EngineFacts.of(engine_args, target_model_config),
        loading=_draft_loading(wanted, target_model_config),
    )
    if draft.features is not None and plan.features is None and wanted.mode == "auto":
        logger.warning("PARD: the PARD-2 draft runs independent: %s", plan.reason)
    return plan
