"""The checks that all models make on their sizes."""

from __future__ import annotations

__all__ = ["check_positive", "check_series", "check_shape", "check_tokens"]


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


def check_series(input_shape: tuple[int, ...], num_classes: int, *, smallest: int = 1) -> None:
    """Check what a model of series is told about its data.

    Args:
        input_shape: channels and length of a series.
        num_classes: number of outputs, at least 1.
        smallest: the smallest length the model can work on.

    Raises:
        ValueError: names the argument, what it must be and what it is.
    """
    if len(input_shape) != 2 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (channels, length), each 1 or more; got {tuple(input_shape)}")
    if input_shape[1] < smallest:
        raise ValueError(
            f"input_shape must be at least {smallest} values long for this model; got {tuple(input_shape)}: "
            "take fewer stages or longer series"
        )
    check_positive(num_classes=num_classes)


def check_tokens(input_shape: tuple[int, ...], num_classes: int, vocabulary: int, padding: int) -> None:
    """Check what a model of token ids is told about its data.

    Args:
        input_shape: the length of a row, one number.
        num_classes: number of outputs, at least 1.
        vocabulary: number of token ids, at least 1.
        padding: the id of the padding, one of them.

    Raises:
        ValueError: names the argument, what it must be and what it is.
    """
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise ValueError(f"input_shape must be (length,), 1 or more tokens; got {tuple(input_shape)}")
    check_positive(num_classes=num_classes, vocabulary=vocabulary)
    if not 0 <= padding < vocabulary:
        raise ValueError(f"padding must be a token id, 0 .. {vocabulary - 1}; got {padding}")
