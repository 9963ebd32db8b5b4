"""The positions of a tree's rows, and which of each other they see."""
