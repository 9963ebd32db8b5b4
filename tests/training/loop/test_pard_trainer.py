"""Transformers' Trainer with our loss: it learns, it stops, and two processes are one with a larger batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_training import NUM_DEPTHS, Packs, poison, toy_trainer

from vllm_pard.training.loop.pard_trainer import TrainingError

SCRIPT = Path(__file__).parents[2] / "support" / "toy_training.py"
CAT = {"ce": 0.1, "kl": 1.0, "weights": "cat"}
# fp32: the sum over a batch is taken in another order, and Adam goes on from there for some steps
PROCESSES_TOL = 1e-5
RUNS = {
    # tied head and features
    "pard2": {"batch_size": 4, "loss": CAT, "reads_features": True, "kind": "qwen3"},
    # an lm_head of its own, and steps in which a process has nothing to train
    "pard": {"batch_size": 2, "loss": {"weights": "d-pace"}, "kind": "llama", "num_packs": 24},
    "accumulating": {"batch_size": 2, "num_packs": 16, "arguments": {"gradient_accumulation_steps": 2}},
}


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": {"weights": "d-pace"}},
        {"loss": CAT, "reads_features": True},
        {"loss": {"tv": 1.0, "ce": 0.5}},
        {"loss": CAT, "reads_features": True, "arguments": {"bf16": True, "gradient_checkpointing": True}},
    ],
    ids=["PARD", "D-PACE", "PARD-2", "TV", "PARD-2 in bfloat16, checkpointed"],
)
def test_the_loss_falls(tmp_path, options):
    trainer = toy_trainer(tmp_path, num_packs=96, batch_size=4, learning_rate=1e-2, **options)
    trainer.train()
    found = losses(trainer)
    assert len(found) == 24
    assert sum(found[-5:]) < 0.85 * sum(found[:5])


def test_acceptance_grows(tmp_path):
    trainer = toy_trainer(tmp_path, num_packs=320, batch_size=4, learning_rate=1e-2)
    before = trainer.evaluate()["eval_acceptance_length"]
    trainer.train()
    after = trainer.evaluate()
    assert before < 1.3
    assert after["eval_acceptance_length"] > before + 1
    assert after["eval_acceptance_length"] <= NUM_DEPTHS + 1
    assert after["eval_accuracy"] > 0.5


def test_evaluation_tells_of_both_modes(tmp_path):
    names = {"eval_acceptance_length", "eval_acceptance_length_everywhere", "eval_accuracy"}
    both = names | {f"{name}_independent" for name in names}
    dependent = toy_trainer(tmp_path, loss=CAT, reads_features=True)
    found = dependent.evaluate()
    assert set(found) - {"eval_num_rows", "eval_runtime", "eval_seconds", "epoch"} == both
    with torch.no_grad():  # what the features say now matters
        dependent.model.target_proj.weight.mul_(1000)
    changed = dependent.evaluate()
    assert {name for name in both if changed[name] != found[name]} >= {"eval_accuracy"}
    assert all(changed[name] == found[name] for name in both - names)
    assert (
        set(toy_trainer(tmp_path, loss=CAT).evaluate()) - {"eval_num_rows", "eval_runtime", "eval_seconds", "epoch"}
        == names
    )


def test_it_evaluates_while_it_trains(tmp_path):
    trainer = toy_trainer(tmp_path, num_packs=24, arguments={"eval_strategy": "steps", "eval_steps": 4})
    trainer.train()
    steps = [log["step"] for log in trainer.state.log_history if "eval_acceptance_length" in log]
    assert steps == [4, 8, 12]
    paces = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["rows_per_second"] > log["tokens_per_second"] / 2 > 0 for log in paces)


def test_without_held_out_documents_there_is_nothing_to_evaluate(tmp_path):
    trainer = toy_trainer(tmp_path)
    trainer.held_out = None
    with pytest.raises(TrainingError, match=r"no held-out documents to evaluate on: set evaluation\.num_documents"):
        trainer.evaluate()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_before_the_weights(tmp_path, accumulation):
    arguments = {"gradient_accumulation_steps": accumulation}
    sound = toy_trainer(tmp_path, num_packs=6 * accumulation, arguments=arguments)
    sound.train()
    trainer = toy_trainer(tmp_path, num_packs=20 * accumulation, arguments=arguments)
    poison(trainer, rank=0, step=3)
    with pytest.raises(TrainingError, match=r"must stay finite; it is nan in step 4: lower trainer\.learning_rate"):
        trainer.train()
    for found, wanted in zip(trainer.model.parameters(), sound.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_accumulated_batches_are_averaged(tmp_path):
    """Not added up: the gradient of a batch twice is that of the batch."""
    norms = []
    for accumulation in (1, 2):
        arguments = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 1e9}
        trainer = toy_trainer(tmp_path, batch_size=1, arguments=arguments)
        trainer.train_dataset = [Packs(1)[0]] * accumulation
        trainer.train()
        norms += [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log]
    assert len(norms) == 2
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_packs_are_trained_in_their_order(tmp_path):
    trainer, seen = toy_trainer(tmp_path, num_packs=6, batch_size=2), []
    collate = trainer.data_collator
    trainer.data_collator = lambda items: seen.extend(item["pack"] for item in items) or collate(items)
    trainer.train()
    assert seen == list(range(6))


def test_a_batch_is_for_one_gpu(tmp_path):
    """A process that sees several GPUs would have Transformers cut it in pieces."""
    trainer = toy_trainer(tmp_path)
    trainer.args._n_gpu = 8
    again = type(trainer)(
        trainer.model,
        trainer.args,
        packs=Packs(2),
        collator=trainer.data_collator,
        files=trainer.files,
    )
    assert again.args.n_gpu == 1


def start(result: Path, runs: dict, num_processes: int) -> list[dict]:
    """What each process tells."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), str(SCRIPT), str(result), json.dumps(runs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(Path(f"{result}.{rank}.json").read_text()) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return start(tmp_path_factory.mktemp("one") / "result", RUNS, 1)[0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does_with_twice_the_batch(tmp_path, one, kind):
    runs = {}
    for name, options in RUNS.items():
        arguments = options.get("arguments", {}) | ({"fsdp": True} if kind == "fsdp2" else {})
        runs[name] = options | {"batch_size": options["batch_size"] // 2, "arguments": arguments}
    runs["poisoned"] = runs["pard"] | {"poisoned": [1, 3]}
    found, of_second = start(tmp_path / "result", runs, 2)
    for name in RUNS:
        assert found[name]["num_processes"] == 2
        assert found[name]["num_sharded"] == (4 if kind == "fsdp2" else 0), "three layers, and the rest"
        assert found[name]["losses"] == pytest.approx(one[name]["losses"], abs=PROCESSES_TOL)
        assert found[name]["metrics"] == one[name]["metrics"] == of_second[name]["metrics"]
        assert found[name]["weights"] == pytest.approx(one[name]["weights"], rel=PROCESSES_TOL)
        assert abs(one[name]["losses"][0] - one[name]["losses"][-1]) > 100 * PROCESSES_TOL
    for process in (found, of_second):
        assert "it is nan in step 4" in process["poisoned"]["error"], "a process that goes on alone waits for ever"
        assert len(process["poisoned"]["losses"]) == 3
