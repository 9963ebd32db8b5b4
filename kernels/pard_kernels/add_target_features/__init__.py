"""The target's features in a draft's input, in one launch."""
