"""The two models of a run: the draft, where it starts from, and the target, asked online or from a cache."""
