"""Labelled texts in the files of Hugging Face datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kdx_text.tokens import Tokenised

__all__ = ["HFTexts"]

ENDINGS = {"parquet": "parquet", "arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json"}
"""Ending of a file -> how datasets calls its format."""


class HFTexts(Tokenised):
    """Labelled texts of Hugging Face datasets in a local folder, tokenised; nothing is downloaded.

    The folder is what ``DatasetDict.save_to_disk`` wrote, with the splits ``train`` and ``test``; or it holds the
    folders ``train`` and ``test`` of ``Dataset.save_to_disk``; or files ``train.*`` and ``test.*`` as parquet, arrow,
    csv or json.

    Args:
        split: ``"train"`` or ``"test"``.
        folder: where it is.
        tokenizer: a tokenizer's folder, or a ``tokenizer.json``.
        length: tokens per text; longer ones are cut, shorter ones padded.
        text: the column of the text.
        label: the column of the label. Classes are those of its ``ClassLabel``; of other columns the sorted labels of
            the training rows.
        test: the split that is the test, as ``"validation"`` where ``test`` has no labels.

    Raises:
        ModuleNotFoundError: datasets is not installed.
        FileNotFoundError: the folder or a split is missing.
        ValueError: a column is missing, a row has no text or no label, or the test rows have a label that the training
            rows have not.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        folder: Path,
        tokenizer: Path,
        length: int = 64,
        text: str = "text",
        label: str = "label",
        test: str = "test",
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        named = test if split == "test" else "train"
        rows = _split(Path(folder), named)
        labels = _column(rows, label, named)
        names = getattr(rows.features[label], "names", None)
        if names is None:
            known = sorted(set(labels if split == "train" else _column(_split(Path(folder), "train"), label, "train")))
            if strange := next((each for each in labels if each not in known), None):
                raise ValueError(f"{named}: label {strange!r} does not occur in the training rows, which have {known}")
            numbers, names = [known.index(each) for each in labels], [str(each) for each in known]
        else:
            numbers = labels
            if (without := next((row for row, each in enumerate(labels) if each < 0), None)) is not None:
                raise ValueError(
                    f"{named}, row {without}: its label is {labels[without]}, which is none; leave such rows out, or "
                    "name a split with labels as test="
                )
        super().__init__(
            [str(each) for each in _column(rows, text, named)], numbers, names, tokenizer=tokenizer, length=length
        )


def _split(folder: Path, split: str) -> Any:
    """The rows of a split, a ``datasets.Dataset``."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the data set hf needs datasets, which is not installed: `pip install datasets`", name="datasets"
        ) from error
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {str(folder)!r}; give a local one, nothing is downloaded")
    if (folder / split / "state.json").is_file():
        return datasets.load_from_disk(str(folder / split))
    for ending, form in ENDINGS.items():
        if (path := folder / f"{split}.{ending}").is_file():
            return datasets.load_dataset(form, data_files={split: str(path)}, split=split)
    found = sorted(path.name for path in folder.iterdir())
    raise FileNotFoundError(
        f"folder: {str(folder)!r} has no split {split!r}: neither {split}/ of save_to_disk nor {split}.parquet, "
        f".arrow, .csv, .json or .jsonl, but {', '.join(found[:10]) or 'nothing'}"
    )


def _column(rows: Any, name: str, split: str) -> list[Any]:
    """The values of a column, all there."""
    if name not in rows.column_names:
        raise ValueError(f"{split}: there is no column {name!r} among {', '.join(rows.column_names)}")
    values = list(rows[name])
    if (empty := next((row for row, value in enumerate(values) if value is None), None)) is not None:
        raise ValueError(f"{split}, row {empty}: no {name!r}; leave such rows out")
    return values
