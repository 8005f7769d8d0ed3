"""``fit``: one loop for every scheme."""

from __future__ import annotations

import functools
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn

from kdx import rng
from kdx.batch import Batch
from kdx.blame import explaining_lost_workers
from kdx.datasets.batch_maker import BatchMaker
from kdx.errors import Interrupted, PluginError, StopRun
from kdx.losses import Losses
from kdx.modes import keeping_modes
from kdx.observers.dispatch import Observers, check_observers, progress_beside
from kdx.observers.metrics_log import MetricsLog
from kdx.observers.tensorboard import TensorBoardLog
from kdx.ranges import check_number, check_whole
from kdx.schemes.apart import check_apart
from kdx.schemes.base import Scheme
from kdx.schemes.weights import Balanced
from kdx.training.accumulation import accumulate_gradient
from kdx.training.batches import ResumableLoader, count_batches, first_batch, made_of, pass_size, windows
from kdx.training.dataset_facts import dataset_labels, dataset_size
from kdx.training.evaluation import Metrics
from kdx.training.gradients import term_gradients
from kdx.training.in_order import InOrder
from kdx.training.incoming import Incoming
from kdx.training.kept import saying_what_is_kept
from kdx.training.modes import put_into_training, resting_modules
from kdx.training.optim import OptimizerSpec, ScheduleSpec, check_complete
from kdx.training.phases import Phases
from kdx.training.prequential import Prequential
from kdx.training.ranks import writing_alone
from kdx.training.restoring import restoring
from kdx.training.run import Run, StageInfo
from kdx.training.signals import Signals
from kdx.training.state import State
from kdx.training.tokenizers import check_tokenizers
from kdx.training.tryout import Tryout
from kdx.training.unchanged import UnchangedTeachers

__all__ = ["fit", "run_length", "set_up"]


@writing_alone
@saying_what_is_kept
@restoring
@explaining_lost_workers()
def fit(
    scheme: Scheme,
    train: Iterable[Any],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    evaluate: Iterable[Any] | None = None,
    metrics: Metrics | None = None,
    select: str | None = None,
    optimizer: OptimizerSpec = "AdamW",
    schedule: ScheduleSpec = "CosineAnnealingLR",
    accumulate: int = 1,
    clip_grad_norm: float | None = None,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
    device: Literal["auto", "cpu"] = "auto",
    compile: bool = False,
    unused_parameters: bool = False,
    seed: int | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    log_every: int = 50,
    log_gradients: int | None = None,
    prequential: bool = False,
    keep_eval: bool | None = None,
    progress: bool = True,
    observers: Sequence[object] = (),
    stage: StageInfo | None = None,
) -> Run:
    """Trains a scheme.

    Before the first step the first batch is tried, which leaves no trace in what follows: a term that would teach
    nothing, because no trained parameter is reached from it, is refused by name. So are probabilities where logits are
    taken, targets that the task cannot mean, inputs that are NaN, and, after one batch of ``evaluate``, metrics that
    fail and a ``select`` that is none of them. Targets of later batches are looked at where the loader gives them on
    the CPU, which waits for no device.

    Runs on Hugging Face Accelerate: one process by default, device and precision by argument. The micro-batches of
    one optimizer step weigh by the rows (labelled rows for the task) they hold, so accumulation and a short last
    batch change no mean.

    Args:
        scheme: see :class:`kdx.Scheme`.
        train: a data loader, or any iterable of batches that can be iterated once per epoch. Of a stream without end
            over a data set (:class:`kdx.datasets.SampleStream`) each pass is an epoch to the scheme and the schedule.
            A :class:`kdx.datasets.BatchMaker` makes its batches of those of a loader as the run goes on.
        epochs: passes over ``train``; 1 if neither this nor ``steps`` is given.
        steps: optimizer steps, instead of or as a limit to ``epochs``; needed if ``train`` has no length, as an endless
            stream has none, or one that changes from epoch to epoch, as that of data that still grow.
        evaluate: a loader to evaluate every student on after each epoch. For a result to be reported use a
            validation split here and the test set once, at the end, with :func:`kdx.training.evaluate`.
        metrics: see :data:`kdx.training.Metrics`. None: those of the scheme's task, as ``task.metrics`` makes them;
            accuracy over classes where the scheme has no task, or a loss of one's own.
        select: a metric of the first student, as ``"accuracy"``; at the end the weights of the epoch where it was
            best are put back into every student: highest or lowest, as its ``higher_is_better`` says.
            ``kdx.Lowest("mse")`` and ``kdx.Highest("psnr")`` say it of a metric that does not. Needs ``evaluate``.
        optimizer: see :data:`kdx.training.OptimizerSpec`.
        schedule: see :data:`kdx.training.ScheduleSpec`.
        accumulate: micro-batches per optimizer step.
        clip_grad_norm: largest norm of the gradient, or None.
        mixed_precision: ``"no"``, ``"bf16"`` or, on a GPU, ``"fp16"``.
        device: ``"auto"`` or ``"cpu"``.
        compile: runs the scheme through ``torch.compile``.
        unused_parameters: with several processes: looks in every step for parameters that no loss depends on, such as
            an auxiliary head's, instead of refusing them by name.
        seed: seeds Python, NumPy and torch first; None leaves them.
        folder: where to write ``metrics.jsonl``, TensorBoard events, checkpoints and the exported students; None
            writes nothing.
        resume: go on from the folder's newest checkpoint if there is one. On the CPU the run then ends bitwise where
            an unbroken one ends, if ``train`` gives the same batches again or keeps its place
            (:class:`kdx.training.ResumableLoader` says what does).
        checkpoint_every: steps between checkpoints, beside the one after each epoch.
        log_every: steps between logged losses.
        log_gradients: steps between measurements of every term's gradient on the students: its norm and its cosine to
            the task loss's gradient are logged as ``grad/<term>/norm`` and ``grad/<term>/cosine``. Each costs one more
            backward pass a term. Balanced weights (:class:`kdx.schemes.Balanced`) are measured at their own
            pace.
        prequential: test every batch before training on it: the accuracy of every student on what it has not seen yet
            is logged, and kept in ``run.prequential``, as ``prequential/<student>``
            (:class:`kdx.training.Prequential`).
        keep_eval: what becomes of modules of a student that are in evaluation mode when it is handed over. None: in a
            student in training mode they stay in it, so that frozen BatchNorm and dropout layers stay frozen (its
            evaluation in between changes no mode either); one that holds others and is trained is asked about. A
            student handed over wholly in evaluation mode is trained in training mode, but for normalisations with
            running statistics whose weights are frozen (``requires_grad=False``). True: all of them stay in it;
            False: none does. Afterwards every module is in the mode from before.
        progress: show how far the run is (:class:`kdx.observers.ProgressBar`): a bar on a terminal and in a notebook
            (with ``ipywidgets``), elsewhere a line per epoch; both on standard error, by the first of several
            processes. False shows nothing.
        observers: objects with methods marked by ``kdx.hookimpl``. :class:`kdx.observers.EarlyStopping` ends a run
            whose metric has stopped improving; an observer of one's own ends it by ``run.stop("why")``, or by
            ``raise kdx.StopRun("why")`` where its student is not wanted.
        stage: of the experiment that the run is part of; observers find it in ``run.stage``.

    Returns:
        The finished run: history of losses and metrics, best row, steps, seconds, fingerprints of the frozen teachers.

    Raises:
        TypeError: an observer that kdx cannot tell anything, or an argument of another type; says what to write.
        StopRun: an observer raised it; with a folder, a checkpoint is written.
        Interrupted: SIGINT or SIGTERM came; the step was finished and, with a folder, a checkpoint written.
        ValueError: a term of the scheme teaches nothing, ``select`` names no metric, or a number is out of range; the
            message says which and why.
        ComponentError: a component, a task, a metric, a model or the data failed; the message names it, its package and
            version. It is of the type of its cause too.
        KdxError: a loss is not finite; the message names the step. The last good checkpoint stays.
        RunExistsError: the folder holds checkpoints and ``resume`` was not given.
        InUseError: another process writes into the folder at this moment.
        CheckpointError: the checkpoint to resume from is damaged or belongs to another scheme, optimizer or teacher.
        TeacherChangedError: a frozen teacher is not what it was at the start; its tensors are named.
        ValueError: it cannot be known whether a part of a student is to stay in evaluation mode (``keep_eval``); a
            frozen teacher shares memory with what is trained, or what is trained was made under
            ``torch.inference_mode``.

    Example:
        >>> import torch, kdx
        >>> data = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
        >>> run = kdx.fit(kdx.Supervised(torch.nn.Linear(3, 2)), data, epochs=2, device="cpu")
        >>> run.step
        8
    """
    _begin(seed, clip_grad_norm, log_every, log_gradients, checkpoint_every)
    accelerator = _accelerator(mixed_precision, device, skips=unused_parameters or scheme.skips)
    _check(scheme, observers, compile=compile, log_gradients=log_gradients)
    resting = resting_modules(scheme, keep_eval)
    tests, rows = _tests(scheme, accelerator) if prequential else None, made_of(train)
    train, processes = _fed(scheme, train, accelerator), accelerator.num_processes
    open_ended = epochs is None and steps is not None
    epochs, total_steps = run_length(train, epochs, steps, accumulate, processes)
    where, evaluates = None if folder is None else Path(folder), evaluate is not None
    run = Run(scheme, where, epochs, total_steps, log_every, open_ended=open_ended, evaluates=evaluates)
    run.stage, run.processes = stage, processes

    scheme.to(accelerator.device)
    with rng.isolated():
        set_up(scheme, train, accelerator.device)
    frozen = UnchangedTeachers(run)
    phases = Phases(scheme, optimizer, schedule, steps=total_steps, epochs=epochs)
    engine = phases.prepare(accelerator, scheme)
    runs = torch.compile(engine) if compile else engine
    incoming = Incoming(run, train)
    loader = ResumableLoader(train, accelerator.device, processes, look=incoming.look)
    state = State(run, accelerator, phases, loader, tests)
    state.claim(resume=resume)
    watchers = Observers(observers, [*_logs(run, accelerator), *progress_beside(observers, progress)], scheme)
    prepare = functools.partial(_before_evaluate, run, watchers, rows, accelerator.device)

    if evaluate is not None:
        state.try_evaluation(evaluate, metrics, select)
    put_into_training(scheme, resting)
    start = time.perf_counter() - run.seconds
    step = functools.partial(_step, run, accelerator, phases, engine, runs, log_gradients, clip_grad_norm)
    tryout = _tryout(scheme, phases, incoming, alone=processes == 1, unused_parameters=unused_parameters)
    try:
        with Signals() as signals:
            watchers.configure(run)
            while run.goes_on or loader.resumes:
                for window in _epoch(run, loader, accumulate):
                    tryout.first(window)
                    measured = _tested(run, tests, window)
                    losses = step(window, measured)
                    tryout.later(window[0], losses)
                    if run.step == 0:
                        check_complete(phases.parameters, scheme.named_parameters())
                        frozen.check_written()
                    _end_step(run, phases, pass_ended=loader.finished_pass(len(window)))
                    run.seconds = time.perf_counter() - start
                    state.add(losses, window)
                    watchers.step_end(run, run.step, losses)
                    if signals.received or (checkpoint_every and run.step % checkpoint_every == 0):
                        state.save()
                    _obey(signals, run)
                    if run.step >= run.total_steps or run.stopped:
                        break
                row = state.end_epoch(evaluate, metrics, select, prepare)
                _end_epoch(run, loader, phases)
                watchers.epoch_end(run, row)
                run.seconds = time.perf_counter() - start
                if not run.goes_on:
                    frozen.check()  # first, so that the run is not resumed as one that has ended well
                state.save()
                _obey(signals, run)
    except (PluginError, StopRun):
        if run.step:
            state.save()  # an observer failed or ended the run, which has not failed
        raise
    else:
        state.finish(prepare)
    finally:
        accelerator.unwrap_model(engine, keep_fp32_wrapper=False)
        watchers.run_end(run)
    return run


def _logs(run: Run, accelerator: Accelerator) -> list[object]:
    return [MetricsLog(), TensorBoardLog()] if run.folder and accelerator.is_main_process else []


def _accelerator(mixed_precision: str, device: str, *, skips: bool) -> Accelerator:
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"mixed_precision must be 'no', 'bf16' or 'fp16', got {mixed_precision!r}")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device must be 'auto' or 'cpu', got {device!r}; choose a GPU with CUDA_VISIBLE_DEVICES")
    # Accelerate keeps one state per process and refuses another precision or device; runs here follow one another
    AcceleratorState._reset_state(reset_partial_state=True)
    parallel = DistributedDataParallelKwargs(find_unused_parameters=skips)
    try:
        made = Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu", kwargs_handlers=[parallel])
    except ValueError as error:
        if mixed_precision == "no":
            raise
        other = "'no'" if mixed_precision == "fp16" else "'fp16', or 'no'"
        raise ValueError(f"mixed_precision={mixed_precision!r} does not run here ({error}); take {other}") from error
    if mixed_precision == "fp16" and made.device.type == "cpu":
        raise ValueError(
            "mixed_precision='fp16' needs a GPU: on a CPU nothing would be computed in fp16; take 'bf16', which a CPU "
            "computes in, or 'no'"
        )
    return made


def _begin(
    seed: int | None, clip_grad_norm: float | None, log_every: int, log_gradients: int | None, every: int | None
) -> None:
    check_whole("log_every", log_every, least=1)
    if clip_grad_norm is not None:
        check_number("clip_grad_norm", clip_grad_norm, above=0, instead="None clips nothing")
    if log_gradients is not None:
        check_whole("log_gradients", log_gradients, least=1, instead="None measures nothing")
    if every is not None:
        check_whole("checkpoint_every", every, least=1, instead="None saves after each epoch alone")
    if seed is not None:
        set_seed(check_whole("seed", seed, least=0))


def _check(scheme: Scheme, observers: object, *, compile: bool, log_gradients: int | None) -> None:
    check_observers(observers)
    check_apart(scheme)
    if compile and (log_gradients or any(isinstance(weight, Balanced) for weight in scheme.weights.values())):
        raise ValueError(
            "gradients of single terms cannot be measured with compile=True; leave log_gradients and "
            "balanced weights, or compile=True, out"
        )


def _fed(scheme: Scheme, train: Iterable[Any], accelerator: Accelerator) -> Iterable[Any]:
    """The share of the training data of this process, as the scheme trains on it."""
    if accelerator.num_processes > 1:
        given = train.over(accelerator.prepare(train.loader)) if isinstance(train, BatchMaker) else None
        train = accelerator.prepare(train) if given is None else given
    return scheme.feed(train)


def _tryout(scheme: Scheme, phases: Phases, incoming: Incoming, *, alone: bool, unused_parameters: bool) -> Tryout:
    if len(phases) > 1 and not alone:
        raise ValueError(
            f"{type(scheme).__name__} trains its parts in turn, and data parallelism waits for gradients of all; use "
            "one process, or simultaneous updates"
        )
    whole = not alone and not unused_parameters and not scheme.skips
    forward = functools.partial(_losses, scheme, scheme)
    return Tryout(scheme, phases.phases, forward, again=alone, whole=whole, learn=incoming.learn)


def set_up(scheme: Scheme, train: Iterable[Any], device: torch.device) -> None:
    """Tells a scheme the facts of the training data, and lets it build what depends on the models' shapes.

    Raises:
        ValueError: data and models say that they are of different tokenizers.
    """
    check_tokenizers(scheme, train)
    if (samples := dataset_size(train)) is not None:
        scheme.dataset_size(samples)
    if (labels := dataset_labels(train)) is not None:
        scheme.dataset_labels(labels)
    if not scheme.ready:
        scheme.setup(Batch.of(first_batch(train)).to(device))


def run_length(
    train: Iterable[Any], epochs: int | None, steps: int | None, accumulate: int, processes: int = 1
) -> tuple[int, int]:
    """The epochs and the optimizer steps that :func:`fit` will take on ``train``, the loader of one of the processes.

    Raises:
        TypeError: a number that is no integer.
        ValueError: a number below 1, data without a batch, or data without a length and no ``steps``.
    """
    check_whole("accumulate", accumulate, least=1)
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None:
            check_whole(name, value, least=1)
    batches = count_batches(train)
    per_epoch = None if batches is None else math.ceil(batches / accumulate)
    if per_epoch == 0:
        raise ValueError("train is empty; give at least one batch")
    if per_epoch is None:
        if steps is None:
            raise ValueError("train has no length, so give steps=, the number of optimizer steps")
        rows, samples = pass_size(train, processes) or (1, accumulate)  # an epoch has a step at least
        return epochs or math.ceil(steps * accumulate * rows / samples), steps
    if epochs is None:
        epochs = math.ceil(steps / per_epoch) if steps else 1
    return epochs, min(steps or epochs * per_epoch, epochs * per_epoch)


def _check_growth(loader: ResumableLoader, run: Run) -> None:
    batches = count_batches(loader.loader)  # now that the data set has been told of the epoch
    if batches != loader.batches:
        raise ValueError(
            f"train has {batches} batches in epoch {run.epoch} and had {loader.batches} at the start; for data that "
            "grow give steps= and not epochs=, so that the length of the run is known"
        )


def _tests(scheme: Scheme, accelerator: Accelerator) -> Prequential:
    if accelerator.num_processes > 1:
        raise ValueError("prequential evaluation counts the batches of one process; run it on one, or turn it off")
    return Prequential(scheme)


def _tested(run: Run, tests: Prequential | None, window: list[Batch]) -> dict[str, float]:
    """Tests the students on what they will be trained on; returns the row of a logged step."""
    if tests is None:
        return {}
    tests.test(window)
    if not run.logs(run.step + 1):
        return {}
    row = tests.row()
    run.prequential.append({"epoch": run.epoch, "step": run.step + 1, **row})
    return row


def _epoch(run: Run, loader: ResumableLoader, accumulate: int) -> Iterator[list[Batch]]:
    """The windows of one epoch, or of what is left of it; of a stream without end all, and every pass is an epoch.

    Nothing is left where a run is resumed that stopped after its last step, before that epoch was evaluated. The scheme
    is told of the epoch and of every step first.
    """
    if not run.goes_on:
        return
    empty = not loader.resumes  # a resumed epoch may have been over
    if empty:
        run.scheme.epoch_start(run.epoch, _epochs(run))
    for window in windows(loader.epoch(run.epoch), accumulate):
        if empty and not run.open_ended:
            _check_growth(loader, run)
        empty = False
        if loader.finished_pass(accumulate, before=len(window)):
            run.scheme.epoch_start(run.epoch + loader.passes(before=len(window)), run.epochs)
        run.scheme.advance(run.step, run.total_steps)
        yield window
    if empty:
        raise ValueError(
            f"train gave no batch in epoch {run.epoch}, after {run.step} of {run.total_steps} steps; an iterator runs "
            "once: give a loader, or a stream that goes on"
            if run.step
            else "train is empty; give at least one batch"
        )


def _epochs(run: Run) -> int:
    """How many epochs the run will have; where steps alone end it, at the pace so far."""
    if not run.open_ended or run.epoch == 0:
        return run.epochs
    return math.ceil(run.total_steps * run.epoch / run.step)


def _losses(engine: Callable[..., Any], scheme: Scheme, batch: Batch, phase: str | None) -> Losses:
    losses = engine(batch) if phase is None else engine(batch, phase)
    if not isinstance(losses, Losses):
        raise TypeError(
            f"{type(scheme).__name__}.forward must return kdx.Losses, got {type(losses).__name__}; "
            "kdx.Losses.of({name: term, ...}) makes them"
        )
    return losses


def _step(
    run: Run,
    accelerator: Accelerator,
    phases: Phases,
    engine: Any,
    runs: Callable[..., Any],
    log_gradients: int | None,
    clip_grad_norm: float | None,
    window: list[Batch],
    measured: dict[str, float],
) -> Losses:
    """Takes every phase for one window; returns the losses of the step, with what was measured."""
    scheme, parts, compiled = run.scheme, [], runs is not engine
    if compiled:
        run.ledger.count(window)
    for number, phase in enumerate(phases.phases):
        named = phase.name if len(phases) > 1 else None
        forward = functools.partial(_losses, runs, scheme, phase=named)
        for _ in range(phase.steps):
            with scheme.only(phase) if named else nullcontext(), nullcontext() if compiled else run.ledger.counting():
                measure = _measuring(forward, run, log_gradients, measured)
                found = accumulate_gradient(accelerator, engine, measure, scheme, window)
            if clip_grad_norm is not None:
                accelerator.clip_grad_norm_(phase.parameters, clip_grad_norm)
            phases.step(number)
        parts.append(found)
    return Losses.joined(parts)._replace(measured=measured)


def _measuring(
    forward: Callable[[Batch], Losses], run: Run, log_gradients: int | None, measured: dict[str, float]
) -> Callable[[Batch], Losses]:
    """``forward`` that also measures each term's gradient, on the first micro-batch of a phase in which that is due."""
    scheme, step = run.scheme, run.step + 1
    changing = {name: weight for name, weight in scheme.weights.items() if not isinstance(weight, float)}
    logged = bool(log_gradients) and step % (log_gradients or 1) == 0
    balanced = any(isinstance(weight, Balanced) and run.step % weight.every == 0 for weight in changing.values())
    if not logged and not balanced:
        return forward

    done = False

    def measure(batch: Batch) -> Losses:
        nonlocal done, measured
        losses = forward(batch)
        if not done:
            done = True
            students = [parameter for student in scheme.students.values() for parameter in student.parameters()]
            found = term_gradients(losses, students)
            if balanced:
                scheme.rebalance({name: norm for name, (norm, _) in found.items()})
            for name, (norm, cosine) in found.items():
                measured |= {f"grad/{name}/norm": norm.item(), f"grad/{name}/cosine": cosine.item()}
            measured |= {f"weight/{name}": float(scheme.weight(name)) for name in changing}
        return losses

    return measure


def _end_step(run: Run, phases: Phases, *, pass_ended: bool) -> None:
    """Counts the step, tells the scheme and moves the schedules, at the end of a pass over a stream's data too."""
    run.step += 1
    run.scheme.step_end(run.step, run.total_steps)
    phases.advance("step")
    run.learning_rate = phases.learning_rate
    if pass_ended and run.step < run.total_steps:
        phases.advance("epoch")


def _end_epoch(run: Run, loader: ResumableLoader, phases: Phases) -> None:
    """Counts the epoch and moves the schedules, once it is evaluated: from before, a resumed run evaluates it again."""
    loader.epoch_end()
    phases.advance("epoch")
    run.epoch += 1


def _before_evaluate(
    run: Run, watchers: Observers, train: Iterable[Any], device: torch.device, name: str, student: nn.Module
) -> None:
    """Lets the observers prepare a student for its evaluation; its modes and the random states are put back."""
    with rng.isolated(), keeping_modes(student), InOrder(train, device, run.epoch) as batches:
        watchers.before_evaluate(run, name, student, batches)


def _obey(signals: Signals, run: Run) -> None:
    """Ends the run if a signal asked for it."""
    if not signals.received:
        return
    name = signal.Signals(signals.received).name
    where = f"stopped by {name} after step {run.step} of {run.total_steps}"
    if run.folder is None:
        raise Interrupted(f"{where}; there is no folder, so nothing was saved", signals.received)
    checkpoints = run.folder / "checkpoints"
    raise Interrupted(f"{where}; the checkpoint is in {checkpoints}, resume=True goes on from there", signals.received)
