"""The README says what is so: its numbers come from the result files, its pairs from the catalog, its keys exist."""

import re
from pathlib import Path

import pytest

from vllm_pard.catalog import CATALOG
from vllm_pard.config import UPSTREAM_FIELDS, PardConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_numbers_are_those_of_the_result_files() -> None:
    import tables

    assert tables.render(README) == README, "run: python benchmarks/tables.py"


def test_a_table_holds_one_measurement() -> None:
    import tables

    with pytest.raises(SystemExit, match=r"the same engine, prompts, .*; bench_cpu_float32, bench_300m_cpu_float32 di"):
        tables.bench_table("bench_cpu_float32", "bench_300m_cpu_float32")


def test_pairs_are_those_of_the_catalog() -> None:
    for entry in CATALOG:
        assert f"| {entry.family} | {entry.draft} |" in README


def test_keys_exist() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert len(keys) >= 6
    assert keys <= set(PardConfig.__dataclass_fields__) | UPSTREAM_FIELDS


def test_files_it_points_to_exist() -> None:
    for path in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / path).exists(), path
