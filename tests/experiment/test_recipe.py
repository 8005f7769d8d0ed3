"""Recipes: bad ones are refused with the path to the key, what was expected and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import kdx
from kdx.errors import KdxError, RecipeError
from kdx.experiment.recipe_files import check_recipe, find_recipe, load_recipe, recipe_names

GOOD = {
    "data": {"dataset": {"name": "fashion-mnist"}, "labelled": 500},
    "teacher": {"model": {"name": "convnet", "width": 8}},
    "student": {"model": {"name": "convnet", "width": 2}},
    "knowledge": {"kd": {"name": "soft-targets", "weight": 0.9, "temperature": 4}},
}


def changed(path: str, value: object) -> dict:
    config = OmegaConf.create(GOOD)
    OmegaConf.update(config, path, value, force_add=True)
    return OmegaConf.to_container(config)


def without(key: str) -> dict:
    return {name: value for name, value in GOOD.items() if name != key}


def test_a_good_recipe_resolves_and_dumps_to_itself() -> None:
    recipe = check_recipe(GOOD)
    assert recipe.knowledge["kd"].options == {"temperature": 4}
    assert recipe.knowledge["kd"].weight == 0.9
    assert recipe.scheme.name == "offline"
    assert check_recipe(recipe.dump()) == recipe
    assert OmegaConf.to_container(OmegaConf.create(recipe.yaml())) == recipe.dump()


def test_null_takes_a_knowledge_term_out() -> None:
    assert check_recipe(changed("knowledge.kd", None)).knowledge == {}
    assert load_recipe("fashion-offline", ["knowledge.kd=null"]).knowledge.keys() == (
        load_recipe("fashion-offline").knowledge.keys() - {"kd"}
    )


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_every_recipe_of_kdx_is_valid_and_says_what_it_is(name: str) -> None:
    assert load_recipe(name).summary


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (changed("train.epocs", 2), r"^recipe: train\.epocs: unknown key; did you mean 'epochs'"),
        (changed("knowlege", {}), r"knowlege: unknown key; did you mean 'knowledge'\?"),
        (changed("train.epochs", "many"), r"train\.epochs: input should be a valid integer.*got 'many'"),
        (changed("train.batch_size", 0), r"train\.batch_size: input should be greater than or equal to 1, got 0"),
        (changed("data.augment", {"flip": 2}), r"data\.augment\.flip: .*less than or equal to 1, got 2"),
        (changed("train.mixed_precision", "fp8"), r"train\.mixed_precision: input should be 'no', 'bf16' or 'fp16'"),
        (without("student"), r"student: is required and was not given"),
        (changed("knowledge.kd.name", "soft-target"), r"knowledge\.kd\.name: .*did you mean 'soft-targets'"),
        (
            changed("knowledge.kd.temprature", 2),
            r"knowledge\.kd \(soft-targets\): unknown option 'temprature'; did you mean 'temperature'",
        ),
        (
            changed("knowledge.kd.temperature", "hot"),
            r"knowledge\.kd \(soft-targets\)\.temperature: input should be a valid number.*got 'hot'",
        ),
        (changed("student.model.name", "convnext"), r"student\.model\.name: .*did you mean 'convnet'"),
        (
            changed("student.model.witdh", 3),
            r"student\.model \(convnet\): unknown option 'witdh'; did you mean 'width'",
        ),
        (changed("data.dataset.name", "fashion"), r"data\.dataset\.name: .*did you mean 'fashion-mnist'"),
        (changed("scheme.name", "online-offline"), r"scheme\.name: there is no scheme named 'online-offline'"),
        (changed("knowledge.hint", {"name": "hint", "student": "stage1"}), r"hint\)\.teacher: is required"),
        (without("teacher"), r"scheme 'offline' needs a teacher: give the section teacher"),
        (changed("scheme.name", "mutual"), r"scheme 'mutual' takes no teacher: remove the section teacher"),
        (changed("scheme.name", "residual"), r"scheme 'residual' takes no knowledge: remove the section knowledge"),
        (changed("teacher", {"dtype": "bf16", "store": {"views": 1}}), r"store: the teacher runs only while its store"),
        ([1, 2], r"a recipe must be a mapping of sections, got list"),
    ],
)
def test_bad_recipes_say_where_and_what(recipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe)


def test_several_problems_are_told_at_once() -> None:
    recipe = changed("train.epocs", 2)
    recipe["seed"] = -1
    with pytest.raises(RecipeError, match=r"(?s)seed: .*train\.epocs|train\.epocs.*seed: "):
        check_recipe(recipe)


def test_overrides_from_the_command_line_and_from_python() -> None:
    from_line = load_recipe("fashion-offline", ["train.epochs=2", "seed=7", "knowledge.kd.temperature=2.5"])
    from_dotted = load_recipe("fashion-offline", {"train.epochs": 2, "seed": 7, "knowledge.kd.temperature": 2.5})
    nested = {"train": {"epochs": 2}, "seed": 7, "knowledge": {"kd": {"temperature": 2.5}}}
    assert from_line == from_dotted == load_recipe("fashion-offline", nested)
    assert (from_line.train.epochs, from_line.seed, from_line.knowledge["kd"].options["temperature"]) == (2, 7, 2.5)
    assert from_line.train.optimizer == load_recipe("fashion-offline").train.optimizer
    with pytest.raises(RecipeError, match=r"override 'epochs' must have the form key\.sub=value"):
        load_recipe("fashion-offline", ["epochs"])
    with pytest.raises(RecipeError, match=r"fashion-offline\.yaml: train\.epoch: unknown key; did you mean 'epochs'"):
        load_recipe("fashion-offline", ["train.epoch=3"])


def test_names_paths_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(check_recipe(GOOD).yaml())
    assert load_recipe(path) == check_recipe(GOOD)
    with pytest.raises(RecipeError, match="no recipe 'fashion-ofline'; did you mean 'fashion-offline'"):
        find_recipe("fashion-ofline")
    with pytest.raises(RecipeError, match="no recipe file"):
        find_recipe(tmp_path / "other.yaml")
    path.write_text("data: [unclosed")
    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        load_recipe(path)
    path.write_text("seed: ${nowhere}")
    with pytest.raises(RecipeError, match="nowhere"):
        load_recipe(path)


@pytest.mark.parametrize("overrides", [["student.model={name: mlp}"], {"student": {"model": {"name": "mlp"}}}], ids=str)
def test_a_component_that_is_given_takes_the_place_of_the_old_one(overrides) -> None:
    """Its options do not become those of the new one."""
    assert load_recipe("fashion-offline").student.model.options
    assert load_recipe("fashion-offline", overrides).student.model.as_dict() == {"name": "mlp"}


def test_what_is_no_component_is_merged_into_what_is_there() -> None:
    plain = load_recipe("fashion-offline")
    changed = load_recipe("fashion-offline", ["student.model={width: 3}", "train={epochs: 2}"])
    assert changed.student.model == plain.student.model.with_options(width=3)
    assert changed.train.epochs == 2
    assert changed.train.batch_size == plain.train.batch_size
    assert load_recipe("fashion-offline", ["data.augment.shift=1"]).data.augment.flip == 0.5  # it was null


def test_a_component_of_a_package_that_is_not_installed_names_the_package() -> None:
    with pytest.raises(
        RecipeError, match=r"student\.model\.name: .*'timm' yet: it is provided by kdx-vision; pip install"
    ):
        load_recipe("fashion-offline", ["student.model={name: timm, model: resnet18}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "a recipe must be a mapping of sections, got a list"),
        (b"7\n", "odd.yaml: .*int"),
        (b"a: " + b"[" * 2000 + b"]" * 2000, "odd.yaml: it is nested too deeply; a recipe has some ten levels"),
        (b"\n".join(b" " * n + b"a:" for n in range(900)), "odd.yaml: it is nested too deeply"),
        (b"\x7fELF\x02\x01\x01\x00\x1b[31m", "odd.yaml is no text, so no recipe: byte 7 is zero; give another"),
        (b"\x89PNG\r\n", "odd.yaml is no text, so no recipe: byte 0 is not UTF-8; give another"),
        (b"# " + b"x" * (1 << 20), "odd.yaml has 1,048,578 bytes and is no recipe, which has some kilobytes of text"),
    ],
    ids=["list", "number", "brackets", "levels", "program", "picture", "long"],
)
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(KdxError, match=message) as caught:
        load_recipe(path)
    assert "ELF" not in str(caught.value)  # what is in such a file is not shown
    if b"PNG" in content or b"ELF" in content or b"[[[" in content:
        with pytest.raises(KdxError, match=r"no text, so no student config|nested too deeply"):
            kdx.make("model", "derived", config=str(path), num_classes=2)


def test_a_folder_given_as_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RecipeError, match=r"folder.yaml' is a folder; give the recipe file"):
        load_recipe(tmp_path / "folder.yaml")


def test_a_package_brings_recipes_that_are_run_by_name(tmp_path: Path) -> None:
    file = tmp_path / "quick.yaml"
    file.write_text(check_recipe({**GOOD, "summary": "mine"}).yaml())

    class Package:
        @kdx.hookimpl
        def kdx_recipes(self):
            return [file]

    plugins = kdx.Plugins(entries=())
    plugins.register(Package(), "mine")
    assert recipe_names(plugins)["quick"] == find_recipe("quick", plugins) == file
    assert load_recipe("quick", plugins=plugins).summary == "mine"
    assert recipe_names(plugins).keys() - {"quick"} == recipe_names(kdx.Plugins(entries=())).keys()
    file.rename(tmp_path / "fashion-offline.yaml")
    file = tmp_path / "fashion-offline.yaml"
    with pytest.raises(kdx.errors.PluginError, match=r"'fashion-offline' comes with .*'kdx-builtin' .* and .*'mine'"):
        recipe_names(plugins)


def test_recipes_of_packages_that_are_not_installed_say_so() -> None:
    with pytest.raises(RecipeError, match="'shakespeare-lm' yet: it comes with kdx-text; pip install kdx-text"):
        find_recipe("shakespeare-lm", kdx.Plugins(entries=()))


def test_a_hook_for_recipes_gives_paths() -> None:
    class Package:
        @kdx.hookimpl
        def kdx_recipes(self):
            return ["quick.yaml"]

    plugins = kdx.Plugins(entries=())
    plugins.register(Package(), "mine")
    with pytest.warns(kdx.errors.PluginWarning, match=r"kdx_recipes gave 'quick.yaml', expected pathlib.Path objects"):
        recipe_names(plugins)
