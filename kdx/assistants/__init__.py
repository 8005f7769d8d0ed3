"""Teacher assistants: a distillation planned in stages."""
