"""What can be known at once is told at once, in one sentence: before torch, vLLM or an engine is loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_pard.cli.app import app

# 1 s alone, and 7 s where Transformers is imported for a tokenizer; a machine may be busy.
SECONDS, SECONDS_WITH_TOKENIZER = 15, 120
HEAVY = {"torch", "transformers", "vllm"}
MISSING = "there is no model folder './missing'; check the path"
FOLDER = "it needs a folder that exists and may be written to"
K_RANGE = '"num_speculative_tokens" must be an integer from 1 to 127; got 200'
NO_MASK = "the draft './plain' needs a mask token"
NO_PARD2 = "dependent mode is not possible: the draft '"
NO_TARGET_PROJ = (
    "dependent mode needs pard_warp_model/model.safetensors or warp_model.bin of the PARD-2 draft './pard2'"
)
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320}
PARD2 = CONFIG | {"hidden_size": 64, "pard_token": 300, "spd_type": "pard2", "pard2_target_layers": [-1]}
MODELS = {
    "plain": CONFIG,
    "pard2": PARD2 | {"pard2_target_dim": 256},  # of the demo target's size, and without target_proj
    "wide": PARD2 | {"pard2_target_dim": 512},
}


def generate(*options: str) -> list[str]:
    return ["generate", "demo", "--prompt", "x", *options]


def serve(*options: str) -> list[str]:
    return ["serve", "demo", "--port", "8001", *options]


def vocabulary(target: str = "demo", text: str = "text.txt", size: str = "9", output: str = "ids.json") -> list[str]:
    return ["vocabulary", target, "--text", text, "--size", size, "--output", output]


CASES = [
    (["demo", "--json", "missing/x.json"], f"can't write 'missing/x.json': {FOLDER}"),
    (["demo", "--json", "."], "can't write '.': it is a folder; name a file"),
    (["demo", "--num-speculative-tokens", "200"], K_RANGE),
    (["generate", "./missing", "--prompt", "x"], MISSING),
    (["generate", "./text.txt", "--prompt", "x"], "a model is a folder or a Hugging Face name; './text.txt' is a file"),
    (["generate", "./plain", "--prompt", "x"], "no PARD draft is known for './plain'"),
    (["generate", "demo"], "there is nothing to answer"),
    (generate("--draft", "./missing"), MISSING),
    (generate("--draft", "./plain"), NO_MASK),
    (generate("--speculative-config", '{"model": "./plain"}'), NO_MASK),
    (generate("--num-speculative-tokens", "200"), K_RANGE),
    (generate("--speculative-config", '{"num_speculative_tokens": 200}'), K_RANGE),
    (generate("--speculative-config", '{"modle": "x"}'), 'unknown key "modle" in the PARD speculative config; did you'),
    (generate("--speculative-config", '{"draft_vocab": "none"}'), "can't read the draft vocabulary 'none': No such"),
    (generate("--speculative-config", '{"mode": "x"}'), '"mode" must be one of auto, dependent, independent; got'),
    (generate("--speculative-config", '{"target_layers": [1]}'), '"target_layers" is no option: it is read from the'),
    (generate("--mode", "dependent"), NO_PARD2),
    (generate("--mode", "dependent", "--draft", "./pard2"), NO_TARGET_PROJ),
    (generate("--mode", "dependent", "--draft", "./wide"), "dependent mode is not possible: the draft './wide' takes"),
    (generate("--speculative-config", "{bad"), "--speculative-config is not valid JSON"),
    (generate("--engine-args", "{bad"), "--engine-args is not valid JSON"),
    (generate("--engine-args", '{"model": 1}'), "'model' does not go into --engine-args; give it as TARGET"),
    (generate("--engine-args", '{"speculative_config": {}}'), "'speculative_config' does not go into --engine-args"),
    (generate("--output", "missing/x.jsonl"), f"can't write 'missing/x.jsonl': {FOLDER}"),
    (generate("--output", "."), "can't write '.': it is a folder; name a file"),
    (generate("--output", "text.txt"), "the output file 'text.txt' exists; give --resume"),
    (generate("--dtype", "float23"), "--dtype must be auto, float32, bfloat16 or float16; got 'float23'"),
    (generate("--engine", "reference", "--top-p", "0.9"), "the reference engine has no top-p; got --top-p 0.9"),
    (["bench", "./missing"], MISSING),
    (["bench", "--draft", "./missing"], MISSING),
    (["bench", "--draft", "./plain"], NO_MASK),
    (["bench", "--mode", "dependent"], NO_PARD2),
    (["bench", "--mode", "dependent", "--draft", "./pard2"], NO_TARGET_PROJ),
    (["bench", "./plain"], "no PARD draft is known for './plain'"),
    (["bench", "--methods", "none,draft_model", "--ar-draft", "./missing"], MISSING),
    (["bench", "--methods", "none,eagle3", "--eagle3-head", "./missing"], MISSING),
    (["bench", "--methods", "none,pard:200"], K_RANGE),
    (["bench", "--num-speculative-tokens", "200"], K_RANGE),
    (["bench", "--json", "missing/x.json"], f"can't write 'missing/x.json': {FOLDER}"),
    (["bench", "--plots", "text.txt"], "can't write into 'text.txt': 'text.txt' is a file; name a folder"),
    (["bench", "--dtype", "float23"], "--dtype must be auto, float32, bfloat16 or float16; got 'float23'"),
    (["bench", "--prompts", "missing.txt"], "can't read the prompt file 'missing.txt'"),
    (["serve", "./missing", "--port", "8001"], MISSING),
    (serve("--speculative-config", "{bad"), "--speculative-config is not valid JSON"),
    (serve("--speculative-config=[1]"), "--speculative-config must be a JSON object"),
    (serve("--speculative-config", '{"method": "pard", "num_speculative_tokens": 200}'), K_RANGE),
    (serve('--speculative_config={"method": "pard", "num-speculative-tokens": 200}'), K_RANGE),
    (serve("-sc", '{"method": "pard", "modle": "x"}'), 'unknown key "modle" in the PARD speculative config'),
    (serve("-sc", '{"method": "pard", "model": "./missing"}'), MISSING),
    (serve("-sc", '{"method": "pard", "mode": "dependent"}'), NO_PARD2),
    (serve("-sc", '{"method": "pard", "mode": "dependent", "model": "./pard2"}'), NO_TARGET_PROJ),
    (serve("--spec-method", "pard", "--spec-tokens", "200"), K_RANGE),
    (serve("--spec-method=pard", "--spec-model=./plain"), NO_MASK),
    (["serve", "./plain", "-sc", '{"method": "pard"}'], "no PARD draft is known for './plain'"),
    (vocabulary(target="./missing"), MISSING),
    (vocabulary(text="none.txt"), "can't read the text file 'none.txt': No such file"),
    (vocabulary(output="missing/ids.json"), f"can't write 'missing/ids.json': {FOLDER}"),
    (["train", "missing.yaml"], "there is no config file 'missing.yaml' here, and no config of this name is shipped"),
    (["train", "pard_qwen3_0.6"], "there is no config file 'pard_qwen3_0.6' here, and no config of this name"),
    (["train", "laptop", "--cod.num_depts", "4"], "unknown option cod.num_depts"),
    (["train", "laptop", "--cod.num_depths", "0"], "cod.num_depths must be a whole number from 1; got 0"),
    (["train", "text.txt"], "the config file 'text.txt' must hold options by name; it holds str"),
    (["evaluate", "./missing"], MISSING),
    (["evaluate", "demo", "--k", "200"], K_RANGE),
    (["evaluate", "demo", "--k", "x"], "--k must be numbers from 1 on"),
    (["evaluate", "demo", "--mode", "dependent"], NO_PARD2),
    (["evaluate", "demo", "./pard2", "--mode", "dependent"], NO_TARGET_PROJ),
    (["evaluate", "demo", "--prompts", "gsm9k"], "there is no prompt set 'gsm9k'"),
    (["evaluate", "demo", "--output", "missing/x.json"], f"can't write 'missing/x.json': {FOLDER}"),
    (["doctor", "./missing"], MISSING),
    (["doctor", "demo", "./missing"], MISSING),
    (["doctor", "--measure"], "--measure needs a target: vllm-pard doctor TARGET [DRAFT] --measure"),
    (["doctor", "demo", "--measure", "--batch-sizes", "1,x"], "--batch-sizes must be numbers from 1 on, such as 1,4"),
    (["doctor", "demo", "--measure", "--prompts", "none.txt"], "can't read the prompt file 'none.txt'"),
    (["doctor", "demo", "--measure", "--engine-args", "[1]"], "--engine-args must be a JSON object"),
    (["doctor", "demo", "--measure", "--dtype", "int3"], "--dtype must be auto, float32, bfloat16 or float16"),
    (["doctor", "demo", "--measure", "--num-speculative-tokens", "200"], '"num_speculative_tokens" must be an integer'),
    (["doctor", "--mask-token-id", "5"], "--mask-token-id is that of a draft; name the TARGET and the DRAFT too"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: a text, a model that is no draft, drafts without weights."""
    path = tmp_path_factory.mktemp("early")
    (path / "text.txt").write_text("some text\n")
    for name, config in MODELS.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(config))
    return path


def run(folder: Path, *arguments: str, seconds: float = SECONDS) -> tuple[int, str, str, set[str]]:
    """Exit code, stdout, stderr, and which heavy packages were imported."""
    command = [sys.executable, "-X", "importtime", "-m", "vllm_pard.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    return done.returncode, done.stdout, "\n".join(lines), imported & HEAVY


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_mistake(arguments: list[str], message: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    exit_code, shown, told, imported = run(folder, *arguments)
    assert told.startswith(f"vllm-pard: {message}")
    assert (exit_code, shown, told.count("\n"), imported) == (2, "", 0, set())
    assert sorted(folder.rglob("*")) == before
    assert (folder / "text.txt").read_text() == "some text\n"


def test_prompts_that_are_too_long(folder: Path) -> None:
    """A tokenizer is needed, and Transformers imports torch; no engine is started."""
    (folder / "long.jsonl").write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "0 " * 1100}]}))
    arguments = ("generate", "demo", "--prompts", "long.jsonl", "--prompt", "0 " * 1100)
    exit_code, shown, told, imported = run(folder, *arguments, seconds=SECONDS_WITH_TOKENIZER)
    told = " ".join(told.split())
    for prompt_id in ("prompt-1", "a"):
        assert f"{prompt_id} was refused: the target has room for 1024 tokens, and the prompt has" in told
    assert (exit_code, shown, "vllm" in imported) == (1, "", False)


def test_a_vocabulary_of_more_tokens_than_there_are(folder: Path) -> None:
    exit_code, _, told, imported = run(folder, *vocabulary(size="99999"), seconds=SECONDS_WITH_TOKENIZER)
    assert told.startswith("vllm-pard: --size must be at most 2048, all tokens of ")
    assert (exit_code, "vllm" in imported) == (2, False)


def test_every_command_is_here() -> None:
    commands = {str(getattr(command.callback, "__name__", "")) for command in app.registered_commands}
    assert {arguments[0] for arguments, _ in CASES} == commands - {"patches"}
