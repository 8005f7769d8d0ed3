"""The rule of trust: no text runs anything but kdx, the plugins and what a person trusts."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx import Spec, hookimpl
from kdx.cli.app import app, main
from kdx.errors import DamagedError, RecipeError, StudentError, TrustError, UnknownNameError
from kdx.experiment.recipe_files import check_recipe, load_recipe
from kdx.experiment.run_files import MODEL, check_files
from kdx.experiment.store_command import cache_teacher
from kdx.files import read_json, sha256_of, write_json
from kdx.students import build, inherit, read_config
from kdx.trust import Rule, trusting
from tests.experiment.tiny import TINY

EDITS: list = []


def config(target: str, **options) -> dict:
    return {"base": {"target": target, **options}, "edits": EDITS}


def derived(target: str, **options) -> dict:
    return {"name": "derived", "config": config(target, **options)}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that is there if the attack ran."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The importable module ``stranger_nets``, which leaves a trace when it is imported."""
    (tmp_path / "stranger_nets.py").write_text(
        "import os, pathlib\n"
        "from torch import nn\n"
        "from torch.nn import Identity\n"
        f"pathlib.Path({str(tmp_path)!r}, 'imported').touch()\n"
        "def net(num_classes=10, input_shape=(1, 8, 8)):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("stranger_nets", None)


def places(model: dict) -> dict[str, dict]:
    """Recipes that name a model, by the place that the message gives."""
    taught = {**TINY, "scheme": {"name": "multi-teacher"}}
    return {
        "student.model": {**TINY, "student": {"model": model}},
        "teacher.model": {**TINY, "teacher": {"model": model}},
        "teachers.one.model": {**taught, "teachers": {"one": {"model": model}}},
        "peers.0": {**TINY, "scheme": {"name": "mutual"}, "peers": [model]},
        "student.model.assistant": {
            **TINY,
            "student": {"model": {"name": "residual-sum", "student": {"name": "mlp"}, "assistant": model}},
        },
        "student.model.config.base": {
            **TINY,
            "student": {"model": {"name": "derived", "config": {"base": model, "edits": EDITS}}},
        },
        "knowledge.kd.anything": {**TINY, "knowledge": {"kd": {"name": "soft-targets", "anything": model}}},
        "data.dataset.anything": {**TINY, "data": {**TINY["data"], "dataset": {"name": "digits", "anything": model}}},
        "assistant.models.1": {**TINY, "assistant": {"name": "takd", "models": ["mlp", model]}},
    }


weak = pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")  # one epoch is not enough
PLACES = sorted(places({}))


@pytest.mark.parametrize("place", PLACES)
def test_a_recipe_runs_no_command_wherever_it_names_a_model(place: str, marker: Path) -> None:
    recipe = places(derived("os:system", command=f"touch {marker}"))[place]
    with pytest.raises(TrustError) as caught:
        check_recipe(recipe)
    message = str(caught.value)
    assert message.startswith(f"recipe: {place}.config.base.target: 'os:system' is not run: the module 'os' is neither")
    assert "--trust os (trust='os' in Python)" in message


@pytest.mark.parametrize("place", PLACES)
def test_a_recipe_imports_nothing_of_a_module_that_is_not_trusted(place: str, nets: Path) -> None:
    with pytest.raises(TrustError, match=r"the module 'stranger_nets' is neither kdx nor an installed plugin"):
        check_recipe(places(derived("stranger_nets:net"))[place])
    assert not nets.exists()


def test_the_file_that_a_recipe_names_as_config_is_held_to_the_rule(tmp_path: Path, nets: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(config("stranger_nets:net")))
    recipe = {**TINY, "student": {"model": {"name": "derived", "config": str(path)}}}
    with pytest.raises(
        TrustError, match=r"student\.model\.config \(.*student\.yaml\)\.base\.target: 'stranger_nets:net'"
    ):
        check_recipe(recipe)
    assert not nets.exists()
    outer = tmp_path / "outer.yaml"  # a file that names a file
    outer.write_text(yaml.safe_dump({"base": {"name": "derived", "config": str(path)}, "edits": EDITS}))
    for name in (path, outer):
        with pytest.raises(TrustError, match="stranger_nets"):
            build(name)
        with pytest.raises(TrustError, match="stranger_nets"):
            read_config(name)
        with pytest.raises(TrustError, match="stranger_nets"):
            kdx.make("model", "derived", config=name)
    assert not nets.exists()
    assert isinstance(build(outer, trust="stranger_nets"), nn.Module)
    assert isinstance(build(read_config(path, trust=["stranger_nets"])), nn.Module)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os:system", "the module 'os' is neither kdx nor an installed plugin"),
        ("builtins:eval", "the module 'builtins' is neither"),
        ("subprocess:run", "the module 'subprocess' is neither"),
        ("torch.hub:load", "the module 'torch.hub' is neither"),
        ("kdxevil:net", "the module 'kdxevil' is neither"),
        ("kdx.experiment.environment:subprocess.run", "has no registered model and no torch.nn.Module of this name"),
        ("kdx.experiment.environment:os.system", "has no registered model"),
        ("kdx.testing.plugin:importlib.import_module", "has no registered model"),
        ("kdx.files:atomic_write", "has no registered model"),
        ("kdx.cli.app:main", "has no registered model"),
        ("kdx.models.mlp:nn.Linear", "has no registered model"),  # of torch, whose classes no plugin vouches for
        ("kdx.knowledge.base:Knowledge.__init__", "has no registered model"),
    ],
)
def test_what_is_not_a_model_of_kdx_is_refused(target: str, reason: str) -> None:
    with pytest.raises(TrustError, match=reason.replace(".", r"\.")):
        check_recipe({**TINY, "student": {"model": derived(target)}})


@pytest.mark.parametrize("target", ["os", "os:", ":system", "os.:system", "../os:system", "kdx.models.mlp:no_such", 7])
def test_a_target_that_names_nothing_is_an_error_of_the_recipe(target) -> None:
    with pytest.raises(kdx.KdxError, match=r"student\.model\.config\.base\.target") as caught:
        check_recipe({**TINY, "student": {"model": derived(target)}})
    assert not isinstance(caught.value, TrustError)


def test_registered_models_and_modules_of_kdx_need_no_trust() -> None:
    spec = kdx.plugins().get("model", "convnet").spec.target
    for target in (spec, "kdx.models.residual_sum:ResidualSum", "kdx.models.token_transformer:TokenTransformer"):
        assert callable(Rule.of().find(target, "base.target"))
    check_recipe({**TINY, "student": {"model": derived(kdx.plugins().get("model", "mlp").spec.target)}})


def test_a_package_that_registers_a_component_is_trusted_with_its_modules(nets: Path) -> None:
    class Plugin:
        @hookimpl
        def kdx_models(self):
            return [Spec("strange", "stranger_nets:Net", "a plugin's")]

    plugins = kdx.Plugins(entries=[])
    recipe = {**TINY, "student": {"model": derived("stranger_nets:Net")}}
    with pytest.raises(TrustError):
        check_recipe(recipe, plugins=plugins)
    plugins.register(Plugin(), "strange")
    check_recipe(recipe, plugins=plugins)
    assert nets.exists()
    with pytest.raises(TrustError, match="has no registered model and no torch"):
        check_recipe({**TINY, "student": {"model": derived("stranger_nets:net")}}, plugins=plugins)


def test_trust_in_a_module_is_trust_in_what_it_defines(nets: Path) -> None:
    with pytest.raises(TrustError, match=r"the module 'posix' is where stranger_nets has it from"):
        check_recipe({**TINY, "student": {"model": derived("stranger_nets:os.system")}}, trust="stranger_nets")
    with pytest.raises(TrustError, match=r"--trust torch\.nn\.modules\.linear"):
        check_recipe({**TINY, "student": {"model": derived("stranger_nets:Identity")}}, trust="stranger_nets")
    for trust in ("stranger", "stranger_nets.deeper", "Stranger_nets"):
        with pytest.raises(TrustError, match="'stranger_nets' is neither"):
            check_recipe({**TINY, "student": {"model": derived("stranger_nets:net")}}, trust=trust)


@pytest.mark.parametrize("trust", ["", "a b", "a/b", "--x", "a.", ["ok", "no-no"]])
def test_trust_is_given_to_modules_by_name(trust) -> None:
    with pytest.raises(TrustError, match="trust: expected the name of a module, as my_models"):
        check_recipe(TINY, trust=trust)
    with pytest.raises(TypeError, match="trust: expected names of modules"):
        check_recipe(TINY, trust=[True])


def test_what_python_code_writes_is_its_own_word_but_not_within_a_recipe(nets: Path) -> None:
    assert isinstance(build(config("stranger_nets:net")), nn.Module)
    assert isinstance(kdx.make("model", kdx.Ref("derived", config=config("stranger_nets:Net"))), nn.Module)
    with trusting(Rule.of()), pytest.raises(TrustError):
        kdx.make("model", kdx.Ref("derived", config=config("stranger_nets:Net")))
    with pytest.raises(TrustError):
        build(config("stranger_nets:net"), trust=())


def test_weights_are_inherited_from_a_teacher_at_hand_without_building_what_a_file_names(nets, tmp_path: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(config("stranger_nets:net")))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    student = inherit(path, teacher, torch.zeros(2, 1, 8, 8))
    assert torch.equal(student[1].weight, teacher[1].weight)
    assert not nets.exists()


@weak
def test_a_run_needs_its_trust_and_needs_it_again_to_resume(tmp_path: Path, nets: Path) -> None:
    path, folder = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**TINY, "controls": [], "student": {"model": derived("stranger_nets:net")}}))
    with pytest.raises(TrustError):
        kdx.run(path, folder=folder, report=False)
    assert not nets.exists()
    assert not folder.exists()
    summary = kdx.run(path, folder=folder, report=False, trust="stranger_nets")
    assert summary["stages"]["distilled"]["parameters"] == 650
    with pytest.raises(TrustError):
        kdx.run(path, folder=folder, report=False, resume=True)
    assert kdx.run(path, folder=folder, report=False, resume=True, trust="stranger_nets") == summary


@weak
def test_the_model_that_a_run_folder_names_is_held_to_the_rule(tmp_path: Path, marker: Path) -> None:
    recipe, folder = tmp_path / "mine.yaml", tmp_path / "run"
    how = {"name": "derived", "how": "width", "params": "50%"}
    recipe.write_text(yaml.safe_dump({**TINY, "controls": [], "student": {"model": how}}))
    kdx.run(recipe, folder=folder, report=False)
    kept = read_json(folder / "distilled" / MODEL, "")
    for path in ("summary.json", "distilled/result.json"):
        (folder / path).unlink()
    write_json(folder / "distilled" / MODEL, kept | {"model": derived("os:system", command=f"touch {marker}")})
    with pytest.raises(TrustError, match=r"'os:system' is not run"):
        kdx.run(recipe, folder=folder, report=False, resume=True)


def test_a_store_is_written_under_the_rule(tmp_path: Path, nets: Path) -> None:
    values = {**TINY, "teacher": {"model": derived("stranger_nets:net"), "train": {"epochs": 1}}}
    with pytest.raises(TrustError):
        check_recipe(values)
    recipe = check_recipe(values, trust="stranger_nets")
    with pytest.raises(TrustError):
        cache_teacher(recipe, tmp_path / "store", teachers=tmp_path / "teachers", views=1)
    given = {"teachers": tmp_path / "teachers", "views": 1, "trust": "stranger_nets"}
    assert cache_teacher(recipe, tmp_path / "store", **given).manifest.complete


def commands(recipe: Path, text: str, folder: Path) -> dict[str, list[str]]:
    return {
        "run": ["run", str(recipe), "--dry-run"],
        "run-override": [
            "run",
            str(folder / "plain.yaml"),
            f"student.model={{name: derived, config: {recipe}}}",
            "--dry-run",
        ],
        "cache": ["cache", str(recipe), "--out", str(folder / "store")],
        "inspect": ["inspect", text, "mlp", "--data", "digits", "--figure", str(folder / "cka.png")],
        "inspect-student": ["inspect", "mlp", text, "--data", "digits", "--figure", str(folder / "cka.png")],
        "student": ["student", "make", text, "--params", "100%", "--data", "digits", "--out", str(folder / "s.yaml")],
    }


@pytest.mark.parametrize("command", sorted(commands(Path(), "", Path())))
def test_every_command_that_builds_from_text_has_the_rule(command: str, tmp_path: Path, nets: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "student": {"model": derived("stranger_nets:net")}}))
    if command == "run-override":
        recipe.write_text(yaml.safe_dump(config("stranger_nets:net")))
        (tmp_path / "plain.yaml").write_text(yaml.safe_dump({**TINY, "student": {"model": {"name": "mlp"}}}))
    student = tmp_path / "student.yaml"
    student.write_text(yaml.safe_dump(config("stranger_nets:net")))
    arguments = commands(recipe, f"derived:config={student}", tmp_path)[command]
    with pytest.raises(TrustError, match="the module 'stranger_nets' is neither"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not nets.exists()
    assert (
        "--trust" in CliRunner().invoke(app, [arguments[0], *(["make"] if command == "student" else []), "-h"]).output
    )
    if command != "cache":  # which trains
        result = CliRunner().invoke(app, [*arguments, "--trust", "stranger_nets"])
        assert result.exit_code == 0, result.output


def test_a_config_that_names_itself_is_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text(f"base: {{name: derived, config: {path}}}\nedits: []\n")
    with pytest.raises(StudentError, match="names itself"):
        build(path)
    path.write_text("base: &a {name: derived, config: *a}\nedits: []\n")
    with pytest.raises(StudentError, match="it has no end"):
        build(path)
    path.write_text("base: " + "[" * 5000)
    with pytest.raises(StudentError, match="cannot be read"):
        build(path)
    nine = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 30))
    path.write_text(f"x0: &x0 [a, a]\n{nine}\nbase: {{name: mlp, hidden: *x29}}\nedits: []\n")
    with pytest.raises(StudentError, match=r"it has \de\+\d\d values"):
        build(path)


ENVIRONMENT = [
    "${oc.env:KDX_TEST_SECRET}",
    "${ oc.env : KDX_TEST_SECRET }",
    "${oc.env:KDX_TEST_SECRET,none}",
    "a ${oc.env:KDX_TEST_SECRET} b",
    "${seed}${oc.env:KDX_TEST_SECRET}",
    "${oc.decode:${oc.env:KDX_TEST_SECRET}}",
    "${${oc.env:KDX_TEST_SECRET}}",
    "${oc.env:${summary},${oc.env:KDX_TEST_SECRET}}",
]


@pytest.mark.parametrize("text", ENVIRONMENT)
def test_a_recipe_reads_no_environment_variable(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDX_TEST_SECRET", "hunter2")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**TINY, "seed": 3, "summary": text}))
    with pytest.raises(TrustError, match=r"recipe mine\.yaml: summary: ") as caught:
        load_recipe(path)
    assert "hunter2" not in str(caught.value)
    path.write_text(yaml.safe_dump(TINY))
    for overrides in ({"summary": text}, {"student": {"model": {"name": "mlp", "why": [text]}}}, [f"summary={text}"]):
        with pytest.raises(TrustError, match=r"recipe mine\.yaml: ") as caught:
            load_recipe(path, overrides)
        assert "hunter2" not in str(caught.value)


def test_a_reference_is_not_followed_while_an_override_is_merged_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver  # before 2.4
    register("kdx_test", lambda name: read.append(name) or {"epochs": 1})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**TINY, "train": "${kdx_test:secret}"}))
    try:
        with pytest.raises(TrustError, match=r"train: '\$\{kdx_test:secret\}' would run a function of OmegaConf"):
            load_recipe(path, ["train.batch_size=8"])
        with pytest.raises(TrustError, match="would run a function"):
            load_recipe(path, ["train.batch_size=8"], trust="oc.env")
    finally:
        OmegaConf.clear_resolver("kdx_test")
    assert read == []


@pytest.mark.parametrize("name", ["oc.decode", "oc.create", "oc.select", "oc.dict.keys", "oc.deprecated", "eval"])
def test_no_other_resolver_runs_even_if_the_environment_is_trusted(name: str) -> None:
    with pytest.raises(TrustError, match="a recipe refers to its own keys alone"):
        load_recipe("digits-rkd", {"summary": f"${{{name}:seed}}"}, trust="oc.env")


def test_the_environment_is_read_where_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDX_TEST_WIDTH", "wide: 3")
    text = "${oc.env:KDX_TEST_WIDTH} ${oc.env:KDX_TEST_NONE,http://a:b}"
    assert load_recipe("digits-rkd", {"summary": text}, trust="oc.env").summary == "wide: 3 http://a:b"


def test_references_to_keys_of_the_recipe_and_colons_elsewhere_go_on_working() -> None:
    recipe = load_recipe("digits-rkd", {"summary": "a: ${seed} {b: c} ${train.epochs}: http://d", "seed": 5})
    assert recipe.summary == f"a: 5 {{b: c}} {recipe.train.epochs}: http://d"


@weak
def test_the_weights_of_a_run_lie_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kdx.run(check_recipe({**TINY, "controls": []}), folder=folder, report=False)
    for path in ("summary.json", "distilled/result.json"):
        (folder / path).unlink()
    result = read_json(folder / "teacher" / "result.json", "")
    (folder / "teacher" / "student.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "linked").symlink_to(tmp_path)
    for named in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "linked/elsewhere.safetensors"):
        write_json(folder / "teacher" / "result.json", result | {"weights": named})
        with pytest.raises(kdx.KdxError, match=r"which are not in the folder of the run|is a link to"):
            kdx.run(check_recipe({**TINY, "controls": []}), folder=folder, report=False, resume=True)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_the_files_of_a_stage_lie_in_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "stage").mkdir()
    with pytest.raises(DamagedError, match="which lies elsewhere; again"):
        check_files(tmp_path / "stage", {name: sha256_of(tmp_path / "secret")}, "again")


CONTROLS = ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "\x00", "\r"]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_recipe_has_no_control_characters(control: str) -> None:
    for values in (
        {**TINY, "summary": f"a{control}b"},
        {**TINY, f"a{control}b": 1},
        {**TINY, "knowledge": {f"a{control}b": {"name": "soft-targets"}}},
        {**TINY, "teacher": {**TINY["teacher"], "model": {"name": "mlp", "hidden": [f"a{control}b"]}}},
    ):
        with pytest.raises(RecipeError, match="has the control character") as caught:
            check_recipe(values)
        assert control not in str(caught.value)
    assert check_recipe({**TINY, "summary": "two\nlines\tö 名"}).summary == "two\nlines\tö 名"


def test_no_message_of_the_command_line_moves_the_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() sets its own
    (tmp_path / "r\x1b[2J.yaml").write_text("\x1b[2J: [")
    store = tmp_path / "s\x1b[2J"
    store.mkdir()
    (store / "manifest.json").write_text('{"format": "\x1b[2J"}')
    for arguments in (
        ["run", str(tmp_path / "r\x1b[2J.yaml")],
        ["run", "digits-rkd", "train.\x1b[2J=1"],
        ["run", "digits-rkd", "train.epochs=\x1b[2J", "--dry-run"],
        ["run", "\x1b[2J"],
        ["cache", "--verify", str(store)],
        ["inspect", "\x1b[2J", "mlp:\x1b[2J=1"],
    ):
        monkeypatch.setattr(sys, "argv", ["kdx", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = "".join(capfd.readouterr())
        assert ended.value.code == 1
        assert printed.strip()
        assert "\x1b[2J" not in printed
        assert "Traceback" not in printed


def test_tags_of_yaml_make_no_objects(tmp_path: Path, marker: Path) -> None:
    tag = f"!!python/object/apply:os.system ['touch {marker}']"
    path = tmp_path / "mine.yaml"
    path.write_text(f"summary: {tag}\n")
    with pytest.raises(kdx.KdxError, match=r"mine\.yaml"):
        load_recipe(path)
    path.write_text(f"base: {tag}\nedits: []\n")
    with pytest.raises(StudentError, match="cannot be read"):
        build(path)


@pytest.mark.parametrize("key", ["optimizer", "schedule"])
@pytest.mark.parametrize(
    "name", ["Optimizer", "LRScheduler", "os", "torch", "lr_scheduler", "__builtins__", "Adam.step"]
)
def test_names_of_torch_are_optimizers_and_schedules_alone(key: str, name: str) -> None:
    batches = [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(UnknownNameError, match=f"torch has no {key} named"):
        kdx.fit(kdx.Supervised(nn.Linear(2, 2)), batches, epochs=1, **{key: name})


ROOT = Path(__file__).parents[1]
CALLS = {  # that make code or objects of text, by the last part of their name
    *(
        "import_module",
        "__import__",
        "imported",
        "entry_points",
        "eval",
        "exec",
        "exec_module",
        "run_path",
        "run_module",
    ),
    *("Popen", "system", "popen", "check_output", "check_call", "load_file", "safe_load", "compose", "from_dotlist"),
    *(
        "from_pretrained",
        "for_model",
        "from_config",
        "from_string",
        "get_template",
        "memmap",
        "unflatten_tensor_state_dict",
    ),
}
FULL = {"subprocess.run", "torch.load", "np.load", "pickle.load", "pickle.loads", "yaml.load", "OmegaConf.load", "load"}
FULL |= {"entry.load", "self.entry.load", "rule.find", "timm.create_model", "backend.load"}


def turned_into_code() -> dict[str, set[str]]:
    """File -> the calls in it that make code or objects of text."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "kdx").rglob("*.py"), *(ROOT / "plugins").glob("*/kdx_*/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                method = isinstance(node.func, ast.Attribute) and node.func.attr in ("eval", "compile")  # of a module
                if name in FULL or (name.rpartition(".")[2] in CALLS and not method):
                    found.setdefault(str(path.relative_to(ROOT)), set()).add(name)
    return found


def test_the_security_policy_names_every_place_where_text_could_become_code() -> None:
    table = (ROOT / "SECURITY.md").read_text().partition("## Every place")[2].partition("\n## ")[0]
    named = {
        path for row in table.splitlines() for path in re.findall(r"`([\w/-]+(?:\.py|/))`", row.rpartition("| ")[2])
    }
    assert len(named) > 25
    assert [path for path in named if not (ROOT / path).exists()] == []
    unnamed = {path: calls for path, calls in turned_into_code().items() if not any(map(path.startswith, named))}
    assert unnamed == {}


def test_the_scan_of_the_sources_finds_the_calls_that_it_is_for() -> None:
    found = turned_into_code()
    assert "torch.load" in found["kdx/training/checkpoint.py"]
    assert {"rule.find", "imported", "yaml.safe_load"} <= found["kdx/students/config.py"]
    assert "subprocess.run" in found["kdx/experiment/environment.py"]
    assert "OmegaConf.load" in found["kdx/experiment/recipe_files.py"]
