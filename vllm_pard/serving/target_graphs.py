"""CUDA graphs of the target, where steps differ in how many drafts they verify.

vLLM captures graphs of whole decode steps for every number of rows that a request may have, and finds them by the rows
of all requests. In its list (0.32, 0.33) a number of rows leads to the next larger one alone, whatever a request has
there: 14 requests of 9 rows find the graph of 26 requests of 5, can't use it, and run in pieces though there is one for
15 of 9. Pull request 56136 of vLLM says the same.
"""

from typing import Any

from vllm.config.compilation import CUDAGraphMode

__all__ = ["find_every_graph"]


def find_every_graph(manager: Any) -> None:
    """Let steps find the smallest graph of their own number of rows a request.

    Args:
        manager: vLLM's `CudaGraphManager` of the target, whose graphs are planned or captured.
    """
    decodes = [shape for shape in manager._capture_descs.get(CUDAGraphMode.FULL, ()) if shape.uniform_token_count]
    decodes.sort(key=lambda shape: shape.num_tokens)
    for (num_tokens, num_loras), found in manager._candidates.items():
        nearest: dict[tuple[int, int], Any] = {}
        for shape in decodes:
            if shape.num_tokens >= num_tokens and shape.num_active_loras == num_loras:
                nearest.setdefault((shape.uniform_token_count, shape.num_ubatches), shape)
        found[:] = [*nearest.values(), *(shape for shape in found if not shape.uniform_token_count)]
