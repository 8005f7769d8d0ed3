"""The sections of a recipe, which describe an experiment, and their values checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from kdx.ref import Ref
from kdx.stage import Term
from kdx.weights_file import WeightsFile

__all__ = ["HeadSection", "Recipe"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Augment(_Section):
    """Random shifts and mirror images, or a list of transforms by name; teacher and student see the same view.

    ``augment: [{name: random-crop, padding: 4}, random-flip]`` is the list, applied in its order.
    """

    shift: int = Field(2, ge=0, description="largest shift in pixels")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirror image")
    transforms: Annotated[list[Ref], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description="transforms by name instead of shift and flip; a list in place of this section stands for it",
    )

    @model_validator(mode="before")
    @classmethod
    def _list_alone(cls, value: Any) -> Any:
        return {"transforms": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_kind(self) -> Augment:
        if self.transforms is not None and self.model_fields_set - {"transforms"}:
            raise ValueError("give shift and flip, or a list of transforms, which has random-crop and random-flip")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        values = handler(self)
        transforms = values.pop("transforms")
        return values if transforms is None else transforms


class ViewSection(_Section):
    """A further view of each row, for a teacher or peers to see beside the student's inputs.

    With ``augment`` it differs in the training rows alone. With ``dataset`` or ``size`` it is another input in every
    row: a teacher of this view is trained and evaluated on it too, on targets of its own where the data set has them.
    """

    augment: Augment | None = Field(None, description="its own augmentation; null: the rows as they are")
    dataset: Ref | None = Field(
        None, description="a data set of the same samples in the same order, as another tokenisation of the texts"
    )
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="height and width that the images are resized to"
    )

    @property
    def own_inputs(self) -> bool:
        """Whether its inputs are others than the student's in every row."""
        return self.dataset is not None or self.size is not None

    @model_validator(mode="after")
    def _one_kind(self) -> ViewSection:
        if sum(each is not None for each in (self.augment, self.dataset, self.size)) > 1:
            raise ValueError("a view has augment, dataset or size, and not several of them; name two views")
        return self


class StreamSection(_Section):
    """The training rows as a stream without end: every row once in random order, then again with other views."""

    phases: int = Field(1, ge=1, description="over which the classes arrive in the first pass; 1: all from the start")


class Data(_Section):
    """The data and how they are split. The test set is touched once, after training."""

    dataset: Ref = Field(description="a data set; it is built with split='train' and split='test'")
    validation: int = Field(500, ge=1, description="training rows held out to select the epoch")
    labelled: int | None = Field(None, ge=1, description="rows whose label the student sees; the others are unlabelled")
    balanced: bool = Field(
        True, description="labelled rows are equally many of every class; false: in the classes' shares of the rows"
    )
    novel_classes: list[int] = Field(
        [], description="classes that are never trained on; the test rows are then all rows of these classes"
    )
    augment: Augment | None = Field(None, description="augmentation of the training rows")
    views: dict[str, ViewSection] = Field(
        {}, description="further views of the training rows by name, for teacher.view and views that a scheme names"
    )
    stream: StreamSection | None = Field(None, description="train on a stream; each batch tests first (prequential)")
    workers: int = Field(0, ge=0, description="loader processes")


class Train(_Section):
    """The training of one stage; the options of kdx.fit."""

    epochs: int = Field(10, ge=1, description="passes over the training rows")
    steps: int | None = Field(None, ge=1, description="optimizer steps instead of epochs; needed with data.stream")
    batch_size: int = Field(64, ge=1, description="rows per micro-batch")
    optimizer: Ref = Field(Ref("AdamW"), description="an optimizer of torch.optim with its options")
    schedule: Ref | None = Field(
        Ref("CosineAnnealingLR"), description="a schedule of torch.optim.lr_scheduler with its options"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    clip_grad_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="precision of the forward pass")
    unused_parameters: bool = Field(
        False, description="with several processes: allow parameters that no loss depends on, as an auxiliary head's"
    )
    log_gradients: int | None = Field(None, ge=1, description="steps between measured gradients of every term")


class StoreSection(_Section):
    """The teacher's outputs, written once before the student is taught; the student's epochs then run no teacher."""

    what: str | list[str] = Field(
        "logits", description="logits, hidden[:TAP], topk:K[@T], sample:K[@T], features:TAP, or several"
    )
    views: int = Field(4, ge=1, description="augmented views of each sample, which come again after as many epochs")
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="of the stored numbers")
    folder: Path | None = Field(None, description="where; store/ in the folder of the teacher's stage by default")
    batch_size: int = Field(256, ge=1, description="rows in one pass of the teacher")

    @property
    def contents(self) -> list[str]:
        """The outputs that are stored, as a list."""
        return [self.what] if isinstance(self.what, str) else self.what

    @model_validator(mode="after")
    def _known(self) -> StoreSection:
        from kdx.store.contents import parse  # imports torch

        parse(self.contents)
        return self


class HeadSection(_Section):
    """Where a model's last hidden states and its output layer are, as :class:`kdx.Head` says them."""

    hidden: str = Field(description="tap of the hidden states that enter the layer")
    layer: str = Field(description="name of the output layer, an nn.Linear")
    scale: float = Field(1.0, description="what the model multiplies its logits by")
    softcap: float | None = Field(None, gt=0, description="c where it caps them: c tanh(z / c)")


class Teacher(_Section):
    """The teacher: a model that is trained on all labels, or loaded, or one that is built with trained weights; or a
    store of what it said, without a model.
    """

    model: Ref | None = Field(
        None, description="a model; null: store.folder holds what it said, as imported by kdx cache"
    )
    train: Train | None = Field(
        Train(),
        description="how it is trained if no weights are given; none: not at all, for the model brings its own weights",
    )
    weights: WeightsFile | None = Field(
        None,
        description="a file to load instead of training: a path, or {file, entry, prefix, rename, skip} if its names "
        "are not the model's",
    )
    batch_statistics: bool = Field(
        False, description="normalise by the batch while teaching, as OFD wants it; its running statistics stay"
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(None, description="what it computes in while teaching")
    device: Literal["cpu"] | None = Field(None, description="cpu keeps a large teacher off the GPU while teaching")
    view: str | None = Field(
        None,
        description="which of data.views it sees while teaching; null: what the student sees. It is trained on "
        "it where the view has a dataset or size, else on data.augment",
    )
    head: Literal["auto"] | HeadSection | None = Field(
        None,
        description="hold its logits as hidden states and this output layer, and never make them whole: auto for a "
        "causal model of Hugging Face, else {hidden, layer}",
    )
    reuse: bool = Field(
        True,
        description="take the weights of a teacher trained before from .teachers beside the run's folder, if its "
        "model, data, training and seed are these, and leave them there for others",
    )
    store: StoreSection | None = Field(None, description="teach from stored outputs instead of running the teacher")

    @property
    def trained_here(self) -> bool:
        """Whether it is trained, and not loaded or taken as it is built."""
        return self.train is not None and self.weights is None

    @field_validator("train", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_serializer("train", mode="wrap")
    def _as_written(self, value: Train | None, handler: SerializerFunctionWrapHandler) -> Any:
        return "none" if value is None else handler(value)

    @model_validator(mode="before")
    @classmethod
    def _in_one_view(cls, value: Any) -> Any:
        if (
            isinstance(value, Mapping)
            and value.get("model") is None
            and isinstance(store := value.get("store"), Mapping)
        ):
            return {**value, "store": {"views": 1, **store}}  # what was imported has one
        return value

    @model_validator(mode="after")
    def _storable(self) -> Teacher:
        if self.model is None:
            if self.store is None or self.store.folder is None:
                raise ValueError("model: give the teacher's model, or in store.folder a store of what it said")
            if self.weights is not None or self.train not in (None, Train()):
                raise ValueError("model: without one there is nothing to train or to load; remove train and weights")
        if self.store and self.batch_statistics:
            raise ValueError(
                "store: with batch_statistics the teacher's outputs depend on the batch, so they cannot be stored by "
                "sample; remove one of the two"
            )
        if self.store and self.view:
            raise ValueError(
                "store: stored outputs are those for what the student sees, so that it can be checked; remove view, or "
                "run the teacher without a store"
            )
        if self.store and self.head and not any(text.partition(":")[0] == "hidden" for text in self.store.contents):
            raise ValueError(
                "store: stored logits are read as they were written, and head says that none are made; remove head, or "
                "store the hidden states (what: hidden)"
            )
        if self.store and (self.dtype or self.device):
            raise ValueError(
                "store: the teacher runs only while its store is written, as it was trained; remove dtype and device "
                "(store.dtype is that of the stored numbers)"
            )
        return self


class Student(_Section):
    """The student."""

    model: Ref = Field(description="a model")
    weights: WeightsFile | None = Field(
        None, description="a file that it starts from, alone and distilled, as teacher.weights"
    )
    head: Literal["auto"] | HeadSection | None = Field(
        None,
        description="hold its logits as hidden states and this output layer, and never make them whole: auto for a "
        "causal model of Hugging Face, else {hidden, layer}",
    )


class Task(_Section):
    """The task of the models. The same loss trains the teacher and the student alone, there with weight 1.

    Every further key is an option of the task.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field("classification", description="a task")
    weight: float = Field(1.0, ge=0, description="its weight beside the knowledge; 0 distils without labels")

    @property
    def ref(self) -> Ref:
        """The task alone, without its weight."""
        return Ref(self.name, **(self.model_extra or {}))


class Recipe(_Section):
    """One experiment."""

    summary: str = Field("", description="one line for the list of recipes")
    seed: int = Field(0, ge=0, description="seeds the split, the labels kept, the weights and the order of the data")
    device: Literal["auto", "cpu"] = Field("auto", description="where it runs")
    threads: int | None = Field(None, ge=1, description="CPU threads; None leaves torch's choice")
    data: Data = Field(description="the data")
    teacher: Teacher | None = Field(None, description="the teacher, if the scheme has one")
    teachers: dict[str, Teacher] = Field({}, description="further teachers by name, if the scheme has several")
    student: Student = Field(description="the student")
    peers: Annotated[int, Field(ge=2)] | Annotated[list[Ref], Field(min_length=1)] | None = Field(
        None, description="how many peers there are, all as the student (2), or the models of the other peers"
    )
    scheme: Ref = Field(Ref("offline"), description="who teaches whom")
    assistant: Ref | None = Field(None, description="plans stages between the teacher and the student")
    task: Task = Field(Task(), description="what the student is for")
    knowledge: dict[str, Term] = Field({}, description="what is transferred, by name of the term")
    train: Train = Field(Train(), description="how the student is trained, alone and distilled")
    controls: list[Literal["alone", "label-smoothing", "untrained", "direct"]] = Field(
        ["alone"],
        description="for comparison: the student trained on its labels alone, the same with labels smoothed by 0.1, "
        "not trained at all, or taught by the teacher without the assistant",
    )

    @model_validator(mode="before")
    @classmethod
    def _null_sections(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            given = {key: item for key, item in value.items() if not (key == "knowledge" and item is None)}
            if isinstance(terms := given.get("knowledge"), Mapping):  # null takes a term out of a named recipe
                given["knowledge"] = {name: term for name, term in terms.items() if term is not None}
            return given
        return value

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        if self.data.stream and self.train.steps is None:
            raise ValueError("train.steps: a stream has no end, so give the number of steps")
        if self.data.stream and any(teacher.store for teacher in self.all_teachers.values()):
            raise ValueError("teacher.store: the views of a stream never come again; remove it or data.stream")
        if "direct" in self.controls and self.assistant is None:
            raise ValueError("controls: direct compares with an assistant, and there is none")
        if taken := sorted({"teacher", "distilled", *self.controls} & self.teachers.keys()):
            raise ValueError(f"teachers: the name {taken[0]!r} is taken; give the teacher another one")
        stores = [teacher.store for teacher in self.all_teachers.values() if teacher.store]
        if len({store.views for store in stores}) > 1:
            raise ValueError("teachers: the students see one view at a time; give all stores the same number of views")
        redrawn = all(text.startswith("sample:") for store in stores for text in store.contents)
        if stores and stores[0].views > 1 and self.data.augment is None and not redrawn:
            raise ValueError(
                "teacher.store.views: without data.augment all views are alike; set views: 1, or augment the data"
            )
        return self

    @property
    def told_teachers(self) -> list[str]:
        """The teachers that are a store without a model."""
        return [name for name, section in self.all_teachers.items() if section.model is None]

    @property
    def all_teachers(self) -> dict[str, Teacher]:
        """Name -> section, the one of section ``teacher`` first."""
        return ({"teacher": self.teacher} if self.teacher else {}) | self.teachers

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain values."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        """The resolved recipe as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.dump()))
