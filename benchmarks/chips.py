"""GPUs to compile for where there is none: what a launch would compile, and what the binary takes.

A launcher is called under a driver that has no device, with tensors that hold no data.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

KIB = 1024

Row = dict[str, Any]


@dataclass(frozen=True)
class Chip:
    """A compilation target and what its kernels must keep to."""

    name: str
    target: GPUTarget
    shared_limit: int  # bytes that one program can have
    fp8: torch.dtype | None  # that the chip converts
    matrix_instruction: str  # in PTX or AMD assembly


CHIPS = (
    Chip("sm_80", GPUTarget("cuda", 80, 32), 163 * KIB, None, r"\bmma\.sync"),
    Chip("sm_90", GPUTarget("cuda", 90, 32), 227 * KIB, torch.float8_e4m3fn, r"\bmma\.sync|\bwgmma\.mma_async"),
    Chip("sm_100", GPUTarget("cuda", 100, 32), 227 * KIB, torch.float8_e4m3fn, r"\bmma\.sync|\btcgen05\.mma"),
    Chip("gfx942", GPUTarget("hip", "gfx942", 64), 64 * KIB, torch.float8_e4m3fnuz, r"\bv_mfma"),
    Chip("gfx950", GPUTarget("hip", "gfx950", 64), 160 * KIB, torch.float8_e4m3fn, r"\bv_mfma"),
)


class NoDevice:
    """What a launch asks of Triton's driver. Compiled kernels are kept by device, so each chip has its own number."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip

    def get_current_target(self) -> GPUTarget:
        return self.chip.target

    def get_current_device(self) -> int:
        return CHIPS.index(self.chip)

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launches(chip: Chip, call: Callable[[Chip], Any]) -> list[Any]:
    """The kernels that the call would launch."""
    run = JITFunction.run
    return _launches(chip, call, lambda kernel, *args, **kwargs: run(kernel, *args, warmup=True, **kwargs))


def launch_variants(chip: Chip, call: Callable[[Chip], Any]) -> list[str]:
    """What each launch of the call would be compiled for: equal ones share a compilation. Nothing is compiled."""

    def describe(kernel: Any, *args: Any, grid: Any, **kwargs: Any) -> str:
        *_, bind = kernel.device_caches[CHIPS.index(chip)]
        arguments, specialization, options = bind(*args, **kwargs)
        return f"{kernel.__name__}: {dict(zip(arguments, specialization, strict=True))}, {options}"

    return _launches(chip, call, describe)


def _launches(chip: Chip, call: Callable[[Chip], Any], take: Callable[..., Any]) -> list[Any]:
    """What is taken of each launch instead of running it."""
    taken = []

    def take_only(kernel: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        taken.append(take(kernel, *args, **kwargs))

    triton.runtime.driver.set_active(NoDevice(chip))
    hip_version = "none" if chip.target.backend == "hip" else None
    with mock.patch.object(JITFunction, "run", take_only), mock.patch.object(torch.version, "hip", hip_version):
        call(chip)
    return taken


def cuda_resources(cubin: bytes) -> Row:
    """Registers of a thread, loads and stores of local memory, where registers spill to, and asynchronous copies."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(re.findall(r"\bREG:(\d+)", report)[0]),
        "spills": len(re.findall(r"\b(LDL|STL)\b", report)),
        "asynchronous_copies": len(re.findall(r"\b(LDGSTS|UTMALDG)\b", report)),
    }


def amd_resources(assembly: str) -> Row:
    """Vector registers of a thread, those for accumulation included, and what spills: registers and scratch bytes."""
    found = {name: int(count) for name, count in re.findall(r"^\s+\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    spills = found["vgpr_spill_count"] + found["sgpr_spill_count"] + found["private_segment_fixed_size"]
    return {"registers": found["vgpr_count"], "spills": spills}


def resources(chip: Chip, kernel: Any) -> Row:
    is_cuda = chip.target.backend == "cuda"
    assembly = kernel.asm["ptx" if is_cuda else "amdgcn"]
    matrix = re.search(chip.matrix_instruction, assembly)
    return {
        "kernel": kernel.metadata.name.strip("_").removesuffix("_kernel"),
        "chip": chip.name,
        **(cuda_resources(kernel.asm["cubin"]) if is_cuda else amd_resources(assembly)),
        "shared": kernel.metadata.shared,
        "shared_limit": chip.shared_limit,
        "num_warps": kernel.metadata.num_warps,
        "matrix_instruction": matrix[0] if matrix else None,
        "long_divisions": len(re.findall(r"\b(?:div|rem)\.[su]64", assembly)),  # in PTX
    }
