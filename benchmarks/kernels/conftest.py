"""Check each kernel against its torch twin, then time both.

python -m pytest benchmarks/kernels [--benchmark-json benchmarks/results/kernels_<device>.json]

pytest-benchmark's columns are what a caller waits for, launch and synchronisation included. `extra_info` has p20, p50
and p80 of the device's own time (Triton's do_bench: events, warm-up, L2 cleared before each run). Without a GPU the
kernel is checked by Triton's interpreter and only the twin is timed: an interpreter's time says nothing.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

Inputs = dict[str, Any]
Kernel = Callable[..., Any]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Benchmarks are no tests, so their files have another name."""
    return pytest.Module.from_parent(parent, path=file_path) if file_path.name.startswith("bench_") else None


@pytest.fixture(params=("kernel", "twin") if HAS_GPU else ("twin, kernel interpreted",))
def implementation(request: pytest.FixtureRequest) -> str:
    """What is timed."""
    return str(request.param)


@cache
def copy_gb_per_s() -> float:
    """Bandwidth of a large copy: each byte is read and written."""
    from vllm_pard.bench.roof import copy_bandwidth

    return copy_bandwidth(DEVICE) / 1e9


@pytest.fixture
def measure(benchmark: Any, implementation: str) -> Callable[..., None]:
    """`measure(kernel, twin, inputs)`: compare the two, then time the one that this case is about.

    `inputs()` gives fresh arguments by name. Kernels that write in place must do the same work when called again.
    """

    def measure(
        kernel: Kernel,
        twin: Kernel,
        inputs: Callable[[], Inputs],
        *,
        num_bytes: int | None = None,  # that the kernel must move at least
        tolerance: float = 0.0,  # absolute and relative; token ids are equal or wrong
        twin_on_cpu: bool = False,  # for a twin that loops over single elements
    ) -> None:
        twin_device = "cpu" if twin_on_cpu else DEVICE
        check(kernel, twin, inputs, tolerance, twin_device)
        is_kernel = implementation == "kernel"
        function, device = (kernel, DEVICE) if is_kernel else (twin, twin_device)
        arguments = moved(inputs(), device)

        def call() -> None:
            function(**arguments)
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark(call)
        benchmark.extra_info |= {"timed": implementation, "device": device_name(device)}
        if benchmark.enabled:
            times = device_quantiles(lambda: function(**arguments)) if device == "cuda" else host_quantiles(benchmark)
            benchmark.extra_info |= dict(zip(("p20_us", "p50_us", "p80_us"), (1e6 * t for t in times), strict=True))
            # Single elements taken one by one say nothing of bandwidth.
            if num_bytes is not None and (is_kernel or not twin_on_cpu):
                gb_per_s = num_bytes / times[1] / 1e9
                share = gb_per_s / copy_gb_per_s()
                benchmark.extra_info |= {"num_bytes": num_bytes, "gb_per_s": gb_per_s, "share_of_copy": share}

    return measure


def check(kernel: Kernel, twin: Kernel, inputs: Callable[[], Inputs], tolerance: float, twin_device: str) -> None:
    """Results and everything written in place."""
    expected, got = moved(inputs(), twin_device), moved(inputs(), DEVICE)
    results = {"expected": twin(**expected), "got": kernel(**got)}
    in_place = {name: value for name, value in expected.items() if torch.is_tensor(value)}
    compare = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, check_device=False)
    compare({name: got[name] for name in in_place}, in_place)
    if results["expected"] is not None:
        compare(results["got"], results["expected"])


def moved(inputs: Inputs, device: str) -> Inputs:
    """Tensors there, those in tuples too."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            parts = map(move, value)
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value.to(device) if torch.is_tensor(value) else value

    return {name: move(value) for name, value in inputs.items()}


def device_quantiles(function: Callable[[], Any]) -> list[float]:
    """p20, p50 and p80 in seconds, by events on the device."""
    from triton.testing import do_bench

    return [milliseconds / 1e3 for milliseconds in do_bench(function, quantiles=[0.2, 0.5, 0.8])]


def host_quantiles(benchmark: Any) -> list[float]:
    """p20, p50 and p80 in seconds of what pytest-benchmark has timed."""
    fifths = quantiles(benchmark.stats.stats.data, n=10, method="inclusive")
    return [fifths[1], fifths[4], fifths[7]]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """The conditions; a machine's own name is nobody's business."""
    import triton

    del machine_info["node"]
    machine_info["cpu"] = machine_info["cpu"].get("brand_raw")
    machine_info |= {"device": device_name(DEVICE), "torch": torch.__version__, "triton": triton.__version__}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Quantiles are kept, thousands of single times are not."""
    for result in output_json["benchmarks"]:
        result["stats"].pop("data", None)
