"""Benchmarks are programs: each imports its neighbours as `python benchmarks/<name>.py` does."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

Run = Callable[..., int]


@pytest.fixture(scope="session")
def run() -> Run:
    """`enlarge.py` to the tiny shape in fp32, with the exit status it ends with."""
    import enlarge

    common = ["--shape", "tiny", "--dtype", "float32", "--device", "cpu", "--output"]
    return lambda output, *options: enlarge.main([*common, str(output), *options])


@pytest.fixture(scope="session")
def tiny(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair, which no test may change."""
    output = tmp_path_factory.mktemp("enlarged") / "pair"
    assert run(output) == 0
    return output
