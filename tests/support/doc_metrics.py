"""The metrics of vLLM that the guide and the dashboard name."""

import json
import re
from typing import Any

from doc_blocks import ROOT, blocks

DASHBOARD: dict[str, Any] = json.loads((ROOT / "benchmarks" / "grafana_dashboard.json").read_text())
NAME = re.compile(r"vllm:\w+\b(?!\*)")


def expressions() -> list[str]:
    """All PromQL, of the dashboard and of the guide."""
    of_dashboard = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    of_variables = [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    return [*of_dashboard, *of_variables, *(block.text for block in blocks("metrics"))]


def named_metrics() -> set[str]:
    """As a Prometheus server stores them: with `_total`, `_bucket`, `_sum` or `_count` at the end."""
    text = "\n".join([*expressions(), (ROOT / "GUIDE.md").read_text()])
    return set(NAME.findall(text))
