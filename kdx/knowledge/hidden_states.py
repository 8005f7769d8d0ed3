"""Hidden states: a transformer's layers regress the teacher's, token by token (TinyBERT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import Captured
from kdx.features.adapters import convolution, trained
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.tokens import TokenLayers, token_features
from kdx.tap import TapNames, TapOptions

__all__ = ["HiddenLayers", "HiddenStates", "hidden_states"]


@in_full_precision
def hidden_states(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of every token's vector.

    Args:
        student: ``[N, L, C]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.

    Returns:
        ``[N, L]``, with gradients to both.

    Example:
        >>> import torch
        >>> hidden_states(torch.zeros(1, 2, 3), torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 3.0]]]))
        tensor([[1., 3.]])
    """
    check_same_shape(student, teacher)
    return (student - teacher).square().mean(2)


class HiddenLayers(TokenLayers):
    """Base of knowledge that compares the vectors of tokens, after a learned linear map where widths differ.

    A subclass writes :meth:`distance`.

    Args:
        student: taps of hidden states ``[N, L, C]``, from shallow to deep.
        teacher: taps of hidden states ``[N, L, C']``.
        shared: one linear map for all pairs of layers; False: one for each.
        mask: see :class:`kdx.knowledge.TokenLayers`.
        padding: see there.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        shared: bool = True,
        mask: str | None = None,
        padding: int | None = None,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(
            student=student, teacher=teacher, mask=mask, padding=padding, pairing=pairing, seed=seed, **features
        )
        self.shared = bool(shared)
        self.adapters = nn.ModuleList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        for number, (student, teacher) in enumerate(pairs):
            s, t = token_features(student, teacher)
            sizes = s.shape[2], t.shape[2]
            if number == 0:
                first = sizes
            if self.shared and sizes != first:
                raise ValueError(
                    f"{type(self).__name__}: shared=True has one linear map for all layers, from {first[0]} to "
                    f"{first[1]} channels, and {student.where} has {sizes[0]} and {teacher.where} {sizes[1]}; pair "
                    "layers of one width, or write shared=False for a map for each pair"
                )
            if number == 0 or not self.shared:
                same = sizes[0] == sizes[1]
                self.adapters.append(nn.Identity() if same else trained(convolution(*sizes, 0), s))

    @override
    def operands(
        self, student: Captured, teacher: Captured, layers: tuple[int, int]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        s, t = self.layers(student, teacher)
        source, target = token_features(s[layers[0]].full(), t[layers[1]].full())
        return {"hidden": source}, {"hidden": target}

    @override
    def per_token(
        self, pair: int, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], real: Tensor | None
    ) -> Tensor:
        adapter = self.adapters[0 if self.shared else pair]
        return self.distance(adapter(student["hidden"]), teacher["hidden"])

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of every token, ``[N, L]``, of vectors ``[N, L, C]`` of one width."""
        raise NotImplementedError


class HiddenStates(HiddenLayers):
    """Mean squared error between hidden states of two transformers, token by token: the hidden loss of TinyBERT.

    Loss: ``mean_c (H_s W - H_t)^2``, averaged over the tokens of the batch that are no padding (of one text the paper's
    ``MSE(H_s W, H_t)``), summed over the pairs of layers; no ``T^2``. ``W`` is a linear map without bias, learned with
    the student, where the teacher is wider; with equal widths there is none. Gradients reach the student and ``W``.
    The authors' code takes padding into the mean too: ``mask="all"``.

    The paper maps student layer m to teacher layer ``m * M_t / M_s``, and the embeddings to the embeddings: tap
    ``bert.embeddings`` and ``bert.encoder.layer.*`` in both and pair them by ``pairing="relative"``.

    Args:
        student: taps of hidden states ``[N, L, C]``, from shallow to deep.
        teacher: taps of hidden states ``[N, L, C']``.
        shared: one linear map for all pairs of layers, as in the authors' code; False: one for each pair.
        mask: the item of the inputs, ``[N, L]``, that is not 0 where a token is, ``"all"`` for no padding; None: their
            ``attention_mask``, see :class:`kdx.knowledge.TokenLayers`.
        padding: the id of the padding, where the inputs are token ids alone.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: layers of different width with one shared map; inputs of token ids that do not say what is padding.

    Paper: Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, Findings of EMNLP 2020,
    https://arxiv.org/abs/1909.10351; code: https://github.com/huawei-noah/Pretrained-Language-Model.

    Example:
        >>> import torch
        >>> from kdx.batch import Batch
        >>> from kdx.capture import Captured
        >>> hidden = HiddenStates(student="layer", teacher="layer", padding=0)
        >>> s, t = Captured({"layer": torch.zeros(1, 3, 4)}), Captured({"layer": torch.arange(12.0).view(1, 3, 4)})
        >>> hidden.setup(s, t)
        >>> hidden(s, t, Batch(torch.tensor([[7, 0, 0]]))).value.item()  # the first token alone: (0 + 1 + 4 + 9) / 4
        3.5
    """

    @override
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return hidden_states(student, teacher)
