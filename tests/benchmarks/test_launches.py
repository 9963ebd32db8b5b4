"""Launches of a step: which of the profiler's events count, and the program on a machine that launches nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_what_counts_as_a_launch() -> None:
    from launches import count_launches

    names = {
        "graphs": ["cudaGraphLaunch", "hipGraphLaunch"],
        "kernels": ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx",
                    "cudaLaunchCooperativeKernel", "hipLaunchKernel", "hipExtModuleLaunchKernel"],
        "copies": ["cudaMemcpyAsync", "cudaMemsetAsync", "hipMemcpyWithStream"],
        "waits for the device": ["cudaStreamSynchronize", "cudaDeviceSynchronize", "hipEventSynchronize"],
    }  # fmt: skip
    others = ["aten::mm", "Memcpy HtoD", "_lm_head_top_k_kernel", "cudaStreamIsCapturing", "cudaEventRecord"]
    counted = count_launches([name for group in names.values() for name in group] + others)
    assert counted == {kind: len(group) for kind, group in names.items()}


@pytest.mark.slow
@pytest.mark.engine
def test_steps_are_counted(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    target, draft = tiny_pair
    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "distributed_executor_backend": "uni"}
    engine |= {"gpu_memory_utilization": 0.3, "block_size": 32}
    command = [sys.executable, "benchmarks/launches.py", str(target), str(draft), "--num-speculative-tokens", "4"]
    command += ["--engine-args", json.dumps(engine), "--json", str(tmp_path / "launches.json")]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "launches.json").read_text())
    plain, pard = found["launches of a step"]["none"], found["launches of a step"]["pard"]
    assert plain["steps"] >= 200 > 120 > pard["steps"] > 40
    assert plain["kernels"] == plain["graphs"] == 0, "there is no GPU"
    assert found["conditions"]["versions"]
