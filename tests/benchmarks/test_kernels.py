"""The kernel benchmarks check before they time, and time only what says something on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
WRONG_TWIN = """
from pard_kernels import reference

right = reference.prepare_draft_inputs

def wrong(**arguments):
    right(**arguments)
    arguments["positions"][-1] += 1

reference.prepare_draft_inputs = wrong
"""


# Another benchmark with the same helper, whose kernel returns its result.
SCALE = """
import torch

def twin(*, values):
    return values * 3

def test_scale(measure):
    values = torch.ones(2**20)
    inputs = lambda: {"values": values}
    measure(lambda values: values * FACTOR, twin, inputs, num_bytes=2 * values.nbytes, tolerance=1e-3)
"""


def run_benchmarks(*options: str, target: str = "benchmarks/kernels", path: Path = ROOT) -> Any:
    path_variable = os.pathsep.join([str(path), str(ROOT / "benchmarks" / "kernels")])
    command = [sys.executable, "-m", "pytest", target, "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", *options]
    # What pytest-xdist tells its workers would switch timing off in processes of theirs.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = outside | {"PYTHONPATH": path_variable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_agrees_with_its_twin() -> None:
    run = run_benchmarks("--benchmark-disable", "-k", "not 128")  # the interpreter takes seconds for 128 requests
    assert run.returncode == 0, run.stdout
    num_implementations = 2 if torch.cuda.is_available() else 1
    assert f"{26 * num_implementations} passed" in run.stdout


def test_what_is_written_in_place_is_compared(tmp_path: Path) -> None:
    (tmp_path / "wrong_twin.py").write_text(WRONG_TWIN)
    run = run_benchmarks("-p", "wrong_twin", "-k", "4-1", "-x", "--benchmark-disable", path=tmp_path)
    assert run.returncode == 1
    assert "'positions'" in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
def test_the_result_has_its_conditions(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    run = run_benchmarks("-k", "4-16", "--benchmark-max-time=0.05", f"--benchmark-json={result}")
    assert run.returncode == 0, run.stdout
    document = json.loads(result.read_text())
    assert "node" not in document["machine_info"]
    assert document["machine_info"]["torch"] == torch.__version__
    (benchmark,) = document["benchmarks"]
    assert benchmark["params"] == {"implementation": "twin, kernel interpreted", "num_drafts": 4, "batch_size": 16}
    assert "data" not in benchmark["stats"]
    extra = benchmark["extra_info"]
    assert (extra["timed"], extra["device"]) == ("twin, kernel interpreted", "CPU, 1 thread(s)")
    assert 0 < extra["p20_us"] <= extra["p50_us"] <= extra["p80_us"]
    assert "gb_per_s" not in extra  # the twin of this kernel loops over elements


@pytest.mark.parametrize(("factor", "passes"), [("3.0001", True), ("3.1", False)])
def test_results_and_bandwidth(factor: str, passes: bool, tmp_path: Path) -> None:
    (tmp_path / "bench_scale.py").write_text(SCALE.replace("FACTOR", factor))
    result = tmp_path / "result.json"
    options = ("-p", "conftest", "--benchmark-max-time=0.05", f"--benchmark-json={result}")
    run = run_benchmarks(*options, target=str(tmp_path / "bench_scale.py"))
    assert (run.returncode == 0) == passes, run.stdout
    if not passes:
        assert not result.exists() or not json.loads(result.read_text())["benchmarks"]  # what differs is not timed
    else:
        extra = json.loads(result.read_text())["benchmarks"][-1]["extra_info"]
        assert extra["num_bytes"] == 2**23
        assert extra["gb_per_s"] == pytest.approx(2**23 / extra["p50_us"] / 1e3)
        assert extra["share_of_copy"] > 0
