"""Prompt sets by name: bundled, public (from the hub or a local copy), or a file of one's own."""

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from vllm_pard import demo
from vllm_pard.bench.prompt_formats import (
    FILE_SUFFIXES,
    INSTALL,
    PARD_FIELD,
    PARD_FILE,
    PUBLIC_SETS,
    PromptFormat,
    Row,
    read_rows,
)
from vllm_pard.prompts import Prompt, PromptError, read_prompts

__all__ = ["PromptSet", "demo_prompts", "load_prompts", "set_names"]

# Held-out questions of the templates that the demo pair was trained on.
DEMO_SPLITS = ("word_problems", "code")
BUNDLED_SETS = {"demo": DEMO_SPLITS} | {f"demo:{split}": (split,) for split in demo.SPLITS}
# For one small request that tells whether the hub answers: left alone, `datasets` tries six times.
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and what a result has to say about them."""

    name: str
    source: str  # hub dataset with config, split and revision, or the name of a file
    category: str | None
    num_available: int  # before the sample was taken
    prompts: list[Prompt]


def set_names() -> list[str]:
    """Every name that `load_prompts` knows."""
    return [*BUNDLED_SETS, *PUBLIC_SETS]


def load_prompts(name_or_path: str, *, num_prompts: int | None, seed: int, category: str | None = None) -> PromptSet:
    """A named set, a public set from a local file ("gsm8k=test.jsonl"), or a file that `read_prompts` reads.

    With `num_prompts`, a seeded sample in the set's own order; a larger sample holds the smaller one. Nothing repeats.

    Raises:
        PromptError: no such set, category or file, or its rows are not the set's.
    """
    if num_prompts is not None and num_prompts < 1:
        raise PromptError(f"the number of prompts must be at least 1; got {num_prompts}")
    name, equals, file = name_or_path.partition("=")
    if name in PUBLIC_SETS:
        prompt_format = PUBLIC_SETS[name]
        source, rows = _file_rows(name, file) if equals else _hub_rows(name, prompt_format)
        if not rows:
            raise PromptError(f"the prompt set {name!r} has no prompts in {source}")
        rows = _of_category(name, prompt_format, rows, category)
        prompts = [prompt_format.prompt(name, row) for row in rows]
    else:
        name, source, prompts = _other_prompts(name_or_path)
        if category is not None:
            raise PromptError(f"the prompt set {name!r} has no categories; leave {category!r} out")
    _check_ids(name, prompts)
    return PromptSet(name, source, category, len(prompts), _sample(prompts, num_prompts, seed))


def demo_prompts(num_prompts: int | None, splits: Sequence[str] = DEMO_SPLITS) -> list[dict[str, Any]]:
    """Held-out questions of the demo pair, the splits in turn."""
    in_turn = chain.from_iterable(zip_longest(*(demo.prompts(split) for split in splits)))
    samples = islice((sample for sample in in_turn if sample), num_prompts)
    return [
        {"id": str(number), "text": sample["prompt"], "messages": None, "question": sample["question"]}
        for number, sample in enumerate(samples, start=1)
    ]


def _other_prompts(name_or_path: str) -> tuple[str, str, list[Prompt]]:
    """Name, source and prompts of a bundled set or of a file of one's own."""
    if name_or_path in BUNDLED_SETS:
        splits = BUNDLED_SETS[name_or_path]
        prompts = [Prompt(id=row["id"], text=row["text"]) for row in demo_prompts(None, splits)]
        return name_or_path, f"bundled with vllm-pard: {', '.join(splits)}", prompts
    path = Path(name_or_path)
    if not path.exists() and ("=" in path.parts[0] or not (path.suffix or len(path.parts) > 1)):
        raise _unknown_set(name_or_path.partition("=")[0])
    if path.suffix == ".jsonl":
        rows = read_rows(path)
        if rows and all(PARD_FIELD in row.fields and not {"prompt", "messages"} & set(row.fields) for row in rows):
            return path.name, path.name, [PARD_FILE.prompt(path.stem, row) for row in rows]
    return path.name, path.name, read_prompts(path)


def _unknown_set(name: str) -> PromptError:
    if name == "random":
        return PromptError(
            "random tokens are refused as prompts: their answers end in loops that any draft guesses, which inflates "
            "acceptance; use demo, gsm8k, humaneval, mt-bench or a file of your own prompts"
        )
    near = difflib.get_close_matches(name.lower(), set_names(), n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else "."
    return PromptError(
        f"there is no prompt set {name!r}{suggestion} Known: {', '.join(set_names())}; "
        "prompts of your own come from a .jsonl or .txt file, a copy of a public set from NAME=FILE"
    )


def _of_category(name: str, prompt_format: PromptFormat, rows: list[Row], category: str | None) -> list[Row]:
    if category is None:
        return rows
    field = prompt_format.category_field
    of_row = [str(row.fields.get(field) or "") if field else "" for row in rows]
    categories = sorted(set(of_row) - {""})
    if not categories:
        raise PromptError(f"the prompt set {name!r} has no categories; leave {category!r} out")
    if category not in categories:
        raise PromptError(f"{name} has no category {category!r}; it has {', '.join(categories)}")
    return [row for row, found in zip(rows, of_row, strict=True) if found == category]


def _check_ids(name: str, prompts: list[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"every prompt of {name} needs an id of its own; {prompt.id!r} comes twice")
        seen.add(prompt.id)


def _sample(prompts: list[Prompt], num_prompts: int | None, seed: int) -> list[Prompt]:
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    return [prompts[index] for index in sorted(order[:num_prompts])]


def _file_rows(name: str, file: str) -> tuple[str, list[Row]]:
    path = Path(file)
    if path.suffix not in FILE_SUFFIXES:
        raise PromptError(f"{name}=FILE needs a file in {', '.join(FILE_SUFFIXES)}; got {file!r}")
    return path.name, read_rows(path)


def _hub_rows(name: str, prompt_format: PromptFormat) -> tuple[str, list[Row]]:
    """Source and rows of a dataset on the hub, or, with HF_HUB_OFFLINE=1, of its cached copy."""
    hub = prompt_format.hub
    if hub is None:
        raise PromptError(f"{name} is not on the Hugging Face hub; download {prompt_format.url} and give {name}=FILE")
    try:
        import datasets
        from huggingface_hub import HfApi
    except ImportError as error:
        raise PromptError(
            f"the prompt set {name!r} comes from the Hugging Face hub with `datasets`: {INSTALL}, or give {name}=FILE"
        ) from error
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    try:
        revision = None if offline else HfApi().dataset_info(hub, timeout=HUB_TIMEOUT_S).sha
        loaded = datasets.load_dataset(hub, prompt_format.config, split=prompt_format.split, revision=revision)
        rows = [Row(number, f"row {number} of {hub}", dict(fields)) for number, fields in enumerate(loaded, start=1)]
    except Exception as error:  # of the HTTP library, the hub's, Arrow's, the file system's: they share no base
        raise _hub_error(name, prompt_format, error, offline) from error
    parts = [hub, prompt_format.config, prompt_format.split, f"revision {revision or _cached_revision(loaded)}"]
    return ", ".join(part for part in parts if part), rows


def _hub_error(name: str, prompt_format: PromptFormat, error: Exception, offline: bool) -> PromptError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
    otherwise = ", or use an earlier download with HF_HUB_OFFLINE=1"
    if offline:
        otherwise = ", or unset HF_HUB_OFFLINE"
        if isinstance(error, ConnectionError):
            reason = "HF_HUB_OFFLINE is set and there is no earlier download"
    return PromptError(
        f"can't get the prompt set {name!r} from the Hugging Face hub: {reason}; download the {prompt_format.split} "
        f"split of https://huggingface.co/datasets/{prompt_format.hub} and give {name}=FILE "
        f"({', '.join(FILE_SUFFIXES)}){otherwise}"
    )


def _cached_revision(loaded: Any) -> str:
    """The cache keeps each commit of a dataset in a folder of that name."""
    folders = {Path(file["filename"]).parent.name for file in loaded.cache_files}
    commits = {folder for folder in folders if re.fullmatch(r"[0-9a-f]{40}", folder)}
    return commits.pop() if len(commits) == 1 else "unknown"
