"""How many rows a tree may have."""

MAX_TREE_ROWS = 64  # the root and its nodes: what a row sees of the others is a bit each
