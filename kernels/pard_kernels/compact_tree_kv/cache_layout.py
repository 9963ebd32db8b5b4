"""Where in a layer's cache the keys and values of a token lie, in bytes."""

from math import gcd
from typing import NamedTuple

from torch import Tensor

MAX_ALIGNMENT = 16  # bytes that a thread can copy at a time


class CacheLayout(NamedTuple):
    """One layer's cache, as all layers of a group have it; all in bytes but the counts."""

    num_parts: int  # 2 where K and V are apart, 1 where one head row holds both
    num_heads: int
    head_bytes: int  # of a head row, which is contiguous
    stride_part: int
    stride_block: int
    stride_slot: int
    stride_head: int
    alignment: int  # 1, 2, 4, 8 or 16: divides the address of each layer, the strides and head_bytes

    @classmethod
    def of(cls, *caches: Tensor) -> "CacheLayout":
        """The layout of a group's layers, each a view [num_parts, num_blocks, block_size, num_heads, head_size].

        Any dtype and any strides, but the last dimension must be contiguous. Give every layer, or what lies like it:
        how wide copies can be depends on addresses. ValueError: another shape, or layers that differ.
        """
        layouts = [_layout_of(cache) for cache in caches]
        if len({layout[:-1] for layout in layouts}) != 1:
            raise ValueError(
                f"the layers of a group must have one layout, at least one layer must be given; got {layouts}"
            )
        return layouts[0]._replace(alignment=gcd(*(layout.alignment for layout in layouts)))


def _layout_of(cache: Tensor) -> CacheLayout:
    if cache.dim() != 5 or cache.stride(-1) != 1:
        raise ValueError(
            "a cache must be a view [num_parts, num_blocks, block_size, num_heads, head_size], contiguous in the last "
            f"dimension; got {tuple(cache.shape)} with strides {cache.stride()}"
        )
    num_parts, _, _, num_heads, head_size = cache.shape
    head_bytes = head_size * cache.itemsize
    # The stride of a dimension of 1 is never taken and can be anything.
    part, block, slot, head = (
        stride * cache.itemsize if size > 1 else 0
        for size, stride in zip(cache.shape[:-1], cache.stride()[:-1], strict=True)
    )
    alignment = gcd(MAX_ALIGNMENT, cache.data_ptr(), head_bytes, part, block, slot, head)
    return CacheLayout(num_parts, num_heads, head_bytes, part, block, slot, head, alignment)
