"""What `lm_head_top_k` refuses, and the sizes of its tiles."""

from typing import Any

import pytest
import torch
from pard_kernels import lm_head_top_k, top_k_workspace
from pard_kernels.lm_head_top_k.launch import launch_shape


@pytest.mark.parametrize(
    ("num_rows", "k", "dtype", "expected"),
    [
        (1, 1, torch.bfloat16, 16),
        (17, 1, torch.bfloat16, 32),
        (128, 1, torch.float16, 128),
        (129, 1, torch.float16, 128),
        (64, 2, torch.bfloat16, 64),
        (65, 2, torch.bfloat16, 64),
        (300, 1, torch.float32, 16),
    ],
)
def test_rows_share_a_tile_of_weights_as_far_as_they_fit(
    num_rows: int, k: int, dtype: torch.dtype, expected: int
) -> None:
    """Each tile of rows reads all weights; a list of the best beside a tile of 128 rows does not fit the registers."""
    assert launch_shape(num_rows, k, dtype)["BLOCK_ROWS"] == expected


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
