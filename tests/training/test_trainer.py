from __future__ import annotations

import pytest
import torch
from torch import nn

from vllm_pard.training.autoregressive import Phase, next_token_loss
from vllm_pard.training.cod import CodConfig
from vllm_pard.training.cod_loss import parallel_loss
from vllm_pard.training.packing import Document, pack
from vllm_pard.training.recipe import ArConfig, DemoPairConfig
from vllm_pard.training.trainer import ScheduleConfig, learning_rate, train


def schedule(**changes):
    return ScheduleConfig(
        **{"num_steps": 20, "learning_rate": 0.01, "warmup_steps": 4, "checkpoint_every": 5, "log_every": 5, **changes}
    )


def new_model():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def loss_of(model, stop_at=None):
    def loss_of_step(step):
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

    return loss_of_step


def test_learning_rate_rises_then_falls_to_zero():
    config = schedule()
    rates = [learning_rate(step, config) for step in range(config.num_steps)]
    assert rates.index(max(rates)) in (3, 4)
    assert max(rates) == pytest.approx(0.01)
    assert rates[0] == pytest.approx(0.0025)
    assert rates[-1] == pytest.approx(0.01 / 16)


def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path):
    unbroken, broken = new_model(), new_model()
    whole = train(unbroken, loss_of(unbroken), schedule(), tmp_path / "a.pt", lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        train(broken, loss_of(broken, stop_at=13), schedule(), tmp_path / "b.pt", lambda line: None)
    fresh = new_model()
    steps = []
    rest = train(fresh, loss_of(fresh), schedule(), tmp_path / "b.pt", steps.append)
    assert steps[0].startswith("step 15/20")
    assert torch.equal(unbroken.weight, fresh.weight)
    assert rest.losses == whole.losses
    assert [step for step, _ in whole.losses] == [5, 10, 15, 20]


def test_a_checkpoint_that_cannot_be_written_says_what_to_do(tmp_path):
    model = new_model()
    with pytest.raises(OSError, match=r"checkpoint c\.pt could not be written .*run the same command again"):
        train(model, loss_of(model), schedule(), tmp_path / "missing" / "c.pt", lambda line: None)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = new_model()
    with pytest.raises(FloatingPointError, match="stay finite; it is nan at step 5"):
        train(model, lambda step: model.weight.sum() * float("nan"), schedule(), tmp_path / "c.pt", lambda line: None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_steps": 0}, "must be 1 or more"),
        ({"learning_rate": 0.0}, "between 0 and 1; got 0.0"),
        ({"warmup_steps": 21}, "between 0 and num_steps=20; got 21"),
    ],
)
def test_schedules_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        schedule(**wrong)


def test_phases_must_add_up():
    target = DemoPairConfig().target
    phases = (Phase(num_steps=3, batch_size=1, length=8),)
    with pytest.raises(ValueError, match="sum to num_steps=3350; they sum to 3"):
        ArConfig(model=target.model, phases=phases, schedule=target.schedule, seed=0)


@pytest.fixture
def eager(monkeypatch):
    """Compiling takes longer than the tiny runs."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def few_documents():
    return [Document((0, 10 + i, *range(11 + i, 19 + i), 1), answer_start=2) for i in range(4)]


@pytest.mark.usefixtures("eager")
def test_next_token_training_lowers_the_loss(tiny_llama, tmp_path):
    phases = (Phase(num_steps=20, batch_size=2, length=24),)
    loss = next_token_loss(tiny_llama, few_documents(), phases, pad_id=2, seed=0)
    log = train(tiny_llama, loss, schedule(), tmp_path / "c.pt", lambda line: None)
    assert log.losses[-1][1] < log.losses[0][1] / 2


@pytest.mark.usefixtures("eager")
def test_parallel_training_lowers_the_loss(tiny_llama, tmp_path):
    packed = pack(few_documents(), length=12, pad_id=2)
    config = CodConfig(num_depths=4)
    loss = parallel_loss(tiny_llama, packed, config, mask_id=3, answers_only=True, batch_size=4, seed=0)
    log = train(tiny_llama, loss, schedule(num_steps=40), tmp_path / "c.pt", lambda line: None)
    assert log.losses[-1][1] < log.losses[0][1] / 2
