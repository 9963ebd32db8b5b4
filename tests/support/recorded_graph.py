"""CUDA graphs without CUDA: what a capture ran is recorded, and a replay runs it again on the same tensors.

As in a CUDA graph, numbers that the host computed stay what they were at capture, tensors stay where they were, and the
device may not be asked for a value. So a step that works here keeps everything that changes in tensors of fixed place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu import cudagraph_utils


class RecordedGraph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        for call in self.calls:
            call()


class Recording(TorchDispatchMode):
    """Records torch's operations and Triton's launches, in their order, into a graph."""

    active: ClassVar["Recording | None"] = None

    def __init__(self, graph: RecordedGraph, *_: Any, **__: Any) -> None:
        super().__init__()
        self.graph = graph

    def __enter__(self) -> "Recording":
        Recording.active = self
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        Recording.active = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "a capture asked the device for a value"
        Recording.active = None  # launches inside are part of this operation
        outputs = func(*args, **kwargs)
        Recording.active = self
        kept = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

        def again() -> None:
            new = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
            for old_tensor, new_tensor in zip(kept, new, strict=True):
                if old_tensor.data_ptr() != new_tensor.data_ptr():
                    old_tensor.copy_(new_tensor)

        self.graph.calls.append(again)
        return outputs


@contextmanager
def recorded_graphs() -> Iterator[None]:
    """While vLLM captures, its graphs are recorded ones."""
    launch = GridExecutor.__call__

    def recording_launch(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        recording = Recording.active
        if recording is None:
            launch(self, *args, **kwargs)
            return
        with torch.utils._python_dispatch._disable_current_modes():
            launch(self, *args, **kwargs)
        recording.graph.calls.append(lambda: launch(self, *args, **kwargs))

    replaced = {
        (GridExecutor, "__call__"): recording_launch,
        (torch.cuda, "CUDAGraph"): RecordedGraph,
        (torch.cuda, "graph"): Recording,
        (cudagraph_utils, "graph_capture"): lambda device: nullcontext(),
        (cudagraph_utils, "capture_pool"): lambda *_: nullcontext(),
        (cudagraph_utils, "current_stream"): lambda: None,
        (cudagraph_utils, "is_global_first_rank"): lambda: False,
    }
    before = {(owner, name): getattr(owner, name) for owner, name in replaced}
    for (owner, name), value in replaced.items():
        setattr(owner, name, value)
    yield
    for (owner, name), value in before.items():
        setattr(owner, name, value)


def capture_draft_graphs(
    speculator: Any,
    batch_sizes: list[int],
    mode: CUDAGraphMode = CUDAGraphMode.FULL_DECODE_ONLY,
    numbers_of_rows: tuple[int, ...] = (),
) -> dict[Any, RecordedGraph]:
    """Give the draft of a running engine graphs for these batch sizes, as its runner would on a GPU.

    With a piecewise mode, forwards of up to `numbers_of_rows` rows run as pieces; without torch.compile there are none
    to replay, so they run as they are, padded.
    """
    from vllm.platforms import current_platform

    config = speculator.vllm_config.compilation_config
    rows = 1 + speculator.num_speculative_steps
    config.cudagraph_capture_sizes = sorted({*(rows * size for size in batch_sizes), *numbers_of_rows})
    type(speculator.forward.model).is_compiled = mode.has_piecewise_cudagraphs()
    for name in speculator.draft_attn_layer_names:
        config.static_forward_context[name].use_direct_call = True  # else it is one operation that hides all others
    type(current_platform).get_global_graph_pool = lambda self: None
    with recorded_graphs():
        speculator.init_cudagraph_manager(mode)
        speculator.capture()
    return dict(speculator.forward.graphs.graphs)
