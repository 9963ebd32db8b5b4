"""Pictures are compared by the data that they carry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_pard.bench.methods import METHODS, REFERENCE_METHODS
from vllm_pard.bench.pictures import Picture, pictures, title
from vllm_pard.bench.plots import COLORS, PlotError, colors, data_of, draw, draw_plots

Record = dict[str, Any]


def cell(method: str, concurrency: int, speed_up: float, *shares: float) -> Record:
    return {
        "method": method,
        "concurrency": concurrency,
        "runs": [{}],
        "speed_up": speed_up,
        "tokens_per_second": 100 * speed_up * concurrency,
        "tokens_per_second_per_user": 90 * speed_up,
        "acceptance_by_position": shares,
    }


@pytest.fixture
def record() -> Callable[..., Record]:
    """A result of these cells."""

    def record(*cells: Record) -> Record:
        conditions = {
            "target": "Qwen/Qwen3-8B",
            "methods": {
                "none": {},
                "draft_model": {"method": "draft_model", "model": "ar/draft", "num_speculative_tokens": 4},
                "pard": {"method": "pard", "model": "amd/PARD-Qwen3-0.6B", "num_speculative_tokens": 8},
            },
            "dtype": "auto",
            "weight_dtype": "bfloat16",
            "devices": [],
            "cpu": "AMD EPYC",
            "num_threads": 2,
            "engine": "vllm",
            "versions": {"vllm": "0.33.0"},
        }
        return {"conditions": conditions, "results": list(cells)}

    return record


def named(result: Record) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures(result)}


def test_pngs_carry_their_data(record: Callable[..., Record], tmp_path: Path) -> None:
    result = record(cell("none", 1, 1.0), cell("pard", 1, 2.5, 0.9, 0.5))
    paths = draw_plots(result, tmp_path / "new")
    assert [path.name for path in paths] == ["speed_up.png", "acceptance.png", "front.png"]
    for path, picture in zip(paths, pictures(result), strict=True):
        assert path.read_bytes().startswith(b"\x89PNG")
        with Image.open(path) as image:
            data = json.loads(image.info["Data"])
        assert data == json.loads(json.dumps(picture.as_record())) == data_of(path)
    speed_up, acceptance, front = map(data_of, paths)
    assert speed_up is not None
    assert speed_up["series"] == {"pard": [[1, 2.5, "2.50x"]]}
    assert (speed_up["baseline"], speed_up["y_title"]) == ("none", "speed-up over none")
    assert acceptance is not None
    assert acceptance["series"] == {"pard": [[1, 0.9, ""], [2, 0.5, ""]]}
    assert front is not None
    assert front["series"] == {"none": [[90, 100, "1"]], "pard": [[225, 250, "1"]]}


@pytest.mark.parametrize(
    ("concurrencies", "axis"), [((1,), "groups"), ((1, 4), "groups"), ((1, 4, 16), "powers of two")]
)
def test_bars_for_few_concurrencies(
    concurrencies: tuple[int, ...], axis: str, record: Callable[..., Record], tmp_path: Path
) -> None:
    cells = [cell(method, c, 1 + k) for k, method in enumerate(("none", "pard")) for c in concurrencies]
    picture = named(record(*cells))["speed_up"]
    assert picture.x_axis == axis
    assert [point.x for point in picture.series["pard"]] == list(concurrencies)
    assert draw(picture, tmp_path / "speed_up.png").exists()


def test_axes(record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ticks at what was measured, room above, nothing between two positions."""
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    shares = [1.0] * 5
    cells = [
        cell(method, c, 1 + 2 * k, *shares[: 5 * k]) for k, method in enumerate(("none", "pard")) for c in (1, 3, 9)
    ]
    draw_plots(record(*cells), tmp_path)
    speed_up, acceptance, front = (figure.axes[0] for figure in drawn)
    assert list(speed_up.get_xticks()) == [1, 3, 9]
    assert [tick.get_text() for tick in speed_up.get_xticklabels()] == ["1", "3", "9"]
    assert speed_up.get_ylim()[1] > 3.2
    assert acceptance.get_ylim() == (0, pytest.approx(1, abs=0.05))
    assert all(tick == round(tick) for tick in acceptance.get_xticks())
    assert front.get_xlim()[1] > 270
    for figure in drawn:
        (legend,) = figure.legends  # the figure's, outside the axes
        frame, axes = legend.get_window_extent(), figure.axes[0].get_window_extent()
        assert frame.y1 < axes.y0
        assert "Qwen/Qwen3-8B" in figure.axes[0].get_title()


def test_methods_without_a_value_are_left_out(record: Callable[..., Record]) -> None:
    failed = {"method": "ngram", "concurrency": 1, "runs": []}
    found = named(record(cell("none", 1, 1.0), failed))
    assert list(found) == ["front"]  # nothing is faster than the baseline, and nothing is drafted
    assert list(found["front"].series) == ["none"]
    assert pictures(record(failed)) == []


def test_every_method_has_a_color_of_its_own() -> None:
    for table in (METHODS, REFERENCE_METHODS):
        assert set(table) <= set(COLORS)
        assert len({COLORS[name] for name in table}) == len(table)


def test_a_method_keeps_its_hue() -> None:
    import colorsys

    alone, *several = colors(["pard", "pard:4", "none", "pard:8"])
    assert colors(["pard:4"]) == [alone]
    hues = [colorsys.rgb_to_hsv(*color)[0] for color in (alone, several[0], several[2])]
    assert hues == pytest.approx([hues[0]] * 3)
    assert len({alone, *several}) == 4
    assert colors(["unknown", "unknown:2"])[0] not in colors(COLORS)


def test_title(record: Callable[..., Record]) -> None:
    conditions = record()["conditions"]
    assert title(conditions) == (
        "Qwen/Qwen3-8B, draft amd/PARD-Qwen3-0.6B, K = 4, 8, bfloat16\nAMD EPYC, 2 threads, vLLM 0.33.0"
    )
    conditions |= {"devices": ["NVIDIA H100"] * 2, "engine": "reference", "methods": {"ar": {}}}
    assert title(conditions) == "Qwen/Qwen3-8B, bfloat16\n2 x NVIDIA H100, reference engine"
    conditions |= {"target": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B-with-a-long-name, and then some more"}
    assert all(len(line) <= 68 for line in title(conditions).splitlines())


def test_a_folder_that_cannot_be_written(record: Callable[..., Record], tmp_path: Path) -> None:
    (picture,) = pictures(record(cell("none", 1, 1.0)))
    (tmp_path / "front.png").mkdir()
    with pytest.raises(PlotError, match=r"can't write '.*': Is a directory"):
        draw(picture, tmp_path / "front.png")


def test_data_of_other_files(tmp_path: Path) -> None:
    assert data_of(tmp_path / "missing.png") is None
    Image.new("L", (1, 1)).save(tmp_path / "other.png")
    assert data_of(tmp_path / "other.png") is None
