"""The package as a plugin of kdx."""

from kdx.testing import parametrize_checks


@parametrize_checks("prune")
def test_plugin(check) -> None:
    check()
