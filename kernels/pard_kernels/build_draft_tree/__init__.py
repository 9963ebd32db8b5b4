"""The best tree of a parallel draft's candidates, in one launch."""
