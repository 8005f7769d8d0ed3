"""``python -m kdx`` is the ``kdx`` command."""

from kdx.cli import main

if __name__ == "__main__":
    main()
