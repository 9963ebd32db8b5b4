"""`--check` accepts what answers as the small pair, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import enlarge_check
import pytest
import torch
from enlarge_check import Answers, CheckConfig, check_pair, choose_dtype
from shapes import EnlargeError
from transformers import AutoModelForCausalLM

from vllm_pard.demo import SPLITS, demo_path
from vllm_pard.metrics import AcceptanceStats

Run = Callable[..., int]
CPU = torch.device("cpu")


def test_check(tiny: Path, tmp_path: Path) -> None:
    config = CheckConfig(num_prompts=1, max_new_tokens=24)
    result = check_pair(tiny, torch.float32, torch.float32, CPU, config)
    assert result["same_answers"] == result["num_prompts"] == len(SPLITS)
    assert result["counts"] == result["counts_of_small_pair"]
    assert result["mean_acceptance_length"] > 3
    shutil.copytree(tiny, tmp_path / "pair")
    for name, message in (("draft", "5 of 5 answers are the same"), ("target", "[01] of 5 answers are the same")):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "pair" / name)
        model.model.layers[0].self_attn.q_proj.weight.data.neg_()
        model.save_pretrained(tmp_path / "pair" / name)
        with pytest.raises(EnlargeError, match=message):
            check_pair(tmp_path / "pair", torch.bfloat16, torch.float32, CPU, config)


@pytest.mark.parametrize(
    ("num_different", "num_accepted", "file_dtype", "passes"),
    [
        (0, 50, torch.float32, True),
        (1, 50, torch.float32, False),
        (0, 51, torch.float32, False),
        (1, 52, torch.bfloat16, True),
        (2, 50, torch.bfloat16, False),
        (0, 53, torch.bfloat16, False),
    ],
)
def test_check_decides(
    num_different: int, num_accepted: int, file_dtype: torch.dtype, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 answers and 10 drafts: mean acceptance length changes by 0.1 with each accepted token."""
    small, large = (
        Answers([[0]] * (4 - wrong) + [[1]] * wrong, AcceptanceStats(num_drafts=10, num_accepted_tokens=accepted))
        for wrong, accepted in ((0, 50), (num_different, num_accepted))
    )
    monkeypatch.setattr(enlarge_check, "answer", lambda target, *_: small if target == demo_path("target") else large)
    arguments = (Path("pair"), file_dtype, torch.float32, CPU, CheckConfig())
    if passes:
        assert check_pair(*arguments)["same_answers"] == 4 - num_different
    else:
        with pytest.raises(EnlargeError, match=f"{4 - num_different} of 4 answers are the same"):
            check_pair(*arguments)


def test_check_needs_memory(run: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert enlarge_check.free_memory(CPU) > 10**8
    monkeypatch.setattr(enlarge_check, "free_memory", lambda device: 3 * 10**9)
    assert choose_dtype(500_000_000, torch.bfloat16, CPU) == torch.float32
    assert choose_dtype(1_000_000_000, torch.bfloat16, CPU) == torch.bfloat16
    monkeypatch.setattr(enlarge_check, "free_memory", lambda device: 1000)
    assert run(tmp_path / "pair", "--check") == 1
    assert "--check needs 0.1 GB of memory on cpu, and 0.0 GB are free" in capsys.readouterr().err
    assert not (tmp_path / "pair").exists()
