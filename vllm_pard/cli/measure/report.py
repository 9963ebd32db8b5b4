"""What `vllm-pard doctor --measure` says of a pair."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_pard.catalog import DEMO_MARKER, choose_draft
from vllm_pard.checkpoint import load_config, load_tokenizer
from vllm_pard.cli.finding import Finding
from vllm_pard.cli.known_costs import cost_file, remember
from vllm_pard.cli.measure.measure import PROMPTS, Measured, Pair, measure, recommended
from vllm_pard.errors import PardError
from vllm_pard.pard2 import WantedMode
from vllm_pard.prompts import Prompt
from vllm_pard.verdict import StepCosts


def planned_pair(
    target: str,
    draft: str | None,
    mask_token_id: int | None,
    mode: WantedMode,
    num_speculative_tokens: int | None,
    prompts: list[Prompt] | None,
    batch_sizes: Sequence[int],
    options: dict[str, Any],
) -> Pair:
    """Everything that a measurement needs, checked."""
    config = load_config(target)
    checkpoint, k = choose_draft(
        target,
        config,
        draft=draft,
        mask_token_id=mask_token_id,
        num_speculative_tokens=num_speculative_tokens,
    )
    return Pair(
        target=target,
        draft=checkpoint.path,
        mask_token_id=checkpoint.mask_token_id,
        mode=mode,
        num_speculative_tokens=k,
        prompts=prompts or default_prompts(target, config),
        batch_sizes=batch_sizes,
        options=options,
    )


def default_prompts(target: str, config: dict[str, Any]) -> list[Prompt]:
    """The demo pair's own held-out questions; for others a handful of everyday ones, as chats where there are any."""
    if config.get(DEMO_MARKER) is True:
        from vllm_pard.bench.prompt_sets import demo_prompts

        return [Prompt(id=row["id"], text=row["text"]) for row in demo_prompts(len(PROMPTS))]
    is_chat = getattr(load_tokenizer(target), "chat_template", None) is not None
    numbered = list(enumerate(PROMPTS, start=1))
    if is_chat:
        return [Prompt(id=str(number), messages=[{"role": "user", "content": text}]) for number, text in numbered]
    return [Prompt(id=str(number), text=text) for number, text in numbered]


def judge_pair(pair: Pair, *, verbose: bool) -> Iterator[Finding]:
    """Measure, keep the costs, and say what came of it."""
    from vllm_pard.serving.speculative_config import planned_runner

    measured = measure(pair, verbose=verbose)
    yield from findings(measured, can_schedule=planned_runner() == "v2")
    try:
        remember(cost_file(pair.target, measured.about, pair.options), measured.costs)
    except (OSError, PardError) as error:
        yield Finding("kept", "note", f"the step costs could not be kept for vllm-pard generate: {error}")


def findings(measured: Measured, *, can_schedule: bool) -> Iterator[Finding]:
    """Acceptance, step costs, a verdict for each batch size, and what to take."""
    stats = measured.stats
    shares = " ".join(f"{share:.2f}" for share in stats.acceptance_by_position)
    length = f"{stats.mean_acceptance_length:.2f} tokens a step over {stats.num_drafts} drafts"
    yield Finding("acceptance", "ok", f"{length}, by position {shares}")
    for costs in measured.costs:
        yield Finding("step costs", "ok", _costs_in_words(costs))
    for verdict in measured.verdicts:
        yield Finding("verdict", "ok" if verdict.outcome == "pays" else "note", verdict.sentence)
    config = recommended(measured, can_schedule=can_schedule)
    if config is None:
        yield Finding("take", "note", "no draft: at no measured batch size does this one pay, with any K")
    else:
        yield Finding("take", "ok", f"--speculative-config '{json.dumps(config)}'")


def _costs_in_words(costs: StepCosts) -> str:
    with_drafts = ", ".join(f"{ms:.2f} ms with K={k}" for k, ms in sorted(costs.step_ms.items()))
    return f"{costs.batch_size} at a time: {costs.plain_ms:.2f} ms plain, {with_drafts}"
