"""Cosine: hidden states point where the teacher's do (DistilBERT)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.hidden_states import HiddenLayers

__all__ = ["Cosine", "cosine"]


@in_full_precision
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos`` of the angle between two vectors.

    Args:
        student: ``[..., C]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.

    Returns:
        ``[...]``, in [0, 2], with gradients to both; a vector of zeros has cosine 0 with every other, and no gradient.

    Example:
        >>> import torch
        >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[-2.0, 0.0], [1.0, 0.0]]))
        tensor([2., 1.])
    """
    check_same_shape(student, teacher)
    return 1 - (_unit(student) * _unit(teacher)).sum(-1)


def _unit(x: Tensor) -> Tensor:
    largest = x.detach().abs().amax(-1, keepdim=True)  # the square of a small or large number is 0 or inf
    x = x / largest.masked_fill(largest == 0, 1)
    square = (x * x).sum(-1, keepdim=True)
    return x / square.masked_fill(square == 0, 1).sqrt() * (largest > 0).to(x.dtype)


class Cosine(HiddenLayers):
    """One minus the cosine between hidden states of student and teacher, token by token: that of DistilBERT.

    Loss: ``1 - cos(H_s, H_t)``, averaged over the tokens of the batch that are no padding, as the authors' code does,
    summed over the pairs of layers; no ``T^2``. It compares directions: a positive factor of a token's vector changes
    nothing. Gradients reach the student; one of another width than the teacher gets a linear map without bias, learned
    with it (the paper's student is as wide as its teacher and needs none). Maps are compared pixel by
    pixel, vectors as they are; a vector of zeros adds 1 and gets no gradient.

    DistilBERT takes the last hidden states, and the weights 5 for soft targets with T 2, 2 for masked language
    modelling and 1 for this.

    Args:
        student: taps of hidden states ``[N, L, C]``, maps or vectors, from shallow to deep.
        teacher: taps of hidden states.
        shared: one linear map for all pairs of layers; False: one for each pair.
        mask: the item of the inputs, ``[N, L]``, that is not 0 where a token is, ``"all"`` for no padding; None: their
            ``attention_mask``, see :class:`kdx.knowledge.TokenLayers`.
        padding: the id of the padding, where the inputs are token ids alone.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Sanh et al., DistilBERT, a distilled version of BERT, NeurIPS workshop 2019,
    https://arxiv.org/abs/1910.01108; code: https://github.com/huggingface/transformers (research projects).

    Example:
        >>> import torch
        >>> from kdx.batch import Batch
        >>> from kdx.capture import Captured
        >>> tokens, mask = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]])
        >>> s, t = Captured({"layer": tokens}), Captured({"layer": tokens.flip(2)})
        >>> last = Cosine(student="layer", teacher="layer")
        >>> last.setup(s, t)
        >>> last(s, t, Batch({"attention_mask": mask})).value.item()
        1.0
    """

    @override
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cosine(student, teacher)
