"""Tools for packages that bring more than a component: commands, studies, files that are written beside runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.cli.app import app as app
    from kdx.cli.output import Json as Json
    from kdx.cli.output import Trust as Trust
    from kdx.cli.output import print_json as print_json
    from kdx.files import atomic_write as atomic_write
    from kdx.files import named as named
    from kdx.files import read_json as read_json
    from kdx.files import read_text as read_text
    from kdx.files import sha256_of as sha256_of
    from kdx.files import write_json as write_json
    from kdx.lock import sole_writer as sole_writer
    from kdx.lock import taking_turns as taking_turns
    from kdx.options import problems as problems
    from kdx.printable import printable as printable
    from kdx.ranges import check_number as check_number
    from kdx.rng import isolated as isolated
    from kdx.trust import Rule as Rule
    from kdx.trust import Trusted as Trusted
    from kdx.trust import trusting as trusting
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.cli.app": ["app"],
            "kdx.cli.output": ["Json", "Trust", "print_json"],
            "kdx.files": ["atomic_write", "named", "read_json", "read_text", "sha256_of", "write_json"],
            "kdx.lock": ["sole_writer", "taking_turns"],
            "kdx.options": ["problems"],
            "kdx.printable": ["printable"],
            "kdx.ranges": ["check_number"],
            "kdx.rng": ["isolated"],
            "kdx.trust": ["Rule", "Trusted", "trusting"],
        },
    )
