"""A teacher with a paraphraser: what a layer of it says, in the fewer channels that an autoencoder found."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import LOGITS, Captured, Output, Taps
from kdx.features.adapters import to_map
from kdx.features.feature import read_features
from kdx.features.paraphraser import Paraphraser
from kdx.ranges import check_number, check_whole
from kdx.ref import Ref, RefLike
from kdx.registry import default_plugins
from kdx.tap import TapName

__all__ = ["Paraphrased"]


class Paraphrased(nn.Module):
    """A trained teacher and the paraphraser of one of its layers, as one model that gives the teacher's logits.

    The tap ``paraphraser`` is the factor ``[N, round(rate * channels), H, W]`` that :class:`kdx.knowledge.FT` compares;
    the teacher's own taps are under ``teacher.``. The scheme ``paraphrase`` trains the paraphraser, and only that::

        paraphrased = Paraphrased(teacher, "layer3", channels=64)
        kdx.fit(kdx.schemes.Paraphrase(paraphrased), loader, epochs=5)
        factors = {"ft": (500.0, kdx.knowledge.FT(student="layer3"))}
        kdx.fit(kdx.Offline(student, paraphrased, knowledge=factors), loader, epochs=...)

    Args:
        teacher: a trained model, or one by name as a recipe writes it.
        layer: tap of the layer that is paraphrased: a map, or tokens on a grid; the authors take the last one.
        channels: of that layer.
        rate: share of the channels that the factor has; 0.5 as the authors have it.
        teacher_output: see :class:`kdx.Taps`.
        num_classes: number of logits, for a teacher by name.
        input_shape: shape of a sample, for a teacher by name.

    Raises:
        CaptureError: the teacher has no such layer.
        ValueError: a rate that leaves no channel; when called, a layer with other channels.

    Paper: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977.

    Example:
        >>> import torch
        >>> both = Paraphrased(Ref("convnet", width=4, stages=2), "stage2", channels=8)
        >>> x = torch.randn(2, 1, 28, 28)
        >>> torch.equal(both.eval()(x), both.teacher(x)), both.factor(both.taps(x)).shape
        (True, torch.Size([2, 4, 14, 14]))
    """

    def __init__(
        self,
        teacher: nn.Module | RefLike,
        layer: TapName,
        *,
        channels: int,
        rate: float = 0.5,
        teacher_output: Output = None,
        num_classes: int = 10,
        input_shape: tuple[int, ...] = (1, 28, 28),
    ) -> None:
        super().__init__()
        channels = check_whole("channels", channels, least=1)
        factors = round(check_number("rate", rate, above=0) * channels)
        if factors < 1:
            raise ValueError(
                f"rate: {rate} of {channels} channels leaves no factor; give a rate of 1 / channels or more"
            )
        if isinstance(teacher, nn.Module):
            model = teacher
        else:
            shape = {"num_classes": num_classes, "input_shape": input_shape}
            model = default_plugins().make("model", Ref.of(teacher, "teacher"), **shape)
        self.teacher: nn.Module = model
        self.layer = layer
        self.paraphraser = Paraphraser(channels, factors)
        self.taps = Taps(model, (LOGITS, layer), output=teacher_output)

    def feature(self, captured: Captured) -> Tensor:
        """The map ``[N, channels, H, W]`` of the layer in a pass of :attr:`taps`."""
        (given,) = read_features(captured, (self.layer,), who="the paraphrased feature")
        found = to_map(given)
        if found.dim() != 4 or found.shape[1] != self.paraphraser.channels:
            raise ValueError(
                f"{given.where} is a map of shape {list(found.shape)}, and [N, {self.paraphraser.channels}, H, W] was "
                f"expected; give channels={found.shape[1]}, or tap a layer with maps"
            )
        return found.to(next(self.paraphraser.parameters()).dtype)

    def factor(self, captured: Captured) -> Tensor:
        """The factor ``[N, factors, H, W]`` of the layer in a pass of :attr:`taps`."""
        factor: Tensor = self.paraphraser(self.feature(captured))
        return factor

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The teacher's logits for its inputs; the factor is made on the way, for the tap ``paraphraser``."""
        captured = self.taps(kwargs or args)
        self.factor(captured)
        return captured.logits
