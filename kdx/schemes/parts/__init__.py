"""Networks that schemes are made of: branches, stages of depth and what is left of a model after a layer."""
