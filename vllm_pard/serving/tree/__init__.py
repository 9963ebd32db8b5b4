"""Token trees on model runner V2: where rows lie, who sees whom, what is kept."""
