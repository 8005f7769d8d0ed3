"""Relational knowledge distillation: distances and angles of a batch of embeddings. See README.md."""
