"""The package as a plugin of kdx."""

from kdx.testing import parametrize_checks


@parametrize_checks("quant")
def test_plugin(check) -> None:
    check()
