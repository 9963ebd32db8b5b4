"""Tokens a second of users who come and go, with each method in an engine of its own, and whether outputs are equal.

python benchmarks/users.py TARGET --methods none,pard=DRAFT,pard+auto=DRAFT,... [--num-speculative-tokens K]
    [--users 1,4,16,32] [--each-sends 8] [--runs 3] [--at-once 6] [--engine-args JSON] [--json FILE]

Greedy. Each user sends the next of the demo's questions when the answer is there. Methods are those of `vllm-pard
bench`; engines start together and run in alternating order, each after runs that are not measured, in which it learns
what it chooses by. In float32 all answers should be equal to the first method's; in bfloat16 two plain runs differ.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Any

from engine_processes import Load, acceptance_length, answer_all, counts, demo_prompts, measure_all, parser

MAX_TOKENS = 128


def closed_loop(llm: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A run: seconds, tokens, what was drafted, and a digest of each answer."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    prompts = demo_prompts(llm, None)
    params = SamplingParams(
        temperature=0, max_tokens=MAX_TOKENS, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    engine, names = llm.llm_engine, count()

    def answers(numbers: Iterator[int], num_users: int) -> dict[int, list[int]]:
        asked: dict[str, int] = {}
        found: dict[int, list[int]] = {}

        def send() -> None:
            if (number := next(numbers, None)) is not None:
                name = str(next(names))
                asked[name] = number
                engine.add_request(name, TokensPrompt(prompt_token_ids=prompts[number % len(prompts)]), params)

        for _ in range(num_users):
            send()
        while engine.has_unfinished_requests():
            for output in engine.step():
                found[asked[output.request_id]] = list(output.outputs[0].token_ids)
                send()
        return found

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        before, started = counts(llm), time.perf_counter()
        found = answers(iter(range(asked["first"], asked["first"] + asked["num_requests"])), asked["num_users"])
        seconds = time.perf_counter() - started
        digests = [hashlib.sha256(json.dumps(found[number]).encode()).hexdigest()[:16] for number in sorted(found)]
        told = {"seconds": seconds, "num_tokens": sum(map(len, found.values())), "digests": digests}
        return told | counts(llm, before)

    return answer


def row(label: str, num_users: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and extremes."""
    speeds = [run["num_tokens"] / run["seconds"] for run in runs]
    return {
        "method": label,
        "concurrency": num_users,
        "tokens_per_second": round(median(speeds), 1),
        "tokens_per_second_extremes": [round(min(speeds), 1), round(max(speeds), 1)],
        "num_drafts": sum(run["num_drafts"] for run in runs),
        "acceptance_length": acceptance_length(runs),
        "digests": [digest for run in runs for digest in run["digests"]],
    }


def compared(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """With the first method at as many users: how much faster, and how many answers are equal."""
    pairs = list(zip(row["digests"], first["digests"], strict=True))
    return {name: value for name, value in row.items() if name != "digests"} | {
        "speed_up": round(row["tokens_per_second"] / first["tokens_per_second"], 3),
        "num_answers": len(pairs),
        "num_equal": sum(mine == theirs for mine, theirs in pairs),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--users", default="1,4,16,32")
    options.add_argument("--each-sends", type=int, default=8)
    given = options.parse_args()
    if given.answer is not None:
        answer_all(given.answer, closed_loop)
        return

    def ask(num_users: int, run: int) -> dict[str, Any]:
        num_requests = num_users * given.each_sends
        return {"num_users": num_users, "num_requests": num_requests, "first": max(run, 0) * num_requests}

    given.engine_args = {"enable_prefix_caching": False} | given.engine_args  # or later runs would skip the prompts
    sizes = [int(size) for size in given.users.split(",")]
    measure_all(given, Load(script=__file__, sizes=sizes, ask=ask, row=row, compared=compared))


if __name__ == "__main__":
    main()
