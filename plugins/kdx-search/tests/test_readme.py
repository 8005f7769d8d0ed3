"""The script of the README about supernets runs as it is written."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_script_about_supernets_runs() -> None:
    [script] = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "Supernet(" in code]
    names: dict[str, object] = {}
    exec(script, names)
    found = names["found"]
    assert found.best.cost.flops <= 0.4 * names["space"].cost(names["space"].largest).flops
    assert sum(p.numel() for p in names["alone"].parameters()) == found.best.cost.parameters
