"""Temperature-softmax divergences of two rows of logits, and the distillation loss made of them. See README.md."""
