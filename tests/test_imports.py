"""The cost of importing kdx, and which module may import which."""

from __future__ import annotations

import ast
import graphlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The rooms of kdx, lowest floor first; a room imports only from floors below its own.
FLOORS = [
    {"baked_modes", "beside_inputs", "inference", "errors"},
    {
        "hookspecs",
        "spec",
        "ref",
        "rng",
        "modes",
        "files",
        "batch",
        "sample_index",
        "lazy",
        "responses",
        "directions",
        "ranges",
        "items",
        "printable",
        "own_files",
        "weights_file",
        "stage_name",
        "wrapped",
        "linear_logits",
    },
    {"layout", "lock", "class_numbers", "seal"},
    {"tap", "evidence", "blame", "projections", "tap_aliases", "captured", "head"},
    {"deprecation", "options", "registry", "capture", "losses"},
    {"ops"},
    {"features", "datasets", "store", "models", "tasks", "trust"},
    {"knowledge", "teachers", "builtin", "analysis"},
    {"schemes"},
    {"observers"},
    {"training"},
    {"hf"},
    {"stage"},
    {"artifact"},
    {"assistants", "students"},
    {"experiment"},
    {"cli"},
    {"testing", "authoring"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}


def fresh(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def runtime_imports(tree: ast.AST) -> set[str]:
    """Modules that a file imports when it runs, those under TYPE_CHECKING left out."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {inner for child in node.body for inner in ast.walk(child)}
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return sorted((ROOT / "kdx").rglob("*.py"))


def test_importing_kdx_imports_no_torch() -> None:
    heavy = ("torch", "numpy", "accelerate", "pydantic", "omegaconf", "matplotlib", "rich", "typer")
    assert fresh(f"import kdx, sys; print([m for m in {heavy!r} if m in sys.modules])") == "[]"


def test_the_command_line_module_imports_no_torch() -> None:
    code = (
        "import kdx.cli.app, sys; print([m for m in ('torch', 'numpy', 'accelerate', 'pydantic') if m in sys.modules])"
    )
    assert fresh(code) == "[]"


def test_listing_components_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['kdx', 'list']\nfrom kdx.cli.app import app\n"
        "try: app()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    assert fresh(code).splitlines()[-1] == "False"


def cpu_seconds(*arguments: str) -> float:
    """CPU time of a new interpreter, which finds kdx compiled as an installed one is from the second time on.

    That of other work on the machine does not count.
    """
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT, env=compiled)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_a_dry_run_imports_torch_and_no_other_large_package() -> None:
    spared = ["torchmetrics", "matplotlib", "accelerate", "triton", "kdx.students.deriving", "kdx.training"]
    code = (
        "import sys; sys.argv = ['kdx', 'run', 'fashion-offline', '--dry-run']\nfrom kdx.cli.app import app\n"
        f"try: app()\nexcept SystemExit: pass\nprint([m for m in {spared} if m in sys.modules])"
    )
    assert fresh(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["-c", "import kdx"], ["-m", "kdx", "--help"]], ids=["import", "help"])
def test_start_takes_less_than_three_tenths_of_a_second(arguments: list[str]) -> None:
    assert min(cpu_seconds(*arguments) for _ in range(5)) < 0.3


@pytest.mark.slow
def test_a_dry_run_takes_three_seconds_at_most_most_of_them_to_import_torch() -> None:
    """Where other work slows the processor down so much that torch alone takes longer, a third more than torch."""
    dry_run = ("-m", "kdx", "run", "fashion-offline", "--dry-run")
    times = [(cpu_seconds("-c", "import torch"), cpu_seconds(*dry_run)) for _ in range(3)]  # in turn
    torch, whole = (min(each) for each in zip(*times, strict=True))
    assert whole <= max(3.0, 4 / 3 * torch)


@pytest.mark.parametrize(
    ("code", "spared"),
    [
        (
            "import kdx.training.loop, kdx.tasks.classification, kdx.tasks.embedding",
            "torchmetrics scipy matplotlib sklearn torch.utils.tensorboard",
        ),
        ("from kdx import run", "torchmetrics scipy matplotlib sklearn torch.utils.tensorboard triton torch._dynamo"),
        ("import kdx.analysis.cost", "triton torch._dynamo"),
    ],
    ids=["fit", "run", "cost"],
)
def test_what_is_needed_later_or_never_is_not_imported_at_the_start(code: str, spared: str) -> None:
    assert fresh(f"{code}\nimport sys; print([m for m in {spared.split()} if m in sys.modules])") == "[]"


def test_counting_operations_loads_few_modules_of_kdx() -> None:
    found = fresh("import kdx.analysis.flops, sys; print(*sorted(m for m in sys.modules if m.startswith('kdx')))")
    assert set(found.split()) <= {
        "kdx",
        "kdx.analysis",
        "kdx.analysis.flops",
        "kdx.analysis.packed",
        "kdx.analysis.quantised_flops",
        "kdx.baked_modes",
        "kdx.batch",
        "kdx.beside_inputs",
        "kdx.blame",
        "kdx.capture",
        "kdx.errors",
        "kdx.evidence",
        "kdx.inference",
        "kdx.items",
        "kdx.layout",
        "kdx.lazy",
        "kdx.modes",
        "kdx.projections",
        "kdx.captured",
        "kdx.head",
        "kdx.linear_logits",
        "kdx.tap_aliases",
        "kdx.wrapped",
    }


def test_public_names_resolve_and_the_plugins_function_is_not_a_module() -> None:
    import kdx
    import kdx.registry

    for name in kdx.__all__:
        assert getattr(kdx, name) is not None
    assert callable(kdx.plugins)
    assert kdx.plugins() is kdx.plugins()
    with pytest.raises(AttributeError, match="no attribute 'plugin'"):
        kdx.plugin  # noqa: B018  # the access is the test


def test_every_room_has_a_floor() -> None:
    names = {path.relative_to(ROOT / "kdx").parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert names - RANK.keys() == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(ROOT / "kdx").parts[0].removesuffix(".py")
    imported = runtime_imports(ast.parse(path.read_text()))
    assert not {name for name in imported if name.split(".")[0] in ("plugins", "tests", "bench")}
    if part == "__init__":
        assert {name for name in imported if name.startswith("kdx")} <= {
            "kdx.lazy.exports",
            "kdx.registry.default_plugins",
        }
        return
    inside = {name.split(".")[1] for name in imported if name.startswith("kdx.")} - {"__version__"}
    wrong = {name for name in inside & RANK.keys() if name != part and RANK[name] >= RANK[part]}
    assert not wrong, f"{path.name} (floor {RANK[part]}) imports {wrong}"
    if part != "testing":
        assert "testing" not in inside


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    del files["kdx"]  # importing any part of a package imports the package
    imports = {}
    for name, path in files.items():
        found = runtime_imports(ast.parse(path.read_text()))
        found = {each if each in files else each.rpartition(".")[0] for each in found}  # module, or module.name
        imports[name] = found & files.keys() - {name}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imported in a circle: {' <- '.join(error.args[1])}")


def test_hookspecs_need_pluggy_alone_and_stay_short() -> None:
    path = ROOT / "kdx" / "hookspecs.py"
    outside = {name.split(".")[0] for name in runtime_imports(ast.parse(path.read_text()))}
    assert outside <= {"__future__", "collections", "dataclasses", "typing", "pluggy"}
    assert len(path.read_text().splitlines()) < 120


def test_compiled_module_is_imported_by_launchers_only() -> None:
    for path in modules():
        if "ops" not in path.relative_to(ROOT / "kdx").parts:
            imported = runtime_imports(ast.parse(path.read_text()))
            assert not {name for name in imported if name.split(".")[0] == "kdx_ext"}, path
