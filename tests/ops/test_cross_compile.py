"""Every kernel compiles for GPUs of both makers, within their registers and shared memory, to matrix instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pard_kernels
import pytest

ROOT = Path(__file__).parents[2]
CHIPS = {"sm_80", "sm_90", "sm_100", "gfx942", "gfx950"}
# A bit of each: tiles of 64 and 128 query rows, 64 and 128 numbers a head, with and without splits, masks and FP8.
SUBSET = (
    "Llama-3.1-8B, K=15",
    "Llama-3.3-70B, TP 8, tree of 32, FP8 cache",
    "Llama-3.2-1B draft, K=15, one split",
    "drafts, K=15",
)


def cross_compile(folder: Path, *options: str) -> Any:
    """Exit status, messages and table of the command, in a process that does not interpret."""
    table = folder / "table.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "benchmarks/cross_compile.py", "--json", str(table), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert table.exists(), done.stderr[-3000:]
    return done, json.loads(table.read_text())


def kernels_of(table: Any) -> set[tuple[str, str]]:
    return {(row["kernel"], row["chip"]) for row in table["rows"]}


def test_a_few_cases(tmp_path: Path) -> None:
    done, table = cross_compile(tmp_path, *(word for label in SUBSET for word in ("--case", label)))
    assert table["problems"] == []
    assert done.returncode == 0
    wanted = ("speculative_attention", "merge_attention_splits", "prepare_draft_inputs")
    assert kernels_of(table) == {(kernel, chip) for kernel in wanted for chip in CHIPS}
    assert all(row["registers"] > 16 for row in table["rows"])
    assert all(row["shared"] > 0 for row in table["rows"] if row["kernel"] == "speculative_attention")
    assert "| speculative_attention | Llama-3.1-8B, K=15 |" in done.stdout


def test_spills_are_seen(tmp_path: Path) -> None:
    """float32 without tensor cores needs more registers than there are: the control of every zero above."""
    done, table = cross_compile(tmp_path, "--case", "float32, K=15", "--chip", "sm_80")
    rows = {row["kernel"]: row for row in table["rows"]}
    assert rows["speculative_attention"]["spills"] > 0
    assert rows["speculative_attention"]["matrix_instruction"] is None
    assert rows["merge_attention_splits"]["spills"] == 0
    assert "spilled**" in done.stdout


def test_problems_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules, without a compiler."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which importing the command takes away
    import cross_compile

    row = {"kernel": "speculative_attention", "case": "c", "chip": "gfx942", "shared": 65536, "shared_limit": 65536}
    row |= {"spills": 0, "matrix_instruction": "v_mfma", "is_float32": False}
    assert cross_compile.problems([row]) == []
    for change, problem in (
        ({"shared": 65537}, "65537 bytes of shared memory, 65536 are there"),
        ({"spills": 3}, "spills 3"),
        ({"matrix_instruction": None}, "no matrix instruction"),
    ):
        assert cross_compile.problems([row | change]) == [f"speculative_attention, c, gfx942: {problem}"]
    assert cross_compile.amd_resources(AMD_NOTES) == {"registers": 242, "spills": 29 + 3 + 16}


AMD_NOTES = """
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 29
    .vgpr_count:     242
    .vgpr_spill_count: 3
"""


@pytest.mark.slow
def test_every_case(tmp_path: Path) -> None:
    _, table = cross_compile(tmp_path)
    assert table["problems"] == []
    launchers = {name for name in pard_kernels.__all__ if name.islower() and "workspace" not in name}
    launchers -= {"choose_num_splits", "median_milliseconds"}
    assert kernels_of(table) == {(kernel, chip) for kernel in launchers for chip in CHIPS}
