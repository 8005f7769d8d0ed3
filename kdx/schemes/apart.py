"""Checks that frozen teachers and trained models share no memory, and that what is trained can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from kdx.teachers import Teacher

__all__ = ["check_apart", "shared_memory", "unchanging_teachers"]

_SHOWN = 3
_ADAPTED = "; for a student with adapters on the teacher itself give kdx.teachers.Frozen(student, adapter='off')"


def unchanging_teachers(scheme: nn.Module) -> dict[str, nn.Module]:
    """Name -> model of every teacher in a scheme that must not change (:attr:`kdx.teachers.Teacher.unchanging`).

    A name is the last part of the teacher's path in the scheme, as ``teacher``, or the name that an ensemble gave it;
    the whole path where two would have one name.
    """
    return {name: model for name, (_, model) in _unchanging(scheme).items()}


def _unchanging(scheme: nn.Module) -> dict[str, tuple[Teacher, nn.Module]]:
    """Name -> such a teacher and its model."""
    found = {
        path: (part, model)
        for path, part in scheme.named_modules()
        if isinstance(part, Teacher) and (model := part.unchanging) is not None
    }
    ends = [path.rpartition(".")[2] for path in found]
    return {path if ends.count(end) > 1 else end: each for (path, each), end in zip(found.items(), ends, strict=True)}


def check_apart(scheme: nn.Module) -> None:
    """Checks that no frozen teacher shares memory with what a scheme trains, and that what it trains can be trained.

    Memory is shared by one tensor in both, by tied weights, and by views of one storage that overlap. A parameter that
    is frozen in the student too (``requires_grad=False``) may be shared; a buffer may not, as a forward pass in
    training mode writes into it. A module that holds parameters may not be in both, frozen or not: to be a teacher's it
    is put into evaluation mode, and the student would train in it. A teacher that is the student without its adapters
    (:attr:`kdx.teachers.Teacher.inside_student`) shares on purpose and sees to it itself.

    Args:
        scheme: with its students as submodules.

    Raises:
        ValueError: a teacher shares memory or modules with a trained model, or a parameter or buffer that training
            writes into was made under ``torch.inference_mode``. The message names the tensors on both sides.
    """
    trained = [*((name, p) for name, p in scheme.named_parameters() if p.requires_grad), *scheme.named_buffers()]
    if made := [name for name, tensor in trained if tensor.is_inference()]:
        raise ValueError(
            f"{_listed(made)} of {type(scheme).__name__} were made under torch.inference_mode and cannot be trained; "
            "build and load the model outside of it, or pass copy.deepcopy(model)"
        )
    for name, (teacher, model) in _unchanging(scheme).items():
        if teacher.inside_student:
            continue
        frozen = [*model.named_parameters(), *model.named_buffers()]
        if shared := shared_memory(trained, frozen):
            owner = type(scheme).__name__
            pairs = _listed([f"its {theirs!r} is {ours!r} of {owner}" for ours, theirs in shared])
            raise ValueError(
                f"teacher {name!r} shares memory with what is trained, so that training would change it: {pairs}. Give "
                f"copy.deepcopy(teacher) as the teacher, made before the student is built from it{_ADAPTED}"
            )
        if modules := _shared_modules(scheme, model):
            owner = type(scheme).__name__
            pairs = _listed([f"its {theirs!r} is {ours!r} of {owner}" for ours, theirs in modules])
            raise ValueError(
                f"teacher {name!r} shares modules with what is trained, which would be in evaluation mode for the "
                f"teacher and stay in it for the student: {pairs}. Give copy.deepcopy(teacher) as the teacher, or let "
                f"the student have modules of its own that share the frozen parameters alone{_ADAPTED}"
            )


def shared_memory(ours: Iterable[tuple[str, Tensor]], theirs: Iterable[tuple[str, Tensor]]) -> list[tuple[str, str]]:
    """Pairs of names, of ours and of theirs, of tensors whose memory overlaps, in the order of ours."""
    spans = [(*span, place, name) for place, (name, tensor) in enumerate(ours) for span in _spans(tensor)]
    spans += [(*span, -1, name) for name, tensor in theirs for span in _spans(tensor)]
    found: list[tuple[int, str, str]] = []
    reaching: list[tuple[int, int, int, str]] = []
    for span in sorted(spans):
        reaching = [other for other in reaching if other[1] > span[0]]
        for other in reaching:
            if (span[2] < 0) != (other[2] < 0):
                mine, yours = max(span, other, key=_place), min(span, other, key=_place)
                found.append((mine[2], mine[3], yours[3]))
        reaching.append(span)
    return [(mine, yours) for _, mine, yours in sorted(found)]


def _shared_modules(scheme: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names, of a scheme's and of a teacher's, of the modules with parameters that are in both."""
    ours = {id(module): name for name, module in scheme.named_modules() if any(True for _ in module.parameters())}
    found = [(ours[id(each)], name) for name, each in teacher.named_modules() if id(each) in ours]
    return [pair for pair in found if not any(_inside(pair[0], other[0]) for other in found)]


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _place(span: tuple[int, int, int, str]) -> int:
    return span[2]


def _spans(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """The bytes between the first and the last element of a tensor; nothing for one without memory of its own."""
    try:
        start = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor subclass that wraps others
        return
    if start and tensor.numel():
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        yield start, start + (last + 1) * tensor.element_size()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
