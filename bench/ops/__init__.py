"""One module per op, each with a ``BENCH``."""
