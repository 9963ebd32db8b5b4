import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.demo import demo_path

Run = Callable[..., Any]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def pard2_draft(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny draft, as one that reads features of the tiny target."""
    from pard2_draft import save_pard2_draft

    return save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", tiny_pair[1])


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


@pytest.mark.usefixtures("fake_engine")
class TestWithFakeEngine:
    def test_terminal(self, run: Run) -> None:
        result = run("generate", "fine", "--prompt", "hello", "--draft", "d")
        assert result.exit_code == 0
        assert result.stdout == "[prompt-1] <0><1><2>\n\n"
        assert "vLLM: PARD: draft d, K=2" in result.stderr
        assert "3 tokens in 0.2 s, 12.0 tokens/s, mean acceptance length 2.50" in result.stderr

    def test_file(self, run: Run, prompt_file: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        result = run("generate", "fine", "--prompts", prompt_file, "--output", output, "--max-tokens", 2)
        assert result.exit_code == 0
        assert records(output)[1] == {
            "id": "line-2",
            "prompt": "two",
            "text": "<0><1>",
            "num_tokens": 2,
            "finish_reason": "length",
            "settings": {
                "target": "fine",
                "dtype": "auto",
                "max_tokens": 2,
                "temperature": 0.0,
                "top_p": 1.0,
                "seed": None,
            },
        }
        assert len(records(output)) == 3

    def test_crash_loses_nothing_and_resume_goes_on(self, run: Run, prompt_file: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        result = run("generate", "crash-in-the-middle", "--prompts", prompt_file, "--output", output)
        assert result.exit_code == 2
        assert "exit code 3" in result.stderr
        assert [record["prompt"] for record in records(output)] == ["one", "two"]
        output.write_text(output.read_text().replace("crash-in-the-middle", "fine"))  # the target is a setting
        resumed = run("generate", "fine", "--prompts", prompt_file, "--output", output, "--resume")
        assert resumed.exit_code == 0
        assert [record["prompt"] for record in records(output)] == ["one", "two", "three"]
        # All are finished: no engine is started, so a broken one does no harm.
        output.write_text(output.read_text().replace('"fine"', '"unexpected"'))
        assert run("generate", "unexpected", "--prompts", prompt_file, "--output", output, "--resume").exit_code == 0

    def test_refused_prompt_disturbs_no_other(self, run: Run, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        arguments = ("--prompt", "a", "--prompt", "too long", "--prompt", "b", "--output", output)
        result = run("generate", "fine", *arguments)
        assert result.exit_code == 1
        assert "prompt-2 was refused: the prompt is too long" in result.stderr
        assert [record["prompt"] for record in records(output)] == ["a", "b"]

    def test_mistyped_target_is_told_without_an_engine(self, run: Run) -> None:
        result = run("generate", "./missing", "--prompt", "x")
        assert result.exit_code == 2
        assert result.stderr.startswith("vllm-pard: there is no model folder './missing'")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--top-p", "0"], "--top-p must be above 0"),
            (["--n", "3"], "--n 3 needs a --temperature above 0: greedy answers to one prompt are all the same"),
            (["--no-pard", "--draft", "d"], "--no-pard drafts nothing"),
            (["--no-pard", "--speculative-config", '{"model": "d"}'], "--no-pard drafts nothing"),
            (["--speculative-config", "{bad"], "--speculative-config is not valid JSON"),
            (["--engine-args", "[1]"], "--engine-args must be a JSON object"),
            (["--draft", "d", "--speculative-config", '{"model": "e"}'], "'model' is given twice"),
            (["--mode", "dependent", "--speculative-config", '{"mode": "auto"}'], "'mode' is given twice"),
            (["--no-pard", "--mode", "independent"], "--no-pard drafts nothing"),
            (["--max-tokens", "9", "--prompts", "."], "can't read the prompt file '.'"),
            (["--resume"], "--resume goes on with a file"),
            (["--prompts", "missing.txt"], "can't read the prompt file 'missing.txt'"),
            (["--output", "missing/out.jsonl"], "can't write 'missing/out.jsonl': it needs a folder"),
            (["--speculative-config", '{"num_speculative_tokens": 128}'], '"num_speculative_tokens" must be'),
        ],
    )
    def test_usage_errors(self, arguments: list[str], message: str, run: Run) -> None:
        result = run("generate", "fine", "--prompt", "x", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"vllm-pard: {message}")
        assert result.stderr.count("\n") == 1

    def test_several_answers_to_each_prompt(self, run: Run, prompt_file: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.jsonl"
        shared = ("generate", "fine", "--prompts", prompt_file, "--output", output, "--temperature", 0.7, "--n")
        assert run(*shared, 1).exit_code == 0
        first = records(output)
        result = run(*shared, 3, "--resume")
        assert result.exit_code == 0
        assert f"3 of 9 prompts are finished in {output}; 6 are left" in result.stderr
        assert records(output)[:3] == first
        assert [(record["id"], record["prompt"]) for record in records(output)[3:]] == [
            ("line-1#2", "one"),
            ("line-2#2", "two"),
            ("line-3#2", "three"),
            ("line-1#3", "one"),
            ("line-2#3", "two"),
            ("line-3#3", "three"),
        ]
        assert run(*shared, 2, "--resume").stderr.endswith(f"6 of 6 prompts are finished in {output}; none is left\n")

    @pytest.mark.parametrize(
        ("options", "seeds"), [(("--seed", 7), {0: 7, 1: 8, 2: 9}), ((), {0: None, 1: None, 2: None})]
    )
    def test_each_answer_has_a_seed_of_its_own(
        self, options: tuple[Any, ...], seeds: dict[int, Any], run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[dict[str, Any]] = []
        generate = EngineProcess.generate

        def recording(engine: EngineProcess, prompts: list[dict[str, Any]], *rest: Any, **options: Any) -> Any:
            asked.extend(prompts)
            return generate(engine, prompts, *rest, **options)

        monkeypatch.setattr(EngineProcess, "generate", recording)
        arguments = ("--prompt", "a", "--prompt", "b", "--n", 3, "--temperature", 1, *options)
        assert run("generate", "fine", *arguments).exit_code == 0
        assert [(prompt["text"], prompt["seed"]) for prompt in asked] == [
            (text, seeds[sample]) for sample in range(3) for text in "ab"
        ]

    def test_a_target_that_does_not_go_by_its_config_is_left_to_vllm(self, run: Run, tmp_path: Path) -> None:
        target = tmp_path / "fine"
        target.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320}
        (target / "config.json").write_text(json.dumps(config))
        arguments = ("generate", target, "--prompt", "x")
        assert run(*arguments).stderr.startswith("vllm-pard: no PARD draft is known for")
        assert run(*arguments, "--engine-args", '{"hf_overrides": {"vocab_size": 128256}}').exit_code == 0
        (target / "params.json").write_text("{}")  # of Mistral's own format
        assert run(*arguments).exit_code == 0

    def test_other_methods_are_left_to_vllm(self, run: Run) -> None:
        config = '{"method": "ngram", "num_speculative_tokens": 200, "prompt_lookup_max": 4}'
        assert run("generate", "fine", "--prompt", "x", "--speculative-config", config).exit_code == 0

    def test_options_reach_the_engine(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm_pard.cli.batch import vllm_engine as batch_vllm

        seen: list[Any] = []
        engine_process = batch_vllm.EngineProcess

        def recording(options: dict[str, Any], **kwargs: Any) -> Any:
            seen.append(options)
            return engine_process(options, **kwargs)

        monkeypatch.setattr(batch_vllm, "EngineProcess", recording)
        run(
            *("generate", "fine", "--prompt", "x", "--draft", "d", "--num-speculative-tokens", 5, "--dtype", "float32"),
            *("--speculative-config", '{"mask_token_id": 9}', "--engine-args", '{"max_model_len": 64}'),
        )
        run("generate", "fine", "--prompt", "x", "--no-pard")
        run("generate", "demo", "--prompt", "x", "--no-pard")
        speculative = {"method": "pard", "model": "d", "num_speculative_tokens": 5, "mask_token_id": 9}
        assert seen == [
            {"model": "fine", "dtype": "float32", "max_model_len": 64, "speculative_config": speculative},
            {"model": "fine", "dtype": "auto"},
            {"model": str(demo_path("target")), "dtype": "auto"},
        ]


class TestWithReferenceEngine:
    def test_pard_answers_as_plain_decoding_does(self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
        target, draft = tiny_pair
        pard, vsd, plain = (tmp_path / name for name in ("pard", "vsd", "plain"))
        shared = ("generate", target, "--engine", "reference", "--max-tokens", 12, "--prompt", "Hello", "--prompt", "x")
        result = run(*shared, "--draft", draft, "--num-speculative-tokens", 3, "--output", pard)
        assert result.exit_code == 0, result.output
        assert f"reference engine: pard, draft {draft}, K=3" in result.stderr.replace("\n", "")
        method = '{"method": "draft_model"}'
        assert run(*shared, "--draft", draft, "--speculative-config", method, "--output", vsd).exit_code == 0
        assert run(*shared, "--no-pard", "--output", plain).exit_code == 0
        assert records(pard) == records(plain) == records(vsd)
        assert records(plain)[0]["num_tokens"] == 12
        assert records(plain)[0]["finish_reason"] == "length"

    def test_chat(self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
        target, draft = tiny_pair
        as_chat, as_text = tmp_path / "chat", tmp_path / "text"
        shared = ("generate", target, "--engine", "reference", "--max-tokens", 8, "--draft", draft)
        assert run(*shared, "--prompt", "Hello", "--chat", "--output", as_chat).exit_code == 0
        assert run(*shared, "--prompt", "user: Hello\nassistant:", "--output", as_text).exit_code == 0
        assert records(as_chat)[0]["text"] == records(as_text)[0]["text"]
        assert records(as_chat)[0]["messages"] == [{"role": "user", "content": "Hello"}]

    def test_trees(self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
        target, draft = tiny_pair
        shared = ("generate", target, "--engine", "reference", "--max-tokens", 8, "--draft", draft, "--prompt", "Hello")
        trees, chain = tmp_path / "trees", tmp_path / "chain"
        assert run(*shared, "--speculative-config", '{"tree": {"nodes": 6}}', "--output", trees).exit_code == 0
        assert run(*shared, "--output", chain).exit_code == 0
        assert records(trees) == records(chain)
        refused = run(*shared, "--speculative-config", '{"tree": "auto"}')
        assert refused.exit_code != 0
        assert '"tree": "auto" is chosen by what steps of vLLM cost' in refused.output

    def test_temperature(self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
        target, draft = tiny_pair
        shared = ("generate", target, "--engine", "reference", "--max-tokens", 8, "--draft", draft)
        prompts = ("--prompt", "Hello", "--prompt", "Hello")

        def answers(name: str, *options: Any) -> list[str]:
            assert run(*shared, *prompts, "--output", tmp_path / name, *options).exit_code == 0
            return [record["text"] for record in records(tmp_path / name)]

        greedy = answers("greedy")
        assert greedy[0] == greedy[1]
        seeded = answers("seeded", "--temperature", 5, "--seed", 3)
        assert seeded == answers("again", "--temperature", 5, "--seed", 3)
        assert seeded[0] != greedy[0]
        free = answers("free", "--temperature", 5)  # equal prompts, different answers
        assert free[0] != free[1]

    def test_several_answers_differ_and_can_be_repeated(
        self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        target, draft = tiny_pair
        shared = ("generate", target, "--engine", "reference", "--draft", draft, "--prompt", "Hello")
        sampled = (*shared, "--max-tokens", 8, "--temperature", 5)

        def answers(name: str, *options: Any) -> dict[str, str]:
            assert run(*sampled, *options, "--output", tmp_path / name).exit_code == 0
            return {record["id"]: record["text"] for record in records(tmp_path / name)}

        three = answers("three", "--n", 3, "--seed", 3)
        assert list(three) == ["prompt-1", "prompt-1#2", "prompt-1#3"]
        assert len(set(three.values())) == 3
        assert answers("again", "--n", 3, "--seed", 3) == three
        assert answers("one", "--seed", 3) == {"prompt-1": three["prompt-1"]}
        assert len(set(answers("free", "--n", 3).values())) == 3

    @pytest.mark.parametrize(
        ("options", "mode", "reason"),
        [
            ((), "dependent", "takes features of org/target"),
            (("--mode", "independent"), "independent", "asked for"),
            (("--speculative-config", '{"mode": "independent"}'), "independent", "asked for"),
        ],
    )
    def test_pard2_is_dependent_on_its_own_target(
        self,
        options: tuple[str, ...],
        mode: str,
        reason: str,
        run: Run,
        tiny_pair: tuple[Path, Path],
        pard2_draft: Path,
    ) -> None:
        shared = ("generate", tiny_pair[0], "--engine", "reference", "--dtype", "float32", "--max-tokens", 40)
        results = [
            run(*shared, "--prompt", "Hello", "--draft", draft, "--num-speculative-tokens", 4, *more)
            for draft, more in ((pard2_draft, options), (tiny_pair[1], ()))
        ]
        assert [result.exit_code for result in results] == [0, 0]
        told, pard = (result.stderr.replace("\n", " ") for result in results)
        assert f"reference engine: pard2, draft {pard2_draft}, K=4, {mode}: " in told
        assert reason in told
        assert results[0].stdout == results[1].stdout
        # Without features, it is the PARD draft that it was made of.
        lengths = [re.search(r"mean acceptance length ([0-9.]+)", text) for text in (told, pard)]
        assert all(lengths)
        assert (lengths[0][1] == lengths[1][1]) == (mode == "independent")

    def test_pard2_for_another_target(
        self, run: Run, tiny_pair: tuple[Path, Path], pard2_draft: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "other").symlink_to(tiny_pair[0])
        shared = ("--engine", "reference", "--max-tokens", 4, "--prompt", "x", "--draft", pard2_draft)
        told = run("generate", tmp_path / "other", *shared).stderr.replace("\n", " ")
        assert "K=4, independent: the draft" in told
        assert f"takes features of 'org/target', and the target is '{tmp_path / 'other'}'" in told

    def test_draft_with_another_tokenizer(self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
        from tiny_models import save_tokenizer

        target, draft = tiny_pair[0], tmp_path / "draft"
        shutil.copytree(tiny_pair[1], draft)
        save_tokenizer(draft, rename={5: "five"})
        result = run("generate", target, "--draft", draft, "--engine", "reference", "--prompt", "x")
        assert result.exit_code == 2
        assert "token 5 is" in result.stderr

    def test_prompt_without_room_is_refused(self, run: Run, tiny_pair: tuple[Path, Path]) -> None:
        target, draft = tiny_pair
        shared = ("generate", target, "--draft", draft, "--engine", "reference", "--max-tokens", 8)
        result = run(*shared, "--prompt", "x" * 600, "--prompt", "y")
        assert result.exit_code == 1
        assert "prompt-1 was refused: the target has room for 512 tokens" in result.stderr.replace("\n", " ")
        assert "[prompt-2]" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--temperature", "0.7", "--top-p", "0.9"], "the reference engine has no top-p; got --top-p 0.9"),
            (["--engine-args", '{"tensor_parallel_size": 2}'], "no option 'tensor_parallel_size'"),
            (["--speculative-config", '{"draft_sample_method": "x"}'], "no option 'draft_sample_method'"),
            (["--speculative-config", '{"method": "ngram"}'], "drafts with pard or draft_model; got 'ngram'"),
            ([], "no PARD draft is known for"),
        ],
    )
    def test_what_it_does_not_do(
        self, arguments: list[str], message: str, run: Run, tiny_pair: tuple[Path, Path]
    ) -> None:
        result = run("generate", tiny_pair[0], "--engine", "reference", "--prompt", "x", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr

    def test_chat_without_a_template_is_refused(self, run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
        target = tmp_path / "target"
        shutil.copytree(tiny_pair[0], target)
        (target / "chat_template.jinja").unlink()
        result = run("generate", target, "--no-pard", "--engine", "reference", "--chat", "--prompt", "x")
        assert result.exit_code == 1
        assert "prompt-1 was refused: Cannot use chat template" in result.stderr.replace("\n", " ")


@pytest.mark.engine
def test_samples_of_the_real_engine_differ_by_their_seeds(
    run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal prompts get equal answers to each sample."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Our own tests run Triton's interpreter; an engine for users does not.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    target, draft = tiny_pair
    sampling = ("--temperature", 2, "--seed", 3, "--n", 3, "--max-tokens", 8, "--dtype", "float32")
    prompts, output = ("--prompt", "Hello", "--prompt", "Hello"), tmp_path / "out.jsonl"
    result = run("generate", target, "--draft", draft, *prompts, *sampling, "--output", output)
    assert result.exit_code == 0, result.output
    answers = {record["id"]: record["text"] for record in records(output)}
    for suffix in ("", "#2", "#3"):
        assert answers[f"prompt-1{suffix}"] == answers[f"prompt-2{suffix}"]
    assert len(set(answers.values())) == 3
