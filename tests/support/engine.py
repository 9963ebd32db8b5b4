"""Run a scenario in a vLLM engine of its own process, since environment, threads and plugins are per process.

run_scenario("scenarios_v2:preemption", runner="v2", target=..., draft=...) -> what the scenario returned, as JSON
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "gpu_memory_utilization": 0.3,
    "disable_log_stats": False,
    "block_size": 32,
}


def run_scenario(
    scenario: str, *, runner: str, timeout: float = 600, environment: dict[str, str] | None = None, **arguments: Any
) -> Any:
    """Call `module:function(**arguments)` in a fresh process; AssertionErrors and log lines come back as failures."""
    completed = subprocess.run(
        [sys.executable, SUPPORT / "engine_main.py", runner, scenario, json.dumps(arguments, default=str)],
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    lines = [line for line in completed.stdout.splitlines() if line.startswith("RESULT ")]
    if completed.returncode != 0 or not lines:
        raise AssertionError(
            f"{scenario} on {runner} ended with {completed.returncode}\n"
            f"{completed.stdout[-3000:]}\n{completed.stderr[-6000:]}"
        )
    return json.loads(lines[-1].removeprefix("RESULT "))
