"""Models of token ids: padding changes nothing, taps, gradients, errors."""

import pytest
import torch

from kdx.models import EmbeddingBag, TokenConv, TokenTransformer


def bag(**options):
    return EmbeddingBag(8, **({"vocabulary": 30, "num_classes": 3, "input_shape": (9,)} | options))


def conv(**options):
    return TokenConv(**({"width": 8, "depth": 2, "vocabulary": 30, "num_classes": 3, "input_shape": (9,)} | options))


def transformer(**options):
    return TokenTransformer(**({"dim": 8, "vocabulary": 30, "num_classes": 3, "input_shape": (9,)} | options))


MODELS = [bag, conv, transformer]
TAGGERS = [conv, transformer]


def made(model, **options):
    torch.manual_seed(0)
    return model(**options)


def ids(padding=0):
    """Four rows of 9 tokens, of which 9, 5, 1 and 3 are no padding."""
    rows = torch.randint(1, 30, (4, 9), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((9, 5, 1, 3)):
        rows[row, length:] = padding
    return rows


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_padding_changes_nothing(model, training):
    net = made(model).train(training)
    whole = net(ids())
    for row, length in enumerate((9, 5, 1, 3)):
        torch.testing.assert_close(net(ids()[row : row + 1, :length]), whole[row : row + 1])


@pytest.mark.parametrize("model", MODELS)
def test_the_vector_of_the_padding_plays_no_part(model):
    net = made(model, padding=4).eval()
    table = net.bag if model is bag else net.embedding
    rows = ids(padding=4)
    before = net(rows)
    with torch.no_grad():
        table.weight[4] += 1
    torch.testing.assert_close(net(rows), before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", TAGGERS)
def test_the_tags_of_a_row_do_not_depend_on_its_padding(model, training):
    net = made(model, per_token=True).train(training)
    whole = net(ids())
    assert whole.shape == (4, 9, 3)
    for row, length in enumerate((9, 5, 1, 3)):
        torch.testing.assert_close(net(ids()[row : row + 1, :length])[0], whole[row, :length])


@pytest.mark.parametrize("options", [{}, {"per_token": True}])
@pytest.mark.parametrize("model", TAGGERS)
def test_a_row_of_padding_alone_is_finite_and_so_are_its_gradients(model, options):
    net = made(model, **options)
    rows = ids()
    rows[1] = 0
    out = net(rows)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert bag()(rows).isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_gets_a_gradient(model):
    for options in [{}, {"per_token": True}] if model in TAGGERS else [{}]:
        net = made(model, **options)
        out = net(ids())
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad.abs().max() > 0, name


def test_the_bag_does_not_see_the_order_and_the_others_do():
    rows = ids()[:1]
    for model, sees in ((bag, False), (conv, True), (transformer, True)):
        net = made(model).eval()
        assert torch.allclose(net(rows), net(rows.flip(1)), atol=1e-6) is not sees


def test_a_tag_of_the_convolutions_depends_on_its_neighbours_and_of_the_transformer_on_all():
    rows = ids()[:1]
    other = rows.clone()
    other[0, 0] = rows[0, 0] % 29 + 1
    for model, reach in ((conv, 3), (transformer, 9)):  # two convolutions of three tokens
        net = made(model, per_token=True).eval()
        changed = ((net(rows) - net(other)).abs().amax(2) > 1e-6)[0]
        assert changed.tolist() == [k < reach for k in range(9)]


def test_the_taps_have_the_documented_shapes():
    for net, shapes in (
        (bag(), {"bag": (8,), "hidden": (8,), "fc": (3,)}),
        (conv(), {"embedding": (9, 8), "convs.0": (8, 9), "convs.1": (8, 9), "pooled": (8,), "fc": (3,)}),
        (conv(per_token=True), {"embedding": (9, 8), "convs.1": (8, 9), "fc": (9, 3)}),
        (transformer(), {"embedding": (9, 8), "blocks.1": (9, 8), "norm": (9, 8), "pooled": (8,), "fc": (3,)}),
        (transformer(per_token=True), {"blocks.0": (9, 8), "norm": (9, 8), "fc": (9, 3)}),
    ):
        seen = {}
        for name in shapes:
            net.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name, seen=seen: seen.update({name: tuple(out.shape[1:])})
            )
        net(ids())
        assert seen == shapes


@pytest.mark.parametrize("model", MODELS)
def test_models_compile_without_graph_breaks(model):
    net = made(model).eval()
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids()), net(ids()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be 1 or more; got 0"),
        ({"padding": 30}, r"padding must be a token id, 0 .. 29; got 30"),
        ({"input_shape": (1, 28, 28)}, r"input_shape must be \(length,\).*got \(1, 28, 28\)"),
        ({"num_classes": 0}, "num_classes must be 1 or more; got 0"),
    ],
)
def test_wrong_facts_of_the_data_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv(kernel=2), "kernel must be odd.*got 2"),
        (lambda: conv(depth=0), "depth must be 1 or more; got 0"),
        (lambda: transformer(dim=10), "dim must be a multiple of heads; got dim=10, heads=4"),
        (lambda: transformer(dropout=1.0), "dropout.*got 1.0"),
        (lambda: transformer()(torch.ones(2, 10, dtype=torch.int64)), r"at most 9, as input_shape says; got \[2, 10\]"),
    ],
)
def test_wrong_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
