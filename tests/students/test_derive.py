"""Deriving, its budgets, the config, the contract, the command, and a derived student in a recipe."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx.analysis.cost import Cost
from kdx.analysis.flops import count_flops
from kdx.cli.app import app
from kdx.errors import RecipeError, RunExistsError, StudentError, TrustError, UnknownNameError
from kdx.experiment.recipe_files import check_recipe
from kdx.registry import default_plugins
from kdx.students import Contract, Derivation, Edit, Plan, build, derive, inherit, read_config
from kdx.students.target import parse_target
from tests.students import nets

HOWS = tuple(kdx.plugins().components("student"))
GREY = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
BASE = {"name": "convnet", "width": 6, "stages": 3, "depth": 2}


def teacher():
    options = {key: value for key, value in BASE.items() if key != "name"}
    return nets.settled(kdx.make("model", "convnet", **options), GREY)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("how", HOWS)
def test_a_student_of_a_frozen_teacher_can_be_trained(how):
    model = teacher().requires_grad_(False)
    student = derive(model, GREY, how=how, params="60%", base=BASE)
    for each in (student.model, inherit(student.config, model, GREY)):
        assert all(parameter.requires_grad for parameter in each.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("how", HOWS)
def test_a_student_is_the_largest_within_its_budget_and_the_teacher_is_untouched(how):
    model = teacher().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    derived = derive(model, GREY, how=how, params="60%")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert parameters(derived.model) <= 0.6 * parameters(model)
    share = count_flops(derive(model, GREY, how=how, flops="75%").model, GREY) / count_flops(model, GREY)
    assert share <= 0.75
    if how in ("width", "low-rank"):  # fine steps
        assert parameters(derived.model) > 0.5 * parameters(model)
        assert share > 0.6
    assert derived.model.training


def test_a_budget_of_latency_is_met_by_what_is_measured(monkeypatch):
    import kdx.students.deriving as module

    measured = []

    def measure(model, example, **_):  # a clock that other work on the machine cannot disturb
        assert example.shape == (1, 1, 28, 28)
        measured.append(parameters(model))
        return Cost(parameters(model), 0, 0, parameters(model) / 1000, 0.1)

    monkeypatch.setattr(module, "measure_cost", measure)
    for latency in ("60%", f"{0.6 * parameters(teacher()) / 1000}ms"):
        derived = derive(teacher(), GREY, how="width", latency=latency)
        assert derived.edit == derive(teacher(), GREY, how="width", params="60%").edit
    assert parameters(teacher()) in measured
    with pytest.raises(StudentError, match=r"down to 0\.105 ms .*: it reaches 3.63 ms to 10.5 ms"):
        derive(teacher(), GREY, how="depth", latency="1%")


def test_a_smaller_student_that_takes_longer_is_passed_over(monkeypatch):
    import kdx.students.deriving as module

    times = {0: 3.0, 1: 1.0, 2: 2.0}  # by the number of replaced convolutions; measured in another order than sized

    def measure(model, example, **_):
        pairs = sum(name.endswith("pointwise") for name, _ in model.named_modules())
        return Cost(0, 0, 0, times.get(pairs, 4.0), 0.1)

    monkeypatch.setattr(module, "measure_cost", measure)
    net = kdx.make("model", "convnet", width=4)  # three can be replaced
    assert len(derive(net, GREY, how="depthwise", latency="40%").edit.layers) == 1
    assert len(derive(net, GREY, how="depthwise", latency="70%").edit.layers) == 1
    with pytest.raises(StudentError, match=r"it reaches 1 ms to 4 ms, that is 33\.3% to 133%"):
        derive(net, GREY, how="depthwise", latency="10%")


def test_the_table_shows_what_both_cost_and_where_weights_come_from():
    derived = derive(kdx.make("model", "mlp", hidden=(60, 60)), GREY, how="width", params="60%")
    for text in ("latency (20-80 % spread)", " ms (", "FLOPs", "KiB", "bits", "zeros", "hidden1.0.weight", "60x784"):
        assert text in derived.table()
    json.dumps(derived.as_dict())


def test_budgets_are_shares_or_amounts():
    assert parse_target("params", "25%").budget(200) == 50
    assert parse_target("params", 0.25).budget(200) == 50
    assert parse_target("params", 60000).budget(200) == parse_target("params", "60k").budget(1) == 60000
    assert parse_target("flops", "1.5M").budget(1) == 1.5e6
    assert parse_target("latency", "2.5ms").budget(1) == 2.5
    for kind, value in (("params", "0%"), ("params", "120%"), ("params", "25x"), ("params", "2ms"), ("latency", "2k")):
        with pytest.raises(ValueError, match=f"{kind} must be a share of the teacher as '25%' or 0.25, or an amount"):
            parse_target(kind, value)


def test_wrong_calls_are_told_what_to_write():
    model = teacher()
    with pytest.raises(ValueError, match="width needs a budget: params, flops or latency"):
        derive(model, GREY, how="width")
    with pytest.raises(ValueError, match="one budget: params, flops or latency; got params and flops"):
        derive(model, GREY, how="width", params="5%", flops="5%")
    with pytest.raises(UnknownNameError, match=r"there is no student named 'widht'; did you mean 'width'"):
        derive(model, GREY, how="widht", params="5%")
    with pytest.raises(ValueError, match="two samples or more, got 1"):
        derive(model, GREY[:1], how="width", params="5%")
    with pytest.raises(ValueError, match="importance must be 'l1' or 'l2'"):
        derive(model, GREY, how={"name": "width", "importance": "max"}, params="5%")


def test_a_budget_out_of_reach_names_the_reachable_range():
    small = r"depth cannot bring ConvNet down to 105 params \(1.0% of the teacher\): it reaches 3,628 params to 10,516"
    with pytest.raises(StudentError, match=small):
        derive(teacher(), GREY, how="depth", params="1%")


def test_a_contract_holds_inputs_outputs_and_taps():
    model = teacher()
    contract = Contract.of(model, GREY, taps=["stage2", "fc"])
    contract.check(derive(model, GREY, how="width", params="50%").model)
    with pytest.raises(StudentError, match=r"gives \(4, 7\) torch.float32 where the teacher gives \(4, 10\)"):
        contract.check(kdx.make("model", "convnet", num_classes=7))
    with pytest.raises(StudentError, match=r"lacks a tap that it must keep: .*stage2"):
        contract.check(kdx.make("model", "mlp"))
    with pytest.raises(StudentError, match="does not run on what its teacher takes: ValueError: inputs must be"):
        contract.check(kdx.make("model", "mlp", input_shape=(1, 8, 8)))
    with pytest.raises(StudentError, match=r"lacks a tap that it must keep: .*stage2\.conv2"):
        derive(model, GREY, how="depth", params="45%", taps=["stage2.conv2"])


def test_a_config_rebuilds_every_student_without_its_teacher(tmp_path):
    model = teacher()
    vit = kdx.make("model", "vit", dim=32, depth=2)
    resnet = nets.settled(kdx.make("model", "resnet", depth=14), GREY)
    shape = {"num_classes": 10, "input_shape": [1, 28, 28]}
    expected = {}
    for name, old, base in (
        ("convnet", model, BASE),
        ("vit", vit, {"name": "vit", "dim": 32, "depth": 2}),
        ("resnet", resnet, {"name": "resnet", "depth": 14}),
    ):
        for how in HOWS:
            if (name, how) != ("vit", "depthwise"):
                student = derive(old, GREY, how=how, params="75%", base=base, shape=shape)
                path = tmp_path / f"{name}-{how}.{'json' if how == 'depth' else 'yaml'}"
                assert student.save(path) == [path, path.with_suffix(".safetensors")]
                expected[path.name] = student.model.eval()(GREY).tolist()
    torch.save(GREY, tmp_path / "images.pt")
    code = (
        "import json, pathlib, sys, torch, kdx\n"
        "from kdx.training.weights import load_weights\n"
        "folder, found = pathlib.Path(sys.argv[1]), {}\n"
        "images = torch.load(folder / 'images.pt')\n"
        "for path in [*folder.glob('*.yaml'), *folder.glob('*.json')]:\n"
        "    model = kdx.make('model', 'derived', config=str(path), num_classes=10, input_shape=(1, 28, 28))\n"
        "    load_weights(model, path.with_suffix('.safetensors'))\n"
        "    found[path.name] = model.eval()(images).tolist()\n"
        "print(json.dumps(found))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, cwd=root)
    found = json.loads(done.stdout)
    assert found.keys() == expected.keys()
    for name, outputs in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(outputs), rtol=1e-4, atol=1e-5)


def test_new_weights_of_a_built_student_are_drawn_as_those_of_its_layers_and_follow_the_seed():
    config = derive(teacher(), GREY, how="width", params="50%", base=BASE).config
    torch.manual_seed(1)
    one = build(config)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), build(config).parameters(), strict=True))
    assert one.stage2.conv1.weight.abs().max() <= (one.stage2.conv1.weight[0].numel()) ** -0.5
    assert torch.equal(one.stage2.norm1.weight, torch.ones(one.stage2.norm1.num_features))


def test_a_student_of_a_student_is_built_from_the_first_teacher(tmp_path):
    model = teacher()
    derive(model, GREY, how="depthwise", base=BASE).save(tmp_path / "one.yaml")
    once = kdx.make("model", "derived", config=tmp_path / "one.yaml")
    twice = derive(
        once, GREY, how="width", params="50%", base={"name": "derived", "config": str(tmp_path / "one.yaml")}
    )
    assert [edit.how for edit in twice.config.edits] == ["depthwise", "width"]
    assert twice.config.base == BASE
    assert parameters(build(twice.config)) == parameters(twice.model)
    student = inherit(twice.config, model, GREY)
    assert torch.equal(student.stage1.conv1.weight, inherit(twice.config, model, GREY).stage1.conv1.weight)
    assert parameters(student) == parameters(twice.model)


def test_inheriting_gives_the_weights_that_deriving_gives_and_refuses_another_teacher():
    model = teacher()
    for how in HOWS:
        student = derive(model, GREY, how=how, params="70%", base=BASE)
        again = inherit(student.config, model, GREY).state_dict()
        assert all(torch.equal(value, again[name]) for name, value in student.model.state_dict().items())
    config = derive(model, GREY, how="width", params="70%", base=BASE).config
    with pytest.raises(StudentError, match="grouped otherwise than when this student was planned"):
        inherit(config, kdx.make("model", "convnet", width=5, stages=3, depth=2), GREY)


def make_net(width=4):
    """What a target in a config may point at."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def test_a_base_may_be_any_callable_that_can_be_imported(tmp_path):
    base = {"target": "tests.students.test_derive:make_net", "width": 12}
    derived = derive(make_net(12), GREY, how="width", params="50%", base=base)
    derived.save(tmp_path / "student.json")
    with pytest.raises(
        TrustError, match=r"test_derive:make_net' is not run: the module 'tests\.students\.test_derive' is"
    ):
        kdx.make("model", "derived", config=tmp_path / "student.json", num_classes=10, input_shape=(1, 28, 28))
    again = build(tmp_path / "student.json", trust="tests", num_classes=10, input_shape=(1, 28, 28))
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in derived.model.parameters()]
    assert isinstance(build(derived.config), nn.Module)  # what Python code wrote is its own word
    with pytest.raises(StudentError, match=r"base.target must be package.module:callable .*'no.such:thing'"):
        build({"base": {"target": "no.such:thing"}, "edits": []})


def test_nothing_is_written_over_and_nothing_without_knowing_the_base(tmp_path):
    derived = derive(teacher(), GREY, how="width", params="50%", base=BASE)
    derived.save(tmp_path / "student.yaml")
    (tmp_path / "student.yaml").unlink()
    with pytest.raises(RunExistsError, match=r"student.safetensors exists already; --force"):
        derived.save(tmp_path / "student.yaml")
    assert not (tmp_path / "student.yaml").exists()
    assert derived.save(tmp_path / "student.yaml", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.safetensors", "student.yaml"]
    with pytest.raises(StudentError, match="pass base="):
        derive(teacher(), GREY, how="width", params="50%").save(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base": {"name": "convnet"}}, "edits: is required"),
        ({"base": {"name": "convnet"}, "edits": [{"how": "thin"}]}, "student config: edits.0"),
        ({"base": {"name": "convnet"}, "edits": [{"how": "depth", "removed": [], "x": 1}]}, "edits.0.depth.x"),
        ({"base": {"width": 3}, "edits": []}, "base must have a name .* or a target"),
        ({"base": {"name": "convnet"}, "edits": [{"how": "width", "ratio": 1, "sizes": {"no": [1]}}]}, "no parameter"),
        (
            {"base": {"name": "convnet"}, "edits": [{"how": "width", "ratio": 1, "sizes": {"fc.bias": [99]}}]},
            "'fc.bias' of shape .10,. cannot be cut",
        ),
        (
            {"base": {"name": "convnet"}, "edits": [{"how": "width", "ratio": 1, "sizes": {"fc.bias": [0]}}]},
            "be cut to",
        ),
        ("missing.yaml", "missing.yaml cannot be read"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(StudentError, match=message):
        build(config)


class Bare(Edit):
    """Takes the bias of the last layer away."""

    how: Literal["bare"] = "bare"
    layer: str

    def build(self, model):
        model.get_submodule(self.layer).register_parameter("bias", None)

    def derive(self, model, inputs):
        self.build(model)
        return {}


class ByBare(Derivation):
    """Takes the bias of the last layer away."""

    edit = Bare
    needs_budget = False

    def plan(self, model, inputs):
        return Plan(2, lambda place: Bare(layer="fc"), [])


def test_a_derivation_of_a_plugin_derives_is_written_down_and_built_again(tmp_path, plugged):
    class Plugin:
        @kdx.hookimpl
        def kdx_students(self):
            return [kdx.Spec("bare", f"{__name__}:ByBare", "no bias")]

    plugged(Plugin(), "bare")
    student = derive(teacher(), GREY, how="bare", base=BASE)
    assert student.model.fc.bias is None
    assert student.edit == Bare(layer="fc")
    student.save(tmp_path / "bare.yaml")
    assert "edits:\n- {how: bare, layer: fc}" in (tmp_path / "bare.yaml").read_text()
    assert build(tmp_path / "bare.yaml").fc.bias is None
    with pytest.raises(StudentError, match=r"edits\.0\.bare\.layer: is required"):
        build({"base": BASE, "edits": [{"how": "bare"}]})


def test_a_config_that_does_not_fit_is_refused_when_it_is_built():
    sizes = {"stage1.conv1.weight": [4, -1, -1, -1]}  # its norm still has eight channels
    config = {"base": {"name": "convnet"}, "edits": [{"how": "width", "ratio": 0.5, "sizes": sizes}]}
    with pytest.raises(StudentError, match="does not run on what its teacher takes"):
        kdx.make("model", "derived", config=config, num_classes=10, input_shape=(1, 28, 28))
    with pytest.raises(StudentError, match="only the stages of a recipe with a teacher"):
        kdx.make("model", "derived", how="width", params="50%")


def test_the_command_compares_writes_and_says_how_to_go_on(tmp_path):
    from kdx.training.checkpoint import export_weights

    runner = CliRunner()
    model = teacher()
    export_weights(model, tmp_path / "teacher.safetensors")
    text = "convnet:width=6,stages=3,depth=2"
    arguments = ["student", "make", text, "--params", "50%", "--out", str(tmp_path / "student.yaml")]
    result = runner.invoke(
        app, [*arguments, "--weights", str(tmp_path / "teacher.safetensors")], catch_exceptions=False
    )
    assert result.exit_code == 0
    for shown in (
        "teacher  10,516",
        "latency (20-80 % spread)",
        "stage1.conv1.weight",
        "in a recipe: student: {model:",
    ):
        assert shown in result.stdout
    config = yaml.safe_load((tmp_path / "student.yaml").read_text())
    assert config["base"] == BASE
    weights = load_file(tmp_path / "student.safetensors")
    old = derive(model, GREY, how="width", params="50%").model.state_dict()
    assert all(torch.equal(value, old[name]) for name, value in weights.items())
    with pytest.raises(RunExistsError, match=r"student\.yaml exists already"):
        runner.invoke(app, arguments, catch_exceptions=False)
    result = runner.invoke(app, [*arguments, "--force", "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["student"]["parameters"] <= 5258 < report["teacher"]["parameters"] == 10516
    assert report["files"] == [str(tmp_path / "student.yaml")]  # an untrained teacher has no weights to copy
    assert runner.invoke(app, ["student", "make", text, "--params", "much"]).exit_code == 2
    for out in (tmp_path, tmp_path / "student.safetensors"):  # a folder, and the place of the weights
        assert (
            runner.invoke(app, ["student", "make", text, "--params", "50%", "--out", str(out), "--force"]).exit_code
            == 2
        )


RECIPE = {
    "threads": 1,
    "data": {"dataset": {"name": "digits"}, "validation": 100},
    "teacher": {"model": {"name": "convnet", "width": 4, "stages": 2}, "train": {"epochs": 1}},
    "student": {"model": {"name": "derived", "how": "depthwise"}},
    "knowledge": {"kd": {"name": "soft-targets"}},
    "train": {"epochs": 1},
    "controls": ["untrained", "alone"],
}


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_recipe_derives_its_student_from_its_own_teacher(tmp_path):
    summary = kdx.run(check_recipe(RECIPE), folder=tmp_path / "run")
    made = json.loads((tmp_path / "run/distilled/model.json").read_text())
    assert made["model"]["name"] == "derived"
    assert made["model"]["config"]["edits"] == [{"how": "depthwise", "layers": ["stage2.conv1"]}]
    base = {"name": "convnet", "width": 4, "stages": 2}
    assert made["model"]["config"]["base"] == base
    old = kdx.make("model", "convnet", width=4, stages=2, num_classes=10, input_shape=(1, 8, 8))
    old.load_state_dict(load_file(tmp_path / "run/teacher/student.safetensors"))
    start = inherit(read_config(made["model"]["config"]), old, torch.zeros(2, 1, 8, 8)).state_dict()
    # alone, distilled and untrained start from what was made of the teacher's weights
    for stage in ("alone", "distilled"):
        found = load_file(tmp_path / f"run/{stage}/start.safetensors")
        assert all(torch.equal(value, found[name]) for name, value in start.items())
    found = load_file(tmp_path / "run/untrained/student.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in start.items())
    stages = summary["stages"]
    assert stages["distilled"]["parameters"] == stages["alone"]["parameters"] < stages["teacher"]["parameters"]
    assert stages["distilled"]["flops"] < stages["teacher"]["flops"]
    assert kdx.run(check_recipe(RECIPE), folder=tmp_path / "run", resume=True) == summary


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_recipe_may_draw_new_weights_or_read_a_config_and_names_what_is_wrong(tmp_path):
    fresh = {**RECIPE, "controls": [], "student": {"model": {"name": "derived", "how": "depthwise", "inherit": False}}}
    kdx.run(check_recipe(fresh), folder=tmp_path / "fresh")
    assert not (tmp_path / "fresh/distilled/start.safetensors").exists()
    config = json.loads((tmp_path / "fresh/distilled/model.json").read_text())["model"]["config"]
    given = {**RECIPE, "controls": [], "student": {"model": {"name": "derived", "config": config}}}
    summary = kdx.run(check_recipe(given), folder=tmp_path / "given")
    assert summary["stages"]["distilled"]["model"] == "derived"
    both = {**RECIPE, "student": {**RECIPE["student"], "weights": "student.safetensors"}}
    with pytest.raises(RecipeError, match=r"student\.weights: the student is made when its stage begins"):
        kdx.run(check_recipe(both), folder=tmp_path / "both")
    for how, message in (
        ("widht", r"student\.model\.how\.name: there is no student named 'widht'; did you mean 'width'"),
        (
            {"name": "width", "importanse": "l2"},
            r"how \(width\): unknown option 'importanse'; did you mean 'importance'",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            check_recipe({**RECIPE, "student": {"model": {"name": "derived", "how": how, "params": 0.5}}})
    with pytest.raises(RecipeError, match="unknown option 'paramz'; did you mean 'params'"):
        check_recipe({**RECIPE, "student": {"model": {"name": "derived", "how": "width", "paramz": 1}}})


def test_quantise_on_the_command_line_names_its_package_and_goes_with_no_other_way(tmp_path):
    runner, out = CliRunner(), str(tmp_path / "student.yaml")
    if "quantise" not in default_plugins().components("student"):
        found = runner.invoke(app, ["student", "make", "convnet", "--quantise", "int8", "--out", out])
        assert "kdx-quant" in str(found.exception)
    twice = runner.invoke(app, ["student", "make", "convnet", "--quantise", "int8", "--how", "depth", "--out", out])
    assert twice.exit_code == 2
