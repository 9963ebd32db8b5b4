"""What the guide and the dashboard ask Prometheus for is what vLLM exports; no engine runs here."""

from collections.abc import Callable
from typing import Any

import pytest
from doc_metrics import DASHBOARD, expressions, named_metrics

# Stored under the histogram's own name by no Prometheus server; in sentences it is the metric's name.
HISTOGRAMS = {
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:time_to_first_token_seconds",
}
OF_DRAFTS = {name for name in named_metrics() if name.startswith("vllm:spec_decode")}


@pytest.fixture
def exported(configure: Callable[..., Any]) -> Callable[[bool], set[str]]:
    """Names of the samples that a server with drafts, or without, offers before its first request."""
    from prometheus_client import REGISTRY
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    def exported(with_drafts: bool) -> set[str]:
        config = configure({"num_speculative_tokens": 3})
        if not with_drafts:
            config.speculative_config = None
        PrometheusStatLogger(config, [0])
        return {sample.name for metric in REGISTRY.collect() for sample in metric.samples}

    return exported


def test_every_metric_is_exported(exported: Callable[[bool], set[str]]) -> None:
    assert len(OF_DRAFTS) == 4
    assert named_metrics() - HISTOGRAMS <= exported(True)


def test_a_plain_server_has_all_but_those_of_drafts(exported: Callable[[bool], set[str]]) -> None:
    """So that the two can be compared."""
    assert named_metrics() - HISTOGRAMS - exported(False) == OF_DRAFTS


def test_queries_name_what_is_stored() -> None:
    from doc_metrics import NAME

    assert not HISTOGRAMS & set(NAME.findall("\n".join(expressions())))


def test_dashboard_can_be_imported() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels) == 6
    assert all(part["datasource"] == source for panel in panels for part in (panel, *panel["targets"]))
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert places == {(x, y) for x in (0, 12) for y in (0, 8, 16)}
    assert {(panel["gridPos"]["w"], panel["gridPos"]["h"]) for panel in panels} == {(12, 8)}
