"""Ours against vLLM's own parallel drafting with the same pair: same outputs, and the ratio of median tokens/s.

python benchmarks/upstream.py [--runs 5] [--json benchmarks/results/upstream_cpu.json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_pard.cli.demo import PARD, Dtype, demo_engine, demo_prompts, run_in_turns
from vllm_pard.cli.demo_report import identical_in_words, median_speed, write_report
from vllm_pard.demo import demo_path

UPSTREAM = "upstream"


def engine_options(num_speculative_tokens: int) -> dict[str, dict[str, Any]]:
    """The demo's engine with our method, and with vLLM's."""
    ours = demo_engine(PARD, Dtype.float32, 1, num_speculative_tokens)
    theirs = {"method": "draft_model", "parallel_drafting": True, "model": str(demo_path("draft"))}
    return {UPSTREAM: ours | {"speculative_config": ours["speculative_config"] | theirs}, PARD: ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--num-speculative-tokens", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console, prompts = Console(highlight=False, quiet=True), demo_prompts(arguments.prompts)
    conditions, runs = run_in_turns(
        console,
        engine_options(arguments.num_speculative_tokens),
        prompts,
        {"temperature": 0.0, "max_tokens": 128},
        1,
        arguments.runs,
        False,
    )
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        write_report(arguments.json, options | {"baseline": UPSTREAM}, conditions, runs[UPSTREAM], runs[PARD])
    summary = {
        "upstream_tokens_per_second": median_speed(runs[UPSTREAM]),
        "pard_tokens_per_second": median_speed(runs[PARD]),
        "ratio": median_speed(runs[PARD]) / median_speed(runs[UPSTREAM]),
        "outputs_identical": identical_in_words(runs[UPSTREAM], runs[PARD]) == "yes",
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
