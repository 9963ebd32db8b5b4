"""`vllm-pard bench` from the command line to the files, on servers that are not vLLM's."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from vllm_pard.bench import load, options, roof
from vllm_pard.demo import demo_path

Run = Callable[..., Result]
QUICK = ("--runs", 2, "--num-prompts", 3, "--max-tokens", 6, "--warmup", 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, fake_server: None) -> None:
    monkeypatch.setattr(roof, "copy_bandwidth", lambda device, num_threads: 1e10)
    behave(monkeypatch)


def behave(monkeypatch: pytest.MonkeyPatch, *, target: str = "fine", draft: str = "speculates") -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps({"target": target, "draft": draft}))


def test_measures_prints_and_writes(run: Run, tmp_path: Path) -> None:
    path, plots = tmp_path / "result.json", tmp_path / "plots"
    done = run("bench", *QUICK, "--concurrency", "2,1", "--verify", "--json", path, "--plots", plots)
    assert done.exit_code == 0, done.output
    assert "1 at a time, medians of 2 runs" in done.output
    assert "pard: accepted by position 1.00 1.00 0.00 0.00" in done.output
    assert "pard, 2 at a time: all 3 outputs equal" in done.output
    assert sorted(p.name for p in plots.iterdir()) == ["acceptance.png", "front.png", "speed_up.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in plots.iterdir())
    assert str(path) in done.output

    result = json.loads(path.read_text())
    assert result["complete"]
    assert [(cell["method"], cell["concurrency"], len(cell["runs"])) for cell in result["results"]] == [
        *(("none", 1, 2), ("none", 2, 2), ("pard", 1, 2), ("pard", 2, 2)),
    ]
    for cell in result["results"]:
        plain = next(c for c in result["results"] if (c["method"], c["concurrency"]) == ("none", cell["concurrency"]))
        assert cell["speed_up"] == cell["tokens_per_second"] / plain["tokens_per_second"]
        assert cell["mean_acceptance_length"] == (3 if cell["method"] == "pard" else 1)
        assert cell["roof_share"] > 0
    conditions = result["conditions"]
    assert conditions["prompts"] | {"mean_tokens": 0} == {
        "set": "demo",
        "source": "bundled with vllm-pard: word_problems, code",
        "category": None,
        "available": conditions["prompts"]["available"],
        "number": 3,
        "mean_tokens": 0,
    }
    assert conditions["methods"]["pard"] == {
        "method": "pard",
        "model": "demo/draft",
        "num_speculative_tokens": 8,
    }
    assert conditions["target"] == "demo/target"
    assert str(demo_path("target").parent) not in path.read_text()  # results are read on other machines


def test_a_method_with_a_draft_of_its_own(run: Run, tmp_path: Path) -> None:
    """So that several drafts are compared in one run; K left out is that draft's own."""
    path, other = tmp_path / "result.json", tmp_path / "a" / "draft"
    shutil.copytree(demo_path("draft"), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_speculative_tokens_trained": 5}))
    methods = f"none,draft_model:2,draft_model={other}:2,pard,pard={other},pard={other}:3"
    assert run("bench", *QUICK, "--json", path, "--methods", methods).exit_code == 0
    told = json.loads(path.read_text())["conditions"]["methods"]
    assert {label: (method.get("model"), method.get("num_speculative_tokens")) for label, method in told.items()} == {
        "none": (None, None),
        "draft_model:2": ("demo/draft_ar", 2),
        "draft_model=a/draft:2": ("a/draft", 2),
        "pard": ("demo/draft", 8),
        "pard=a/draft": ("a/draft", 5),
        "pard=a/draft:3": ("a/draft", 3),
    }


def test_the_mode_in_which_a_draft_ran_is_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server's log says, which may be another than was asked for."""
    path = tmp_path / "result.json"

    def kept(*arguments: str) -> dict[str, str | None]:
        assert run("bench", *QUICK, "--json", path, *arguments).exit_code == 0
        methods = json.loads(path.read_text())["conditions"]["methods"]
        return {label: method.get("mode") for label, method in methods.items()}

    assert kept() == {"none": None, "pard": None}
    asked = kept("--methods", "none,pard,pard+independent", "--mode", "independent")
    assert asked == {"none": None, "pard": "independent", "pard+independent": "independent"}
    behave(monkeypatch, draft="reads-its-target")
    assert kept() == {"none": None, "pard": "dependent"}


def test_one_that_fails_is_told_and_the_others_are_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, draft="out-of-memory")
    path = tmp_path / "result.json"
    done = run("bench", *QUICK, "--json", path)
    assert done.exit_code == 1
    assert "pard FAILED: the server ran out of memory" in done.output
    none, pard = json.loads(path.read_text())["results"]
    assert (len(none["runs"]), len(pard["runs"])) == (2, 0)
    assert pard["failure"].startswith("the server ran out of memory; the end of its log")


def test_a_server_that_dies_keeps_what_was_measured(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    behave(monkeypatch, draft="crash-in-the-middle")
    path = tmp_path / "result.json"
    done = run("bench", *QUICK, "--json", path)
    assert done.exit_code == 1
    assert "the last words" in done.output
    none, pard = json.loads(path.read_text())["results"]
    assert len(none["runs"]) == 2
    assert "the server ended with exit code 3" in pard["failure"]


def test_real_differences_are_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    behave(monkeypatch, draft="wrong")
    done = run("bench", *QUICK, "--verify", "--json", tmp_path / "result.json")
    assert done.exit_code == 1
    assert "pard, 1 at a time: 0 of 3 outputs equal; DIFFERENT: request '" in done.output
    assert "2 nats less likely (rounding explains 0.25), and 2 more. Please report this" in done.output
    (record,) = json.loads((tmp_path / "result.json").read_text())["verification"]
    assert (record["judgement"], record["control"]["num_equal"]) == ("different", 3)


def test_near_ties_are_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    behave(monkeypatch, target="batch-dependent", draft="near-tie")
    done = run("bench", *QUICK, "--verify")
    assert done.exit_code == 0
    assert (
        "pard, 1 at a time: 0 of 3 outputs equal; all part at near-ties (gaps up to 0 nats; rounding in bfloat16 "
        "explains 0.25), as plain decoding parts from itself at 3 at a time (3 of 3, up to 0 nats): harmless"
    ) in done.output


def test_the_dtype_of_the_engine_decides(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for arguments, dtype in (
        (("--dtype", "float16"), "float16"),
        (("--dtype", "float16", "--engine-args", '{"dtype": "float32"}'), "float32"),
        ((), "bfloat16"),
    ):
        run("bench", *QUICK, "--methods", "none", "--json", path, *arguments)
        assert json.loads(path.read_text())["conditions"]["weight_dtype"] == dtype


@pytest.mark.parametrize(("verify", "room"), [(("--verify",), 3), ((), 1)])
def test_the_cpu_engine_has_room_for_the_control(
    verify: tuple[str, ...], room: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "has_cpu_engine", lambda: True)
    path = tmp_path / "result.json"
    run("bench", *QUICK, "--methods", "none", "--json", path, *verify)
    assert json.loads(path.read_text())["conditions"]["engine_options"]["max_num_seqs"] == room


def test_what_it_does_is_told_beside_the_results(run: Run) -> None:
    done = run("bench", *QUICK)
    assert done.stderr.startswith("step 1 of 8: starting none\n")
    assert "step" not in done.stdout.replace("step ms", "").replace("a step", "")
    assert "vllm" not in done.stderr.lower().replace("vllm-pard", "")


def test_whether_it_pays(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = run("bench", *QUICK, "--num-prompts", 30, "--concurrency", "1,2", "--json", path)
    verdicts = json.loads(path.read_text())["verdicts"]
    assert [(verdict["method"], verdict["concurrency"]) for verdict in verdicts] == [("pard", 1), ("pard", 2)]
    cells = {(c["method"], c["concurrency"]): c for c in json.loads(path.read_text())["results"]}
    for verdict in verdicts:
        assert verdict["speed_up"] == pytest.approx(cells["pard", verdict["concurrency"]]["speed_up"])
    lines = done.stdout.splitlines()
    assert lines[-3:-1] == [verdict["sentence"] for verdict in verdicts]


def test_an_interruption_keeps_what_was_measured(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acceptance, calls = load.acceptance, []

    def interrupted(result: dict[str, Any]) -> Any:
        calls.append(result)
        if len(calls) == 5:  # two warm-ups and two runs are done
            raise KeyboardInterrupt
        return acceptance(result)

    monkeypatch.setattr(load, "acceptance", interrupted)
    path = tmp_path / "result.json"
    done = run("bench", *QUICK, "--json", path)
    assert done.exit_code == 130
    assert "tokens/s" in done.output
    result = json.loads(path.read_text())
    assert not result["complete"]
    assert [len(cell["runs"]) for cell in result["results"]] == [1, 1]
    assert list(tmp_path.glob("vllm-pard-*.log")) == []


def test_list(run: Run) -> None:
    done = run("bench", "--list")
    assert done.exit_code == 0
    assert "draft_model+parallel_drafting" in done.output
    assert "math-500" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "pad"], "unknown method 'pad'; did you mean 'pard'? Known ones: none, draft_model"),
        (["--methods", "none,none"], "method 'none' is named twice"),
        (["--methods", "pard:0"], "K after the colon must be 1 or more; got 'pard:0'"),
        (
            ["--methods", "none,ngram=a"],
            "METHOD=MODEL gives a draft or head to one of draft_model, draft_model+paralle",
        ),
        (["--methods", "pard="], "METHOD=MODEL gives a draft or head to one of"),
        (["--methods", "none,pard=no/such/draft"], "no/such/draft"),
        (["--methods", "none,draft_model=/no/such/draft"], "there is no model folder '/no/such/draft'"),
        (["--methods", "none:4"], "method 'none' drafts nothing, so it has no K"),
        (["--methods", "none,eagle3"], "method 'eagle3' needs a head trained for the target; name one with"),
        (["--engine", "reference", "--methods", "ngram"], "unknown method 'ngram'. Known ones: ar, ar+, vsd, pard"),
        (["--prompts", "gsm9k"], "did you mean 'gsm8k'?"),
        (["--prompts", "random"], "random tokens are refused as prompts"),
        (["--mode", "dependent"], "dependent mode is not possible: the draft '"),
        (["--mode", "dependent", "--engine", "reference"], "dependent mode is not possible: the draft '"),
        (["--concurrency", "1,x"], "--concurrency must be numbers from 1 on, such as 1,4,16; got '1,x'"),
        (["--concurrency", "0"], "--concurrency must be numbers from 1 on"),
        (["--verify", "--methods", "pard"], "--verify compares greedy outputs with plain decoding's: put 'none'"),
        (["--verify", "--temperature", "1"], "leave --temperature out; got"),
        (["--json", "/nowhere/result.json"], "can't write '/nowhere/result.json'"),
        (["--dtype", "float23"], "--dtype must be auto, float32, bfloat16 or float16; got 'float23'"),
        (["--engine-args", "[1]"], "--engine-args must be a JSON object"),
        (["--max-tokens", "1020"], "prompts leave no room for 1020 new tokens in 1024"),
        (["/nowhere/model"], "there is no model folder '/nowhere/model'"),
    ],
)
def test_bad_input(arguments: list[str], message: str, run: Run) -> None:
    done = run("bench", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_prompts(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n")
    done = run("bench", "--prompts", path)
    assert done.exit_code == 2
    assert "has no prompts" in done.stderr


def test_ports_in_use_are_told_before_anything_starts(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("bench", *QUICK, "--port", port - 1)  # the second method's
    assert done.exit_code == 2
    assert f"port {port} can't be used" in done.stderr
    assert list(tmp_path.glob("vllm-pard-*.log")) == []
