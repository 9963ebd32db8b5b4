"""Let vLLM's model runner V2 run on a CPU under Triton's interpreter; import this before vLLM.

vLLM's CPU wheel asks for a Triton with a "cpu" backend; the interpreter needs none, so a stand-in entry in Triton's
table of backends is enough. Slow (0.1 to 0.3 s a step), but it is the real engine.
"""

import dataclasses
import os
import types
from typing import Any

os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")

import torch
from triton.backends import backends
from triton.backends.compiler import GPUTarget


class InterpreterDriver:
    """Answers the few questions that vLLM asks of an active Triton driver."""

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 0)

    def get_current_device(self) -> int:
        return 0

    def get_device_interface(self) -> types.ModuleType:
        return torch.cpu


backends["cpu"] = types.SimpleNamespace(driver=InterpreterDriver, compiler=None)


def _accept_integer_masks() -> None:
    """Triton compiles `block_mask & scalar_condition`; its interpreter makes an integer mask of it and refuses that."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def as_bool(mask: TensorHandle) -> TensorHandle:
        return TensorHandle(mask.data.astype(bool), mask.dtype)

    InterpreterBuilder.create_masked_load = lambda self, ptrs, mask, *rest: load(self, ptrs, as_bool(mask), *rest)
    InterpreterBuilder.create_masked_store = lambda self, ptrs, value, mask, *rest: store(
        self, ptrs, value, as_bool(mask), *rest
    )


def _interpret_faster() -> None:
    """The language stays patched from the first launch on, instead of for each call; integers may overflow unseen."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, []

    def patch_once(fn: Any) -> Any:
        if not patched:
            patch(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
            patched.append(fn)
        return interpreter._LangPatchScope()  # nothing to restore

    interpreter._patch_lang = patch_once
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


def _supply_log1p() -> None:
    """libdevice is a library of device code: the interpreter calls it and gets None. Tests need no more digits."""
    import triton.language as tl
    from triton.language.extra import libdevice

    libdevice.log1p = lambda x: tl.log(1.0 + x)


def keep_asynchronous_scheduling() -> None:
    """vLLM's CPU platform switches it off; on GPUs, the runner's home, it is on. Imports vLLM."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_keep(cls: type[CpuPlatform], vllm_config: Any) -> None:
        scheduler = vllm_config.scheduler_config
        asynchronous = scheduler.async_scheduling
        check(cls, vllm_config)
        scheduler.async_scheduling = asynchronous

    CpuPlatform.check_and_update_config = classmethod(check_and_keep)


def use_torch_top_k_top_p() -> None:
    """vLLM's own twin of its kernel, which counts with numbers where the interpreter has no tensors. Imports vLLM."""
    from vllm.v1.sample.ops import topk_topp_sampler

    topk_topp_sampler.HAS_TRITON = False


def use_attention(name: str) -> None:
    """A backend in place of vLLM's C++ one for CPUs, unless a model asks for another. Imports vLLM."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    def choose(cls: type[CpuPlatform], selected: AttentionBackendEnum | None, *_: Any, **__: Any) -> str:
        return (selected or AttentionBackendEnum[name]).get_path()

    CpuPlatform.get_attn_backend_cls = classmethod(choose)


def use_triton_attention() -> None:
    use_attention("TRITON_ATTN")
    torch.cuda.get_device_capability = lambda device=None: (8, 0)  # it asks for block sizes


_accept_integer_masks()
_supply_log1p()
_interpret_faster()
