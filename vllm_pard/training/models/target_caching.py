"""Fills a cache of the target before training: several processes share the shards and wait for each other.

L tokens of a pack · N tokens that are read at once
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainingArguments
from transformers.utils import cached_file

from vllm_pard.checkpoint import load_config
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.data.documents import columns
from vllm_pard.training.data.packing import PackedDataset
from vllm_pard.training.models.target import Target, Vocabulary
from vllm_pard.training.models.target_cache import TargetCache, TargetCacheError
from vllm_pard.training.options.config import CodConfig
from vllm_pard.training.top_k import TopKOutput, top_k

__all__ = ["Packs", "data_digest", "fill", "vocabulary_digest", "weights_digest"]

TOKENS_AT_ONCE = 4096  # short packs are read several at a time
HEAD_BYTES = 1 << 20  # of a file of weights
REPORT_SECONDS = 30

Report = Callable[[str], None]


class Packs:
    """Rows of several datasets as one list: those of the second are numbered after those of the first."""

    def __init__(self, *datasets: PackedDataset) -> None:
        self._datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset.rows) for dataset in self._datasets)

    def __getitem__(self, pack: int) -> dict[str, Any]:
        number = pack
        for dataset in self._datasets:
            if number < len(dataset.rows):
                return dataset.row(number) | {"pack": pack, "draw": pack}
            number -= len(dataset.rows)
        raise IndexError(pack)


def fill(
    cache: TargetCache,
    packs: Packs,
    target: Callable[[], Target],
    vocabulary: Vocabulary,
    arguments: TrainingArguments,
    report: Report,
) -> None:
    """Compute what is missing. Each process calls it, and comes back when all shards are there.

    Args:
        target: loads it; only called where something is missing.
        vocabulary: which ids the top k are taken of.

    Raises:
        TargetCacheError: a shard can't be written, in whichever process.
    """
    rank, num_processes = arguments.process_index, arguments.world_size
    missing = cache.missing()
    # Before anybody writes: all have to take the same turns.
    arguments.distributed_state.wait_for_everyone()
    if not missing:
        return
    loaded, told = target(), time.monotonic()
    for start in range(0, len(missing), num_processes):
        trouble = ""
        if start + rank < len(missing):
            shard = missing[start + rank]
            try:
                cache.write(shard, _read(cache, [packs[pack] for pack in cache.packs_of(shard)], loaded, vocabulary))
            except TargetCacheError as error:
                trouble = str(error)
        if found := next(filter(None, gather_object([trouble])), None):
            raise TargetCacheError(found)
        if time.monotonic() - told > REPORT_SECONDS:
            told = time.monotonic()
            report(f"the target has read {min(start + num_processes, len(missing))} of {len(missing)} shards")
    if cache.missing():
        raise TargetCacheError(
            f"target_cache must be a folder that all processes share; {str(cache.folder)!r} is not: name another"
        )


def _read(cache: TargetCache, items: list[dict[str, Any]], target: Target, vocabulary: Vocabulary) -> TopKOutput:
    """What is kept of the packs of a shard, on the CPU."""
    shape = cache.shape
    # Rows of depth 0 are the tokens themselves, all that the target reads.
    collate = Collator(cod=CodConfig(num_depths=1), seed=0, vocab_size=target.model.config.vocab_size)
    parts = [
        _outputs(target, collate(group), vocabulary, shape.top_k)
        for group in _groups(items, max(1, TOKENS_AT_ONCE // shape.max_length))
    ]
    values = {each.name: [getattr(part, each.name) for part in parts] for each in fields(TopKOutput)}
    return TopKOutput(**{name: torch.cat(tensors) for name, tensors in values.items()})


@torch.no_grad()
def _outputs(target: Target, batch: dict[str, Any], vocabulary: Vocabulary, k: int) -> TopKOutput:
    device = target.model.device
    tokens = batch["tokens"].to(device)
    output = target(Rows(**batch["rows"]).to(device), tokens)
    everywhere = torch.arange(len(tokens), device=device)
    if isinstance(vocabulary, torch.Tensor):
        vocabulary = vocabulary.to(device)
    if k:
        ids, log_probs = top_k(output.head(everywhere, vocabulary), k)  # [N, k]
    else:
        ids, log_probs = everywhere[:, None][:, :0], output.log_probs[:, None][:, :0]
    return TopKOutput(output.features.cpu(), output.log_probs.cpu(), ids.cpu(), log_probs.cpu())


def _groups(items: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def data_digest(*documents: Any) -> str:
    """Of all tokens and where documents end. What is trained of them is nothing to the target."""
    digest = hashlib.blake2b(digest_size=16)
    for dataset in documents:
        for tokens, _, lengths in columns(dataset):
            digest.update(tokens.astype("int32").tobytes())
            digest.update(lengths.astype("int64").tobytes())
    return digest.hexdigest()


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Of the ids that are trained."""
    if isinstance(vocabulary, slice):
        return "all" if vocabulary.stop is None else f"first {vocabulary.stop}"
    return _digest(vocabulary.tolist())


def weights_digest(model: str) -> str:
    """Of a model's config, and of its revision on the hub or of its files' sizes, beginnings and ends."""
    parts: list[Any] = [json.dumps(load_config(model), sort_keys=True, default=str)]
    if not Path(model).is_dir():
        parts.append(Path(str(cached_file(model, "config.json"))).parent.name)
    for path in sorted(Path(model).glob("*.safetensors")):
        with open(path, "rb") as file:
            size, head = path.stat().st_size, file.read(HEAD_BYTES)
            file.seek(max(0, size - HEAD_BYTES))
            parts.append((path.name, size, hashlib.blake2b(head + file.read()).hexdigest()))
    return _digest(parts)


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
