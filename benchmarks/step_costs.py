"""What a decode step costs with each method, and what it brings.

python benchmarks/step_costs.py TARGET --methods none,pard=DRAFT,... [--num-speculative-tokens K]
    [--batch-sizes 1,4,16,64] [--runs 5] [--at-once 3] [--engine-args JSON] [--json FILE]

Methods are those of `vllm-pard bench`, the first is what the others are compared with. Each is an engine of its own; as
many as are to run at once start together and then answer in alternating order, one at a time. A batch is one prompt as
often as it is wide, so that all its requests accept the same tokens and end together: a step's time is that of a whole
batch. `step_ms` is the time without the prompt's step, over the steps behind it.

The enlarged demo pair (benchmarks/enlarge.py) has the steps of its size and the acceptance of the demo.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from engine_processes import Load, acceptance_length, answer_all, counts, demo_prompts, measure_all, parser

NUM_PROMPTS = 8
MAX_TOKENS = 128


def timed_batches(llm: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A batch's times and counts."""
    from vllm import SamplingParams, TokensPrompt

    prompts = demo_prompts(llm, NUM_PROMPTS)

    def timed(batch: list[TokensPrompt], max_tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        llm.generate(batch, params, use_tqdm=False)
        return time.perf_counter() - started

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        batch = [TokensPrompt(prompt_token_ids=prompts[asked["prompt"] % NUM_PROMPTS])] * asked["batch_size"]
        prompt_seconds, before = timed(batch, 1), counts(llm)
        seconds = timed(batch, MAX_TOKENS)
        return {"prompt_seconds": prompt_seconds, "seconds": seconds} | counts(llm, before)

    return answer


def row(label: str, batch_size: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the extremes of a step's time."""
    steps = [run["num_drafts"] / batch_size or MAX_TOKENS - 1 for run in runs]
    step_ms = [1e3 * (run["seconds"] - run["prompt_seconds"]) / num for run, num in zip(runs, steps, strict=True)]
    return {
        "method": label,
        "batch_size": batch_size,
        "step_ms": round(median(step_ms), 3),
        "step_ms_extremes": [round(min(step_ms), 3), round(max(step_ms), 3)],
        "prompt_ms": round(1e3 * median(run["prompt_seconds"] for run in runs), 2),
        "acceptance_length": acceptance_length(runs),
        "tokens_per_second": round(batch_size * MAX_TOKENS / median(run["seconds"] for run in runs), 1),
    }


def compared(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """With what the first method of the same group and batch size has as 1."""
    return row | {
        "step_ratio": round(row["step_ms"] / first["step_ms"], 4),
        "speed_up": round(row["tokens_per_second"] / first["tokens_per_second"], 3),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch-sizes", default="1,4,16,64")
    given = options.parse_args()
    if given.answer is not None:
        answer_all(given.answer, timed_batches)
        return
    sizes = [int(size) for size in given.batch_sizes.split(",")]
    load = Load(
        script=__file__,
        sizes=sizes,
        ask=lambda size, run: {"batch_size": size, "prompt": run},
        row=row,
        compared=compared,
    )
    measure_all(given, load)


if __name__ == "__main__":
    main()
