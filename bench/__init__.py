"""Benchmarks of the kernels: ``python -m bench run softmax_kl``, ``python -m bench gpu``, ``python -m bench table``."""
