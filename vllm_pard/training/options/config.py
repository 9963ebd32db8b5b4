"""What a draft is trained for: depths, losses and features. Imports neither torch nor Transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vllm_pard.errors import PardError

__all__ = ["LOSSES", "CodConfig", "FeatureConfig", "LossConfig", "TrainConfigError"]

Weights = Literal["none", "cat", "d-pace"]

LOSSES = ("ce", "kl", "tv", "lk")


class TrainConfigError(PardError):
    """A training config that can't be run; the message says what was wanted, what came and what to do."""


@dataclass(frozen=True, kw_only=True)
class CodConfig:
    """COnditional Drop-token: how many depths to train, and how many anchors each keeps (arXiv 2504.18583).

    1 depth is next-token prediction; with retention 1 nothing is dropped.
    """

    num_depths: int = 8
    retention: float = 0.7
    min_retention: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.num_depths, int) or isinstance(self.num_depths, bool) or self.num_depths < 1:
            raise TrainConfigError(f"cod.num_depths must be a whole number from 1; got {self.num_depths!r}")
        if not 0 < self.min_retention <= self.retention <= 1:
            raise TrainConfigError(
                "cod needs 0 < min_retention <= retention <= 1; "
                f"got min_retention {self.min_retention} and retention {self.retention}"
            )

    def anchors_per_depth(self, num_anchors: int) -> tuple[int, ...]:
        """n_i = floor(A * max(r^i, r_min)) for each depth, at least one while there is an anchor (section 2.3)."""
        shares = (max(self.retention**depth, self.min_retention) for depth in range(self.num_depths))
        return tuple(max(int(num_anchors * share), min(num_anchors, 1)) for share in shares)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What each row is trained for, and how much it counts; see losses.py.

    PARD: ce 1. PARD-2: ce 0.1, kl 1, weights cat.
    """

    ce: float = 1.0  # cross-entropy with the text
    kl: float = 0.0  # forward KL from the target
    tv: float = 0.0  # total variation from the target
    lk: float = 0.0  # negative log of the acceptance at temperature 1
    weights: Weights = "none"
    smoothing: float = 0.5  # of the draft's confidences, for weights d-pace

    def __post_init__(self) -> None:
        for name in LOSSES:
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise TrainConfigError(f"loss.{name} must be a number from 0; got {getattr(self, name)!r}")
        if not any(self.scales.values()):
            raise TrainConfigError(f"loss needs one of {', '.join(LOSSES)} above 0; all are 0")
        if self.weights not in get_args(Weights):
            raise TrainConfigError(f"loss.weights must be one of {', '.join(get_args(Weights))}; got {self.weights!r}")
        if not _is_number(self.smoothing) or not 0 <= self.smoothing <= 1:
            raise TrainConfigError(f"loss.smoothing must be a number from 0 to 1; got {self.smoothing!r}")

    @property
    def scales(self) -> dict[str, float]:
        """The losses that count, each with its factor."""
        return {name: getattr(self, name) for name in LOSSES if getattr(self, name) > 0}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The losses that count."""
        return tuple(self.scales)

    @property
    def distils(self) -> bool:
        """Whether the target's distributions are learnt."""
        return any(kind != "ce" for kind in self.kinds)

    @property
    def needs_target(self) -> bool:
        """Whether the target has to run beside the draft."""
        return self.distils or self.weights == "cat"


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """PARD-2: the draft reads hidden states of the target (arXiv 2605.08632)."""

    layers: tuple[int, ...] = (-1, -8, -16, -24)  # as in Transformers' hidden_states; -1 is after the final norm
    scale: float = 0.02
    dropout: float = 0.1  # share of the documents that are trained without features, for the independent mode

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or len(set(self.layers)) < len(self.layers) or not all(map(_is_layer, self.layers)):
            raise TrainConfigError(f"features.layers must be a list of different numbers below 0; got {self.layers!r}")
        if not _is_number(self.scale) or self.scale <= 0:
            raise TrainConfigError(f"features.scale must be a number above 0; got {self.scale!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise TrainConfigError(f"features.dropout must be a number from 0, below 1; got {self.dropout!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 0
