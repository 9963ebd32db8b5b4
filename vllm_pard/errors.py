"""The one base of every error that a user can cause: shown as one sentence, without a traceback of ours."""


class PardError(ValueError):
    """Wrong input; the message says what was wanted, what came and what to do."""
