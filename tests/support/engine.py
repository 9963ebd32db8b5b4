"""Run a scenario in a vLLM engine of its own process, since environment, threads and plugins are per process.

run_scenario("scenarios_v2:preemption", runner="v2", target=..., draft=...) -> what the scenario returned, as JSON
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SUPPORT = Path(__file__).parent
# By asking the driver's library, as vLLM does: a process that has opened the device can't fork engines any more.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
ON_GPU = torch.cuda.is_available()
ENVIRONMENT = {
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
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
if ON_GPU:  # several engines side by side; Triton's products of float32 are of TF32 unless told
    ENGINE |= {"gpu_memory_utilization": 0.02, "kv_cache_memory_bytes": 2**28}
    ENVIRONMENT |= {"TRITON_F32_DEFAULT": "ieee", "VLLM_USE_V2_MODEL_RUNNER": "1"}


@dataclass(frozen=True)
class Launcher:
    """A process that has imported vLLM, and forks itself for each scenario: the import takes longer than most."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, runner: str, environment: dict[str, str]) -> "Launcher":
        process = subprocess.Popen(
            [sys.executable, SUPPORT / "engine_main.py", runner],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        launcher = cls(process)
        atexit.register(launcher.stop)
        return launcher

    def run(self, request: dict[str, Any], timeout: float) -> int:
        """The exit status of the scenario's process; a scenario that takes too long ends the launcher with it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request, default=str), file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.stop()
            raise AssertionError(
                f"{request['scenario']} did not end within {timeout:.0f} s, or took its launcher along"
            )
        return int(line)

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


LAUNCHERS: dict[tuple[Any, ...], Launcher] = {}


def run_scenario(
    scenario: str, *, runner: str, timeout: float = 600, environment: dict[str, str] | None = None, **arguments: Any
) -> Any:
    """Call `module:function(**arguments)` in a fresh process; AssertionErrors and log lines come back as failures."""
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    variables.pop("PYTEST_CURRENT_TEST", None)
    key = (runner, *sorted(variables.items()))
    if key not in LAUNCHERS or LAUNCHERS[key].process.poll() is not None:
        LAUNCHERS[key] = Launcher.start(runner, variables)
    with tempfile.TemporaryDirectory(prefix="scenario-") as folder:
        request = {"scenario": scenario, "arguments": arguments, "folder": folder}
        status = LAUNCHERS[key].run(request, timeout)
        result = Path(folder) / "result.json"
        if status != 0 or not result.exists():
            log = (Path(folder) / "log").read_text(errors="replace")
            raise AssertionError(f"{scenario} on {runner} ended with {status}\n{log[-9000:]}")
        return json.loads(result.read_text())


def scenarios_of(
    module: str, pair: tuple[Path, Path], *, runner: str = "v2", environment: dict[str, str] | None = None
) -> Callable[..., Any]:
    """`run_scenario` for a target and its draft: a scenario without a module is that of `module`."""
    (target, draft), usual = pair, runner

    def run(scenario: str, *, runner: str = usual, **arguments: Any) -> Any:
        return run_scenario(
            scenario if ":" in scenario else f"{module}:{scenario}",
            runner=runner,
            environment=environment,
            target=target,
            draft=draft,
            **arguments,
        )

    return run
