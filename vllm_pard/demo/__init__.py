"""The bundled demo pair: a small target, its PARD draft, held-out prompts, the text they come from. See README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "SPLITS", "demo_path", "prompts"]

MODELS = ("target", "draft", "draft_pard2", "draft_ar")
SPLITS = ("word_problems", "arithmetic", "code", "unseen_word_problems", "unseen_code")

_FOLDER = Path(__file__).parent


def demo_path(name: str) -> Path:
    """Folder of one bundled model: "target", "draft" (PARD), "draft_pard2" (which also reads the target's hidden
    states) or "draft_ar" (the draft before PARD training).

    Raises:
        ValueError: there is no model of that name.
        FileNotFoundError: the model is not in this installation.
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {MODELS}; got {name!r}")
    folder = _FOLDER / name
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"the demo model {name!r} should be in {folder}; train it with `make demo-pair ARGS=--install`"
        )
    return folder


def prompts(split: str) -> list[dict[str, Any]]:
    """Held-out prompts of one split, each with `prompt`, `question`, `answer` and `family`.

    `prompt` is the text to complete; `question` is what a chat message holds.

    Raises:
        ValueError: there is no split of that name.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; got {split!r}")
    lines = (_FOLDER / "prompts" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
