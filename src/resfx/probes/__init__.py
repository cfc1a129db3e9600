"""What the new parameters of a rewritten model learned: quantities over depth, pictures, scalars while it trains."""
