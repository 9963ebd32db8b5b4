"""Every kernel compiles for GPUs of both makers, within their registers and shared memory, to matrix instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pard_kernels import reference

ROOT = Path(__file__).parents[2]
CHIPS = {"sm_80", "sm_90", "sm_100", "gfx942", "gfx950"}
# Every kernel and dtype, every model and its draft, and each feature once; `make test-slow` compiles all of it.
SUBSET = (
    "Llama-3.1-8B, K=15",
    "Llama-3.1-8B, tree of 64, one split",
    "Llama-3.3-70B, K=15",
    "Llama-3.3-70B, TP 8, tree of 33, FP8 cache",
    "Qwen3-8B, K=15",
    "Llama-3.2-1B draft, K=15",
    "Llama-3.2-1B draft, K=15, one split",
    "Qwen3-0.6B draft, K=15, FP8 cache",
    "features, Qwen3-0.6B draft",
    "heads of 256",
    "soft cap",
    "drafts",
    "drafts, tree, two of three groups",
    "drafts, no cache",
    "tree of 64",
    "tree path",
    "tree rows",
    "tree K/V, Llama-3.1-8B",
    "tree K/V, heads of 3",
    "Llama-3.2-1B draft, 64 rows, top 1",
    "Llama-3.2-1B draft, 8 rows, int8",
    "Qwen3-0.6B draft, 15 rows, top 16",
)
MAKERS = ({"sm_80", "sm_90", "sm_100"}, {"gfx942", "gfx950"})  # compiled side by side


def cross_compile(folder: Path, *options: str) -> tuple[list[str], Any]:
    """Messages and table of the command, in processes that do not interpret; each maker's problems end its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    running = []
    for chips in MAKERS:
        table = folder / f"{min(chips)}.json"
        command = [sys.executable, "benchmarks/cross_compile.py", "--json", str(table), *options]
        command += [word for chip in sorted(chips) for word in ("--chip", chip)]
        log = open(folder / f"{min(chips)}.log", "w+")  # noqa: SIM115 - read below
        running.append((subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log), table, log))
    logs, rows, problems = [], [], []
    for process, table, log in running:
        status = process.wait()
        log.seek(0)
        logs.append(log.read())
        assert table.exists(), logs[-1][-3000:]
        found = json.loads(table.read_text())
        assert status == int(bool(found["problems"]))
        rows += found["rows"]
        problems += found["problems"]
    return logs, {"rows": rows, "problems": problems}


def kernels_of(table: Any) -> set[tuple[str, str]]:
    return {(row["kernel"], row["chip"]) for row in table["rows"]}


def every_kernel() -> set[tuple[str, str]]:
    return {(kernel, chip) for kernel in reference.__all__ for chip in CHIPS}


def test_a_few_cases(tmp_path: Path) -> None:
    logs, table = cross_compile(tmp_path, *(word for label in SUBSET for word in ("--case", label)))
    assert table["problems"] == []
    assert kernels_of(table) == every_kernel()
    assert all(row["registers"] > 4 for row in table["rows"])
    assert all(row["shared"] > 0 for row in table["rows"] if row["kernel"] == "speculative_attention")
    assert all("| speculative_attention | Llama-3.1-8B, K=15 |" in log for log in logs)


def test_spills_are_seen(tmp_path: Path) -> None:
    """float32 without tensor cores needs more registers than there are: the control of every zero above."""
    logs, table = cross_compile(tmp_path, "--case", "float32, K=15")
    rows = {row["kernel"]: row for row in table["rows"] if row["chip"] == "sm_80"}
    assert rows["speculative_attention"]["spills"] > 0
    assert rows["speculative_attention"]["matrix_instruction"] is None
    assert rows["merge_attention_splits"]["spills"] == 0
    assert "spilled**" in logs[0]
    assert table["problems"] == [], "float32 is not held to it"


def test_problems_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules, without a compiler."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which importing the command takes away
    import chips
    import cross_compile

    row = {"kernel": "speculative_attention", "case": "c", "chip": "gfx942", "shared": 65536, "shared_limit": 65536}
    row |= {"spills": 0, "matrix_instruction": "v_mfma", "is_float32": False, "long_divisions": 0}
    assert cross_compile.problems([row]) == []
    for change, problem in (
        ({"shared": 65537}, "65537 bytes of shared memory, 65536 are there"),
        ({"spills": 3}, "spills 3"),
        ({"long_divisions": 2}, "2 divisions of 64 bits, for which there is no instruction"),
        ({"matrix_instruction": None}, "no matrix instruction"),
        ({"asynchronous_copies": 0}, "waits for each load, no asynchronous copy"),
    ):
        assert cross_compile.problems([row | change]) == [f"speculative_attention, c, gfx942: {problem}"]
    assert chips.amd_resources(AMD_NOTES) == {"registers": 242, "spills": 29 + 3 + 16}


AMD_NOTES = """
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 29
    .vgpr_count:     242
    .vgpr_spill_count: 3
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_case(tmp_path: Path) -> None:
    _, table = cross_compile(tmp_path)
    assert table["problems"] == []
    assert kernels_of(table) == every_kernel()
