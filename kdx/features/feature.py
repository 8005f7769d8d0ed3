"""A captured tensor together with what its axes mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from kdx.capture import Captured
from kdx.layout import Axes, Layout, UnknownLayout
from kdx.tap import Told

__all__ = ["Feature", "read_features"]

CONVENTION: dict[int, Axes] = {2: "nc", 3: "nlc", 4: "nchw", 5: "ncdhw"}
"""The layout of a tensor of which nothing was said: vectors, tokens, maps, video."""

CHOICES: dict[int, tuple[Axes, ...]] = {3: ("ncl", "nlc", "lnc"), 4: ("nchw", "nhwc"), 5: ("ncdhw", "ndhwc")}


class Feature:
    """A tensor with its layout, which tells samples, channels, places and tokens apart.

    Args:
        tensor: as a model gave it.
        layout: what its axes mean; None takes the documented one: ``[N, C]``, tokens ``[N, L, C]``, ``[N, C, H, W]``,
            ``[N, C, D, H, W]``.
        where: how messages name it.

    Raises:
        ValueError: no layout, and another number of axes than two to five.

    Example:
        >>> Feature(torch.zeros(2, 9, 16, 8), Layout("nhwc")).channels_first().shape
        torch.Size([2, 8, 9, 16])
    """

    def __init__(
        self, tensor: Tensor, layout: Layout | UnknownLayout | None = None, where: str = "the feature"
    ) -> None:
        if layout is None:
            if tensor.dim() not in CONVENTION:
                raise ValueError(
                    f"{where} has shape {list(tensor.shape)}; expected a vector [N, C], tokens [N, L, C], a map [N, C, "
                    "H, W] or video [N, C, D, H, W]: tap another layer"
                )
            layout = Layout(CONVENTION[tensor.dim()])
        self.tensor = tensor
        self.given = layout
        self.where = where

    @classmethod
    def of(cls, value: Feature | Tensor, where: str = "the feature") -> Feature:
        """A feature as it is, or a tensor laid out as documented."""
        return value if isinstance(value, Feature) else cls(value, where=where)

    @property
    def layout(self) -> Layout:
        """The layout.

        Raises:
            ValueError: nobody knows it; the message says which options tell it.
        """
        if isinstance(self.given, Layout):
            return self.given
        choices = CHOICES.get(self.tensor.dim())
        if choices is None:
            raise ValueError(
                f"{self.where} has shape {list(self.tensor.shape)} and comes from {self.given.giver}; features have "
                "two to five axes: tap another layer"
            )
        raise ValueError(
            f"{self.where} has shape {list(self.tensor.shape)} and comes from {self.given.giver}, so that it is not "
            f"known which axis holds the channels; say it: layout={choices[0]!r} or "
            f"{' or '.join(map(repr, choices[1:]))}, as an option of the component or of the tap, "
            f"kdx.Tap('name', layout={choices[0]!r}), in a recipe {{tap: name, layout: {choices[0]}}}"
        )

    @property
    def is_vector(self) -> bool:
        """Whether it has one value per channel and sample."""
        return self.layout.axes == "nc"

    @property
    def is_tokens(self) -> bool:
        """Whether it is a row of tokens."""
        return self.layout.tokens

    @property
    def channels(self) -> int:
        """Number of channels, or width of tokens and vectors."""
        return self.tensor.shape[self.layout.axes.index("c")]

    def full(self) -> Self:
        """The same in float32 (float64 stays): pooling in half precision costs more digits than a loss has."""
        return self.having(self.tensor.to(torch.promote_types(self.tensor.dtype, torch.float32)))

    def having(self, tensor: Tensor) -> Self:
        """Another tensor whose axes mean the same."""
        return type(self)(tensor, self.given, self.where)

    def batch_first(self) -> Tensor:
        """The tensor with the samples along its first axis, the other axes in the order they have.

        Raises:
            ValueError: even the first axis is open.
        """
        if isinstance(self.given, UnknownLayout):
            return self.tensor if self.given.batch_first else self.channels_first()  # which raises
        return self.tensor.transpose(0, 1) if self.given.axes == "lnc" else self.tensor

    def channels_first(self) -> Tensor:
        """``[N, C, ...]``, tokens as ``[N, C, L]``, those before the grid included."""
        axes = self.layout.axes
        if axes == "lnc":
            return self.tensor.permute(1, 2, 0)
        return self.tensor.movedim(-1, 1) if axes.endswith("c") else self.tensor

    def like(self, channels_first: Tensor) -> Feature:
        """A tensor as :meth:`channels_first` gives it, back in this feature's layout; a vector stays one."""
        if channels_first.dim() == 2:
            return Feature(channels_first, Layout("nc"), self.where)
        axes = self.layout.axes
        if axes == "lnc":
            return self.having(channels_first.permute(2, 0, 1))
        return self.having(channels_first.movedim(1, -1) if axes.endswith("c") else channels_first)

    def vector(self) -> Tensor:
        """``[N, C]``: the mean over all places; of tokens the first class token, or the mean where there is none.

        Raises:
            ValueError: tokens of which nobody said whether the first one is a class token.
        """
        if self.is_vector:
            return self.tensor
        places = self.channels_first().flatten(2)  # [N, C, L]
        if not self.is_tokens:
            return places.mean(2)
        self._check_number()
        layout = self.layout
        if layout.class_token is None and not (layout.grid and self._length == math.prod(layout.grid)):
            raise ValueError(
                f"{self.where} has shape {list(self.tensor.shape)}: one vector of its {self._length} tokens is the "
                "class token or the mean, and nobody said whether there is a class token; give class_token=1 to take "
                "the first token, or class_token=0 for the mean of all"
            )
        return places[:, :, 0] if layout.class_token else self.patches().mean(2)

    def patches(self) -> Tensor:
        """The tokens of the grid in their order ``[N, C, L]``; all tokens where nobody said how many come before."""
        self._check_number()
        return self.channels_first()[:, :, self.extra or 0 :]

    def before(self) -> Tensor:
        """The tokens before the grid, ``[N, C, E]``."""
        self._check_number()
        return self.channels_first()[:, :, : self.extra or 0]

    def map(self) -> Tensor:
        """``[N, C, *places]``: tokens on their grid, those before it left out; a vector is ``[N, C]``.

        Raises:
            ValueError: tokens whose grid nobody said, or another number of them than the grid has.
        """
        if not self.is_tokens:
            return self.channels_first()
        if self.layout.grid is None:
            raise ValueError(self.needs_grid())
        patches = self.patches()
        return patches.reshape(*patches.shape[:2], *self.layout.grid)

    @property
    def extra(self) -> int | None:
        """Number of tokens before the grid; None if it cannot be known."""
        layout = self.layout
        if layout.extra is None and layout.grid is not None and self._length == math.prod(layout.grid):
            return 0
        return layout.extra

    def needs_grid(self) -> str:
        """The message for tokens that have to be laid on a map."""
        return (
            f"{self.where} has shape {list(self.tensor.shape)}: its {self._length} tokens have to be laid on a map, "
            "and nobody said on which; give grid=(rows, columns) and, if tokens come before the grid, class_token= and "
            "registers=, as options of the component or of the tap, or tap layers with the same number of tokens"
        )

    @property
    def _length(self) -> int:
        return self.tensor.shape[self.layout.axes.index("l")]

    def _check_number(self) -> None:
        layout, length = self.layout, self._length
        if layout.grid is not None and layout.number != length:
            said = f"class_token={layout.class_token}, registers={layout.registers}"
            raise ValueError(
                f"{self.where} has shape {list(self.tensor.shape)}: grid={layout.grid} and {said} make {layout.number} "
                f"tokens, but there are {length}; give the grid of this layer and class_token= and registers= that "
                "make up the rest"
            )
        if (layout.extra or 0) >= length:
            raise ValueError(
                f"{self.where} has shape {list(self.tensor.shape)}: {layout.extra} tokens before the grid leave none "
                f"of its {length}; give class_token= and registers= of this layer"
            )


def read_features(
    captured: Captured,
    taps: Iterable[str],
    *,
    told: Told | None = None,
    who: str = "the feature",
    outputs: Mapping[str, int] | None = None,
) -> list[Feature]:
    """The features at some taps, each with its layout.

    What the module says that gave a tensor comes first, then the tap's own options, then those of the component. A
    tap's option that contradicts the module is an error; a component's options serve the taps that they fit.

    Args:
        captured: what the taps saw.
        taps: names, or :class:`kdx.Tap` with options; globs are expanded.
        told: options of the component that reads them.
        who: how messages name the component and the side, as ``"Hint: the teacher's feature"``.
        outputs: tap of outputs -> their class axis, where a task says it.

    Raises:
        ValueError: a tap's option that does not fit its tensor.
    """
    features = []
    for tap in taps:
        own = getattr(tap, "told", None) or Told()
        for name in captured.names((tap,)):
            where = f"{who} at {str(name)!r}"
            tensor = captured[name]
            known = captured.layouts.get(name) or _layout_of_outputs(tensor, (outputs or {}).get(str(name)))
            layout = resolve(tensor, known, own, told or Told(), where)
            features.append(Feature(tensor, layout, where))
    return features


def _layout_of_outputs(outputs: Tensor, class_dim: int | None) -> Layout | None:
    """The layout of outputs whose class axis a task says, where classes come first or last."""
    dims = outputs.dim()
    if class_dim is None or dims not in CHOICES:
        return None
    axis = class_dim % dims
    found = {1: CHOICES[dims][0], dims - 1: CHOICES[dims][1]}.get(axis)
    return None if found is None else Layout(found)


def resolve(
    tensor: Tensor, known: Layout | UnknownLayout | None, own: Told, told: Told, where: str
) -> Layout | UnknownLayout | None:
    """The layout of a tensor by what its module, its tap and its component say; None leaves the documented one."""
    dims = tensor.dim()
    if own.layout is not None:
        if len(own.layout) != dims:
            raise ValueError(
                f"{where} has shape {list(tensor.shape)}, but its tap says layout={own.layout!r}, which has "
                f"{len(own.layout)} axes; give a layout of {dims}"
            )
        if isinstance(known, Layout) and known.axes != own.layout:
            raise ValueError(
                f"{where} has shape {list(tensor.shape)}: its tap says layout={own.layout!r}, but the module that gave "
                f"it says {known.axes!r}; leave the option out"
            )
        found: Layout | UnknownLayout | None = known if isinstance(known, Layout) else Layout(own.layout)
    elif not isinstance(known, Layout) and told.layout is not None and len(told.layout) == dims:
        found = Layout(told.layout)
    else:
        found = known
    if found is None and dims in CONVENTION:
        found = Layout(CONVENTION[dims])
    if not isinstance(found, Layout):
        return found
    names = ("grid", "class_token", "registers")
    if not found.tokens:
        if given := [name for name in names if getattr(own, name) is not None]:
            raise ValueError(
                f"{where} has shape {list(tensor.shape)} and layout {found.axes!r}, but its tap has {given[0]}=, which "
                "is about tokens; leave it out, or give layout='nlc'"
            )
        return found
    parts = {
        name: next(
            (value for value in (getattr(own, name), getattr(found, name), getattr(told, name)) if value is not None),
            None,
        )
        for name in names
    }
    return Layout(found.axes, parts["grid"], parts["class_token"], parts["registers"])
