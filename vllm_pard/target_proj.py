"""target_proj: what a PARD-2 draft has beside its model, from features of the target to the draft's embeddings.

AMD's code keeps it in warp_model.bin, a pickle of torch, and its exporter writes a safetensors twin into the folder
pard_warp_model, which is read first where there is one. Beside the model's own weights vLLM would take it for one.

H hidden size of the draft · D target_dim: the target's hidden size x number of layers
"""

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_pard.checkpoint import (
    DEFAULT_LOADING,
    CheckpointError,
    Loading,
    PardCheckpoint,
    check_exists,
    is_local,
    load_config,
)
from vllm_pard.config_values import positive_int
from vllm_pard.errors import first_sentence
from vllm_pard.files import OutputError
from vllm_pard.pard2 import FeatureConfig, WantedMode, choose_mode

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_FILE, TORCH_FILE = "pard_warp_model/model.safetensors", "warp_model.bin"
WEIGHT, BIAS = "target_proj.weight", "target_proj.bias"


class TargetProjMissing(CheckpointError):
    """A PARD-2 draft without target_proj, which can only be independent."""


class TargetProj(NamedTuple):
    """The linear map, and which features it takes."""

    features: FeatureConfig
    weight: "Tensor"  # [H, D]
    bias: "Tensor | None"  # [H]


def target_proj_for(
    draft: PardCheckpoint,
    target: str,
    target_config: Mapping[str, Any],
    *,
    wanted: WantedMode = "auto",
    loading: Loading = DEFAULT_LOADING,
) -> tuple[TargetProj | None, str]:
    """What `draft` needs for dependent mode with this target, or None for independent mode; and why.

    As `choose_mode`; where there is no file to read, independent unless dependent is `wanted`. Raises CheckpointError
    if what is wanted is not possible, or a file is damaged.
    """
    mode, reason = choose_mode(draft.path, draft.features, target, target_config, wanted=wanted)
    if mode == "independent" or draft.features is None:
        return None, reason
    try:
        return read_target_proj(draft.path, draft.features, _hidden_size(draft.path, loading), loading), reason
    except TargetProjMissing as error:
        if wanted == "dependent":
            raise
        return None, str(error)


def check_mode(draft: PardCheckpoint, target: str, target_config: Mapping[str, Any], wanted: WantedMode) -> None:
    """Raise CheckpointError where dependent is wanted and can't be had, as far as that is known before torch is loaded.

    Of a draft on the hub, files are not looked for.
    """
    if wanted != "dependent":
        return
    choose_mode(draft.path, draft.features, target, target_config, wanted=wanted)
    if is_local(draft.path):
        find_target_proj(draft.path)


def read_target_proj(
    model: str, features: FeatureConfig, hidden_size: int, loading: Loading = DEFAULT_LOADING
) -> TargetProj:
    """The target_proj of the PARD-2 draft `model`, a folder or a Hugging Face name, on the CPU in the dtype it has.

    `hidden_size` is the draft's. Raises CheckpointError if there is no such file, or if it holds anything but floating
    point weights of these shapes; nothing in it is ever run.
    """
    path = find_target_proj(model, loading)
    tensors = _load(path)
    shapes = {WEIGHT: (hidden_size, features.target_dim)} | ({BIAS: (hidden_size,)} if features.has_bias else {})
    if tensors.keys() != shapes.keys():
        raise CheckpointError(
            f"{path!r} must hold {' and '.join(shapes)}, as pard2_proj_bias in the config.json says; "
            f"it holds {', '.join(sorted(map(str, tensors))) or 'nothing'}"
        )
    for name, shape in shapes.items():
        _check(path, name, tensors[name], shape)
    return TargetProj(features, tensors[WEIGHT], tensors.get(BIAS))


def write_target_proj(folder: Path, weight: "Tensor", bias: "Tensor | None" = None) -> None:
    """Write weight [H, D] and bias [H] to both files in `folder`, in place of what they held.

    Both are on disk before either takes its place: where the disk is full, or the process is killed, earlier files
    stay whole. Raises OutputError.
    """
    import torch
    from safetensors.torch import save

    given = {WEIGHT: weight} if bias is None else {WEIGHT: weight, BIAS: bias}
    # A copy: torch writes all of the memory that a view is of.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in given.items()}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    contents = {TORCH_FILE: buffer.getvalue(), SAFETENSORS_FILE: save(tensors, metadata={"format": "pt"})}
    partials = {name: folder / f"{name}.partial" for name in contents}
    try:
        (folder / SAFETENSORS_FILE).parent.mkdir(exist_ok=True)
        for name, content in contents.items():
            partials[name].write_bytes(content)
        for name, partial in partials.items():
            os.replace(partial, folder / name)
    except OSError as error:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        raise OutputError(f"can't write target_proj into {str(folder)!r}: {error.strerror}") from error


def find_target_proj(model: str, loading: Loading = DEFAULT_LOADING) -> str:
    """The file to read. Raises TargetProjMissing if there is none; of a folder this is known without Transformers."""
    check_exists(model)
    reason = ""
    if is_local(model):
        for path in (Path(model, name) for name in (SAFETENSORS_FILE, TORCH_FILE)):
            if path.is_file():
                return str(path)
    else:
        from transformers.utils import cached_file

        for name in (SAFETENSORS_FILE, TORCH_FILE):
            try:
                return str(cached_file(model, name, revision=loading.revision, token=loading.token))
            except OSError as error:
                reason = f" ({first_sentence(error)})"
    raise TargetProjMissing(
        f"dependent mode needs {SAFETENSORS_FILE} or {TORCH_FILE} of the PARD-2 draft {model!r}, and there is neither"
        f"{reason}; independent mode needs none"
    )


def _hidden_size(model: str, loading: Loading) -> int:
    size = positive_int(model, load_config(model, loading), "hidden_size")
    if size is None:
        raise CheckpointError(f"the PARD-2 draft {model!r} needs a hidden_size in its config.json; there is none")
    return size


def _load(path: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.endswith(".safetensors"):
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch's reader
        raise CheckpointError(f"can't read target_proj from {path!r}: {first_sentence(error)}") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path!r} must hold a dict of tensors; it holds a {type(tensors).__name__}")
    return tensors


def _check(path: str, name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    import torch

    kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
    if kind not in (torch.bfloat16, torch.float16, torch.float32):
        raise CheckpointError(f"{name} in {path!r} must be bfloat16, float16 or float32; it is {kind}")
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{name} in {path!r} must be {list(shape)}, the draft's hidden size and pard2_target_dim; "
            f"it is {list(tensor.shape)}; independent mode needs none"
        )
    if not tensor.isfinite().all():
        raise CheckpointError(f"{name} in {path!r} has values that are not finite; save the draft again")
