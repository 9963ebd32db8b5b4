"""Whole training runs of a toy: what they write, how they go on, and what they refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_world import LETTER_D, MASK, options
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_pard.checkpoint import load_config, read_checkpoint
from vllm_pard.errors import PardError
from vllm_pard.reference.engine import ReferenceEngine
from vllm_pard.target_proj import read_target_proj
from vllm_pard.training.options.train_config import from_mapping
from vllm_pard.training.run import train

PARD2 = {"features": {"layers": [-1, -2], "dropout": 0.3}, "loss": {"ce": 0.1, "kl": 1.0, "weights": "cat"}}


def run(given: dict[str, Any]) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return train(from_mapping(given), lines.append), lines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    options(folder)
    return folder


@pytest.fixture(scope="module")
def pard(world: Path) -> tuple[Path, list[str]]:
    return run(options(world, output=str(world / "pard")))


@pytest.fixture(scope="module")
def pard2(world: Path) -> Path:
    return run(options(world, output=str(world / "pard2"), **PARD2))[0]


def log_of(folder: Path) -> list[dict[str, float]]:
    log: list[dict[str, float]] = json.loads((folder / "receipt.json").read_text())["log"]
    return log


def losses(folder: Path) -> list[tuple[float, float]]:
    return [(entry["step"], entry["loss"]) for entry in log_of(folder) if "loss" in entry]


def test_a_run_learns(pard: tuple[Path, list[str]]) -> None:
    curve = [loss for _, loss in losses(pard[0])]
    assert len(curve) == 12
    assert curve[-1] < 0.7 * curve[0]
    lengths = [entry["eval_acceptance_length"] for entry in log_of(pard[0]) if "eval_acceptance_length" in entry]
    assert len(lengths) == 3
    assert lengths[-1] > lengths[0]


def test_a_run_tells_how_far_it_is(pard: tuple[Path, list[str]]) -> None:
    told = "\n".join(pard[1])
    assert "documents: 120, " in told
    assert f"mask token {MASK}, '<mask>'" in told
    assert "step 2 of 24, loss" in told
    assert "tokens/s" in told
    assert "acceptance length" in told


def test_the_draft_is_one_that_engines_read(pard: tuple[Path, list[str]], world: Path) -> None:
    folder = pard[0]
    checkpoint = read_checkpoint(str(folder), load_config(str(folder)))
    assert (checkpoint.mask_token_id, checkpoint.num_speculative_tokens, checkpoint.format) == (MASK, 4, "pard")
    assert load_config(str(folder))["dtype"] == "float32"
    target = AutoModelForCausalLM.from_pretrained(world / "target", dtype=torch.float32)
    draft = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert draft.config.num_hidden_layers == 2
    prompts = [AutoTokenizer.from_pretrained(folder)("3: def").input_ids]
    engine = ReferenceEngine(
        target, draft, method="pard", num_speculative_tokens=4, mask_token_id=checkpoint.mask_token_id, max_length=40
    )
    plain = ReferenceEngine(target, method="ar", max_length=40)
    answers = [each.generate(prompts, max_new_tokens=12)[0].token_ids for each in (engine, plain)]
    assert answers[0] == answers[1]


def test_the_best_checkpoint_is_kept(pard: tuple[Path, list[str]]) -> None:
    receipt = json.loads((pard[0] / "receipt.json").read_text())
    lengths = {
        entry["step"]: entry["eval_acceptance_length"] for entry in receipt["log"] if "eval_acceptance_length" in entry
    }
    assert receipt["acceptance_length"] == max(lengths.values())
    assert receipt["best_step"] == max(lengths, key=lambda step: lengths[step])
    kept = AutoModelForCausalLM.from_pretrained(pard[0] / f"checkpoint-{receipt['best_step']}", dtype=torch.float32)
    final = AutoModelForCausalLM.from_pretrained(pard[0], dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), final.parameters(), strict=True))
    assert receipt["training_seconds"] > 0
    assert "acceptance length on held-out answers" in (pard[0] / "README.md").read_text()


def test_a_final_draft_has_the_dtype_that_was_asked_for(world: Path) -> None:
    given = options(world, output=str(world / "bf16"), dtype="bfloat16")
    folder, _ = run(given | {"trainer": given["trainer"] | {"max_steps": 2, "save_steps": 2}})
    assert load_config(str(folder))["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder / "checkpoint-2").dtype == torch.float32


def test_a_pard2_run_writes_what_pard2_drafts_have(pard2: Path) -> None:
    checkpoint = read_checkpoint(str(pard2), load_config(str(pard2)))
    assert checkpoint.format == "pard2"
    features = checkpoint.features
    assert features is not None
    assert (features.target_layers, features.scale, features.target_dim) == ((-1, -2), 0.02, 128)
    assert features.target == "target"
    proj = read_target_proj(str(pard2), features, 64)
    assert proj.weight.shape == (64, 128)
    evaluations = [entry for entry in log_of(pard2) if "eval_acceptance_length" in entry]
    assert all("eval_acceptance_length_independent" in entry for entry in evaluations)


def in_a_process(folder: Path, given: dict[str, Any]) -> subprocess.Popen[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    command = [sys.executable, "-m", "vllm_pard.cli", "train", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("changes", [{}, PARD2], ids=["pard", "pard2"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    world: Path, tmp_path: Path, request: pytest.FixtureRequest, changes: dict[str, Any]
) -> None:
    whole = request.getfixturevalue("pard2") if changes else request.getfixturevalue("pard")[0]
    whole = whole if isinstance(whole, Path) else whole[0]
    given = options(world, output=str(tmp_path / "run"), **changes)
    process = in_a_process(tmp_path, given)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 12 "):
            os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "run" / "checkpoint-16").mkdir(exist_ok=True)  # as if killed while writing
    folder, lines = run(given)
    assert "going on from step 8 of 24" in lines
    # The same numbers in the same order: nothing is rounded differently.
    assert losses(folder) == losses(whole)
    broken, unbroken = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, whole))
    assert all(torch.equal(a, b) for a, b in zip(broken.parameters(), unbroken.parameters(), strict=True))


def test_a_run_does_not_go_on_with_other_options(pard: tuple[Path, list[str]], world: Path) -> None:
    changed = options(world, output=str(pard[0]), cod={"num_depths": 5})
    with pytest.raises(PardError, match=r"was started with cod.num_depths 4, and now it is 5"):
        run(changed)


def test_a_finished_run_is_finished_again_at_once(pard: tuple[Path, list[str]], world: Path) -> None:
    before = losses(pard[0])
    started = time.monotonic()
    _, lines = run(options(world, output=str(pard[0])))
    assert losses(pard[0]) == before
    assert "going on from step 24 of 24" in lines
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 9999}, "9999"),
        ({"mask_token_id": 256}, "has a meaning"),
        ({"mask_token_id": LETTER_D}, "occurs"),
        ({"features": {"layers": [-1, -24]}}, "features.layers must be from -4 to -1"),
        ({"prune_layers": 9}, "1 to 3"),
        ({"trainer": {"learning_rat": 1}}, r"did you mean trainer.learning_rate\?"),
        ({"draft_vocab": "/nowhere.json"}, "/nowhere.json"),
        ({"trainer": {"fsdp": True}}, "trainer.fsdp shards a draft over GPUs, and there are none"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_one_sentence(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PardError, match=message):
        run(options(world, **(changes | {"output": str(tmp_path / "run")})))


def test_a_folder_with_something_else_in_it_is_left_alone(world: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(PardError, match="holds something else"):
        run(options(world, output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_what_a_run_has_cost_is_counted_over_its_interruptions(
    pard: tuple[Path, list[str]], world: Path, tmp_path: Path
) -> None:
    whole = json.loads((pard[0] / "receipt.json").read_text())
    assert whole["num_tokens"] == 24 * 2 * 96
    given = options(world, output=str(tmp_path / "run"))
    process = in_a_process(tmp_path, given)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 10 "):
            process.kill()
    process.wait()
    folder, _ = run(given)
    broken = json.loads((folder / "receipt.json").read_text())
    assert (broken["num_tokens"], broken["num_rows"]) == (whole["num_tokens"], whole["num_rows"])
    seconds = [entry["seconds"] for entry in broken["log"] if "seconds" in entry]
    assert seconds == sorted(seconds)
    assert broken["training_seconds"] >= seconds[-1] > seconds[0] > 0
