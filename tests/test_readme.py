"""The README says what is so: its numbers come from the result files, its pairs from the catalog, its keys exist."""

import json
import re
import sys
from pathlib import Path

import pytest
from doc_blocks import DOCUMENTS, FENCE, ROOT
from PIL import Image

from vllm_pard.catalog import CATALOG
from vllm_pard.config import UPSTREAM_FIELDS, PardConfig

RESULTS = ROOT / "benchmarks" / "results"
README, GUIDE, TRAINING = ((ROOT / name).read_text() for name in DOCUMENTS)


def test_numbers_are_those_of_the_result_files() -> None:
    import tables

    for path, of_file in tables.FILES.items():
        text = path.read_text()
        assert tables.render(text, of_file) == text, "run: python benchmarks/tables.py"


def test_the_picture_shows_the_result_file() -> None:
    path = RESULTS / "speed_up.png"
    with Image.open(path) as image:
        shown = json.loads(image.info["Data"])
    result = json.loads((RESULTS / "bench_cpu_float32.json").read_text())
    measured = {(cell["method"], cell["concurrency"]): cell["speed_up"] for cell in result["results"]}
    baseline = {pair: speed_up for pair, speed_up in measured.items() if pair[0] == shown["baseline"]}
    assert set(baseline.values()) == {1}
    points = {(method, x): y for method, points in shown["series"].items() for x, y, _ in points}
    assert points | baseline == measured, "run: python benchmarks/tables.py"
    assert "demo/target, draft demo/draft, K = 8, float32" in shown["title"]
    assert path.stat().st_size < 80_000


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
        tables.bench_table("bench_cpu_float32", "bench_300m_cpu_float32", plain_row="a reason")


def test_every_table_says_why_its_plain_row_is_what_it_is() -> None:
    import tables

    text = (ROOT / "benchmarks" / "README.md").read_text()
    in_demo = tables.load("demo_cpu_float32_b1")["plain"]["tokens_per_second"]
    for name, reason in tables.PLAIN_ROWS.items():
        table = text.partition(f"<!-- table:{name} -->")[2].partition("<!-- end -->")[0]
        speed = re.search(r"^\| \w+ \| 1.00 \| (\d+) ", table, re.MULTILINE)
        assert speed, f"{name} has no plain row"
        assert f"has {in_demo:.0f} tokens/s in `vllm-pard demo` and {speed[1]} here: {reason}." in table


def test_is_short_and_in_a_newcomers_order() -> None:
    assert len(README.splitlines()) < 150
    chapters = re.findall(r"^## (.*)$", FENCE.sub("", README), re.MULTILINE)
    assert chapters == ["Try it", "Serve", "Does it pay?", "Train a draft", "Limits"]
    assert README.index("Hardly tested on GPUs") < README.index("<!-- table:")
    assert README.count("<!-- table:") == README.count("![") == 1


def test_pairs_are_those_of_the_catalog() -> None:
    for entry in CATALOG:
        assert f"| {entry.family} | {entry.draft} |" in GUIDE


def test_shipped_configs_are_named() -> None:
    from vllm_pard.training.options.shipped_configs import shipped_configs

    table = TRAINING[TRAINING.index("| shipped config |") : TRAINING.index("## What is learnt")]
    assert set(re.findall(r"`(\w[\w.]*)`", table)) == set(shipped_configs())


def test_keys_exist() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))
    assert len(keys) >= 6
    assert keys <= set(PardConfig.__dataclass_fields__) | UPSTREAM_FIELDS


@pytest.mark.parametrize("text", [README, GUIDE, TRAINING], ids=DOCUMENTS)
def test_places_it_points_to_exist(text: str) -> None:
    for path, anchor in re.findall(r"\]\(([\w./]*)(?:#([\w-]+))?\)", text):
        there = (ROOT / path).read_text() if anchor and path else text
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors(there), f"{path}#{anchor}"


def anchors(text: str) -> list[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_numbers_in_sentences_are_the_codes_own() -> None:
    from safetensors import safe_open

    from vllm_pard.config import MAX_NUM_SPECULATIVE_TOKENS
    from vllm_pard.demo import demo_path
    from vllm_pard.serving.watch import WatchLimits

    def millions(part: str) -> str:
        with safe_open(demo_path(part) / "model.safetensors", framework="pt") as weights:
            return f"{sum(weights.get_tensor(name).numel() for name in weights.keys()) / 1e6:.1f}M"  # noqa: SIM118

    limits = WatchLimits()
    for document, sentence in (
        (README, f"a toy of {millions('target')} and {millions('draft')} parameters"),
        (GUIDE, f"fewer than {limits.mean_acceptance_length} tokens a step come out of {limits.num_drafts:,} drafts"),
        (GUIDE, f"K, 1 to {MAX_NUM_SPECULATIVE_TOKENS}, or `auto`:"),
    ):
        assert sentence in " ".join(document.split())


def test_exactness_in_bfloat16_is_what_was_measured() -> None:
    (verification,) = json.loads((RESULTS / "verify_smollm2_cpu_bfloat16.json").read_text())["verification"]
    control, text = verification["control"], " ".join((ROOT / "benchmarks" / "README.md").read_text().split())
    gaps = [divergence["gap"] for divergence in control["divergences"]]
    assert f"of {control['num_requests']} greedy answers" in text
    assert f"{len(gaps)} change between {control['concurrency']} and {verification['concurrency']} requests" in text
    assert f"at most {max(gaps)} nats apart" in text
    assert f"at 4 at a time, all {verification['num_equal']} (`verify" in text
