"""Shared by tests that run vLLM."""

import pytest
from vllm_releases import NEWEST, Notice, Unavailable, engine_environment


@pytest.fixture(scope="session")
def newest_vllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An engine's environment, for the newest supported vLLM: GPUs get it, and there is no CPU wheel of it."""
    try:
        return engine_environment(NEWEST, tmp_path_factory.mktemp("vllm"))
    except (Unavailable, OSError) as error:
        line = f"model runner V2 was tested on the installed vLLM instead of {NEWEST}: {error}"
        request.config.pluginmanager.register(Notice(line))
        return {}
