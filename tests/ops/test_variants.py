"""An engine compiles everything at its start: whatever it launches later is a variant that its warm-up has made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
# Few, since each costs seconds; of attention, tiles of query rows, the two largest also in several,
# with and without splits, and merges of 16 to 128.
NUM_VARIANTS = {
    "attention, bfloat16": 6 * 2 + 4,
    "attention, float32, no groups": 3 * 2 + 4,
    "attention, wide heads, window": 4 * 2 + 4,
    "attention, FP8 cache": 6 * 2 + 4,
    "attention, trees": 6 + 5 + 4,
    "lm_head, best": 4 + 1,
    "lm_head, best four": 3 + 1,
    "ranks": 1,
    "layout": 1,
    "layout, trees, two groups": 1,
    "layout, no cache": 1,
    "layout, features": 1,
    "features": 1,
    "trees": 1,
    "trees, many nodes": 1,
    "tree path": 1,
    "tree rows": 2,
    "tree K/V": 1,
    "tree K/V, odd heads": 1,
}


@pytest.fixture(scope="module")
def sweeps() -> dict[str, list[list[str]]]:
    """Counted in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(SUPPORT / "variant_sweeps.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NUM_VARIANTS)
def test_nothing_is_compiled_after_the_warm_up(name: str, sweeps: dict[str, list[list[str]]]) -> None:
    warm_up, sweep = sweeps[name]
    assert [variant for variant in sweep if variant not in warm_up] == []
    assert [variant for variant in warm_up if variant not in sweep] == [], "compiled for nothing"
    assert len(warm_up) == NUM_VARIANTS[name]


def test_all_sweeps_are_looked_at(sweeps: dict[str, list[list[str]]]) -> None:
    assert sweeps.keys() == NUM_VARIANTS.keys()
