"""The ledger of what we change in vLLM, applied from here and printed by `vllm-pard patches`."""

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from vllm_pard.errors import PardError

METHOD = "pard"

Scope = Literal["every process", "PARD workers on a CPU"]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One wrapped upstream function: the original is always called or replaced as a whole, never copied."""

    target: str  # "module:Class.function"
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    why: str
    upstream: str
    remove_when: str
    scope: Scope = "every process"

    def apply(self) -> None:
        """Wrap the target; the second time does nothing."""
        owner, name = self._locate()
        original = getattr(owner, name)
        if getattr(original, "_vllm_pard", False):
            return
        wrapped = functools.wraps(original)(self.wrap(original))
        wrapped._vllm_pard = True  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)

    def undo(self) -> None:
        """Put the original back; without a patch applied this does nothing."""
        owner, name = self._locate()
        current = getattr(owner, name)
        if getattr(current, "_vllm_pard", False):
            setattr(owner, name, current.__wrapped__)

    def _locate(self) -> tuple[Any, str]:
        module, _, path = self.target.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        return owner, name


def _wrap_create_speculative_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_speculative_config(
        self: Any, target_model_config: Any, target_parallel_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        given = self.speculative_config
        in_config = str(given.get("method")).lower() if isinstance(given, dict) else None
        if METHOD not in (in_config, getattr(self, "spec_method", None)):  # the second is --spec-method
            return original(self, target_model_config, target_parallel_config, *args, **kwargs)
        from vllm_pard.serving.speculative_config import build

        try:
            return build(self, target_model_config, target_parallel_config)
        except PardError as error:
            _report_in_one_sentence()
            raise error.with_traceback(None) from None

    return create_speculative_config


def _wrap_expand_batch_to_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    def expand_batch_to_tokens(
        x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: float = 0, replace_to: float = 0
    ) -> Any:
        """Repeat each request's value for each of its tokens. [B], [B] -> [num_tokens], in the dtype of x"""
        counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
        expanded = x.repeat_interleave(counts.long(), output_size=num_tokens)
        return expanded.masked_fill(expanded == replace_from, replace_to)

    return expand_batch_to_tokens


def _report_in_one_sentence() -> None:
    """Let an uncaught PardError end the program with its sentence; a traceback says nothing to who mistyped a key."""
    previous = sys.excepthook
    if getattr(previous, "_vllm_pard", False):
        return

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, PardError):
            print(f"vllm_pard: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    excepthook._vllm_pard = True  # type: ignore[attr-defined]
    sys.excepthook = excepthook


PATCHES = (
    Patch(
        target="vllm.engine.arg_utils:EngineArgs.create_speculative_config",
        wrap=_wrap_create_speculative_config,
        why="vLLM's speculative methods are a closed list, so a config with method 'pard' must become one of its "
        "SpeculativeConfig objects before vLLM validates it; every other config goes to the original untouched",
        upstream="https://github.com/vllm-project/vllm/issues/36219 (unifying the interfaces of speculative decoding)",
        remove_when="vLLM takes speculative methods from plugins",
    ),
    Patch(
        target="vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        wrap=_wrap_expand_batch_to_tokens,
        why="vLLM's CPU kernel writes float values into an int64 copy that it drops, so that speculative decoding "
        "samples with an uninitialised temperature and top-p; outputs must follow the target",
        upstream="_expand_kernel_impl in vllm/utils/cpu_triton_utils.py, vLLM 0.32 and 0.33",
        remove_when="the CPU kernel writes to its output whatever the dtype",
        scope="PARD workers on a CPU",
    ),
)


def apply_patches(scope: Scope) -> None:
    """Apply every patch of the ledger with this scope; idempotent."""
    for patch in PATCHES:
        if patch.scope == scope:
            patch.apply()
