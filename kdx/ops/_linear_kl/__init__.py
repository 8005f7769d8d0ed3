"""The distillation loss of two language-model heads, whose logits are never held whole. See README.md."""
