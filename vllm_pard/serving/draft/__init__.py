"""The draft on model runner V2: its weights, its rows, its K/V cache, its graphs."""
