"""Where the stages of a run keep their results, and which of them are finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_pard.training.receipt import environment, write_json

__all__ = ["Stage", "Workspace"]


@dataclass(frozen=True)
class Stage:
    """One stage of one config."""

    name: str
    key: str  # digest of its config and of all stages before it
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """State of unfinished training; a changed config starts a new one."""
        return self.folder / f"checkpoint-{self.key}.pt"


@dataclass(frozen=True)
class Workspace:
    """The folder of a run: one folder per stage, each with its run.json."""

    root: Path
    report: Callable[[str], None]

    def prepare(self) -> None:
        """Create the folder and check that it takes files.

        Raises:
            OSError: it does not.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"--output must be a folder that can be written; {self.root} cannot ({error.strerror}): "
                "choose another one"
            ) from error

    def run(self, name: str, key: str, config: Any, body: Callable[[Stage], dict[str, Any]]) -> Stage:
        """Run `body` unless this stage is finished with the same key; its result goes into run.json."""
        stage = Stage(name, key, self.root / name)
        receipt = stage.folder / "run.json"
        if receipt.exists() and json.loads(receipt.read_text())["config_hash"] == key:
            self.report(f"{name}: finished before, skipped")
            return stage
        stage.folder.mkdir(exist_ok=True)
        self.report(f"{name}: started")
        started = time.monotonic()
        result = body(stage)
        wall_time_s = round(time.monotonic() - started, 1)
        write_json(
            receipt,
            {
                "stage": name,
                "config_hash": key,
                "config": config,
                "environment": environment("python -m vllm_pard.training.demo_pair"),
                "wall_time_s": result.get("training_time_s", wall_time_s),
                "result": result,
            },
        )
        stage.checkpoint.unlink(missing_ok=True)
        self.report(f"{name}: finished after {wall_time_s:.0f} s")
        return stage
