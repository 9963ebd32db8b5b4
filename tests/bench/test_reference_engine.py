"""The reference engine as one that is measured and compared."""

from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.methods import REFERENCE_METHODS, Contender, Models
from vllm_pard.bench.reference_engine import ReferenceRunner
from vllm_pard.bench.verify import NUM_LIKELIEST, compare
from vllm_pard.metrics import AcceptanceStats

SAMPLING = Sampling(max_tokens=6)


def runner(target: Path) -> ReferenceRunner:
    contender = Contender(name="ar", label="ar", method=REFERENCE_METHODS["ar"], num_speculative_tokens=0)
    return ReferenceRunner(contender, Models(target=str(target)), "float32", 64, None)


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but AR are compiled, which takes a minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.fixture
def plain(tiny_pair: tuple[Path, Path]) -> ReferenceRunner:
    return runner(tiny_pair[0])


@pytest.fixture(scope="module")
def pard2_draft(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pard2_draft import save_pard2_draft

    return save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", tiny_pair[1])


@pytest.mark.usefixtures("not_compiled")
def test_trees_are_verified_in_one_forward_too(tiny_pair: tuple[Path, Path], requests: list[Request]) -> None:
    models = Models(target=str(tiny_pair[0]), draft=str(tiny_pair[1]))
    found = {}
    for name in ("ar+", "pard", "pard+tree"):
        k = 0 if name == "ar+" else 4
        contender = Contender(name=name, label=name, method=REFERENCE_METHODS[name], num_speculative_tokens=k)
        engine = ReferenceRunner(contender, models, "float32", 64, None)
        outputs = [output.token_ids for output in engine.outputs(requests, SAMPLING, 4, with_likeliest=False)]
        found[name] = outputs, engine.measure(requests, SAMPLING, 4).stats
    assert found["pard+tree"][0] == found["pard"][0] == found["ar+"][0]
    assert found["pard+tree"][1].mean_acceptance_length > found["pard"][1].mean_acceptance_length


@pytest.mark.usefixtures("not_compiled")
def test_pard2_is_dependent_on_its_own_target(
    tiny_pair: tuple[Path, Path], pard2_draft: Path, requests: list[Request], tmp_path: Path
) -> None:
    """And independent for any other, and where that is asked for: then it is PARD with the same weights."""
    (tmp_path / "other").symlink_to(tiny_pair[0])
    modes: list[str | None] = []

    def measured(target: Path, draft: Path, name: str = "pard") -> tuple[AcceptanceStats, list[list[int]]]:
        contender = Contender(name=name, label=name, method=REFERENCE_METHODS[name], num_speculative_tokens=4)
        found = ReferenceRunner(contender, Models(target=str(target), draft=str(draft)), "float32", 64, None)
        modes.append(found.mode)
        outputs = found.outputs(requests, SAMPLING, 4, with_likeliest=False)
        return found.measure(requests, SAMPLING, 4).stats, [output.token_ids for output in outputs]

    pard, dependent, independent = (
        measured(*pair) for pair in (tiny_pair, (tiny_pair[0], pard2_draft), (tmp_path / "other", pard2_draft))
    )
    assert independent == pard == measured(tiny_pair[0], pard2_draft, "pard+independent")
    assert modes == [None, "dependent", "independent", "independent"]
    assert dependent[0] != pard[0]
    assert dependent[1] == pard[1]
    assert dependent[0].num_accepted_tokens > 0


def test_the_likeliest_tokens_are_those_of_each_position(plain: ReferenceRunner, requests: list[Request]) -> None:
    outputs = plain.outputs(requests, SAMPLING, 2, with_likeliest=True)
    assert len(outputs) == len(requests)
    for output in outputs:
        assert output.likeliest is not None
        assert len(output.likeliest) == len(output.token_ids) > 0
        for token_id, likeliest in zip(output.token_ids, output.likeliest, strict=True):
            assert len(likeliest) == NUM_LIKELIEST
            assert max(likeliest, key=lambda each: likeliest[each]) == token_id
            assert all(logprob < 0 for logprob in likeliest.values())


def test_plain_decoding_equals_itself_in_float32(plain: ReferenceRunner, requests: list[Request]) -> None:
    one, four = (plain.outputs(requests, SAMPLING, concurrency, with_likeliest=False) for concurrency in (1, 4))
    assert one[0].likeliest is None
    assert compare("ar", 4, requests, one, four).divergences == []


def test_loading_shows_no_bar_of_its_own(tiny_pair: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    runner(tiny_pair[0])
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
