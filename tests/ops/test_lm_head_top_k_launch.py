"""What `lm_head_top_k` refuses, and the sizes of its tiles."""

import importlib
from typing import Any

import pytest
import torch
from pard_kernels import lm_head_top_k, top_k_workspace

module: Any = importlib.import_module("pard_kernels.lm_head_top_k")


@pytest.mark.parametrize("is_hip", [False, True])
@pytest.mark.parametrize("dtype", module.DTYPES)
def test_tiles_fit(dtype: torch.dtype, is_hip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 KiB on gfx942, 99 KiB for a program on most GPUs since sm_80."""
    monkeypatch.setattr(torch.version, "hip", "7.0" if is_hip else None)
    for num_rows in (1, 16, 17, 33, 64, 128, 1024):
        for k in (1, 2, 64):
            shape = module.launch_shape(num_rows, k, dtype)
            num_elements = (shape["BLOCK_ROWS"] + shape["BLOCK_VOCAB"]) * shape["BLOCK_HIDDEN"]
            assert num_elements * dtype.itemsize * (shape["num_stages"] - 1) <= (64 if is_hip else 99) * 1024
            assert shape["BLOCK_VOCAB"] >= module.MAX_K, "a tile fills the list of the best"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 65}, r"k 1 to 64 and no more than num_valid; got num_valid=100 and k=65"),
        ({"k": 5, "num_valid": 4}, r"got num_valid=4 and k=5"),
        ({"k": 1, "num_valid": 101}, r"num_valid must be 1 to 100"),
        ({"k": 1, "num_valid": 0}, r"num_valid must be 1 to 100"),
        ({"k": 1, "bias": torch.zeros(99)}, r"bias must be \[100\]; got \(99,\)"),
        (
            {"k": 1, "weight": torch.zeros(100, 64, dtype=torch.int8), "weight_scale": torch.zeros(64)},
            r"weight_scale must be \[100\]; got \(64,\)",
        ),
        ({"k": 1, "weight_scale": torch.zeros(100)}, r"or weight int8 with a weight_scale; got .* torch.float32$"),
        ({"k": 1, "weight": torch.zeros(100, 64, dtype=torch.int8)}, r"got .* and torch.int8$"),
        ({"k": 1, "soft_cap": -1.0}, r"soft_cap must be 0 \(none\) or more; got -1.0"),
        ({"k": 2, "workspace": top_k_workspace(num_rows=4, k=1, device="cpu")}, r"num_rows=4 or more, k=2"),
        ({"k": 1, "workspace": top_k_workspace(num_rows=3, k=1, device="cpu")}, r"num_rows=4 or more, k=1"),
        ({"k": 1, "weight": torch.zeros(100, 32)}, r"hidden must be \[N, 32\]"),
        ({"k": 1, "weight": torch.zeros(100, 64, dtype=torch.float8_e4m3fn)}, r"both of one dtype"),
        ({"k": 1, "weight": torch.zeros(100, 64, dtype=torch.float16)}, r"both of one dtype"),
    ],
)  # fmt: skip
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lm_head_top_k(**({"hidden": torch.zeros(4, 64), "weight": torch.zeros(100, 64)} | options))
