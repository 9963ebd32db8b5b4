"""Time on the device, for choices that only the device can make."""

from collections.abc import Callable
from typing import Any

from triton.testing import do_bench


def median_milliseconds(function: Callable[[], Any]) -> float:
    """Median time of a call on the current GPU, with a cold L2 cache."""
    return float(do_bench(function, return_mode="median"))
