"""PardWorker: the platform's own worker with PARD's drafting put in place between init_device and load_model."""

from collections.abc import Collection
from typing import Any, cast

from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_pard.config import ConfigError
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.serving import compat, hooks
from vllm_pard.serving.patches import apply_patches, scopes_of_worker
from vllm_pard.serving.speculative_config import PardSpeculativeConfig
from vllm_pard.serving.summary import of_engine
from vllm_pard.serving.watch import AcceptanceWatch, WatchLimits, warning

logger = init_logger("vllm.vllm_pard")


def _platform_worker() -> type[Any]:
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker as Worker
    elif current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker
    else:
        raise ConfigError(
            f"PARD runs on NVIDIA and AMD GPUs and on CPUs; this is {current_platform.device_name!r}: "
            f"use {compat.UPSTREAM_ALTERNATIVE}"
        )
    return cast(type[Any], Worker)


class PardWorker(_platform_worker()):  # type: ignore[misc]
    """Runs in vLLM's worker process; `worker_cls` of the engine's parallel config names it."""

    watch: AcceptanceWatch | None = None  # once the engine is ready, where the scheduler's outputs come from
    drafted: Collection[str] = ()  # requests whose drafts the step in progress verifies
    holds_drafts = False  # the scheduler gets none

    def init_device(self) -> None:
        """Build the model runner, then swap its drafting for PARD's."""
        compat.check_hooks(hooks.WORKER_HOOKS)
        if current_platform.is_cpu():
            compat.check_hooks(hooks.CPU_WORKER_HOOKS)
        super().init_device()
        spec = self.vllm_config.speculative_config
        if not isinstance(spec, PardSpeculativeConfig):
            raise ConfigError(f"PardWorker was started without a PARD speculative config; got {spec!r}")
        actual = "v2" if self.use_v2_model_runner else "v1"
        if actual != spec.runner:
            raise ConfigError(
                f"PARD was planned for model runner {spec.runner.upper()}, but vLLM chose {actual.upper()} because of "
                f"another option (its log says which): leave that option out, or use {compat.UPSTREAM_ALTERNATIVE}"
            )
        if actual == "v2":
            self._use_v2_speculator()
        else:
            self._use_v1_proposer()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load target and draft, and let drafting and verification know the samplers that are built with them."""
        super().load_model(*args, **kwargs)
        if self.use_v2_model_runner:
            self._use_v2_samplers()

    def reload_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Let the draft's copies of weights follow."""
        return self._and_reload_draft(super().reload_weights(*args, **kwargs))

    def finish_weight_update(self, *args: Any, **kwargs: Any) -> Any:
        """Let the draft's copies of weights follow."""
        return self._and_reload_draft(super().finish_weight_update(*args, **kwargs))

    def wake_up(self, *args: Any, **kwargs: Any) -> Any:
        """Let the draft's copies of weights follow."""
        return self._and_reload_draft(super().wake_up(*args, **kwargs))

    def _and_reload_draft(self, result: Any) -> Any:
        if self.use_v2_model_runner:
            self.model_runner.speculator.reload_weights()
        return result

    def _use_v2_samplers(self) -> None:
        from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

        from vllm_pard.serving.draft.sampling import FilteredDrafts
        from vllm_pard.serving.verification.named_logprobs import NamedLogprobsRejectionSampler

        runner, verifier = self.model_runner, self.model_runner.rejection_sampler
        if runner.speculator.trees is not None:
            from vllm_pard.serving.tree.rejection_sampler import TreeRejectionSampler

            runner.rejection_sampler = TreeRejectionSampler(runner.sampler, runner.speculative_config, runner.device)
            runner.rejection_sampler.trees = runner.speculator.trees
        elif type(verifier) is RejectionSampler:  # a model may bring its own
            runner.rejection_sampler = NamedLogprobsRejectionSampler(
                runner.sampler, runner.speculative_config, runner.device, watermark_key=verifier.watermark_key
            )
        if runner.speculator.draft_logits is not None:
            runner.speculator.filtered_drafts = FilteredDrafts(runner.speculator, runner.sampler.sampling_states)

    def _use_v2_speculator(self) -> None:
        compat.check_hooks(hooks.RUNNER_V2_HOOKS)
        from vllm_pard.serving.attention.backends import register
        from vllm_pard.serving.speculator import PardSpeculator
        from vllm_pard.serving.verification.lora import VerifiedRowsLoraState

        if self.vllm_config.speculative_config.tree_depth is not None:
            compat.check_hooks(hooks.TREE_HOOKS)
        register(self.vllm_config.model_config.dtype)  # layers of target and draft ask for it when they are built
        runner = self.model_runner
        self._ask_for_features()
        runner.speculator = PardSpeculator(runner.vllm_config, runner.device, runner.req_states)
        if runner.lora_config is not None:
            runner.lora_state = VerifiedRowsLoraState(runner.max_num_reqs)

    def _use_v1_proposer(self) -> None:
        compat.check_hooks(hooks.RUNNER_V1_HOOKS)
        from vllm_pard.serving.v1.features import DependentProposer
        from vllm_pard.serving.v1.proposer import PardProposer
        from vllm_pard.serving.v1.rejection_sampler import PardRejectionSampler
        from vllm_pard.serving.v1.unverifiable import restore_logits_processors

        for scope in scopes_of_worker("v1", is_cpu=current_platform.is_cpu()):
            apply_patches(scope)
        runner, spec = self.model_runner, self.vllm_config.speculative_config
        self._ask_for_features()
        proposer = DependentProposer if spec.reads_target_states else PardProposer
        runner.drafter = proposer(runner.vllm_config, runner.device, runner)
        runner.rejection_sampler = PardRejectionSampler(runner.sampler, spec, runner.device)
        if spec.serves_every_sampling_param:
            restore_logits_processors(runner)

    def _ask_for_features(self) -> None:
        """Have the target give the states of the layers that the draft reads beside its output."""
        spec = self.vllm_config.speculative_config
        if spec.reads_target_states:
            layers = spec.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids
            self.model_runner.use_aux_hidden_state_outputs = bool(layers)

    def compile_or_warm_up_model(self) -> Any:
        """The last thing before the engine is ready: what drafts can need is compiled, and it is known what drafts."""
        if self.use_v2_model_runner:
            self._find_every_graph()
            self.model_runner.speculator.warm_up()
        times = super().compile_or_warm_up_model()
        if self.is_driver_worker:
            logger.info(of_engine(self.vllm_config, self.model_runner).line)
            self.watch = AcceptanceWatch(self._warn_of_low_acceptance, WatchLimits())
        return times

    def _find_every_graph(self) -> None:
        from vllm_pard.serving.target_graphs import find_every_graph

        manager = self.model_runner.cudagraph_manager
        if manager is not None and self.vllm_config.speculative_config.uses_dynamic_speculative_decoding():
            find_every_graph(manager)

    def execute_model(self, scheduler_output: Any) -> Any:
        """The first half of a step; adapters have to know how many rows of logits each request has in it."""
        self.drafted = scheduler_output.scheduled_spec_decode_tokens
        if self.use_v2_model_runner and self.model_runner.lora_config is not None:
            self.model_runner.lora_state.schedule(self.drafted)
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The second half; its outputs pass the watch on their way to the scheduler."""
        output = super().sample_tokens(grammar_output)
        return output if self.watch is None else self.watch.watch(output, self.drafted)

    def take_draft_token_ids(self) -> Any:
        """Hand a step's drafts to the scheduler."""
        drafts = super().take_draft_token_ids()
        if drafts is None or self.use_v2_model_runner:
            return drafts
        from vllm_pard.serving.v1.unverifiable import drop_all, drop_unverifiable

        return drop_all(drafts) if self.holds_drafts else drop_unverifiable(drafts, self.model_runner)

    def hold_drafts(self, hold: bool) -> float | None:
        """Draft, but keep the drafts from the scheduler, or no more: so plain steps are measured in a running engine.

        Returns the seconds that drafting has taken so far; None where steps are scheduled before their drafts are
        known, so that there are no plain ones: on GPUs, and on model runner V2.
        """
        if self.use_v2_model_runner or not current_platform.is_cpu():
            return None
        self.holds_drafts = hold
        seconds: float = self.model_runner.drafter.seconds
        return seconds

    def _warn_of_low_acceptance(self, counts: AcceptanceStats) -> None:
        logger.warning(warning(counts, self.vllm_config.speculative_config, self.vllm_config.model_config.model))
