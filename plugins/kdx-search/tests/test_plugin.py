"""The package as a plugin of kdx."""

from kdx.testing import check_plugin


def test_plugin() -> None:
    check_plugin("search")
