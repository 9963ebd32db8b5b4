"""Pictures of a result as PNG files. Each carries its data as JSON, under "Data" among the file's texts."""

import json
from collections.abc import Collection
from itertools import cycle
from pathlib import Path
from typing import Any

from vllm_pard.bench.pictures import Picture, Point, pictures
from vllm_pard.errors import PardError

# Of each method in every picture, so that pictures can be compared; Okabe and Ito's colours, told apart by all eyes.
COLORS = {
    "none": "#777777",
    "draft_model": "#0072B2",
    "draft_model+parallel_drafting": "#56B4E9",
    "eagle3": "#009E73",
    "ngram": "#E69F00",
    "suffix": "#CC79A7",
    "pard": "#D55E00",
    "pard+independent": "#F4A582",
    "pard+auto": "#1B7837",
    "pard+tree": "#B2182B",
    "pard+tree+auto": "#762A83",
    "pard+own_attention": "#8C2D04",
    "pard+fp8": "#9467BD",
    "ar": "#777777",
    "ar+": "#222222",
    "vsd": "#0072B2",
}
OTHER_COLORS = ("#BBBB00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")  # in turn
STYLES = ("-", "--", ":")
DATA_KEY = "Data"
HEADROOM = 1.12
LONG_LABEL = 20  # characters; two such stand beside each other in a legend, or four shorter ones


class PlotError(PardError):
    """The pictures can't be drawn."""


def check_matplotlib() -> None:
    """Find out before the measurement, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlotError("plots need matplotlib: pip install 'vllm-pard[bench]'") from error


def draw_plots(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write the PNG files of a result into `folder`; the paths of those for which there was something to draw."""
    check_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    return [draw(picture, folder / f"{picture.name}.png") for picture in pictures(record)]


def draw(picture: Picture, path: Path) -> Path:
    """Write one picture as PNG, with its data; the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    if picture.baseline:
        axes.axhline(1, color=colors([picture.baseline])[0], linestyle="--", label=picture.baseline)
    if picture.x_axis == "groups":
        _draw_bars(axes, picture)
    else:
        _draw_lines(axes, picture)
    axes.set(xlabel=picture.x_title, ylabel=picture.y_title)
    axes.set_title(picture.title, fontsize="medium")
    axes.grid(alpha=0.3, axis="y" if picture.x_axis == "groups" else "both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    columns = 2 if max(map(len, picture.series)) > LONG_LABEL else 4
    figure.legend(loc="outside lower center", ncols=columns, handlelength=3, frameon=False)
    try:
        figure.savefig(
            path, dpi=150, metadata={DATA_KEY: json.dumps(picture.as_record())}, pil_kwargs={"optimize": True}
        )
    except OSError as error:
        raise PlotError(f"can't write {str(path)!r}: {error.strerror}") from error
    return path


def data_of(path: Path) -> dict[str, Any] | None:
    """What a PNG file was drawn from; None if there is no such file, or none of ours."""
    from PIL import Image

    if not path.exists():
        return None
    with Image.open(path) as image:
        text = image.info.get(DATA_KEY)
    data: dict[str, Any] | None = text and json.loads(text)
    return data


def _name(label: str) -> str:
    return label.partition(":")[0]


def colors(labels: Collection[str]) -> list[tuple[float, float, float]]:
    """Of methods as they are labelled; where one is there with several K, later ones are lighter."""
    from matplotlib.colors import to_rgb

    seen: dict[str, int] = {}
    others = dict(zip(dict.fromkeys(name for name in map(_name, labels) if name not in COLORS), cycle(OTHER_COLORS)))
    found = []
    for label in labels:
        name = _name(label)
        strength = 0.6 ** seen.setdefault(name, 0)
        seen[name] += 1
        red, green, blue = (1 - strength * (1 - part) for part in to_rgb(COLORS.get(name) or others[name]))
        found.append((red, green, blue))
    return found


def _draw_bars(axes: Any, picture: Picture) -> None:
    """A group for each x, in it a bar for each method."""
    groups = sorted({point.x for points in picture.series.values() for point in points})
    width = 0.8 / len(picture.series)
    for number, (color, (label, points)) in enumerate(zip(colors(picture.series), picture.series.items(), strict=True)):
        offset = (number - (len(picture.series) - 1) / 2) * width
        xs = [groups.index(point.x) + offset for point in points]
        bars = axes.bar(xs, [point.y for point in points], 0.95 * width, color=color, label=label)
        axes.bar_label(bars, [point.note for point in points], padding=2, fontsize="small")
    axes.set_xticks(range(len(groups)), [f"{group:g}" for group in groups])
    axes.set_xlim(-0.7, len(groups) - 0.3)
    axes.set_ylim(0, HEADROOM * max(axes.dataLim.ymax, 1))


def _draw_lines(axes: Any, picture: Picture) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    drawn: list[list[Point]] = []
    for color, (label, points) in zip(colors(picture.series), picture.series.items(), strict=True):
        # A curve that lies on others is broken, so that they are seen.
        num_below = sum(set(points) <= set(other) for other in drawn)
        style = STYLES[min(num_below, len(STYLES) - 1)]
        drawn.append(points)
        xs, ys = [point.x for point in points], [point.y for point in points]
        axes.plot(xs, ys, color=color, linestyle=style, linewidth=2, marker="o", markersize=5, label=label)
        if picture.x_axis == "numbers":
            for point in points:
                axes.annotate(point.note, (point.x, point.y), (4, 4), textcoords="offset points", fontsize="small")
    axes.set_ylim(0, HEADROOM * max(axes.dataLim.ymax, 1))
    if picture.x_axis == "positions":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axes.set_ylim(0, 1.03)
    elif picture.x_axis == "powers of two":
        measured = sorted({point.x for points in picture.series.values() for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(measured, [f"{concurrency:g}" for concurrency in measured])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, HEADROOM * axes.dataLim.xmax)
