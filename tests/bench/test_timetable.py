"""How long it may still take, on a clock of the test's."""

import pytest

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.methods import METHODS, Contender
from vllm_pard.bench.plan import Plan, Step
from vllm_pard.bench.timetable import Timetable

CONTENDERS = [
    Contender(name=label, label=label, method=METHODS[label], num_speculative_tokens=k)
    for label, k in {"none": 0, "pard": 8}.items()
]


class Course:
    """A benchmark whose steps take as long as the test says."""

    def __init__(self, *, concurrencies: list[int], together: bool = True) -> None:
        plan = Plan(
            contenders=CONTENDERS,
            requests=[Request(id=str(number), token_ids=[1]) for number in range(10)],
            sampling=Sampling(max_tokens=3),
            concurrencies=concurrencies,
            num_runs=2,
            num_warmup=5,
            requests_per_user=None,
            together=together,
            verify=True,
        )
        self.now = 100.0
        self.steps = iter(plan.all_steps)
        self.timetable = Timetable(plan.all_steps, clock=lambda: self.now)

    def begin(self, *, after: float) -> Step:
        self.now += after
        step = next(self.steps)
        self.timetable.begin(step)
        return step


@pytest.fixture
def course() -> Course:
    return Course(concurrencies=[1])


def test_all_steps_in_words(course: Course) -> None:
    words = []
    for _ in range(course.timetable.num_steps):
        course.begin(after=0.0)
        words.append(course.timetable.in_words.partition(" (")[0])
    assert words == [
        "step 1 of 11: starting none",
        "step 2 of 11: starting pard",
        "step 3 of 11: warming up none, 1 at a time",
        "step 4 of 11: warming up pard, 1 at a time",
        "step 5 of 11: run 1 of 2: none, 1 at a time",
        "step 6 of 11: run 1 of 2: pard, 1 at a time",
        "step 7 of 11: run 2 of 2: pard, 1 at a time",
        "step 8 of 11: run 2 of 2: none, 1 at a time",
        "step 9 of 11: comparing the outputs of none, 1 at a time",
        "step 10 of 11: comparing the outputs of pard, 1 at a time",
        "step 11 of 11: comparing none with itself, 4 at a time",
    ]


def test_a_long_step_says_how_long(course: Course) -> None:
    course.begin(after=0.0)
    course.now += 4
    assert course.timetable.in_words == "step 1 of 11: starting none"
    course.now += 36
    assert course.timetable.in_words == "step 1 of 11: starting none, 40 s so far"


def test_no_estimate_before_the_first_run_has_ended(course: Course) -> None:
    for after in (0.0, 30.0, 30.0, 5.0, 5.0):
        course.begin(after=after)
        assert course.timetable.seconds_left is None
        assert course.timetable.in_words.endswith(("starting none", "starting pard", "at a time"))
    course.begin(after=20.0)  # none's first run took 20 s: 2 s a request
    # pard is only known from its warm-up, 1 s a request: two runs and a comparison of 10 requests each
    assert course.timetable.seconds_left == 3 * 10 + 20 + 20 + 20
    assert course.timetable.in_words == "step 6 of 11: run 1 of 2: pard, 1 at a time (about 2 min left)"


def test_what_is_seen_later_counts_more(course: Course) -> None:
    for after in (0.0, 30.0, 30.0, 5.0, 5.0, 20.0):
        course.begin(after=after)
    course.begin(after=4.0)  # pard's first run took 4 s
    assert course.timetable.seconds_left == 2 * 4 + 3 * 20
    assert course.timetable.left_in_words == "about 68 s left"
    course.now += 3
    assert course.timetable.seconds_left == 1 + 4 + 60
    course.now += 100
    assert course.timetable.seconds_left == 0 + 4 + 60  # late, but never below nothing


def test_minutes(course: Course) -> None:
    for after in (0.0, 30.0, 30.0, 5.0, 5.0, 200.0):
        course.begin(after=after)
    assert course.timetable.left_in_words == "about 10 min left"


def test_another_concurrency_is_taken_for_as_slow() -> None:
    course = Course(concurrencies=[1, 2])
    while course.begin(after=10.0).kind != "run":
        pass
    course.begin(after=20.0)
    # none: 2 s a request; pard, 10 s for 5 warm-up requests: as much
    num_requests = 10 * (1 + 2 + 2) + 2 * 5 + 10 * 6
    assert course.timetable.seconds_left == 2 * num_requests


def test_engines_that_start_later_are_counted() -> None:
    course = Course(concurrencies=[1], together=False)
    for after in (0.0, 30.0, 5.0, 20.0):  # start, warm-up, run
        course.begin(after=after)
    assert course.timetable.seconds_left == 20 + 20 + 20 + 30 + 2 * (5 + 30)
