"""Teachers answer in evaluation mode, whatever happened to their submodules, and whatever kind of module they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import kdx
from kdx.baked_modes import baked_training, bakes_mode
from kdx.batch import Batch
from kdx.datasets import View
from kdx.modes import evaluating, hold
from kdx.store import write_store
from kdx.teachers import EMA, Deeper, Ensemble, Frozen, Live, Snapshot

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    *(
        pytest.mark.filterwarnings(f"ignore:.*{what}:{kind}")  # of torch's own doing
        for what, kind in (
            ("treespec, LeafSpec", "FutureWarning"),
            ("torch.jit.*is deprecated", "DeprecationWarning"),
            ("were assigned during export", "UserWarning"),
        )
    ),
]

INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
BATCH = Batch(INPUTS, torch.arange(8) % 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)), nn.Linear(6, 3))


class OwnTrain(nn.Module):
    """Its ``train`` does something of its own, and forgets its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = net(), 0

    def train(self, mode: bool = True):
        self.training = mode
        self.calls += 1
        return self

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("make", "inside"),
    [
        (lambda: Frozen(net()), lambda t: t.model[1]),
        (lambda: Frozen(net(), dtype=torch.float32), lambda t: t.model[1][0]),
        (lambda: Frozen(OwnTrain()), lambda t: t.model.body[1]),
        (lambda: Frozen(torch.jit.script(net())), lambda t: next(m for n, m in t.model.named_modules() if n == "1")),
        (lambda: Frozen(torch.compile(net(), backend="eager")), lambda t: t.model._orig_mod[1]),
        (lambda: EMA(net()), lambda t: t.average[1]),
        (lambda: Snapshot(net()), lambda t: t.picture[1][1]),
        (lambda: Ensemble({"a": net(), "b": net()}), lambda t: t.teachers["b"].model[1]),
    ],
    ids=["frozen", "dtype", "own train", "scripted", "compiled", "ema", "snapshot", "ensemble"],
)
def test_a_part_that_was_put_into_training_mode_is_put_back(make, inside) -> None:
    teacher = make()
    expected = teacher(BATCH).logits
    state = {name: value.clone() for name, value in inside(teacher).state_dict().items()}
    inside(teacher).train()
    assert torch.equal(teacher(BATCH).logits, expected)
    assert not inside(teacher).training
    assert all(torch.equal(value, state[name]) for name, value in inside(teacher).state_dict().items())


def test_a_gradient_through_a_frozen_teacher_comes_from_evaluation_mode() -> None:
    teacher = Frozen(net())
    expected = teacher.through(BATCH).logits
    teacher.model[1].train()
    assert torch.equal(teacher.through(BATCH).logits, expected)


def test_a_teacher_in_training_mode_keeps_every_part_in_the_mode_it_has_then() -> None:
    class KeepsNorm(nn.Sequential):
        def train(self, mode: bool = True):
            super().train(mode)
            self[1].eval()
            return self

    teacher = Frozen(KeepsNorm(*net()), train_mode=True)
    for changed in (teacher.model[1], teacher.model[0]):
        changed.train(not changed.training)
    teacher(BATCH)
    assert [module.training for module in teacher.model] == [True, False, True]


def test_teachers_that_follow_or_learn_keep_the_mode_of_their_model() -> None:
    for teacher in (Live(net()), Deeper(net())):
        model = teacher.taps.model
        teacher(BATCH)
        assert all(module.training for module in model.modules())


def test_frozen_parts_inside_a_student_stay_in_evaluation_mode() -> None:
    def cnn(width: int) -> nn.Sequential:
        head = nn.Sequential(nn.Linear(width, 3), nn.Dropout(0.5))
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

    images = torch.randn(4, 1, 6, 6), torch.arange(4) % 3
    scheme = kdx.make("scheme", "simkd", cnn(4), cnn(6), student_layer="0", teacher_layer="0", classifier="3")
    scheme.setup(images)
    scheme.eval()
    expected = scheme.students["student"](images[0])
    scheme.assembled.classifier.train()
    assert torch.equal(scheme.students["student"](images[0]), expected)

    pair = nn.Module()
    pair.student, pair.assistant = net(), net()
    pair.forward = lambda x: pair.student(x) + pair.assistant(x)
    residual = kdx.make("scheme", "residual", pair, net())
    pair.student[1].train()
    before = pair.student[1][0].running_mean.clone()
    residual(BATCH)
    assert torch.equal(pair.student[1][0].running_mean, before)


def exported(model: nn.Module, *, training: bool = False, decomposed: bool = False) -> nn.Module:
    program = torch.export.export(model.train(training), (INPUTS,))
    return (program.run_decompositions() if decomposed else program).module()


def traced(model: nn.Module, *, training: bool = False) -> nn.Module:
    return torch.jit.trace(model.train(training), INPUTS, check_trace=False)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.inner(x))


GRAPHS = {
    "exported": exported,
    "decomposed": lambda model, **mode: exported(model, decomposed=True, **mode),
    "exported inside": lambda model, **mode: Holder(exported(model, **mode)),
    "traced": traced,
    "traced inside": lambda model, **mode: Holder(traced(model, **mode)),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_of_evaluation_mode_teaches_and_one_of_training_mode_is_refused(kind) -> None:
    make = GRAPHS[kind]
    expected = net().eval()(INPUTS)
    student = net()
    scheme = kdx.Offline(student, make(net()), knowledge={"kd": kdx.SoftTargets(2.0)})
    torch.testing.assert_close(scheme.teacher(BATCH).logits, expected)
    kdx.fit(scheme, [BATCH], device="cpu")
    with evaluating(scheme.teacher.model):
        pass
    with pytest.raises(
        ValueError, match=r"the teacher \(.*\) was exported or traced in training mode .*batch_norm.*eval\(\)"
    ):
        kdx.Offline(student, make(net(), training=True), knowledge={"kd": kdx.SoftTargets(2.0)})


def test_an_exported_teacher_fills_a_store_and_has_no_training_mode(tmp_path) -> None:
    data = View(torch.utils.data.TensorDataset(INPUTS, BATCH.targets))
    program = torch.export.export(net().eval(), (INPUTS,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    store = write_store(tmp_path / "store", program.module(), data, dtype="fp32")
    torch.testing.assert_close(store.read(torch.arange(8))["logits"], net().eval()(INPUTS))
    with pytest.raises(ValueError, match=r"train_mode: the teacher .* has no training mode; give the model"):
        Frozen(program.module(), train_mode=True)


def test_a_scripted_module_that_was_frozen_has_no_mode_and_teaches() -> None:
    frozen = torch.jit.freeze(torch.jit.script(net().eval()))
    assert bakes_mode(frozen)
    hold(frozen)
    torch.testing.assert_close(Frozen(frozen)(BATCH).logits, net().eval()(INPUTS))


def test_what_training_bakes_into_a_graph() -> None:
    class Functional(nn.Module):
        def __init__(self, rate: float = 0.5) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, x):
            return F.dropout(x, self.rate, self.training)

    class Attention(nn.Module):
        def forward(self, x):
            x = x[:, None]
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)

    lstm = nn.LSTM(4, 3)
    assert baked_training(fx.symbolic_trace(Functional())) == ["dropout"]
    assert baked_training(fx.symbolic_trace(Functional().eval())) == []
    assert baked_training(exported(Functional(), training=True)) == ["dropout"]
    assert baked_training(exported(Functional(0.0), training=True)) == []
    assert baked_training(exported(Attention(), training=True)) == ["scaled_dot_product_attention"]
    assert baked_training(exported(Attention())) == []
    assert baked_training(exported(lstm, training=True)) == []
    assert baked_training(torch.jit.script(net())) == []
    assert not bakes_mode(torch.jit.script(net()))
    assert not bakes_mode(fx.symbolic_trace(net()))
