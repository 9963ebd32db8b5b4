"""Requests in the places of a CUDA graph of decodes, which have equally many rows each: a prompt takes several.

To the graph each place is a request. Those of one request know the same blocks and follow one another, so each reads
what the ones before it write to the cache in the same forward.

B requests · S places of W rows · P places of padding
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d

IntArray = NDArray[np.signedinteger[Any]]


def count_places(spans: IntArray, width: int) -> IntArray:
    """How many places of `width` rows each request needs for its rows. [B] -> [B]"""
    counts: IntArray = -(-spans // width)
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Who is where. Places behind the last request are padding, each a request of its own that has no slot."""

    num_taken: int  # S - P
    host_owners: IntArray  # [S], by number
    owners: Tensor  # [S] int64, the same
    lasts: Tensor  # [B] int64, the last place of each request, which samples
    rows_behind: Tensor  # [S] int32, those of the same request in later places
    starts: Tensor  # [B + P + 1] int32, of the rows of each request

    @classmethod
    def of(cls, counts: IntArray, num_places: int, width: int, device: torch.device) -> "Places":
        """Requests that take `counts` [B] of the places."""
        padded = np.concatenate((counts, np.ones(num_places - counts.sum(), dtype=counts.dtype)))
        ends = padded.cumsum()
        owners = np.arange(len(padded)).repeat(padded)
        rows_behind = (ends[owners] - 1 - np.arange(num_places)) * width
        indices = async_tensor_h2d(np.concatenate((owners, ends[: len(counts)] - 1)), device, torch.int64)
        rows = async_tensor_h2d(np.concatenate((rows_behind, [0], ends * width)), device, torch.int32)
        return cls(
            num_taken=int(counts.sum()),
            host_owners=owners,
            owners=indices[:num_places],
            lasts=indices[num_places:],
            rows_behind=rows[:num_places],
            starts=rows[num_places:],
        )

    def hand_out(self, of_requests: Tensor) -> None:
        """Give each place what its request has, in place. [>= S, ...], requests and padding first"""
        of_requests[: len(self.owners)] = of_requests[self.owners]

    def hand_out_blocks(self, table: Tensor, first: int) -> None:
        """The same for blocks of the batch, whose requests are here from `first` on; not for padding. [R, N] int32"""
        table[: self.num_taken] = table[first:][self.owners[: self.num_taken]]
