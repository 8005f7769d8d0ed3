"""The hooks of this package; it imports no torch, and neither optuna nor scipy before they are used."""
