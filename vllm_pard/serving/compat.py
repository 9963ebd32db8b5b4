"""Which vLLM we work with: the supported range, checked only when PARD is asked for."""

import importlib
import inspect
import os
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from vllm_pard.config import ConfigError
from vllm_pard.serving.hooks.hook import Hook

ALLOW_UNTESTED = "VLLM_PARD_ALLOW_UNTESTED"
UPSTREAM_ALTERNATIVE = '{"method": "draft_model", "parallel_drafting": true}'


def supported_range() -> Requirement:
    """The `cuda` extra of our own metadata: the one place where the range is written."""
    wanted = (Requirement(line) for line in metadata.requires("vllm-pard") or [])
    return next(requirement for requirement in wanted if requirement.name == "vllm")


def unsupported_reason(version: str | None = None) -> str | None:
    """One sentence if `version` (default: the installed vLLM) is outside the supported range, else None."""
    if version is None:
        import vllm

        version = vllm.__version__
    specifier = supported_range().specifier
    if specifier.contains(version, prereleases=True) or os.environ.get(ALLOW_UNTESTED) == "1":
        return None
    return (
        f"vllm_pard {metadata.version('vllm-pard')} supports vLLM {specifier} and found {version}; "
        f"set {ALLOW_UNTESTED}=1 to try anyway, or use {UPSTREAM_ALTERNATIVE}"
    )


def check_hooks(hooks: tuple[Hook, ...]) -> None:
    """Raise ConfigError if the installed vLLM lacks a hook or has changed its parameters."""
    for hook in hooks:
        try:
            found = _resolve(hook)
        except (ImportError, AttributeError) as error:
            raise ConfigError(_changed(hook, f"it is gone ({error})")) from None
        if not hook.parameters:
            continue
        parameters = tuple(inspect.signature(found).parameters)
        if missing := [name for name in hook.parameters if name not in parameters]:
            raise ConfigError(_changed(hook, f"it no longer takes {', '.join(missing)}"))


def _resolve(hook: Hook) -> Any:
    found: Any = importlib.import_module(hook.module)
    for part in hook.name.split("."):
        found = getattr(found, part)
    return found


def _changed(hook: Hook, what: str) -> str:
    import vllm

    return (
        f"vllm_pard relies on vLLM's {hook.module}.{hook.name}, but in vLLM {vllm.__version__} {what}; "
        f"update vllm_pard, or use {UPSTREAM_ALTERNATIVE}"
    )
