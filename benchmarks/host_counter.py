"""Counts what the host would ask of a GPU, on a machine that has none.

Tensors of the engine and tensors of the host are both in main memory here. A tensor counts as the host's if it comes
from numpy, is made without a device or for "cpu" by name, is a `*_cpu` field of what the step is told, or comes from
such tensors only; all others are the device's.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"}
# Their result's size is known to the device alone.
WAITS = {"nonzero", "masked_select", "unique", "_unique2"}


class HostWork:
    """Counts by kind, name and place: "triton", "graph", "operator" and "copy to device" are launches; "read" waits."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.is_in_forward = False
        self.is_paused = False
        self._host_tensors: list[Tensor] = []  # kept, so that no other tensor gets their memory
        self._host_storages: set[int] = set()

    @contextmanager
    def counting(self, *told: Any) -> Iterator[None]:
        """Count what happens inside; `told` are the arguments of the step."""
        self._host_tensors.clear()
        self._host_storages.clear()
        self._separate_host_fields(told)
        from_numpy = torch.from_numpy
        with (
            mock.patch.object(torch, "from_numpy", lambda array: self.mark_host(from_numpy(array))),
            _Functions(self),
            _Operators(self),
        ):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def add(self, kind: str, name: str) -> None:
        self.counts[kind, name, "forward" if self.is_in_forward else _place()] += 1

    def mark_host(self, tensor: Tensor) -> Tensor:
        self._host_tensors.append(tensor)
        self._host_storages.add(tensor.untyped_storage()._cdata)
        return tensor

    def is_host(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._host_storages

    def _separate_host_fields(self, told: Any) -> None:
        """On a CPU a buffer and its host copy are one tensor."""
        for argument in told:
            for name, value in list(getattr(argument, "__dict__", {}).items()):
                if "_cpu" in name and isinstance(value, Tensor):
                    object.__setattr__(argument, name, self.mark_host(value.clone()))


class _Functions(TorchFunctionMode):
    """What does nothing on a CPU, and is a copy where there is a device."""

    def __init__(self, work: HostWork) -> None:
        super().__init__()
        self.work = work

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, work = kwargs or {}, self.work
        name = getattr(func, "__name__", "")
        if work.is_paused:
            return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name in READS and first is not None and not work.is_host(first):
            work.add("read", name)
            with work.paused():
                result = func(*args, **kwargs)
                return work.mark_host(result.clone()) if isinstance(result, Tensor) else result
        device = next((a for a in (*args[1:], kwargs.get("device")) if isinstance(a, torch.device)), None)
        if name == "to" and first is not None and device is not None and work.is_host(first):
            work.add("copy to device", name)
            with work.paused():
                return func(*args, **kwargs).clone()
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))) or _is_of_a_cpu_kernel():
            return func(*args, **kwargs)
        return self._made(name, func, args, kwargs)

    def _made(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A tensor of numbers of the host."""
        device = kwargs.get("device")
        is_of_device = device is not None and not isinstance(device, str)
        if is_of_device and name not in ("tensor", "as_tensor"):
            return func(*args, **kwargs)
        with self.work.paused():
            result = func(*args, **kwargs)
        if is_of_device:
            self.work.add("copy to device", name)
        elif isinstance(result, Tensor):
            self.work.mark_host(result)
        return result


def _is_of_a_cpu_kernel() -> bool:
    """vLLM's wrappers of kernels that only CPUs have leave the device out."""
    return sys._getframe(2).f_code.co_filename.endswith("/vllm/_custom_ops.py")


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators that write memory of the device: no views, no allocations, nothing between tensors of the host."""

    def __init__(self, work: HostWork) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, work = kwargs or {}, self.work
        if work.is_paused:
            return func(*args, **kwargs)
        with work.paused():
            result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        of_host = [tensor for tensor in given if work.is_host(tensor)]
        if given and len(of_host) == len(given):
            for tensor in made:
                work.mark_host(tensor)
        elif self._writes(func, given, made):
            self._count(func, given, of_host)
        return result

    def _writes(self, func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
        name = func._schema.name.split("::")[-1]
        if name in ALLOCATIONS or (not given and not made):
            return False
        before = {tensor.untyped_storage()._cdata for tensor in given}
        mutates = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        return mutates or any(tensor.untyped_storage()._cdata not in before for tensor in made)

    def _count(self, func: Any, given: list[Tensor], of_host: list[Tensor]) -> None:
        work, name = self.work, func._schema.name.split("::")[-1]
        if name == "copy_" and of_host:
            work.add("read" if of_host[0] is given[0] else "copy to device", name)
            return
        for tensor in of_host:
            if tensor.ndim:  # numbers travel with the launch
                work.add("copy to device", f"argument of {name}")
        is_mask = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in given[1:])
        if name in WAITS or is_mask:
            work.add("read", name)
        work.add("operator", name)


def _place() -> str:
    """The nearest function of vLLM or ours."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/vllm" in file and "/site-packages/torch/" not in file and not file.endswith("torch_utils.py"):
            module = file.rpartition("/site-packages/")[2].rpartition("/vllm_pard/")[2]
            return f"{module.removeprefix('vllm/')}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@contextmanager
def counted_launches(work: HostWork, graph: Any) -> Iterator[None]:
    """Launches of Triton, which are interpreted here, and replays of graphs of that class."""
    from triton.runtime.interpreter import GridExecutor

    def counted(function: Callable[..., Any], kind: str, name_of: Callable[[Any], str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not work.is_paused:
                work.add(kind, name_of(self))
            with work.paused():
                return function(self, *args, **kwargs)

        return call

    launch = counted(GridExecutor.__call__, "triton", lambda executor: executor.fn.__name__)
    replay = counted(graph.replay, "graph", lambda _: "replay")
    with mock.patch.object(GridExecutor, "__call__", launch), mock.patch.object(graph, "replay", replay):
        yield
