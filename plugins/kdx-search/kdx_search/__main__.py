"""``python -m kdx_search``: the command ``kdx search`` by itself."""

import sys

from kdx.errors import Interrupted, KdxError
from kdx_search.cli import app

if __name__ == "__main__":
    try:
        app()
    except Interrupted as stop:
        print(f"kdx: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except (KdxError, OSError) as error:
        print(f"kdx: {error}", file=sys.stderr)
        sys.exit(1)
