"""All that needs a GPU, in one command of under ten minutes, without network.

python benchmarks/gpu_check.py [--output benchmarks/results] [--pair DIR] [--only WORD]

Kernels against their twins on the device, once under compute-sanitizer, then timed; and an enlarged 8B pair in vLLM,
if vLLM can be imported: what a step costs with every method. What could not run is said, never passed over.
"""

import argparse
import contextlib
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

from vllm_pard.bench.conditions import conditions, gpu_names
from vllm_pard.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
METHODS = "none,pard,draft_model+parallel_drafting,draft_model"  # each in its turn: what matters most comes first
SECONDS_TO_STOP = 30
SHAPE, NUM_SPECULATIVE_TOKENS = "llama-3.1-8b", 15


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
    sanitizer = shutil.which("compute-sanitizer")
    no_vllm = None if importlib.util.find_spec("vllm") else "vLLM can't be imported"
    no_benchmark = None if importlib.util.find_spec("pytest_benchmark") else "pytest-benchmark is not installed"
    # A kernel is compiled for each shape: seconds each, on one core each.
    side_by_side = ("-n", "8") if importlib.util.find_spec("xdist") else ()
    ops = ROOT / "tests" / "ops"
    twins = (*PYTEST, *side_by_side, str(ops), f"--ignore={ops / 'test_cross_compile.py'}")
    enlarge = (sys.executable, str(ROOT / "benchmarks" / "enlarge.py"), "--shape", SHAPE, "--output", str(pair))
    bench = (
        *(sys.executable, "-m", "vllm_pard.cli", "bench", str(pair / "target")),
        *("--draft", str(pair / "draft"), "--ar-draft", str(pair / "draft_ar"), "--methods", METHODS),
        *("--placement", "in-turn", "--runs", "3", "--num-speculative-tokens", str(NUM_SPECULATIVE_TOKENS)),
        *("--concurrency", "1,4,16,64", "--requests-per-user", "2", "--ignore-eos"),
        *("--json", str(output / f"bench_{SHAPE}_{device}.json")),
    )
    launches: tuple[str, ...] = (sys.executable, str(ROOT / "benchmarks" / "launches.py"))
    launches += (str(pair / "target"), str(pair / "draft"), "--json", str(output / f"launches_{SHAPE}_{device}.json"))
    results = output / f"kernels_{device}.json"
    kernels: tuple[str, ...] = (*PYTEST, str(ROOT / "benchmarks" / "kernels"), "-k", "not twin")
    kernels += ("--benchmark-max-time=0.2", f"--benchmark-json={results}")
    return [
        Step("kernels against their twins", twins, 180),
        Step("kernel benchmarks", kernels, 120, no_benchmark),
        Step("enlarged pair", enlarge, 90, no_vllm or ("it is there" if (pair / "draft_ar").exists() else None)),
        Step("steps of an 8B target in vLLM", bench, 420, no_vllm),
        Step("launches of a step", launches, 180, no_vllm),
        Step(
            "kernels under compute-sanitizer",
            (str(sanitizer), "--error-exitcode=1", *PYTEST, str(ops), "-k", "worked or random"),
            120,
            None if sanitizer else "compute-sanitizer is not installed",
        ),
    ]


def run(step: Step) -> Outcome:
    if step.missing:
        return Outcome(step.name, f"not run: {step.missing}")
    # The sanitizer sees an allocation each, not one pool that hides its edges.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if "sanitizer" in step.name else None
    print(f"== {step.name}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(step.command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        result = "failed" if process.wait(step.limit_s) else "passed"
    except subprocess.TimeoutExpired:
        result = f"too slow: over {step.limit_s} s"
    finally:
        stop(process)
    return Outcome(step.name, result, time.monotonic() - started)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Let it keep what it has measured and end its engines, which would hold the GPU's memory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pair", type=Path, default=Path(gettempdir()) / f"vllm_pard_{SHAPE}")
    parser.add_argument("--only", default="", metavar="WORD", help="only the steps with WORD in their name")
    arguments = parser.parse_args()
    names = gpu_names()
    if not names:
        print("gpu_check needs a GPU, and torch sees none; `make test` is what runs without", file=sys.stderr)
        return 2
    device = re.sub(r"[^a-z0-9]+", "_", names[0].lower()).strip("_")
    wanted = [step for step in steps(arguments.output.resolve(), device, arguments.pair) if arguments.only in step.name]
    if not wanted:
        parser.error(f"no step has {arguments.only!r} in its name")
    outcomes = [run(step) for step in wanted]
    for outcome in outcomes:
        print(f"{outcome.name:36} {outcome.result} ({outcome.seconds:.0f} s)")
    record = {"conditions": conditions(), "steps": [asdict(outcome) for outcome in outcomes]}
    write_whole(arguments.output / f"gpu_check_{device}.json", json.dumps(record, indent=2) + "\n")
    return int(any(outcome.result.startswith(("failed", "too slow")) for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
