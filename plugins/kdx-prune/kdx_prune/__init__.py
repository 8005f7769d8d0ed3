"""Pruned students for kdx: channels, blocks and n:m sparsity."""
