"""The layout of a draft forward, in one launch."""
