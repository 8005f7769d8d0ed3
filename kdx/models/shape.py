"""The checks that all models make on their sizes."""

from __future__ import annotations

__all__ = ["check_positive", "check_shape"]


def check_positive(**sizes: int) -> None:
    """Raise ValueError, naming the argument, unless every size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more; got {size}")


def check_shape(input_shape: tuple[int, int, int], num_classes: int, *, smallest: int = 1) -> None:
    """Check what every model is told about its data.

    Args:
        input_shape: channels, height and width of an image.
        num_classes: number of outputs, at least 1.
        smallest: the smallest height and width the model can work on.

    Raises:
        ValueError: names the argument, what it must be and what it is.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (channels, height, width), each 1 or more; got {tuple(input_shape)}")
    if min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape must be at least {smallest} pixels high and wide for this model; got {tuple(input_shape)}: "
            "take fewer stages or larger images"
        )
    check_positive(num_classes=num_classes)
