"""The progress of a run: a bar where one can move, else lines; to whom it is shown, and what it costs."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import warnings

import pytest
import torch
from accelerate import PartialState
from rich.console import Console

import kdx
from kdx.hookspecs import hookimpl
from kdx.observers import progress
from kdx.observers.progress import ProgressBar


class Screen(io.StringIO):
    """A terminal of one's own."""

    def isatty(self) -> bool:
        return True


def fit(net, loader, **options):
    return kdx.fit(kdx.Supervised(net()), loader, epochs=2, device="cpu", **options)


def test_without_a_terminal_there_is_a_line_per_epoch_on_standard_error(net, loader, tmp_path, capsys) -> None:
    run = fit(net, loader, evaluate=loader, folder=tmp_path / "mine")
    out, err = capsys.readouterr()
    last = run.history[-1]
    assert out == ""
    first, *_, line = err.splitlines()
    assert err.count("\n") == 3
    assert first == "mine: 12 steps in 2 epochs"
    assert line.startswith(
        f"  epoch 2/2, step 12: loss {last['train/loss']:.3f}, accuracy {last['student/accuracy']:.3f}, "
    )


def test_the_terms_are_shown_where_there_are_several_and_the_students_by_name(net, loader, capsys) -> None:
    peers = kdx.Mutual([net(), net()], knowledge={"kd": kdx.SoftTargets()})
    kdx.fit(peers, loader, steps=2, evaluate=loader, device="cpu")
    line = capsys.readouterr().err.splitlines()[-1]
    assert "peer0/kd " in line
    assert "peer1/accuracy " in line


@pytest.mark.parametrize(
    "options", [{"progress": False}, {"observers": [ProgressBar(Console(file=io.StringIO()))]}], ids=["off", "own"]
)
def test_it_is_switched_off_and_never_shown_twice(net, loader, capsys, options) -> None:
    fit(net, loader, **options)
    assert capsys.readouterr() == ("", "")


def test_other_processes_show_nothing(net, loader, capsys, monkeypatch) -> None:
    monkeypatch.setattr(PartialState, "is_main_process", False)
    screen = Screen()
    fit(net, loader, observers=[ProgressBar(Console(file=screen, force_terminal=True), verbose=True)])
    assert screen.getvalue() == ""


def test_a_bar_moves_on_a_terminal_and_reads_losses_where_they_are_logged(net, loader, monkeypatch) -> None:
    screen, read = Screen(), []
    real = torch.Tensor.item
    bar = ProgressBar(Console(file=screen, force_terminal=True, width=120))
    step_end = bar.kdx_step_end

    class Counts:
        """Counts what the bar reads, and nobody else."""

        kdx_configure, kdx_run_end, kdx_epoch_end = bar.kdx_configure, bar.kdx_run_end, bar.kdx_epoch_end

        @hookimpl
        def kdx_step_end(self, run, step, losses) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(torch.Tensor, "item", lambda value: read.append(step) or real(value))
                step_end(run, step, losses)

    fit(net, loader, progress=False, observers=[Counts()], log_every=5, evaluate=loader)
    assert read == [5, 10, 12]
    text = screen.getvalue()
    assert "12/12" in text
    assert "epoch 2/2  task" in text
    assert "accuracy" in text
    assert "  epoch 1/2, step" not in text  # no lines beside the bar


def test_what_a_script_prints_into_a_file_stays_there_while_a_bar_moves(net, loader, capsys) -> None:
    class Prints:
        @hookimpl
        def kdx_epoch_end(self, run) -> None:
            print(f"mine {run.epoch}")

    screen = Screen()
    fit(net, loader, observers=[ProgressBar(Console(file=screen, force_terminal=True)), Prints()])
    assert capsys.readouterr().out == "mine 1\nmine 2\n"
    assert "mine" not in screen.getvalue()


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_without_widgets_gets_lines_and_no_warnings(net, loader, monkeypatch, widgets) -> None:
    console = Console(file=io.StringIO(), force_jupyter=True)
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets and name == "ipywidgets" else None)
    assert progress._has_bar(console) == widgets
    if not widgets:
        lines: list[str] = []
        monkeypatch.setattr(console, "print", lambda line, **_: lines.append(line))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(net, loader, observers=[ProgressBar(console)])
        assert [line.partition(":")[0] for line in lines] == ["training", "  epoch 1/2, step 6", "  epoch 2/2, step 12"]


def test_colours_forced_upon_a_log_make_no_bar(monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not progress._has_bar(Console(file=io.StringIO()))
    assert progress._has_bar(Console(file=Screen(), force_terminal=True))


def test_a_long_epoch_shows_life_in_a_log(net, loader, monkeypatch) -> None:
    now = iter(range(0, 10_000, 25))  # every look at the clock is 25 s later
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    log = io.StringIO()
    fit(net, loader, log_every=1, observers=[ProgressBar(Console(file=log, width=200))])
    assert "  epoch 1/2, step 3 of 12: task " in log.getvalue()
    assert log.getvalue().count("of 12: task") < 8


SCRIPT = """
import torch, kdx
data = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
print(kdx.fit(kdx.Supervised(torch.nn.Linear(3, 2)), data, epochs=2, device="cpu").step)
"""


def test_a_script_on_a_terminal_has_a_bar_and_its_output_is_its_own(tmp_path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout == b"8\n"
    assert "8/8" in shown
    assert "\x1b[" in shown
