"""What a choice of draft tokens knows of steps of about one batch size, and how much it may try."""

from collections import defaultdict, deque
from dataclasses import dataclass
from math import inf
from statistics import median

from vllm_pard.prompt_cost import PromptCost, Step

__all__ = ["Batch", "ChoiceLimits"]


@dataclass(frozen=True, kw_only=True)
class ChoiceLimits:
    """How fast a choice follows, and what looking for a better one may cost."""

    num_drafts: float = 400.0  # older ones count for less: e times less after as many
    prior: float = 5.0  # drafts that say of a token that it is accepted like the one before
    num_costs: int = 25  # steps of a kind that are remembered; their median counts
    num_steps: int = 5  # of a probe; fewer say nothing of a cost
    num_tries: int = 50  # steps after which a probe that had no such steps gives up
    near: int = 2  # powers of the root of 2 between batch sizes that cost about the same in proportion
    gain: float = 1.02  # that another choice must promise
    few_drafts: int = 20  # of a first probe say whether it is so much slower that more are not tried
    much: float = 1.3  # times
    probe_share: float = 0.005  # of the time that probes may lose
    min_probe_interval: int = 100  # steps between two probes
    stall: float = 10.0  # times its usual length is the most that a step counts as lost


@dataclass
class Probe:
    """A choice that is looked at for a few steps whatever is known of it."""

    k: int
    num_left: int
    num_tries: int


class Batch:
    """What is known of steps of about one batch size."""

    def __init__(self, size: int, k: int, prompt_cost: PromptCost, limits: ChoiceLimits) -> None:
        self.size = size
        self.k = k  # the present choice
        self.steps: dict[int, deque[Step]] = defaultdict(lambda: deque(maxlen=limits.num_costs))
        self.probe: Probe | None = None
        self.num_steps = 0
        self.num_steps_since_probe = 0
        self.last_seen: dict[int, int] = {}  # of a k, in which step
        self.debt = 0.0  # seconds that probes have lost
        self.is_settled = False  # the first probes are over; these are for nothing, if all were made
        self.put_off = inf  # more drafts are not among the first probes
        self.has_given_up = False  # a probe without steps of its kind
        self._prompt_cost, self._limits = prompt_cost, limits
        self._costs: dict[int, float] = {}  # of a k, as `_prompt_estimates` have it
        self._prompt_estimates = prompt_cost.estimates

    def observe(self, k: int, step: Step) -> None:
        if self.steps[k]:
            self._prompt_cost.observe(self.steps[k][-1], step)
        self.steps[k].append(step)
        self._costs.pop(k, None)
        self.last_seen[k] = self.num_steps

    def cost(self, k: int) -> float | None:
        """Seconds of a step without prompts; None where there were too few."""
        if len(self.steps[k]) < self._limits.num_steps:
            return None
        if self._prompt_estimates != self._prompt_cost.estimates:
            self._prompt_estimates = self._prompt_cost.estimates
            self._costs.clear()
        if k not in self._costs:
            self._costs[k] = median(step.seconds - self._prompt_cost.of(step) for step in self.steps[k])
        return self._costs[k]

    def best_known(self) -> tuple[int, float] | None:
        """The k whose cost is known best, the present choice's or else the newest, and its cost."""
        known = [(k, cost) for k in self.steps if (cost := self.cost(k)) is not None]
        return max(known, key=lambda each: (each[0] == self.k, self.last_seen[each[0]]), default=None)

    def begin_probe(self, k: int) -> None:
        self.probe = Probe(k, self._limits.num_steps, self._limits.num_tries)
