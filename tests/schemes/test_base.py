"""Schemes: who gets gradients, who keeps its mode, what the terms are."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.errors import CaptureError, Interrupted
from kdx.hookspecs import hookimpl
from kdx.schemes.weights import Cosine, Warmup
from kdx.tasks import cross_entropy
from kdx.teachers import Frozen


def offline(net, **options) -> kdx.Offline:
    return kdx.Offline(
        net(4),
        net(6),
        task=(0.3, F.cross_entropy),
        knowledge={"kd": (0.7, kdx.SoftTargets(2.0)), "hint": (2.0, kdx.Hint(student="conv", teacher="conv"))},
        **options,
    )


class Unbuilt(kdx.Knowledge):
    """Forgets its base's constructor."""

    def __init__(self) -> None:
        self.scale = 2.0

    def forward(self, student, teacher, batch):
        return self.scale * student.logits.mean()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_offline_terms_are_weighted_and_sum_to_the_total(net, batch) -> None:
    scheme = offline(net)
    scheme.setup(batch)
    scheme.eval()
    losses = scheme(batch)
    with torch.no_grad():
        z_s, z_t = scheme.student(batch.inputs), scheme.teacher.model(batch.inputs)
        kl = (z_t / 2).softmax(1) * ((z_t / 2).log_softmax(1) - (z_s / 2).log_softmax(1))
        hint = scheme.knowledge["hint"].adapters[0](scheme.student.conv(batch.inputs))
        expected = {
            "task": 0.3 * F.cross_entropy(z_s, batch.targets),
            "kd": 0.7 * 4 * kl.sum(1).mean(),
            "hint": 2.0 * F.mse_loss(hint, scheme.teacher.model.conv(batch.inputs)),
        }
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value)
    torch.testing.assert_close(losses.total, sum(expected.values()))


def test_a_step_changes_nothing_in_the_teacher_and_draws_nothing_for_it(net, batch) -> None:
    scheme = offline(net)
    scheme.setup(batch)
    teacher = scheme.teacher.model
    before = state(teacher)
    scheme.train()
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1, weight_decay=0.1)
    scheme(batch).total.backward()
    optimizer.step()
    for name, value in teacher.state_dict().items():
        assert value.equal(before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    random = torch.get_rng_state()
    scheme.teacher(batch)
    assert torch.get_rng_state().equal(random)


def test_the_teacher_stays_in_evaluation_mode_whatever_happens_to_the_scheme(net, batch) -> None:
    scheme = offline(net)
    scheme.setup(batch)
    scheme.train()
    assert scheme.student.training
    scheme.teacher.model.train()  # somebody meddles
    first = scheme.teacher(batch).logits
    assert not scheme.teacher.model.training
    assert scheme.teacher(batch).logits.equal(first)


def test_the_teacher_is_in_no_parameter_list_and_no_checkpoint_but_follows_the_device_and_dtype(net, batch) -> None:
    scheme = offline(net)
    scheme.setup(batch)
    own = {id(parameter) for parameter in scheme.parameters()}
    assert not own & {id(parameter) for parameter in scheme.teacher.model.parameters()}
    assert not [name for name in scheme.state_dict() if name.startswith("teacher")]
    assert {name.split(".")[0] for name in scheme.state_dict()} == {"student", "knowledge"}
    scheme.double()
    assert next(scheme.teacher.model.parameters()).dtype == torch.float64


def test_a_teacher_in_train_mode_normalises_by_the_batch_and_keeps_its_buffers(net, batch) -> None:
    model = net(4)
    model.drop.p = 0.0
    before = state(model)
    captured = Frozen(model, train_mode=True)(batch)
    reference = copy.deepcopy(model).train()
    torch.testing.assert_close(captured.logits, reference(batch.inputs).detach())
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


def test_gradients_reach_the_student_and_the_adapter(net, batch) -> None:
    scheme = offline(net)
    scheme.setup(batch)
    scheme(batch).total.backward()
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or "conv.bias" in name, name  # BatchNorm cancels a bias before it


def test_the_adapter_must_exist_before_the_optimizer(net, batch) -> None:
    scheme = offline(net)
    with pytest.raises(RuntimeError, match=r"knowledge 'hint'.*scheme.setup\(batch\)"):
        scheme(batch)
    assert not scheme.ready
    before = state(scheme.student)
    scheme.train()
    scheme.setup(batch)
    assert scheme.ready
    assert scheme.student.training
    adapter = scheme.knowledge["hint"].adapters[0]
    scheme.setup(batch)
    assert scheme.knowledge["hint"].adapters[0] is adapter
    for name, value in scheme.student.state_dict().items():
        assert value.equal(before[name]), name


@pytest.mark.parametrize("weight", [0, 0.0, Warmup(to=0.0, steps=3), Cosine(start=0.0, to=0.0)], ids=repr)
def test_knowledge_that_never_weighs_anything_is_refused_by_name(net, weight) -> None:
    with pytest.raises(ValueError, match=r"'off' \(SoftTargets\) has the weight .* leave the term out .* schedule"):
        kdx.Offline(net(), net(), knowledge={"kd": kdx.SoftTargets(), "off": (weight, kdx.SoftTargets())})


def test_a_task_of_weight_zero_is_left_out(net, batch) -> None:
    scheme = kdx.Offline(net(), net(), task=(0, F.cross_entropy), knowledge={"kd": kdx.SoftTargets()})
    assert scheme(batch).terms.keys() == {"kd"}
    with pytest.raises(ValueError, match="at least one term"):
        kdx.Supervised(net(), task=None)(batch)


def test_a_batch_without_labels_gives_a_zero_task_loss(net, batch) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()
    some = torch.tensor([0, -100, 2, -100])
    torch.testing.assert_close(cross_entropy(logits, some), F.cross_entropy(logits, some))
    with pytest.raises(ValueError, match="the batch has no targets"):
        kdx.Supervised(net())(Batch(batch.inputs))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda net: kdx.Offline(m := net(), m), ValueError, "student and teacher are one module"),
        (lambda net: kdx.Offline(net(), "resnet"), TypeError, "teacher must be an nn.Module"),
        (lambda net: kdx.Offline(net(), net(), knowledge={"kd": "soft"}), TypeError, r"\['kd'\]: expected a kdx"),
        (lambda net: kdx.Offline(net(), net(), knowledge={"task": kdx.SoftTargets()}), ValueError, "not allowed"),
        (lambda net: kdx.Offline(net(), net(), task=0.5), TypeError, r"task must be fn, \(weight, fn\)"),
        (
            lambda net: kdx.Offline(net(), net(), knowledge={"h": kdx.Hint(student="convv", teacher="conv")}),
            CaptureError,
            "knowledge 'h': tap 'convv' names no module of Sequential; did you mean 'conv'",
        ),
        (lambda net: kdx.Mutual([net()]), ValueError, "at least two different modules"),
        (lambda net: kdx.Mutual([m := net(), m]), ValueError, "at least two different modules"),
        (lambda net: kdx.SoftTargets(0.0), ValueError, "temperature must be > 0"),
        (
            lambda net: kdx.Offline(net(), net(), knowledge={"own": Unbuilt()}),
            TypeError,
            r"knowledge\['own'\]: Unbuilt.__init__ has to call super\(\).__init__\(student=..., teacher=...\)",
        ),
    ],
)
def test_bad_arguments_say_what_was_expected(net, build, error, message) -> None:
    with pytest.raises(error, match=message):
        build(net)


class Gives(kdx.Knowledge):
    """The result of ``make`` on the student's logits, as a plugin might have it."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, student, teacher, batch):
        return self.make(student.logits)


@pytest.mark.parametrize(
    ("make", "came"),
    [
        (lambda z: z.square().mean(1), r"a tensor of torch.float32 with shape \[16\]"),
        (lambda z: z.mean()[None], r"a tensor of torch.float32 with shape \[1\]"),
        (lambda z: z.argmax(), r"a tensor of torch.int64 with shape \[\]"),
        (lambda z: z.mean().item(), "float"),
        (lambda z: None, "NoneType"),
        (lambda z: [z.mean(), z], "list"),
    ],
    ids=["a row each", "a vector of one", "integers", "a number without graph", "nothing", "a list"],
)
def test_a_component_that_gives_no_scalar_is_named(net, batch, make, came) -> None:
    scheme = kdx.Offline(net(), net(), knowledge={"mine": (0.5, Gives(make))})
    with pytest.raises(TypeError, match=rf"knowledge 'mine' \(Gives\): expected one number, .*got {came}$"):
        scheme(batch)
    with pytest.raises(TypeError, match=rf"term 'mine': expected one number, .*got {came}$"):
        kdx.Losses.of({"mine": make(torch.zeros(16, 3))})


def test_a_component_whose_count_is_none_is_named(net, batch) -> None:
    scheme = kdx.Offline(net(), net(), knowledge={"mine": (0.5, Gives(lambda z: (z.mean(), z)))})
    with pytest.raises(
        TypeError, match=r"knowledge 'mine' \(Gives\): its count must be a number or a 0-dim tensor, got"
    ):
        scheme(batch)


@pytest.mark.parametrize("gives", [lambda losses: losses.total, lambda losses: losses.terms, lambda losses: None])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_scheme_that_gives_no_losses_is_told_how_to_make_them(net, loader, gives, accumulate) -> None:
    class Mine(kdx.Supervised):
        def forward(self, batch):
            return gives(super().forward(batch))

    with pytest.raises(TypeError, match=r"Mine.forward must return kdx.Losses, got \w+; kdx.Losses.of\(\{name: term"):
        kdx.fit(Mine(net()), loader, epochs=1, accumulate=accumulate, device="cpu")


def test_mutual_terms_are_dml_and_the_task_is_counted_once_per_peer(net, batch) -> None:
    peers = [net(3), net(4), net(5)]
    scheme = kdx.Mutual(peers, knowledge={"kd": kdx.SoftTargets(1.0)}).eval()
    losses = scheme(batch)
    with torch.no_grad():
        logits = [peer(batch.inputs) for peer in peers]
        for i, z in enumerate(logits):
            torch.testing.assert_close(losses.terms[f"peer{i}/task"], F.cross_entropy(z, batch.targets))
            others = [F.kl_div(z.log_softmax(1), o.softmax(1), reduction="batchmean") for o in logits if o is not z]
            torch.testing.assert_close(losses.terms[f"peer{i}/kd"], sum(others) / 2)


def test_peers_exchange_no_gradient(net, batch) -> None:
    peers = [net(3), net(4)]
    scheme = kdx.Mutual(peers, knowledge={"kd": kdx.SoftTargets(1.0)})
    terms = scheme(batch).terms
    for i, other in ((0, 1), (1, 0)):
        own = terms[f"peer{i}/kd"] + terms[f"peer{i}/task"]
        grads = torch.autograd.grad(own, list(peers[other].parameters()), retain_graph=True, allow_unused=True)
        assert all(grad is None for grad in grads)
        grads = torch.autograd.grad(own, list(peers[i].parameters()), retain_graph=True)
        assert any(grad.abs().sum() > 0 for grad in grads)


def test_every_pair_of_peers_has_its_own_adapter(net, batch) -> None:
    scheme = kdx.Mutual([net(3), net(4)], knowledge={"h": kdx.Hint(student="conv", teacher="conv")})
    scheme.setup(batch)
    shapes = {name: tuple(p.shape[:2]) for name, p in scheme.named_parameters() if "adapter" in name}
    assert shapes == {
        "knowledge.0<-1.h.adapters.0.weight": (4, 3),
        "knowledge.1<-0.h.adapters.0.weight": (3, 4),
    }


def test_two_instances_share_no_state_and_copies_pickle(net, batch) -> None:
    first = offline(net)
    first.setup(batch)
    first.eval()
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        torch.testing.assert_close(other(batch).total, first(batch).total)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        assert not torch.isclose(other(batch).total, first(batch).total)


def test_batches_are_read_in_the_usual_forms(net, batch) -> None:
    scheme = kdx.Supervised(net()).eval()
    expected = scheme(batch).total
    assert scheme((batch.inputs, batch.targets)).total.equal(expected)
    assert scheme([batch.inputs, batch.targets, batch.index]).total.equal(expected)
    with pytest.raises(TypeError, match=r"a batch must be a kdx.Batch.*got Tensor"):
        scheme(batch.inputs)
    named = Batch.of({"input_ids": batch.inputs, "labels": batch.targets})
    assert named.inputs.keys() == {"input_ids"}
    assert named.rows == 16
    assert named.to("cpu").targets.equal(batch.targets)


def test_the_scheme_compiles_into_one_graph(net, batch) -> None:
    scheme = offline(net)
    scheme.setup(batch)
    scheme.eval()
    expected = scheme(batch).total
    torch.testing.assert_close(torch.compile(scheme, backend="aot_eager", fullgraph=True)(batch).total, expected)


class Follower(kdx.Teacher):
    """Writes down when it is told of epochs and steps."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int, int]] = []

    def tap(self, names) -> None:
        pass

    def forward(self, batch):
        return Captured({"logits": torch.zeros(batch.rows, 3)})

    def epoch_start(self, epoch, epochs) -> None:
        self.told.append(("epoch", epoch, epochs))

    def step_end(self, step, total) -> None:
        self.told.append(("step", step, total))


@pytest.mark.parametrize("stop", [None, 3, 6], ids=["unbroken", "stopped amid an epoch", "stopped at its last step"])
def test_a_teacher_is_told_of_every_epoch_and_step_once(net, loader, tmp_path, stop) -> None:
    class Stop:
        @hookimpl
        def kdx_step_end(self, step) -> None:
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(**options) -> list[tuple[str, int, int]]:
        torch.manual_seed(0)
        teacher = Follower()
        scheme = kdx.Offline(net(), teacher, knowledge={"kd": kdx.SoftTargets()})
        with nullcontext() if stop is None or "resume" in options else pytest.raises(Interrupted):
            kdx.fit(scheme, loader, epochs=2, folder=tmp_path, device="cpu", **options)
        return teacher.told

    told = run(observers=[Stop()])
    if stop is not None:
        told += run(resume=True)
    steps = [("step", step, 12) for step in range(1, 13)]
    assert told == [("epoch", 0, 2), *steps[:6], ("epoch", 1, 2), *steps[6:]]
