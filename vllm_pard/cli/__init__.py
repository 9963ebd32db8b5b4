"""The `vllm-pard` command. Importing this package imports nothing; a command imports what it needs when it runs."""


def main() -> None:
    from vllm_pard.cli.app import app

    app()
