"""Taps: names, globs, inputs, items, wrappers, errors."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdx.capture import Captured, Taps, hooks_removed
from kdx.errors import CaptureError


class Blocks(nn.Module):
    """Three levels of names, a module that runs twice, one that never runs, one that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(OrderedDict(a=nn.Linear(4, 4), act=nn.ReLU())) for _ in range(2))
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.shared(self.shared(x))
        x = self.lstm(x[:, None])[0][:, 0]
        return self.fc(x)


X = torch.randn(5, 4)


def test_a_tap_gives_the_output_of_its_module_with_its_graph() -> None:
    model = Blocks()
    captured = Taps(model, ["blocks.0.a", "logits"])(X)
    torch.testing.assert_close(captured["blocks.0.a"], model.blocks[0].a(X))
    torch.testing.assert_close(captured.logits, model(X))
    assert captured["blocks.0.a"].grad_fn is not None
    assert not captured.detach().logits.requires_grad


def test_a_glob_matches_one_level_and_keeps_the_order_of_the_model() -> None:
    captured = Taps(Blocks(), ["blocks.*", "blocks.*.a", "**.act"])(X)
    assert captured.patterns["blocks.*"] == ("blocks.0", "blocks.1")
    assert captured.patterns["**.act"] == ("blocks.0.act", "blocks.1.act")
    first, second = captured.select("blocks.*")
    torch.testing.assert_close(first, captured["blocks.0"])
    torch.testing.assert_close(second, captured["blocks.1"])


def test_the_input_of_a_module_can_be_tapped() -> None:
    model = Blocks()
    captured = Taps(model, ["fc:input"])(X)
    torch.testing.assert_close(model.fc(captured["fc:input"]), captured.logits)


def test_items_of_tuples_are_chosen_and_the_first_tensor_is_the_default() -> None:
    captured = Taps(Blocks(), ["lstm", "lstm[0]"])(X)
    torch.testing.assert_close(captured["lstm"], captured["lstm[0]"])
    with pytest.raises(CaptureError, match="gave tuple, not a tensor; name the part"):
        Taps(Blocks(), ["lstm[1]"])(X)
    with pytest.raises(CaptureError, match="without item 7"):
        Taps(Blocks(), ["lstm[7]"])(X)


def test_a_module_that_runs_twice_gives_its_last_output() -> None:
    model = Blocks()
    captured = Taps(model, ["shared", "lstm:input"])(X)
    torch.testing.assert_close(captured["shared"], captured["lstm:input"][:, 0])


def test_a_wrong_name_lists_the_near_ones() -> None:
    with pytest.raises(CaptureError, match=r"'blocks.0.b' names no module of Blocks; did you mean 'blocks.0.a'"):
        Taps(Blocks(), ["blocks.0.b"])
    with pytest.raises(CaptureError, match="names no module"):
        Taps(Blocks(), ["layers.*"])
    with pytest.raises(CaptureError, match="is no tap"):
        Taps(Blocks(), ["fc:output"])


def test_a_tap_that_never_fires_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"\['unused'\] did not run"):
        Taps(Blocks(), ["unused"])(X)


def test_a_tap_that_was_not_asked_for_is_an_error() -> None:
    captured = Taps(Blocks(), ["blocks.0.a"])(X)
    with pytest.raises(CaptureError, match=r"'blocks\.0\.act' was not captured; did you mean 'blocks.0.a'"):
        captured["blocks.0.act"]


def hooked(model: nn.Module) -> list[str]:
    """Modules with a hook on them."""
    return [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def test_hooks_are_on_the_model_only_while_a_call_runs() -> None:
    model = Blocks()
    taps = Taps(model, ["fc", "fc:input", "blocks.0.a"])
    assert hooked(model) == []
    seen = []
    model.blocks[0].act.register_forward_hook(lambda *_: seen.append(hooked(model)))
    for _ in range(2):
        taps(X)
    assert seen == [["blocks.0.a", "blocks.0.act", "fc"]] * 2
    assert hooked(model) == ["blocks.0.act"]


def test_hooks_come_off_where_the_model_fails() -> None:
    model = Blocks()
    with pytest.raises(RuntimeError):
        Taps(model, ["fc"])(torch.ones(2, 99))
    assert hooked(model) == []


def test_a_compiled_call_that_breaks_its_graph_captures_every_time_and_lets_go_when_told() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            body = self.body(x)
            torch._dynamo.graph_break()
            return self.fc(body)

    model = Broken()
    taps = Taps(model, ["body", "fc:input"])

    def step(x):
        captured = taps(x)
        return captured["body"].sum() + captured["fc:input"].sum() + captured.logits.sum()

    with hooks_removed(), torch.no_grad():
        compiled = torch.compile(step, backend="eager")
        for scale in (1.0, 2.0, 3.0):
            torch.testing.assert_close(compiled(scale * X), step(scale * X))
        assert hooked(model) == ["body", "fc"]
    assert hooked(model) == []
    torch.testing.assert_close(step(X), model(X).sum() + 2 * model.body(X).sum())


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda x: x, None),
        (lambda x: {"logits": x}, None),
        (lambda x: SimpleNamespace(logits=x), None),
        (lambda x: (x, None), lambda result: result[0]),
    ],
    ids=["tensor", "mapping", "object", "output="],
)
def test_logits_are_found_in_what_models_return(wrap, output) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return wrap(self.fc(x))

    captured = Taps(Model(), output=output)(X)
    assert captured.logits.shape == (5, 2)


def test_a_model_without_logits_names_the_way_out() -> None:
    class Model(nn.Module):
        def forward(self, x):
            return (x, x)

    with pytest.raises(CaptureError, match="pass output="):
        Taps(Model())(X)


def test_inputs_may_be_mappings_or_tuples() -> None:
    class Model(nn.Module):
        def forward(self, a, b):
            return a - b

    taps = Taps(Model())
    assert taps({"b": X, "a": 2 * X}).logits.equal(X)
    assert taps((2 * X, X)).logits.equal(X)


def test_names_are_those_of_the_plain_model_under_wrappers() -> None:
    wrapped = nn.DataParallel(Blocks())
    assert "fc" in Taps(wrapped, ["fc"])(X)


def test_a_tap_after_compile_raises_and_one_before_fires() -> None:
    compiled = torch.compile(Blocks(), backend="eager")
    with pytest.raises(CaptureError, match=r"after torch\.compile"):
        Taps(compiled, ["fc"])
    assert Taps(compiled)(X).logits.shape == (5, 2)

    model = nn.Sequential(OrderedDict(body=nn.Linear(4, 4), act=nn.ReLU(), fc=nn.Linear(4, 2)))
    taps = Taps(model, ["body"])

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x):
            captured = taps(x)
            return captured["body"].sum() + captured.logits.sum()

    expected = Step()(X)
    torch.testing.assert_close(torch.compile(Step(), backend="eager", fullgraph=True)(X), expected)


def test_copies_and_pickles_capture_their_own_model() -> None:
    taps = Taps(Blocks(), ["fc"])
    for other in (copy.deepcopy(taps), pickle.loads(pickle.dumps(taps))):
        with torch.no_grad():
            other.model.fc.weight.zero_()
            other.model.fc.bias.fill_(3.0)
        assert other(X)["fc"].eq(3).all()
        assert not taps(X)["fc"].eq(3).any()


def test_captured_select_takes_plain_names() -> None:
    captured = Captured({"a": X})
    assert captured.select(("a",)) == [X]


@pytest.mark.parametrize("tap", ["0", "1:input"])
def test_a_tap_that_an_operation_in_place_overwrites_is_an_error(tap: str) -> None:
    def net(inplace: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 2))

    with pytest.raises(CaptureError, match=f"taps \\['{tap}'\\] were overwritten.*inplace=False"):
        Taps(net(True), (tap,))(torch.randn(8, 3))
    assert (Taps(net(False), (tap,))(torch.randn(8, 3))[tap] < 0).any()
    assert (Taps(net(True), ("1",))(torch.randn(8, 3))["1"] >= 0).all()
    with torch.inference_mode():
        assert Taps(net(False), (tap,))(torch.randn(8, 3))[tap].shape == (8, 4)
