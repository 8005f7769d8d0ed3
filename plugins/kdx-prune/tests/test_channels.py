"""Students pruned by importance: what is kept, in models that were written by others too."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from kdx_prune.channels import ByImportance
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import StudentData, build, channel_groups, derive
from kdx.testing import parametrize_checks, toy_batches, toy_teacher

TASK = kdx.make("task", "classification")
IMAGES = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
DIGITS = StudentData([kdx.Batch(IMAGES, torch.arange(8) % 10)], task=TASK)


@parametrize_checks(ByImportance(importance="l1", spread="uniform"))
def test_conformance_by_norm(check) -> None:
    check()


@parametrize_checks(ByImportance(importance="distillation", spread="global"))
def test_conformance_by_distillation_loss(check) -> None:
    check()


class Shared(nn.Module):
    """A residual network with a projection in its shortcut, and a branch on the inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.one, self.norm = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.shortcut = nn.Conv2d(8, 10, 1), nn.Conv2d(6, 10, 1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.two(self.norm(self.one(x)).relu()) + self.shortcut(x)
        return self.fc(x.relu().mean((2, 3)))


def test_groups_are_those_of_torch_pruning():
    pruning = pytest.importorskip("torch_pruning")
    net, images = Shared(), torch.zeros(2, 1, 8, 8)
    ours = {
        frozenset((name.rpartition(".")[0], dim) for name, dim in group.owners if name.endswith("weight"))
        for group in channel_groups(net, images)
    }
    graph, theirs = pruning.DependencyGraph().build_dependency(net, images), set()
    names = {id(module): name for name, module in net.named_modules()}
    for layer in (net.stem, net.one, net.two):
        group = set()
        for item in graph.get_pruning_group(layer, pruning.prune_conv_out_channels, [0]):
            module = item.dep.target.module
            if id(module) in names:  # the others are operations
                reads = "in_channels" in item.dep.handler.__name__ and not isinstance(module, nn.BatchNorm2d)
                group.add((names[id(module)], int(reads)))
        theirs.add(frozenset(group))
    assert ours == theirs


@functools.cache
def taught():
    """A network in which some channels are made to matter."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    with torch.no_grad():
        net[5].weight[:, 16 * 3 :] *= 1e-4  # of the second layer the first three channels are read
        net[2].weight[3:] *= 50  # and the others have the largest filters
    return net


@pytest.mark.parametrize("importance", ["taylor", "distillation"])
def test_channels_that_nothing_depends_on_go_first_however_large_their_filters(importance):
    net, images = taught(), torch.randn(6, 1, 8, 8)
    data = StudentData([kdx.Batch(images, torch.arange(6) % 3)], task=TASK)
    student = derive(
        net, images, how=ByImportance(importance=importance, spread="global", least=0.0), params="45%", data=data
    )
    assert torch.equal(student.model[2].bias, net[2].bias[:3])
    assert student.model[0].out_channels > 2  # unequal shares
    by_norm = derive(net, images, how=ByImportance(importance="l1", spread="global"), params="45%")
    assert not set(by_norm.model[2].bias.tolist()) & set(net[2].bias[:3].tolist())


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_a_pruned_student_is_built_from_its_config_alone(name, spread, tmp_path):
    small = {"resnet": {"depth": 8}, "vit": {"dim": 16, "depth": 2}}[name]
    teacher = kdx.make("model", name, **small)
    how = ByImportance(importance="taylor", spread=spread)
    student = derive(teacher, IMAGES, how=how, flops="50%", data=DIGITS, base={"name": name, **small})
    student.save(tmp_path / "pruned.yaml")
    assert "kdx_prune" not in (tmp_path / "pruned.yaml").read_text()
    built = build(tmp_path / "pruned.yaml")
    kdx.training.load_weights(built, tmp_path / "pruned.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(built.eval()(IMAGES), student.model.eval()(IMAGES))
    teacher_cost, cost = student.costs
    assert cost.flops <= 0.5 * teacher_cost.flops


def test_a_hugging_face_encoder_is_pruned_with_its_teachers_guidance():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(**sizes, vocab_size=30, max_position_embeddings=8, num_labels=3)
    teacher = transformers.BertForSequenceClassification(config)
    inputs = {"input_ids": torch.randint(0, 30, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    data = StudentData([kdx.Batch(inputs, None)], task=TASK)
    student = derive(teacher, inputs, how=ByImportance(importance="distillation"), params="70%", data=data)
    inner = [layer.intermediate.dense.out_features for layer in student.model.bert.encoder.layer]
    assert max(inner) < 48
    assert student.model(**inputs).logits.shape == (4, 3)


def test_a_budget_nobody_can_meet_is_refused_with_the_nearest_one():
    with pytest.raises(
        StudentError, match=r"prune cannot bring .* it reaches 92,320 flops to 904,384 flops, that is 10.2%"
    ):
        derive(
            toy_teacher(),
            torch.zeros(2, 1, 8, 8),
            how={"name": "prune", "importance": "l1", "spread": "global", "least": 0.3},
            flops="0.1%",
        )


def test_layers_that_cannot_be_pruned_are_named_and_skipped_or_refused():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    images = torch.zeros(2, 1, 8, 8)
    pruned = derive(net, images, how=ByImportance(importance="l1"), params="60%")
    assert [kept.module for kept in pruned.kept] == ["1 (GroupNorm)"]
    assert pruned.model[0].out_channels == 8
    assert pruned.model[2].out_channels < 8
    with pytest.raises(StudentError, match=r"1 \(GroupNorm\): a norm over 2 groups.*unfit: skip"):
        derive(net, images, how=ByImportance(importance="l1", unfit="refuse"), params="60%")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"importance": "taylr"}, "importance must be one of l1, l2, activation, taylor, distillation; got 'taylr'"),
        ({"spread": "even"}, "spread must be one of uniform, global; got 'even'"),
        ({"unfit": "no"}, "unfit must be one of skip, refuse; got 'no'"),
        ({"least": 2}, "least must be a share between 0 and 1; got 2"),
        ({"rows": 0}, "rows must be at least 1; got 0"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        ByImportance(**options)


def test_planning_leaves_modes_gradients_and_the_random_state_alone():
    teacher = toy_teacher().train()
    teacher[2].eval()
    modes, state = [module.training for module in teacher.modules()], torch.get_rng_state()
    data = StudentData(toy_batches(1), task=TASK)
    derive(teacher, torch.zeros(2, 1, 8, 8), how=ByImportance(importance="taylor"), params="50%", data=data)
    assert [module.training for module in teacher.modules()] == modes
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(torch.get_rng_state(), state)


RECIPE = """
    data: {dataset: {name: digits}, validation: 100, labelled: 100}
    teacher: {model: {name: convnet, width: 4, stages: 2, grid: 2}, train: {epochs: 1}}
    student: {model: {name: derived, how: {name: prune, rows: 64}, flops: 50%}}
    knowledge: {kd: {name: soft-targets, weight: 0.9}}
    train: {epochs: 1}
    threads: 1
"""


@pytest.mark.filterwarnings("ignore::kdx.assistants.GapWarning", "ignore::kdx.assistants.WeakTeacherWarning")
def test_it_runs_in_a_recipe(tmp_path) -> None:
    recipe = tmp_path / "pruned.yaml"
    recipe.write_text(RECIPE)
    summary = kdx.run(recipe, folder=tmp_path / "run")
    stages = summary["stages"]
    assert stages["distilled"]["flops"] <= 0.5 * stages["teacher"]["flops"]
    model = json.loads((tmp_path / "run" / "distilled" / "model.json").read_text())
    assert "dropped" in json.dumps(model)
    assert kdx.load(tmp_path / "run").model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
