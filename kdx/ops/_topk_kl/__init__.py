"""The distillation loss against a few stored classes of the teacher's, never against all of them. See README.md."""
