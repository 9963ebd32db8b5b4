"""`"num_speculative_tokens": "auto"` and `"tree": "auto"`: what is chosen among, and what it does not go with."""

from typing import Any

from vllm_pard.config import AUTO, ConfigError, PardConfig
from vllm_pard.serving import compat, hooks
from vllm_pard.serving.scheduler import SCHEDULER_CLS

LARGEST_BATCH = 2**20


def use_choice(wanted: PardConfig, engine_args: Any, max_k: int) -> tuple[int, ...]:
    """Have the engine choose up to max_k; empty if that is not wanted. Raises ConfigError where it can't."""
    if not wanted.chooses:
        return ()
    asked = f'"{"num_speculative_tokens" if wanted.tree is None else "tree"}": "{AUTO}"'
    for name in ("num_speculative_tokens_per_batch_size", "enable_adaptive_verification"):
        if wanted.upstream.get(name):
            raise ConfigError(f'{asked} and "{name}" both choose how many drafts are verified: leave one of them out')
    if wanted.tree is not None and not wanted.tree.is_chosen:
        raise ConfigError(
            f'"num_speculative_tokens": "{AUTO}" chooses among chains: give a number, or "tree": "{AUTO}", or leave '
            '"tree" out'
        )
    if engine_args.data_parallel_size > 1:
        raise ConfigError(
            f"{asked} is chosen by each engine alone, and data-parallel ones have to agree: give a number"
        )
    if engine_args.scheduler_cls not in (None, SCHEDULER_CLS):
        raise ConfigError(
            f"{asked} needs a scheduler of its own, and scheduler_cls is {engine_args.scheduler_cls!r}: leave it out, "
            "or give a number"
        )
    compat.check_hooks(hooks.SCHEDULER_HOOKS)
    engine_args.scheduler_cls = SCHEDULER_CLS
    return tuple(sorted({0, max(1, max_k // 4), max(1, max_k // 2), max_k}))


def schedule_of(lengths: tuple[int, ...], max_num_seqs: int | None) -> dict[str, Any]:
    """For vLLM on V2: CUDA graphs are captured for each length that a schedule has; the scheduler goes its own way.

    The longest has the largest batches, since vLLM makes graphs for batches up to a length's largest.
    """
    longest = sorted(lengths)[-(max_num_seqs or len(lengths)) :]
    entries = [[place, place, k] for place, k in enumerate(longest, start=1)]
    entries[-1][1] = LARGEST_BATCH
    return {"num_speculative_tokens_per_batch_size": entries}
