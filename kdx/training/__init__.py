"""The training loop and what belongs to it: optimizers, evaluation, checkpoints, batches."""
