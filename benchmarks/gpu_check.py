"""All that needs a GPU, in one command of under ten minutes, without network.

python benchmarks/gpu_check.py [--output benchmarks/results] [--pair DIR] [--only WORD] [--minutes 10]

Kernels against their twins on the device, once under compute-sanitizer, and timed; if vLLM can be imported, the demo
pair's outputs against plain decoding's, the tests' scenarios in real engines, and an enlarged 8B pair: what a step
costs with every method. What could not run is said, never passed over; `--only` runs it alone.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir

from vllm_pard.conditions import conditions, gpu_names
from vllm_pard.files import write_whole
from vllm_pard.process import stop_group

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "tests" / "ops"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
SERVING = [ROOT / "tests" / "serving" / f"test_{name}.py" for name in ("v2", "trees", "pard2")]
INTERPRETED = ("graph", "pieces", "compil", "replay", "dummy", "follow")  # tests that count launches of an interpreter
SECONDS_TO_STOP = 30
SHAPE, NUM_SPECULATIVE_TOKENS = "llama-3.1-8b", 15
# For 64 requests, beside two other engines on 80 GB.
ROOM = {"max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 2_500_000_000}


@dataclass(frozen=True)
class Step:
    """One command; `missing` says why it can't run here."""

    name: str
    command: tuple[str, ...]
    limit_s: int
    missing: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a step went. `result` is "passed", "failed", "too slow" or "not run: WHY"."""

    name: str
    result: str
    seconds: float = 0.0


def steps(output: Path, device: str, pair: Path) -> list[Step]:
    """In order of worth, since time may run out."""
    no_benchmark = None if importlib.util.find_spec("pytest_benchmark") else "pytest-benchmark is not installed"
    results = f"--benchmark-json={output / f'kernels_{device}.json'}"
    kernels = (*PYTEST, str(ROOT / "benchmarks" / "kernels"), "-k", "not twin", "--benchmark-max-time=0.2", results)
    # A kernel is compiled for each shape: seconds each, on one core each.
    side_by_side = ("-n", "8") if importlib.util.find_spec("xdist") else ()
    twins = (*PYTEST, *side_by_side, str(OPS), f"--ignore={OPS / 'test_cross_compile.py'}")
    sanitizer = shutil.which("compute-sanitizer")
    sanitized = (str(sanitizer), "--error-exitcode=1", *PYTEST, str(OPS), "-k", "worked or random")
    return [
        Step("kernels against their twins", twins, 180),
        Step("kernel benchmarks", kernels, 120, no_benchmark),
        *engine_steps(output, device, pair),
        Step(
            "kernels under compute-sanitizer", sanitized, 120,
            None if sanitizer else "compute-sanitizer is not installed",
        ),
    ]  # fmt: skip


def engine_steps(output: Path, device: str, pair: Path) -> list[Step]:
    no_vllm = None if importlib.util.find_spec("vllm") else "vLLM can't be imported"
    python, target, draft = sys.executable, str(pair / "target"), str(pair / "draft")
    lossless = (
        *(python, "-m", "vllm_pard.cli", "bench", "--placement", "in-turn"),
        *("--methods", "none,pard,pard+own_attention,pard+tree", "--dtype", "float32", "--verify", "--runs", "1"),
        *("--num-prompts", "32", "--concurrency", "8", "--json", str(output / f"bench_demo_float32_{device}.json")),
    )
    side_by_side = ("-n", "4") if importlib.util.find_spec("xdist") else ()
    chosen = " and ".join(f"not {word}" for word in (*INTERPRETED, "installed"))
    scenarios = (*PYTEST, *side_by_side, *map(str, SERVING), "-k", chosen)
    enlarge = (python, str(ROOT / "benchmarks" / "enlarge.py"), "--shape", SHAPE, "--output", str(pair))
    methods = f"none,pard={draft},pard+tree={draft},draft_model+parallel_drafting={draft},draft_model"
    of_8b = (
        *(python, str(ROOT / "benchmarks" / "step_costs.py"), target, "--methods", methods),
        *("--ar-draft", str(pair / "draft_ar"), "--num-speculative-tokens", str(NUM_SPECULATIVE_TOKENS)),
        *("--engine-args", json.dumps(ROOM), "--json", str(output / f"step_costs_{SHAPE}_{device}.json")),
    )
    launches = (
        *(python, str(ROOT / "benchmarks" / "launches.py"), target, draft),
        *("--json", str(output / f"launches_{SHAPE}_{device}.json")),
    )
    return [
        Step("outputs in float32, in vLLM", lossless, 300, no_vllm),
        Step("enlarged pair", enlarge, 90, no_vllm or ("it is there" if (pair / "draft_ar").exists() else None)),
        Step("steps of an 8B target in vLLM", of_8b, 420, no_vllm),
        Step("the tests' scenarios in vLLM", scenarios, 420, no_vllm),
        Step("launches of a step", launches, 180, no_vllm),
    ]


def run(step: Step, seconds_left: float) -> Outcome:
    if step.missing or seconds_left <= 0:
        return Outcome(step.name, f"not run: {step.missing or 'no time is left'}")
    limit_s = min(step.limit_s, seconds_left)
    environment = dict(os.environ)
    if "sanitizer" in step.name:  # it sees an allocation each, not one pool that hides its edges
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if "float32" in step.name:  # Triton's products of float32 are of TF32 unless told
        environment["TRITON_F32_DEFAULT"] = "ieee"
    print(f"== {step.name}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        result = "failed" if process.wait(limit_s) else "passed"
    except subprocess.TimeoutExpired:
        result = f"too slow: over {limit_s:.0f} s"
    finally:
        if process.poll() is None:  # it may keep what it has, and must end its engines, which hold the GPU's memory
            stop_group(process, (signal.SIGTERM, signal.SIGKILL), SECONDS_TO_STOP)
    return Outcome(step.name, result, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pair", type=Path, default=Path(gettempdir()) / f"vllm_pard_{SHAPE}")
    parser.add_argument("--only", default="", metavar="WORD", help="only the steps with WORD in their name")
    parser.add_argument("--minutes", type=float, default=10.0, help="that all of it may take")
    arguments = parser.parse_args()
    names = gpu_names()
    if not names:
        print("gpu_check needs a GPU, and torch sees none; `make test` is what runs without", file=sys.stderr)
        return 2
    device = re.sub(r"[^a-z0-9]+", "_", names[0].lower()).strip("_")
    wanted = [step for step in steps(arguments.output.resolve(), device, arguments.pair) if arguments.only in step.name]
    if not wanted:
        parser.error(f"no step has {arguments.only!r} in its name")
    end = time.monotonic() + 60 * arguments.minutes
    outcomes = [run(step, end - time.monotonic()) for step in wanted]
    for outcome in outcomes:
        print(f"{outcome.name:36} {outcome.result} ({outcome.seconds:.0f} s)")
    record = {"conditions": conditions(), "steps": [asdict(outcome) for outcome in outcomes]}
    write_whole(arguments.output / f"gpu_check_{device}.json", json.dumps(record, indent=2) + "\n")
    return int(any(outcome.result.startswith(("failed", "too slow")) for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
