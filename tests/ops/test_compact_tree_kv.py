"""The kernel against its twin: bytes are equal or wrong, and all bytes of the caches are compared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pard_kernels import CacheLayout, compact_tree_kv, reference
from pard_kernels.compact_tree_kv import launch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -(2**30)
NUM_LAYERS, NUM_SLOTS, MAX_BLOCKS, BLOCK_SIZE = 3, 5, 6, 4
NUM_BLOCKS = 1 + NUM_SLOTS * MAX_BLOCKS + 2  # the null block, those of requests, two of nobody
DTYPES = (torch.uint8, torch.float8_e4m3fn, torch.bfloat16, torch.float32)

# Memory of one layer as backends have it, for blocks, slots of a block, heads and their size, and its view
# [num_parts, num_blocks, block_size, num_heads, head_size].
Memory = tuple[Callable[[int, int, int, int], tuple[int, ...]], Callable[[Tensor], Tensor]]
MEMORY: dict[str, Memory] = {
    "K and V apart": (lambda n, s, h, d: (2, n, s, h, d), lambda m: m),
    "K and V of a block": (lambda n, s, h, d: (n, 2, s, h, d), lambda m: m.transpose(0, 1)),
    "heads before slots": (lambda n, s, h, d: (2, n, h, s, d), lambda m: m.transpose(2, 3)),
    "side by side": (
        lambda n, s, h, d: (n, h, s, 2 * d),
        lambda m: m.unflatten(-1, (2, -1)).permute(3, 0, 2, 1, 4),
    ),
    "side by side, as one": (lambda n, s, h, d: (n, h, s, 2 * d), lambda m: m.transpose(1, 2)[None]),
    "latent": (lambda n, s, h, d: (n, s, d), lambda m: m[None, :, :, None]),
    "padded heads": (lambda n, s, h, d: (2, n, s, h, 2 * d), lambda m: m[..., m.shape[-1] // 2 :]),
}


def memories(name: str, dtype: torch.dtype, num_heads: int = 2, head_size: int = 8) -> list[Tensor]:
    """One for each layer, of random bytes; among them are all NaNs that there are."""
    generator = torch.Generator().manual_seed(0)
    shape = MEMORY[name][0](NUM_BLOCKS, BLOCK_SIZE, num_heads, head_size)
    size = (NUM_LAYERS, *shape[:-1], shape[-1] * dtype.itemsize)
    layers = torch.randint(256, size, dtype=torch.uint8, generator=generator).view(dtype)
    return list(layers.to(DEVICE))


def requests(*paths: list[int], first: int = 5, slots: list[int] | None = None) -> dict[str, Any]:
    """Accepted rows of each request, the root's 0 in front; every slot has its own blocks, in no order."""
    width = max(len(path) for path in paths) + 2
    slots = slots or [(3 * req + 1) % NUM_SLOTS for req in range(len(paths))]
    blocks = 1 + torch.randperm(NUM_SLOTS * MAX_BLOCKS, generator=torch.Generator().manual_seed(1))
    num_computed = torch.full((NUM_SLOTS,), POISON, dtype=torch.int32)
    accepted_rows = torch.full((NUM_SLOTS, width), POISON, dtype=torch.int32)
    for req, (slot, path) in enumerate(zip(slots, paths, strict=True)):
        if slot >= 0:
            num_computed[slot] = first + req + len(path)
            accepted_rows[slot, : len(path)] = torch.tensor(path)
    given = {
        "block_table": blocks.view(NUM_SLOTS, MAX_BLOCKS).int(),
        "request_slots": torch.tensor(slots),
        "num_computed": num_computed,
        "accepted_rows": accepted_rows,
        "num_sampled": torch.tensor([len(path) for path in paths], dtype=torch.int32),
    }
    return {name: tensor.to(DEVICE) for name, tensor in given.items()} | {"block_size": BLOCK_SIZE}


def compact(name: str, layers: list[Tensor], given: dict[str, Any]) -> None:
    caches = [MEMORY[name][1](layer) for layer in layers]
    addresses = torch.tensor([cache.data_ptr() for cache in caches], device=DEVICE)
    compact_tree_kv(cache_addresses=addresses, layout=CacheLayout.of(*caches), **given)


def run_both(name: str, layers: list[Tensor], given: dict[str, Any]) -> list[Tensor]:
    """The caches before, after both have changed equal ones and have left equal bytes everywhere."""
    before, expected = ([layer.cpu().clone() for layer in layers] for _ in range(2))
    arguments = {key: value.cpu() if torch.is_tensor(value) else value for key, value in given.items()}
    reference.compact_tree_kv(caches=[MEMORY[name][1](layer) for layer in expected], **arguments)
    compact(name, layers, given)
    for got, wanted in zip(layers, expected, strict=True):
        assert torch.equal(as_bytes(got), as_bytes(wanted))
    return before


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().view(torch.uint8)


def read(name: str, layer: Tensor, given: dict[str, Any], req: int, offsets: list[int]) -> Tensor:
    """Keys and values of a request at so many tokens behind its root, as attention finds them. [places, ...]"""
    cache, blocks = MEMORY[name][1](layer.cpu()), given["block_table"][given["request_slots"][req]].tolist()
    first = int(given["num_computed"][given["request_slots"][req]]) - int(given["num_sampled"][req])
    places = [first + offset for offset in offsets]
    return as_bytes(torch.stack([cache[:, blocks[i // BLOCK_SIZE], i % BLOCK_SIZE].clone() for i in places]))


PATHS = (
    [0, 1, 2, 4, 7, 9],  # from the main chain into another branch, over two borders of blocks
    [0],
    [0, 1, 2, 3],
    [0, 3, 4, 5, 6, 7, 8],  # places that rows behind them lie in
    [0, 11],
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MEMORY)
def test_every_layout_and_dtype(name: str, dtype: torch.dtype) -> None:
    layers, given = memories(name, dtype), requests(*PATHS)
    before = run_both(name, layers, given)
    for old, new in zip(before, layers, strict=True):
        num_changed = 0
        for req, path in enumerate(PATHS):
            wanted = read(name, old, given, req, path)
            assert torch.equal(read(name, new, given, req, list(range(len(path)))), wanted)
            moved = [row != depth for depth, row in enumerate(path)]
            unmoved = read(name, old, given, req, list(range(len(path))))
            differs = (unmoved != wanted).flatten(1).any(1)
            assert differs.tolist() == moved, "the control: without a move, attention reads other nodes"
            num_changed += int((unmoved != wanted).sum())
        assert int((as_bytes(old) != as_bytes(new)).sum()) == num_changed, "nothing else has changed"


@pytest.mark.parametrize(
    ("head_size", "dtype", "alignment"),
    [
        (16, torch.uint8, 16),
        (8, torch.uint8, 8),
        (12, torch.uint8, 4),
        (6, torch.uint8, 2),
        (3, torch.uint8, 1),
        (3, torch.bfloat16, 2),
        (5, torch.float32, 4),
        (40, torch.bfloat16, 16),
    ],
)
@pytest.mark.parametrize("name", ["K and V apart", "side by side"])
def test_words_are_as_wide_as_the_layout_allows(
    name: str, head_size: int, dtype: torch.dtype, alignment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three heads, in tiles that do not hold a slot."""
    monkeypatch.setattr(launch, "BLOCK_WORDS", 8)
    layers = memories(name, dtype, num_heads=3, head_size=head_size)
    assert CacheLayout.of(MEMORY[name][1](layers[0])).alignment == alignment
    run_both(name, layers, requests(*PATHS))


@pytest.mark.parametrize("block_depth", [1, 2, 4, 8])
def test_copies_do_not_destroy_what_is_yet_to_be_read(block_depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row goes to the place of one before it, in tiles of so many."""
    monkeypatch.setattr(launch, "BLOCK_DEPTH", block_depth)
    layers = memories("K and V apart", torch.uint8)
    run_both("K and V apart", layers, requests([0, *range(2, 14)], [0, 1, 2, *range(5, 13)], first=2))


@pytest.mark.parametrize("first", range(BLOCK_SIZE))
def test_borders_of_blocks(first: int) -> None:
    layers = memories("K and V of a block", torch.bfloat16)
    run_both("K and V of a block", layers, requests([0, 2, 3, 7, 8], [0, 1, 5, 9], first=first))


def test_a_path_as_long_as_trees_can_be() -> None:
    """63 nodes of 62 levels: two in the first, the second of which goes on."""
    layers = memories("heads before slots", torch.uint8)
    given = requests([0, *range(2, 64)], slots=[1])
    table = torch.arange(1, 1 + 20, dtype=torch.int32, device=DEVICE).repeat(NUM_SLOTS, 1)
    run_both("heads before slots", layers, given | {"block_table": table})


def test_main_chains_and_dummies_are_not_touched() -> None:
    """Nothing sampled, a root alone, whole chains, a request without slot; a batch padded to a graph behind them."""
    layers = memories("K and V apart", torch.bfloat16)
    given = requests([], [0], [0, 1, 2, 3, 4], [0, 5, 6], slots=[0, 1, 2, -1])
    given["block_table"] = given["block_table"][1:]  # before it lie blocks that could be taken for the dummy's
    given |= {name: given[name][: NUM_SLOTS - 1] for name in ("num_computed", "accepted_rows")}
    before = run_both("K and V apart", layers, given)
    padded = requests([0, 1], [0, 5, 6])
    padded["num_sampled"] = padded["num_sampled"][:1]
    run_both("K and V apart", layers, padded)
    assert all(torch.equal(as_bytes(old), as_bytes(new)) for old, new in zip(before, layers, strict=True))


def test_the_width_of_rows_bounds_what_is_read() -> None:
    """A count beyond the rows: the next request's are not taken for this one's."""
    layers, given = memories("K and V apart", torch.uint8), requests([0, 2, 5], [0, 7, 9])
    given["accepted_rows"] = given["accepted_rows"][:, :3].contiguous()
    given["num_sampled"] += 2
    run_both("K and V apart", layers, given)


@pytest.mark.parametrize("place", [1, 2])
def test_no_block(place: int) -> None:
    """One that the table does not reach, and the null block: copies that need them are left out, others are not."""
    layers = memories("K and V apart", torch.uint8)
    given = requests([0, 2, 3, 4, 7, 8], first=BLOCK_SIZE - 1)
    given["block_table"][:, place] = 0
    run_both("K and V apart", layers, given)
    given["block_table"] = given["block_table"][:, :place].contiguous()
    before = run_both("K and V apart", layers, given)
    is_equal = [torch.equal(as_bytes(old), as_bytes(new)) for old, new in zip(before, layers, strict=True)]
    assert is_equal == [place == 1] * NUM_LAYERS


def test_parts_of_a_batch() -> None:
    """Requests from the second on in a call of their own, slots in 32 bits."""
    layers, given = memories("K and V apart", torch.uint8), requests(*PATHS)
    for name in ("request_slots", "num_sampled"):
        given[name] = given[name][1:]
    given["request_slots"] = given["request_slots"].int()
    run_both("K and V apart", layers, given)


def test_addresses_beyond_32_bits() -> None:
    """Two slots of a cache of 3 GiB, of which no more than these are touched: 3 bytes are copied one at a time."""
    stride = 2**30 + 1
    memory = torch.empty(2 * stride + 100, dtype=torch.uint8, device=DEVICE)
    cache = memory.as_strided((1, 3, 4, 1, 3), (0, stride, 3, 3, 1))
    cache[0, 2] = torch.arange(12, dtype=torch.uint8, device=DEVICE).view(4, 1, 3)
    given = requests([0, 3], first=0, slots=[0])
    given["block_table"] = torch.full((NUM_SLOTS, 1), 2, dtype=torch.int32, device=DEVICE)
    addresses = torch.tensor([cache.data_ptr()], device=DEVICE)
    compact_tree_kv(cache_addresses=addresses, layout=CacheLayout.of(cache), **given)
    assert cache[0, 2].flatten().tolist() == [0, 1, 2, 9, 10, 11, 6, 7, 8, 9, 10, 11]


def test_layout_in_bytes() -> None:
    cache = torch.empty(9, 3, 16, 2 * 40, dtype=torch.bfloat16)
    layout = CacheLayout.of(MEMORY["side by side"][1](cache))
    assert layout == CacheLayout(2, 3, 80, 80, 3 * 16 * 160, 160, 16 * 160, 16)
    assert CacheLayout.of(MEMORY["side by side, as one"][1](cache)) == CacheLayout(
        1, 3, 160, 0, 3 * 16 * 160, 160, 16 * 160, 16
    )
    odd = torch.empty(1, 8 * 9, dtype=torch.bfloat16).as_strided((1, 2, 4, 1, 8), (7, 32, 8, 3, 1))
    assert CacheLayout.of(odd) == CacheLayout(1, 1, 16, 0, 64, 16, 0, 16), "what is never taken counts for nothing"


def test_all_layers_decide_the_alignment() -> None:
    memory = torch.empty(2 * 1024 + 4, dtype=torch.uint8)
    layers = [memory[start : start + 1024].view(1, 4, 4, 4, 16) for start in (0, 1028)]
    assert [CacheLayout.of(layer).alignment for layer in layers] == [16, 4]
    assert CacheLayout.of(*layers).alignment == 4


@pytest.mark.parametrize(
    ("caches", "message"),
    [
        ([torch.zeros(9, 4, 2, 8)], r"a cache must be a view \[num_parts, .*; got \(9, 4, 2, 8\) with strides"),
        ([torch.zeros(2, 9, 4, 2, 8)[..., ::2]], r"contiguous in the last dimension; got \(2, 9, 4, 2, 4\)"),
        ([torch.zeros(2, 9, 4, 2, 8), torch.zeros(2, 9, 4, 2, 4)], r"the layers of a group must have one layout"),
        ([], r"at least one layer must be given"),
    ],
)
def test_layouts_that_are_none(caches: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheLayout.of(*caches)


LAYOUT = CacheLayout(2, 2, 16, 1024, 128, 32, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cache_addresses": torch.zeros(3)},
            r"cache_addresses must be \[num_layers\] int64; got \(3,\) torch.float32",
        ),
        ({"layout": LAYOUT._replace(alignment=3)}, r"alignment must be a power of 2 up to 16"),
        ({"layout": LAYOUT._replace(alignment=0)}, r"alignment must be a power of 2 up to 16"),
        ({"layout": LAYOUT._replace(alignment=32)}, r"alignment must be a power of 2 up to 16"),
        ({"layout": LAYOUT._replace(stride_slot=40)}, r"that divides all of it; got CacheLayout\(num_parts=2"),
        ({"block_size": 0}, r"must be 1 at least; got 0 and \(5, 6\)"),
        ({"block_table": torch.zeros(5, 0)}, r"must be 1 at least; got 4 and \(5, 0\)"),
        ({"request_slots": torch.zeros(1)}, r"tells of 2 requests, request_slots must too; got \(1,\)"),
        ({"num_computed": torch.zeros(1)}, r"block_table has 5 slots, num_computed must too; got \(1,\)"),
        ({"accepted_rows": torch.zeros(1, 4)}, r"block_table has 5 slots, accepted_rows must too; got \(1, 4\)"),
        ({"block_table": torch.zeros(6, 5).T}, r"block_table must be contiguous in the last dimension"),
        ({"accepted_rows": torch.zeros(5, 8)[:, ::2]}, r"accepted_rows must be contiguous"),
        ({"num_sampled": torch.zeros(4)[::2]}, r"num_sampled must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    addresses = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        compact_tree_kv(**{"cache_addresses": addresses, "layout": LAYOUT} | requests([0], [0, 1]) | change)
