"""The rows of the target's step that trees have kept."""
