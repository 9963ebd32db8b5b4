"""What the counter counts, each kind by an example, and that the table is what was counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host_counter import HostWork, counted_launches
from pard_kernels import merge_attention_splits, workspace

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cpu")  # an engine's own: an object, where the host is left out or named


def kinds(function: Any, *told: Any) -> dict[str, int]:
    work = HostWork()
    with work.counting(*told), torch.inference_mode():
        function()
    counts: dict[str, int] = {}
    for (kind, _, _), number in work.counts.items():
        counts[kind] = counts.get(kind, 0) + number
    return counts


@pytest.fixture
def on_device() -> torch.Tensor:
    return torch.arange(12).view(3, 4)


def test_operators(on_device: torch.Tensor) -> None:
    assert kinds(lambda: on_device + 1) == {"operator": 1}
    assert kinds(lambda: on_device.add_(1)) == {"operator": 1}
    assert kinds(lambda: torch.add(on_device, 1, out=on_device)) == {"operator": 1}
    assert kinds(lambda: on_device[1:, 0].fill_(3)) == {"operator": 1}
    assert kinds(lambda: on_device.zero_() @ on_device.T.clone()) == {"operator": 3}
    assert kinds(lambda: torch.zeros(3, device=DEVICE)) == {"operator": 1}


def test_what_launches_nothing(on_device: torch.Tensor) -> None:
    assert kinds(lambda: on_device.view(-1)[2:].unsqueeze(0).expand(2, -1).T) == {}
    assert kinds(lambda: torch.empty_like(on_device)) == {}
    assert kinds(lambda: torch.empty(3, device=DEVICE)) == {}
    assert kinds(lambda: on_device.to(DEVICE)) == {}
    assert kinds(lambda: on_device.contiguous()) == {}


def test_tensors_of_the_host() -> None:
    assert kinds(lambda: (torch.arange(3) + 1).sum().item()) == {}
    assert kinds(lambda: torch.from_numpy(np.arange(3)).clone().tolist()) == {}
    assert kinds(lambda: torch.empty(3).copy_(torch.arange(3)).max().item()) == {}
    told = SimpleNamespace(lens=torch.arange(3))
    told.lens_cpu = told.lens
    assert kinds(lambda: int((told.lens_cpu + 1).max()), told) == {}
    assert kinds(lambda: told.lens + 1, told) == {"operator": 1}


def test_copies_to_the_device(on_device: torch.Tensor) -> None:
    assert kinds(lambda: on_device[0].copy_(torch.arange(4))) == {"copy to device": 1}
    assert kinds(lambda: torch.from_numpy(np.arange(4)).to(device=DEVICE)) == {"copy to device": 1}
    assert kinds(lambda: torch.tensor([1, 2], device=DEVICE)) == {"copy to device": 1}
    assert kinds(lambda: torch.arange(4).to(DEVICE) + 1) == {"copy to device": 1, "operator": 1}
    assert kinds(lambda: on_device[torch.tensor([0, 2])]) == {"copy to device": 1, "operator": 1}


def test_copies_to_the_host(on_device: torch.Tensor) -> None:
    for read in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__"):
        one = on_device if read in ("tolist", "cpu", "numpy") else on_device[0, 0]
        assert kinds(lambda one=one, read=read: getattr(one, read)()) == {"read": 1}, read
    assert kinds(lambda: torch.zeros(3, 4).copy_(on_device)) == {"read": 1}
    assert kinds(lambda: on_device.cpu() + 1) == {"read": 1}, "what was copied is the host's"
    assert kinds(lambda: on_device[on_device > 3]) == {"read": 1, "operator": 2}, (
        "the size is known to the device alone"
    )


def test_launches_and_replays(on_device: torch.Tensor) -> None:
    """What is inside of either is not asked for by the host."""

    class Graph:
        def replay(self) -> None:
            on_device.add_(1).tolist()

    partial, work = workspace(2, 3, 1, 16, "cpu"), HostWork()
    for tensor in partial:
        tensor.zero_()
    starts, out = torch.tensor([0, 3], dtype=torch.int32), torch.empty(3, 1, 16)
    with work.counting(), counted_launches(work, Graph):
        merge_attention_splits(*partial, 2, starts, out)
        Graph().replay()
    assert {kind: n for (kind, _, _), n in work.counts.items()} == {"triton": 1, "graph": 1}


def test_the_table_is_what_was_counted() -> None:
    import tables

    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert tables.render(readme, tables.BENCHMARKS_TABLES) == readme, "run: python benchmarks/tables.py"


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize(("method", "num_launches"), [("pard", 2), ("pard2, dependent", 3)])
def test_a_step_in_graphs_is_a_few_launches(
    tiny_pair: tuple[Path, Path], tmp_path: Path, method: str, num_launches: int
) -> None:
    """PARD-2's third is the copy of the target's states to where the graph reads them."""
    from engine import ENVIRONMENT

    result, pair = tmp_path / "rows.json", tiny_pair[0].parent
    command = [sys.executable, "benchmarks/host_work.py", "--only", method, "graph", str(pair), str(result)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(result.read_text())
    assert [row["batch_size"] for row in rows] == [1, 4, 16]
    for row in rows:
        assert row["num_steps"] >= 2
        assert row["host_launches"] == num_launches, row["where"]
        assert row["device_to_host_copies"] == row["host_launches_of_the_forward"] == 0
        assert any("1 graph: replay" in place for place in row["where"])
        # 28 rows of each request are two places of a graph for 16.
        has_room = row["batch_size"] < 16
        assert (row["host_launches_with_prompts"] < 35) == has_room
