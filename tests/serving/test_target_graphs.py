"""Which graph of the target a decode step finds where steps differ in how many drafts they verify."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from vllm_pard.serving.choice_plan import schedule_of
from vllm_pard.serving.target_graphs import find_every_graph

K, MAX_NUM_REQS = 8, 128
SIZES = [1, 2, 4, *range(8, 257, 8), *range(272, 1169, 16)]


def manager(lengths: tuple[int, ...], loras: tuple[int, ...] = (0,)) -> Any:
    """vLLM's, with graphs planned and none captured."""
    spec = SimpleNamespace(uses_dynamic_speculative_decoding=lambda: True, **schedule_of(lengths, MAX_NUM_REQS))
    found: Any = CudaGraphManager.__new__(CudaGraphManager)
    found.vllm_config = SimpleNamespace(
        speculative_config=spec, num_speculative_tokens=K, cache_config=SimpleNamespace(use_kda_recoverssm=False)
    )
    found.compilation_config = SimpleNamespace(cudagraph_capture_sizes=SIZES, max_cudagraph_capture_size=SIZES[-1])
    found.max_num_reqs, found.decode_query_len, found.varlen_decode = MAX_NUM_REQS, 1 + K, False
    found.cudagraph_mode, found.ubatch_runner = CUDAGraphMode.FULL_AND_PIECEWISE, None
    found.lora_capture_cases, found._candidates, found._capture_descs = list(loras), {}, {}
    found._lora_dispatch_map, found._max_lora_case = found._build_lora_dispatch_map()
    found._graphs_captured = True
    found._init_candidates()
    return found


def decodes(manager: Any, lengths: tuple[int, ...], num_loras: int = 0) -> dict[tuple[int, int], Any]:
    """What a step of so many requests with so many drafts each finds."""
    return {
        (num_reqs, k): manager.dispatch(num_reqs, num_reqs * (1 + k), 1 + k, num_loras)
        for num_reqs in range(1, MAX_NUM_REQS + 1)
        for k in lengths
    }


@pytest.mark.parametrize("lengths", [(0, 2, 4, 8), (0, 8), (8,)], ids=str)
def test_every_decode_finds_a_graph_of_a_whole_step(lengths: tuple[int, ...]) -> None:
    graphs = manager(lengths)
    find_every_graph(graphs)
    for (num_reqs, k), shape in decodes(graphs, lengths).items():
        assert shape.cg_mode == CUDAGraphMode.FULL, (num_reqs, k)
        assert shape.uniform_token_count == 1 + k
        larger = [s.num_reqs for s in graphs._capture_descs[CUDAGraphMode.FULL] if s.uniform_token_count == 1 + k]
        assert shape.num_reqs == min(size for size in larger if size >= num_reqs)


def test_vllm_alone_does_not_find_them() -> None:
    """Once this fails, `find_every_graph` can go."""
    kinds = {shape.cg_mode for shape in decodes(manager((0, 2, 4, 8)), (8,)).values()}
    assert kinds == {CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL}


def test_prompts_and_adapters_find_what_they_found() -> None:
    lengths = (0, 4, 8)
    before, after = manager(lengths, loras=(0, 1)), manager(lengths, loras=(0, 1))
    find_every_graph(after)
    for num_tokens in range(1, SIZES[-1] + 50):
        for num_loras in (0, 1):
            mixed = (min(3, num_tokens), num_tokens, None, num_loras)
            assert after.dispatch(*mixed) == before.dispatch(*mixed)
    assert {shape.num_active_loras for shape in decodes(after, lengths, num_loras=1).values()} == {1}
    assert {shape.cg_mode for shape in decodes(after, lengths, num_loras=1).values()} == {CUDAGraphMode.FULL}
