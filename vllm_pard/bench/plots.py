"""A result file as three pictures: speed-up by concurrency, acceptance by position, throughput against latency."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_pard.errors import PardError


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
    cells = [cell for cell in record["results"] if cell["runs"]]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = (
        _draw(folder / "speed_up.png", _speed_ups(cells), "requests at a time", "speed-up"),
        _draw(folder / "acceptance.png", _acceptance(cells), "position of the draft token", "share accepted"),
        _draw(folder / "front.png", _front(cells), "tokens/s for one user", "tokens/s in all"),
    )
    return [path for path in drawn if path]


Lines = dict[str, tuple[list[float], list[float]]]


def _speed_ups(cells: list[dict[str, Any]]) -> Lines:
    return _lines((cell["method"], cell["concurrency"], cell["speed_up"]) for cell in cells)


def _acceptance(cells: list[dict[str, Any]]) -> Lines:
    first = {cell["method"]: cell["acceptance_by_position"] for cell in reversed(cells)}
    return _lines((method, i, share) for method, shares in first.items() for i, share in enumerate(shares, start=1))


def _front(cells: list[dict[str, Any]]) -> Lines:
    return _lines((cell["method"], cell["tokens_per_second_per_user"], cell["tokens_per_second"]) for cell in cells)


def _lines(points: Iterable[tuple[str, float, float | None]]) -> Lines:
    lines: Lines = {}
    for label, x, y in points:
        if y is not None:
            xs, ys = lines.setdefault(label, ([], []))
            xs.append(x)
            ys.append(y)
    return lines


def _draw(path: Path, lines: Lines, x_title: str, y_title: str) -> Path | None:
    if not lines:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, (xs, ys) in lines.items():
        axes.plot(xs, ys, marker="o", label=label)
    axes.set(xlabel=x_title, ylabel=y_title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise PlotError(f"can't write {str(path)!r}: {error.strerror}") from error
    return path
