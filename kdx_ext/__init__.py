"""Compiled modules of kdx: ``_cpu`` and, where it was built, ``_cuda``. ``build_info.json`` says what the build did."""
