"""A batch, checked before anything that takes time."""

from typing import TYPE_CHECKING

from vllm_pard.checkpoint import check_exists
from vllm_pard.cli.batch.batch import Batch
from vllm_pard.cli.model_checks import OTHER_CONFIG, check_speculative, engine_config
from vllm_pard.config import AUTO
from vllm_pard.errors import PardError

if TYPE_CHECKING:
    from vllm_pard.reference.engine import Method

REFERENCE_METHODS: "dict[str, Method]" = {"pard": "pard", "draft_model": "vsd"}  # by what vLLM calls them
REFERENCE_KEYS = {"method", "model", "num_speculative_tokens", "mask_token_id", "mode", "tree"}


class ReferenceEngineError(PardError):
    """The reference engine can't do what was asked."""


def check_batch(batch: Batch) -> None:
    """Raise PardError on options and local models that no engine would take."""
    if batch.reference:
        _check_reference_options(batch)
    target = batch.options["model"]
    check_exists(target)
    has_other_config = bool(batch.options.keys() & set(OTHER_CONFIG))
    check_speculative(batch.speculative, target, engine_config(target, has_other_config=has_other_config))


def _check_reference_options(batch: Batch) -> None:
    if batch.sampling["top_p"] != 1:
        raise ReferenceEngineError(
            f"the reference engine has no top-p; got --top-p {batch.sampling['top_p']}: leave it out, or use "
            "--engine vllm"
        )
    unknown = [*(batch.options.keys() - {"model", "dtype"}), *((batch.speculative or {}).keys() - REFERENCE_KEYS)]
    if unknown:
        raise ReferenceEngineError(f"the reference engine has no option {unknown[0]!r}; use --engine vllm")
    if batch.speculative is not None and batch.speculative["method"] not in REFERENCE_METHODS:
        raise ReferenceEngineError(
            f"the reference engine drafts with {' or '.join(REFERENCE_METHODS)}; got {batch.speculative['method']!r}"
        )
    if batch.speculative is not None and batch.speculative.get("tree") == AUTO:
        raise ReferenceEngineError(
            f'"tree": "{AUTO}" is chosen by what steps of vLLM cost: give the reference engine {{"nodes": N}}'
        )
