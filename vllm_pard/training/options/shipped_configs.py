"""Configs that come with the package, by their names."""

from __future__ import annotations

import difflib
from pathlib import Path

from vllm_pard.training.options.config import TrainConfigError

__all__ = ["find_config", "shipped_configs"]

FOLDER = Path(__file__).parent / "configs"


def shipped_configs() -> list[str]:
    """All names."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(given: str) -> Path:
    """The file that `given` names: a path, or a shipped config.

    Raises:
        TrainConfigError: it is neither; the message has the nearest name.
    """
    path, name = Path(given), given.removesuffix(".yaml")
    names = shipped_configs()
    if path.exists() or "/" in given:
        return path
    if name in names:
        return FOLDER / f"{name}.yaml"
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"shipped are {', '.join(names)}"
    raise TrainConfigError(f"there is no config file {given!r} here, and no config of this name is shipped; {hint}")
