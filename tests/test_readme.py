"""The README says what is so: its numbers come from the result files, its pairs from the catalog, its keys exist."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from vllm_pard.catalog import CATALOG
from vllm_pard.config import UPSTREAM_FIELDS, PardConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_numbers_are_those_of_the_result_files() -> None:
    import tables

    assert tables.render(README) == README, "run: python benchmarks/tables.py"


def test_the_picture_shows_the_result_file() -> None:
    path = ROOT / "benchmarks" / "results" / "speed_up.png"
    with Image.open(path) as image:
        shown = json.loads(image.info["Data"])
    result = json.loads((ROOT / "benchmarks" / "results" / "bench_cpu_float32.json").read_text())
    measured = {(cell["method"], cell["concurrency"]): cell["speed_up"] for cell in result["results"]}
    baseline = {pair: speed_up for pair, speed_up in measured.items() if pair[0] == shown["baseline"]}
    assert set(baseline.values()) == {1}
    points = {(method, x): y for method, points in shown["series"].items() for x, y, _ in points}
    assert points | baseline == measured, "run: python benchmarks/tables.py"
    assert "demo/target, draft demo/draft, K = 8, float32" in shown["title"]
    assert path.stat().st_size < 60_000


def test_a_picture_of_other_numbers_is_redrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tables

    assert tables.picture_is_right()
    monkeypatch.setattr(tables, "PICTURE", tmp_path / "speed_up.png")
    assert not tables.picture_is_right()  # there is none
    monkeypatch.setattr(tables, "PICTURED", "bench_300m_cpu_float32")
    tables.draw(tables.picture(), tables.PICTURE)
    assert tables.picture_is_right()
    monkeypatch.setattr(tables, "PICTURED", "bench_cpu_float32")
    assert not tables.picture_is_right()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1
    tables.draw(tables.picture(), tables.PICTURE)
    assert tables.main() == 0


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
