"""The memory roof: what a step must read, over how fast this device can read it.

At a small batch a step's time is that of reading the weights once and every request's keys and values once. The roof of
a method is the speed of steps that take just this long; its share says how much of a figure is the method's and how
much is still overhead. Where a batch is large enough to be bound by arithmetic, the roof is out of reach.
"""

# L layers · H K/V heads · D head size

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vllm_pard.bench.methods import Contender, Models
from vllm_pard.bench.options import BenchmarkError

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
COPY_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelBytes:
    """What one forward of a model reads."""

    weights: int
    kv_per_token: int

    def forward(self, num_requests: int, context: float) -> float:
        return self.weights + num_requests * context * self.kv_per_token


@cache
def model_bytes(model: str, dtype: torch.dtype) -> ModelBytes | None:
    """From the shapes in a model's config; None for models of which a step reads only a part, or stores otherwise."""
    config = AutoConfig.from_pretrained(model).get_text_config(decoder=True)
    if getattr(config, "quantization_config", None) or getattr(config, "num_experts", None):
        return None
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config)
    num_weights = sum(weight.numel() for weight in shapes.parameters())
    if not config.tie_word_embeddings:
        num_weights -= shapes.get_input_embeddings().weight.numel()  # a step reads a row a token
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_per_token = 2 * config.num_hidden_layers * heads * head_size  # [L, 2, H, D]
    return ModelBytes(weights=num_weights * dtype.itemsize, kv_per_token=kv_per_token * dtype.itemsize)


@dataclass(frozen=True, kw_only=True)
class Roof:
    """The device and the models of one comparison."""

    bandwidth: float  # bytes/s, measured
    models: Models
    dtype: torch.dtype

    @classmethod
    def measure(cls, models: Models, dtype: torch.dtype, num_threads: int | None) -> "Roof":
        """Measure the copy bandwidth of the GPU, or of the CPU with as many threads as the engines will use."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(bandwidth=copy_bandwidth(device, num_threads), models=models, dtype=dtype)

    def tokens_per_second(self, contender: Contender, num_requests: int, context: float) -> float | None:
        """Of steps that do nothing but read, a token a request and step; times the acceptance length, it is the roof.

        Args:
            num_requests: at a time.
            context: mean number of tokens of a request, prompt included.
        """
        num_draft_forwards = contender.num_draft_forwards
        target = model_bytes(self.models.target, self.dtype)
        if num_draft_forwards is None or target is None:
            return None
        step = target.forward(num_requests, context)
        if num_draft_forwards and (name := contender.draft(self.models)):
            draft = model_bytes(name, self.dtype)
            if draft is None:
                return None
            step += num_draft_forwards * draft.forward(num_requests, context)
        return num_requests * self.bandwidth / step


def weight_dtype(models: Models, dtype: str, *, keeps_float32: bool) -> torch.dtype:
    """What an engine stores weights in: "auto" is the checkpoint's own, in vLLM half as much for float32."""
    config = models.target_config
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16") if dtype == "auto" else dtype
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise BenchmarkError(f"--dtype must be auto, float32, bfloat16 or float16; got {dtype!r}")
    return torch.bfloat16 if dtype == "auto" and found is torch.float32 and not keeps_float32 else found


def copy_bandwidth(device: str, num_threads: int | None = None) -> float:
    """Measured bytes/s, read and written, of copying a tensor far larger than any cache; median of many copies."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        source = torch.ones(COPY_BYTES[device] // 4, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        seconds = median(_time_copies(lambda: target.copy_(source), device))
        return 2 * COPY_BYTES[device] / seconds
    finally:
        torch.set_num_threads(before)


def _time_copies(copy: Callable[[], Any], device: str) -> list[float]:
    copy()
    times: list[float] = []
    while sum(times) < COPY_SECONDS or len(times) < 5:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        copy()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times
