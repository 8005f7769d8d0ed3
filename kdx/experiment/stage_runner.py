"""One stage of an experiment: its fit and its result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from kdx.analysis.cost import measure_cost
from kdx.artifact import Artifact, FinishedStudent
from kdx.experiment.assembly import Assembly
from kdx.experiment.continuations import continuations
from kdx.experiment.finishing import ROLES, finalise, measure
from kdx.experiment.plan import train_of
from kdx.experiment.quality import Quality
from kdx.experiment.recipe import Train
from kdx.experiment.run_folder import RunFolder
from kdx.experiment.teacher_cache import Entry, TeacherCache
from kdx.observers.dispatch import Observers
from kdx.schemes.base import Scheme
from kdx.stage import Stage, Structure
from kdx.store.fingerprint import teacher_hash
from kdx.training import evaluation
from kdx.training.checkpoint import export_weights
from kdx.training.loop import fit
from kdx.training.ranks import agreed, is_first
from kdx.training.run import Run, StageInfo
from kdx.training.weights import load_weights

__all__ = ["StageRunner"]


class StageRunner:
    """Runs the stages of one experiment.

    Args:
        assembly: builds what a stage trains.
        folder: of the run; every stage has one in it.
        cache: where trained teachers are kept for other runs.
        observers: see :func:`kdx.fit`.
        notify: called with a sentence for the user when something happens.
        name: of the recipe.
        test: whether the test rows are read; see :class:`kdx.experiment.experiment.Experiment`.
    """

    def __init__(
        self,
        assembly: Assembly,
        folder: RunFolder,
        cache: TeacherCache,
        observers: Sequence[object] = (),
        notify: Callable[[str], object] = lambda _: None,
        name: str = "recipe",
        *,
        test: bool = True,
    ) -> None:
        self.name = name
        self.test = test
        self.assembly = assembly
        self.folder = folder
        self.cache = cache
        self.observers = list(observers)
        self.notify = notify
        self.recipe = assembly.recipe

    def run(self, stage: Stage) -> dict[str, Any]:
        """Runs one stage, or reads its result if it is finished.

        Raises:
            StopRun: an observer stopped it, now or before.
        """
        if self.folder.finished(stage.name):
            return self.folder.checked(stage.name)
        self.folder.check_not_stopped(stage.name)
        self.folder.begin(stage.name)
        cpu = self.recipe.device == "cpu"
        if is_first(cpu=cpu):
            self.assembly.ref(stage.name)  # a structure is made by the first process alone; the others read it
        agreed(None, cpu=cpu)
        data, model = self.assembly.data_of(stage.name), self.assembly.ref(stage.name)
        task = self.assembly.task_for(stage.name)
        set_seed(self.recipe.seed + stage.seed)
        scheme = self.assembly.scheme(stage)
        name, student = next(iter(scheme.students.items()))
        weights = self.folder.of(stage.name) / f"{name}.safetensors"
        result: dict[str, Any] = {"role": stage.role, "teachers": list(stage.teachers), "model": model.name}
        result |= self._train(stage, scheme, weights)
        if is_first(cpu=cpu):
            export_weights(student, weights, self.assembly.described(stage.name, self.name).metadata())
            for other in list(self.assembly.models(stage.name))[1:]:
                described = self.assembly.described(f"{stage.name}:{other}", self.name)
                place = self.folder.of(stage.name) / f"{other}.safetensors"
                export_weights(scheme.students[other], place, described.metadata())
        finished = FinishedStudent(
            stage.name,
            stage.role,
            self.folder.of(stage.name),
            self.assembly.example_of(stage.name),
            task,
            functools.partial(self.assembly.batches, stage=stage.name),
        )
        artifacts: list[Artifact] = []
        if stage.role in ROLES and is_first(cpu=cpu):
            observers = Observers(self.observers, scheme=scheme)
            artifacts = finalise(finished, student, self.assembly.ref(stage.name), observers)
        output = evaluation.output_for(scheme, name, task.metrics)
        splits: dict[str, Any] = {"validation": data.validation} | ({"test": data.test} if self.test else {})
        for split, rows in splits.items():
            loader = data.evaluation(rows)
            result[split] = evaluation.evaluate(student, loader, metrics=task.metrics, output=output)
        result.setdefault("test", {})
        loaders = {split: functools.partial(data.evaluation, rows) for split, rows in splits.items()}
        result["artifacts"] = {each.name: measure(each, finished, student, loaders) for each in artifacts}
        if len(scheme.students) > 1 and self.test:
            loader = data.evaluation(data.test)
            result["students"] = {
                peer: evaluation.evaluate(
                    each,
                    loader,
                    metrics=task.metrics,
                    output=evaluation.output_for(scheme, peer, task.metrics),
                )
                for peer, each in scheme.students.items()
            }
        if len(scheme.students) > 1:
            result["models"] = self._handed_on(stage, scheme, data.evaluation(data.validation))
        result |= measure_cost(student, self.assembly.example_of(stage.name)).as_dict()
        result |= {"weights": f"{stage.name}/{name}.safetensors"}
        if self.test and task.responses.shift and is_first(cpu=cpu):
            result["continuations"] = continuations(student, data.test)
        if is_first(cpu=cpu):
            result = self.folder.finish(stage.name, result, [path for each in artifacts for path in each.files])
        return agreed(result, cpu=cpu)

    def _handed_on(self, stage: Stage, scheme: Scheme, validation: Iterable[Any]) -> dict[str, Any]:
        """The models that later stages may take as ``stage:model``: what they are built from, their weights and
        metrics.
        """
        metrics = self.assembly.task_for(stage.name).metrics
        return {
            name: {
                "model": model.as_dict(),
                "weights": f"{stage.name}/{name}.safetensors",
                "validation": evaluation.evaluate(
                    scheme.students[name],
                    validation,
                    metrics=metrics,
                    output=evaluation.output_for(scheme, name, metrics),
                ),
            }
            for name, model in self.assembly.models(stage.name).items()
        }

    def _train(self, stage: Stage, scheme: Scheme, weights: Path) -> dict[str, Any]:
        """Trains or loads the stage's model and leaves its weights in the folder."""
        student = next(iter(scheme.students.values()))
        section = self.recipe.all_teachers.get(stage.name) if stage.role == "teacher" else None
        if section and not section.trained_here:
            if section.weights:
                load_weights(student, section.weights)
            export_weights(student, weights)
            return {"loaded": str(section.weights or "with the model")}
        if stage.role == "untrained":
            export_weights(student, weights)
            return {}
        if section and section.reuse:
            kept = self.cache.entry(
                stage,
                self.recipe,
                self.assembly.data_of(stage.name),
                self.assembly.plugins,
                model=self.assembly.ref(stage.name),
                begins=teacher_hash(student) if isinstance(stage.model, Structure) else None,
            )
            if kept:
                return self._reuse(kept, stage, scheme, weights)
            self.notify(f"{stage.name}: not kept for other runs, for some of its code is in no file")
        return self._result(self._fit(stage, scheme), stage)

    def _reuse(self, kept: Entry, stage: Stage, scheme: Scheme, weights: Path) -> dict[str, Any]:
        """Takes a teacher from the cache, or trains it and keeps it there. The first process decides for all."""
        cpu, student = self.recipe.device == "cpu", next(iter(scheme.students.values()))
        first = is_first(cpu=cpu)

        def notify(message: str) -> None:
            self.notify(f"{stage.name}: {message}")

        with kept.found(student, notify) if first else nullcontext() as found:
            if found:
                export_weights(student, weights)
                notify(f"trained before with the same model, data, training and seed; from {found}")
            if place := agreed(found, cpu=cpu):
                if not first:
                    load_weights(student, weights)
                return {"reused": str(place)}
            run = self._fit(stage, scheme)
            if first:
                kept.save(student, notify)
        return self._result(run, stage)

    def _result(self, run: Run, stage: Stage) -> dict[str, Any]:
        """The report of a trained stage about its training."""
        result: dict[str, Any] = {
            "seconds": run.seconds,
            "steps": run.step,
            "epoch": (run.best or {}).get("epoch"),
            "compute": run.compute.as_dict(),
        }
        if run.teachers:
            result["fingerprints"] = run.teachers
        if self.recipe.data.stream:
            # the newest of each; none in a stage that stopped before its first log
            ends = {key: value for row in run.prequential for key, value in row.items() if key.endswith("/so_far")}
            result["prequential"] = {key.split("/")[1]: value for key, value in ends.items()}
            if ends:
                shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in result["prequential"].items())
                self.notify(f"{stage.name}: accuracy on each batch before training on it: {shown}")
        return result

    def _fit(self, stage: Stage, scheme: Scheme) -> Run:
        train, data = train_of(stage, self.recipe), self.assembly.data_of(stage.name)
        task = self.assembly.task_for(stage.name)
        return fit(
            scheme,
            self.assembly.training(stage, scheme),
            epochs=None if train.steps else train.epochs,
            steps=train.steps,
            prequential=self.recipe.data.stream is not None,
            evaluate=data.evaluation(data.validation),
            metrics=task.metrics,
            select=Quality.of(task).select if stage.select else None,
            optimizer=train.optimizer,
            schedule=train.schedule,
            accumulate=train.accumulate,
            clip_grad_norm=train.clip_grad_norm,
            mixed_precision=train.mixed_precision,
            log_gradients=train.log_gradients,
            unused_parameters=train.unused_parameters,
            device=self.recipe.device,
            folder=self.folder.of(stage.name),
            resume=True,
            checkpoint_every=self._checkpoint_every(train),
            progress=False,  # an experiment shows its own
            observers=self.observers,
            stage=StageInfo(stage.name, stage.role, stage.teachers, self.name, self.folder.folder),
        )

    def _checkpoint_every(self, train: Train) -> int | None:
        """Steps between checkpoints on a stream: an epoch of other data, and a tenth of the stage at most."""
        if self.recipe.data.stream is None or train.steps is None:
            return None  # one after each epoch
        epoch = math.ceil(len(self.assembly.data.all) / (train.batch_size * train.accumulate))
        return min(epoch, math.ceil(train.steps / 10))
