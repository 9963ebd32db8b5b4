"""What the target says of each packed row, on disk: it is asked once, and training never loads its layers.

A folder of shards, `shard-00000.safetensors` and so on, each complete or absent, and `cache.json`, which says whose
they are.

L tokens of a pack · B packs of a batch · N = B * L tokens · F width of the features · k most likely ids that are kept
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vllm_pard.errors import PardError, first_sentence
from vllm_pard.files import check_folder, write_whole
from vllm_pard.training.top_k import TopKOutput

__all__ = ["CacheShape", "CachedTarget", "TargetCache", "TargetCacheError"]

RECORD = "cache.json"
# What a record says more of where there are features: on held-out packs the target is asked for those alone.
OF_FEATURES = ("features.layers", "target_dim", "packs", "held-out data with digest")
SHARD_BYTES = 256 << 20  # about as much is in memory at a time
PACKS_AT_MOST = 16  # in a shard, so that a kill costs little and several processes have some each
GIB = 1 << 30


class TargetCacheError(PardError):
    """The cache is another run's, damaged, or can't be written."""


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What is kept of how many tokens."""

    num_packs: int
    max_length: int  # L
    target_dim: int  # F; 0: no features
    top_k: int  # k; 0: nothing is distilled
    dtype: torch.dtype  # of the features: that of the target, so that nothing is lost

    @property
    def bytes_per_token(self) -> int:
        """Features, one log-probability, and an id with its log-probability for each of the k."""
        return self.target_dim * self.dtype.itemsize + 4 + 8 * self.top_k

    @property
    def bytes_per_pack(self) -> int:
        return self.max_length * self.bytes_per_token

    @property
    def packs_per_shard(self) -> int:
        return max(1, min(PACKS_AT_MOST, SHARD_BYTES // self.bytes_per_pack))

    @property
    def num_shards(self) -> int:
        return -(-self.num_packs // self.packs_per_shard)


class TargetCache:
    """The folder, for packs numbered from 0."""

    def __init__(self, folder: Path, shape: CacheShape) -> None:
        self.folder, self.shape = folder, shape

    def begin(self, made_for: Mapping[str, Any]) -> None:
        """Take the folder for what these words and numbers stand for, or go on with what is there.

        One that is whole and has features as well serves where none are read.

        Raises:
            TargetCacheError: the folder has another run's cache or something else, or the disk is too small.
            OutputError: it can't be written to.
        """
        check_folder(self.folder)
        record = self.folder / RECORD
        if record.exists():
            earlier = self._earlier(record)
            if earlier.get("target_dim") and not self.shape.target_dim:
                made_for = {**made_for, **{name: earlier.get(name) for name in OF_FEATURES}}
                self._check_same(earlier, made_for)
                self._take_up(earlier)
            else:
                self._check_same(earlier, made_for)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise TargetCacheError(
                f"target_cache must be a new folder, or that of an earlier run; {str(self.folder)!r} holds something "
                "else: name another"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = len(self.missing()) * self.shape.packs_per_shard * self.shape.bytes_per_pack
        if missing > (free := shutil.disk_usage(self.folder).free):
            raise TargetCacheError(
                f"the target's cache takes {missing / GIB:.2f} GiB more, and {str(self.folder)!r} has {free / GIB:.2f} "
                "GiB free: make room, name a folder on another disk, lower target_top_k, read fewer features.layers, "
                "or leave target_cache out"
            )
        write_whole(record, json.dumps(made_for, indent=2) + "\n")

    @property
    def in_words(self) -> str:
        """One line on its size."""
        num_tokens = self.shape.num_packs * self.shape.max_length
        size = num_tokens * self.shape.bytes_per_token
        return (
            f"the target's cache: {num_tokens:,} tokens x {self.shape.bytes_per_token:,} bytes = {size / GIB:.2f} GiB "
            f"in {self.shape.num_shards} shards in {self.folder}, {len(self.missing())} of them to be computed"
        )

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [shard for shard in range(self.shape.num_shards) if not self._path(shard).exists()]

    def packs_of(self, shard: int) -> range:
        first = shard * self.shape.packs_per_shard
        return range(first, min(first + self.shape.packs_per_shard, self.shape.num_packs))

    def write(self, shard: int, output: TopKOutput) -> None:
        """What the target says of all packs of a shard, in their order; entirely or not at all."""
        tensors = {"log_probs": output.log_probs}
        if self.shape.target_dim:
            tensors["features"] = output.features.to(self.shape.dtype)
        if self.shape.top_k:
            tensors |= {"top_ids": output.top_ids.int(), "top_log_probs": output.top_log_probs}
        path = self._path(shard)
        partial = path.with_suffix(".partial")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink()
            raise TargetCacheError(
                f"can't write into the target's cache {str(self.folder)!r} ({first_sentence(error)}): make room and "
                f"run the same command again, its {self.shape.num_shards - len(self.missing())} finished shards stay"
            ) from error

    def read(self, packs: Sequence[int], device: torch.device, *, with_features: bool) -> TopKOutput:
        """Of the packs of a batch."""
        found = [self._read(pack, with_features) for pack in packs]
        joined = {name: torch.cat([tensors[name] for tensors in found]).to(device) for name in found[0]}
        nothing = joined["log_probs"].new_zeros(len(joined["log_probs"]), 0)  # [N, 0]
        return TopKOutput(
            features=joined.get("features", nothing),
            log_probs=joined["log_probs"],
            top_ids=joined.get("top_ids", nothing).long(),
            top_log_probs=joined.get("top_log_probs", nothing),
        )

    def _read(self, pack: int, with_features: bool) -> dict[str, Tensor]:
        shard, place = divmod(pack, self.shape.packs_per_shard)
        rows = slice(place * self.shape.max_length, (place + 1) * self.shape.max_length)
        try:
            with safe_open(self._path(shard), "pt") as tensors:
                names = [name for name in tensors.keys() if with_features or name != "features"]  # noqa: SIM118 - no dict
                return {name: tensors.get_slice(name)[rows] for name in names}
        except (OSError, SafetensorError) as error:
            raise TargetCacheError(
                f"can't read {self._path(shard).name} of the target's cache {str(self.folder)!r} "
                f"({first_sentence(error)}): remove that file and run the same command again, it is computed anew"
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05}.safetensors"

    def _earlier(self, record: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(record.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise TargetCacheError(
                f"can't read {str(record)!r}: {first_sentence(error)}; name another folder"
            ) from error

    def _take_up(self, earlier: Mapping[str, Any]) -> None:
        """The shape of a cache that has features too."""
        self.shape = replace(self.shape, num_packs=earlier["packs"], target_dim=earlier["target_dim"])
        if num_missing := len(self.missing()):
            raise TargetCacheError(
                f"the target's cache in {str(self.folder)!r} has features too, and {num_missing} of its shards are not "
                "there yet: let the run that reads them fill it first, or name another folder as target_cache"
            )

    def _check_same(self, earlier: Mapping[str, Any], made_for: Mapping[str, Any]) -> None:
        for name, value in made_for.items():
            if earlier.get(name) != value:
                raise TargetCacheError(
                    f"the target's cache in {str(self.folder)!r} was made for {name} {earlier.get(name)!r}, and now it "
                    f"is {value!r}: name another folder as target_cache, or go back to what it was made for"
                )


@dataclass(frozen=True)
class CachedTarget:
    """Stands in for `Target` where all shards are there."""

    cache: TargetCache
    layers: tuple[int, ...]

    @property
    def target_dim(self) -> int:
        """F, the width of the features."""
        return self.cache.shape.target_dim if self.layers else 0

    def __call__(self, packs: Sequence[int], device: torch.device) -> TopKOutput:
        """What the target says of these packs."""
        return self.cache.read(packs, device, with_features=bool(self.layers))
