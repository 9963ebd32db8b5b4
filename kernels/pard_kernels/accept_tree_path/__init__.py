"""The path of a tree of drafts that the target's own tokens take, one launch for all requests."""
