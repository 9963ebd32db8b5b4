"""The README says what is so: its numbers come from the result files, its pairs from the catalog, its keys exist."""

import importlib.util
import re
from pathlib import Path

from vllm_pard.catalog import CATALOG
from vllm_pard.config import UPSTREAM_FIELDS, PardConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_numbers_are_those_of_the_result_files() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.render(README) == README, "run: python benchmarks/tables.py"


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
