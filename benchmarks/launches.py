"""How many launches a decode step costs: kernels, graphs and copies that the host asks of the GPU.

python benchmarks/launches.py TARGET DRAFT [--num-speculative-tokens K] [--engine-args JSON] [--json FILE]

An engine in this process answers one prompt, plain and with PARD, under torch's profiler; a step's launches are those
of a run divided by its steps. TARGET and DRAFT may be an enlarged pair (benchmarks/enlarge.py).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_pard.conditions import conditions
from vllm_pard.files import write_whole

# Calls of the CUDA and HIP runtimes and drivers, as torch's profiler names them.
KINDS = {
    "graphs": re.compile(r"^(cuda|cu|hip)GraphLaunch"),
    "kernels": re.compile(r"^(cuda|cu|hip)\w*(LaunchKernel|LaunchCooperativeKernel|ModuleLaunch)"),
    "copies": re.compile(r"^(cuda|cu|hip)(Memcpy|Memset)"),
    "waits for the device": re.compile(r"^(cuda|cu|hip)(Stream|Device|Event)Synchronize"),
}
NUM_TOKENS = 200


def count_launches(names: Iterable[str]) -> dict[str, int]:
    """How often each kind of call is among the names."""
    counts = Counter(kind for name in names for kind, pattern in KINDS.items() if pattern.match(name))
    return {kind: counts[kind] for kind in KINDS}


def run(target: str, speculative: dict[str, Any] | None, engine_args: dict[str, Any]) -> dict[str, float]:
    """Launches of a step, by kind, and the number of steps."""
    from torch.profiler import ProfilerActivity, profile
    from vllm import LLM, SamplingParams, TokensPrompt

    options = {"max_num_seqs": 4, "max_model_len": 1024, "disable_log_stats": False} | engine_args
    llm = LLM(target, speculative_config=speculative, **options)
    prompt = TokensPrompt(prompt_token_ids=list(range(100, 132)))
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    llm.generate(prompt, params, use_tqdm=False)
    core, num_steps = llm.llm_engine.engine_core.engine_core, 0
    step = core.step_fn

    def counted_step() -> Any:
        nonlocal num_steps
        num_steps += 1
        return step()

    core.step_fn = counted_step
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        llm.generate(prompt, params, use_tqdm=False)
    counts = count_launches(event.name for event in recorded.events() or ())
    return {"steps": num_steps, **{kind: number / num_steps for kind, number in counts.items()}}


def run_alone(arguments: list[str]) -> dict[str, float]:
    """One engine a process: memory of the first is not all given back."""
    command = [sys.executable, __file__, *arguments, "--only"]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("draft", nargs="?", help="left out: plain decoding")
    parser.add_argument("--num-speculative-tokens", type=int, default=15, metavar="K")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    speculative = None
    if given.draft is not None:
        speculative = {"method": "pard", "model": given.draft, "num_speculative_tokens": given.num_speculative_tokens}
    if given.only:
        print(json.dumps(run(given.target, speculative, given.engine_args)))
        return 0
    common = [
        "--num-speculative-tokens",
        str(given.num_speculative_tokens),
        "--engine-args",
        json.dumps(given.engine_args),
    ]
    results = {"none": run_alone([given.target, *common])}
    if given.draft is not None:
        results["pard"] = run_alone([given.target, given.draft, *common])
    for method, result in results.items():
        print(f"{method:6} " + ", ".join(f"{value:.1f} {kind}" for kind, value in result.items()))
    if given.json is not None:
        write_whole(
            given.json, json.dumps({"conditions": conditions(), "launches of a step": results}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
