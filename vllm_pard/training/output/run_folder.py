"""The folder of a training run: what it was asked for, and the checkpoints that it can go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_pard.errors import first_sentence
from vllm_pard.files import check_folder, write_whole
from vllm_pard.training.options.config import TrainConfigError

__all__ = ["RUN", "RunFolder", "mark_complete"]

COMPLETE = "complete.json"  # written last into a checkpoint
RUN = "run.json"
# What may change while a run is interrupted: none of it changes what is learnt.
FREE = ("output", "attention", "dtype")
FREE_OF_TRAINER = (
    "save",
    "logging",
    "eval",
    "report_to",
    "dataloader",
    "push_to_hub",
    "hub",
    "run_name",
    "load_best",
    "gradient_checkpointing",
)


@dataclass(frozen=True)
class RunFolder:
    """A folder that one run writes into."""

    path: Path

    def begin(self, asked: Mapping[str, Any]) -> Path | None:
        """Take the folder for a run with these options, and the checkpoint to go on from, if there is one.

        What a kill left half written is removed.

        Raises:
            TrainConfigError: the folder holds a run with other options, or something else.
            OutputError: it can't be written to.
        """
        check_folder(self.path)
        record = self.path / RUN
        if not record.exists() and self.path.exists() and any(self.path.iterdir()):
            raise TrainConfigError(
                f"output must be a new folder, or that of an earlier run; {str(self.path)!r} holds something else: "
                "name another"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for checkpoint in self._checkpoints():
            if not (checkpoint / COMPLETE).exists():
                shutil.rmtree(checkpoint)
        newest = max(self._checkpoints(), key=_step, default=None)
        if newest is not None:
            self._check_same(self._asked_before(record), asked)
        write_whole(record, json.dumps({"asked": asked}, indent=2) + "\n")
        return newest

    def _checkpoints(self) -> list[Path]:
        return [path for path in self.path.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]

    def _asked_before(self, record: Path) -> Mapping[str, Any]:
        try:
            return dict(json.loads(record.read_text(encoding="utf-8"))["asked"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainConfigError(
                f"{str(record)!r} must say how its run was started, and can't be read ({first_sentence(error)}): put "
                "it back, or name another output"
            ) from error

    def _check_same(self, earlier: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        before, now = _flat(earlier), _flat(asked)
        for name in sorted(before | now):
            if before.get(name) != now.get(name) and not _is_free(name):
                raise TrainConfigError(
                    f"the run in {str(self.path)!r} was started with {name} {before.get(name)!r}, and now it is "
                    f"{now.get(name)!r}: give the same to go on with it, or another output to start anew"
                )


def mark_complete(checkpoint: Path) -> None:
    """A checkpoint without this mark was being written when the run was killed."""
    write_whole(checkpoint / COMPLETE, "{}\n")


def _is_free(name: str) -> bool:
    return name in FREE or name.startswith(tuple(f"trainer.{start}" for start in FREE_OF_TRAINER))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _flat(options: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{place}{name}.")
        else:
            # As JSON has it, which knows no tuples.
            flat[f"{place}{name}"] = json.loads(json.dumps(value))
    return flat
