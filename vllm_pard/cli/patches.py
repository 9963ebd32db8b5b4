"""`vllm-pard patches`: what we change in vLLM."""

import json

import typer


def patches(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List every function of vLLM that this plugin wraps: why, and when the wrap goes away."""
    from vllm_pard.serving.patches import PATCHES

    fields = ("target", "scope", "why", "upstream", "remove_when")
    rows = [{name: getattr(patch, name) for name in fields} for patch in PATCHES]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['target']}\n  applies to   {row['scope']}\n  why          {row['why']}")
        print(f"  upstream     {row['upstream']}")
        print(f"  remove when  {row['remove_when']}")
