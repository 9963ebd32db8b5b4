"""Keys and values of accepted nodes moved to where their positions are, one launch for all layers."""
