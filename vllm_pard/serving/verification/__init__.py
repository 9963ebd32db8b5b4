"""What the target's side of a step needs on model runner V2, so that requests get what plain decoding gives them."""
