"""``python -m kdx`` is the ``kdx`` command."""

from kdx.cli import main

main()
