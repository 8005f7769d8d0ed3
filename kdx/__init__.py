"""kdx: knowledge distillation behind one small plugin API."""

__version__ = "0.1.0"
