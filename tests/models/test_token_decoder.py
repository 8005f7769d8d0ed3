"""The small causal language model: what a place sees, its sizes, tied weights, what it refuses."""

import pytest
import torch

from kdx.models import TokenDecoder


def made(**options):
    torch.manual_seed(0)
    return TokenDecoder(**({"dim": 8, "heads": 2, "num_classes": 30, "input_shape": (9,)} | options)).double()


@pytest.mark.parametrize("options", [{}, {"embedding_dim": 3}, {"tied": False}, {"dropout": 0.1}])
def test_a_place_sees_those_before_it_and_itself_alone(options) -> None:
    model = made(**options).eval()
    ids = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = model(ids)
    assert whole.shape == (2, 9, 30)
    torch.testing.assert_close(model(ids[:, :5]), whole[:, :5])
    for place in range(9):
        moved = model(ids.index_fill(1, torch.tensor([place]), 0) + (torch.arange(9) == place))
        same = (moved - whole).abs().amax((0, 2)) < 1e-12
        assert same.tolist() == [True] * place + [False] * (9 - place)


def test_documents_packed_in_a_row_do_not_see_each_other() -> None:
    model = made(depth=3).eval()
    first, second = torch.randint(30, (9,), generator=torch.Generator().manual_seed(0)).split((4, 5))
    packed = model(torch.cat([first, second])[None], torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]))
    torch.testing.assert_close(packed, torch.cat([model(first[None]), model(second[None])], 1))


def test_a_smaller_table_saves_its_parameters_and_a_tied_one_is_counted_once() -> None:
    def sizes(**options):
        return sum(each.numel() for each in made(**options).parameters())

    assert sizes() - sizes(embedding_dim=3) == 30 * 5 - 2 * 8 * 3
    assert sizes(tied=False) - sizes() == 30 * 8
    model = made(embedding_dim=3)
    assert model.fc.weight is model.embedding.weight


def test_every_parameter_gets_a_gradient() -> None:
    model = made(embedding_dim=3, depth=3)
    model(torch.arange(9)[None]).square().sum().backward()
    assert all(bool(each.grad.abs().sum()) for each in model.parameters())


def test_dropout_is_for_training_alone() -> None:
    model, ids = made(dropout=0.5), torch.arange(9)[None]
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9}, "dim must be a multiple of heads; got dim=9, heads=2"),
        ({"dropout": 1.0}, "dropout must be a probability"),
        ({"embedding_dim": 0}, "embedding_dim must be 1 or more; got 0"),
        ({"input_shape": (3, 3)}, "input_shape must be"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_rows_longer_than_the_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token ids must be \[N, L\] with at most 9"):
        made()(torch.zeros(1, 10, dtype=torch.int64))
