"""min_p and logit_bias on model runner V1, which verifies drafts without them: such a request gets no drafts.

Its one token a step is sampled as in plain decoding. This needs a scheduler that waits for the drafts of a step, as
vLLM's does on CPUs.
"""

from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS


def restore_logits_processors(runner: Any) -> None:
    """Give the runner those of vLLM's own logits processors that it leaves out under speculation."""
    processors = runner.input_batch.logitsprocs
    present = {type(processor) for processor in processors.all}
    for kind in BUILTIN_LOGITS_PROCESSORS:
        if kind in present:
            continue
        processor = kind(runner.vllm_config, runner.device, False)
        invariant = processor.is_argmax_invariant()
        (processors.argmax_invariant if invariant else processors.non_argmax_invariant).append(processor)


def drop_unverifiable(drafts: DraftTokenIds, runner: Any) -> DraftTokenIds:
    """The drafts without those that V1 would verify wrongly."""
    kept = [
        [] if _has_min_p_or_bias(runner.requests.get(req_id)) else tokens
        for req_id, tokens in zip(drafts.req_ids, drafts.draft_token_ids, strict=True)
    ]
    return DraftTokenIds(drafts.req_ids, kept)


def drop_all(drafts: DraftTokenIds) -> DraftTokenIds:
    """No drafts: the next step is a plain one."""
    return DraftTokenIds(drafts.req_ids, [[] for _ in drafts.req_ids])


def _has_min_p_or_bias(request: Any) -> bool:
    params: SamplingParams | None = getattr(request, "sampling_params", None)
    return params is not None and bool(params.min_p or params.logit_bias)
