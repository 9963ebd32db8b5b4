"""The reference engine as one that is measured and compared."""

from pathlib import Path

import pytest

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.methods import REFERENCE_METHODS, Contender, Models
from vllm_pard.bench.reference_engine import ReferenceRunner
from vllm_pard.bench.verify import NUM_LIKELIEST, compare

SAMPLING = Sampling(max_tokens=6)


@pytest.fixture
def plain(tiny_pair: tuple[Path, Path]) -> ReferenceRunner:
    contender = Contender(name="ar", label="ar", method=REFERENCE_METHODS["ar"], num_speculative_tokens=0)
    return ReferenceRunner(contender, Models(target=str(tiny_pair[0])), "float32", 64, None)


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
