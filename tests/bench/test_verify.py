"""Outputs are collected and compared; where they part, the gap is between the two tokens that came."""

import pytest

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.server import Server
from vllm_pard.bench.verify import Divergence, Output, collect_outputs, compare, first_difference

SAMPLING = Sampling(max_tokens=5)


def outputs_of(model: str, requests: list[Request], *, with_likeliest: bool = False) -> list[Output]:
    with Server(model, {}) as server:
        server.wait_until_ready()
        return collect_outputs(server, requests, SAMPLING, 2, with_likeliest=with_likeliest)


@pytest.mark.usefixtures("fake_server")
def test_equal_outputs(requests: list[Request]) -> None:
    plain = outputs_of("fine", requests, with_likeliest=True)
    assert plain[0].token_ids == [11, 12, 13, 14, 15]
    assert plain[0].likeliest is not None
    assert plain[0].likeliest[1] == {12: -0.5, 112: -1.5}
    verification = compare("pard", 2, requests, plain, outputs_of("speculates", requests))
    assert (verification.num_equal, verification.widest_gap) == (4, None)


@pytest.mark.usefixtures("fake_server")
def test_the_first_difference_with_its_gap(requests: list[Request]) -> None:
    plain = outputs_of("fine", requests, with_likeliest=True)
    verification = compare("pard", 2, requests, plain, outputs_of("wrong", requests))
    assert (verification.num_equal, verification.widest_gap) == (0, 2)
    assert verification.divergences[1] == Divergence(request="2", position=2, expected=23, got=123, gap=2)


def test_the_gap_is_that_of_the_token_which_came() -> None:
    plain = Output(token_ids=[1, 2], likeliest=[{1: -0.1, 9: -0.2}, {2: -1.0, 8: -1.25, 7: -3.0}])
    gaps = {got: first_difference("1", plain, Output(token_ids=[1, got])) for got in (8, 7, 6)}
    assert [found and found.gap for found in gaps.values()] == [0.25, 2.0, None]  # 6 is none of the likeliest


def test_an_output_that_was_cut_off_has_no_gap() -> None:
    likeliest = [{1: -0.1}, {2: -0.1}, {3: -0.1, 4: -0.2}]
    plain, short = Output(token_ids=[1, 2, 3], likeliest=likeliest), Output(token_ids=[1, 2], likeliest=likeliest[:2])
    cut = Divergence(request="1", position=2, expected=3, got=None, gap=None)
    assert first_difference("1", plain, short) == cut
    went_on = Divergence(request="1", position=2, expected=None, got=3, gap=None)
    assert first_difference("1", short, plain) == went_on
