"""What is kept of the conditions of a measurement can be read elsewhere."""

import sys

import pytest

from vllm_pard.conditions import conditions


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/home/someone/runs/pair/target", "pair/target"),
        ("none,pard=/home/someone/runs/draft:8,pard=amd/draft", "none,pard=runs/draft:8,pard=amd/draft"),
        ('{"model": "/home/someone/runs/draft", "k": 8}', '{"model": "runs/draft", "k": 8}'),
        ("--work=/home/someone/runs/work", "--work=runs/work"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("1/2", "1/2"),
    ],
)
def test_a_command_names_no_folder_of_this_machine(word: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vllm-pard", word])
    assert conditions()["command"] == ["vllm-pard", kept]
