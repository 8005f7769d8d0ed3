"""``python -m bench``: one failure costs its own rows alone, and it starts on a machine that has little installed."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as bench_main
from bench import gpu, registry, results
from bench import run as bench_run
from bench.ops import softmax_kl
from bench.registry import Case, OpBench, Provider

ROOT = Path(__file__).parents[2]
CONDITIONS = {"device": "a GPU", "torch": "2", "triton": "3", "commit": "abc", "date": "2026-01-01"}


def square(x):
    return (x * x).sum()


def fails(x):
    raise RuntimeError("launch failed")


def out_of_memory(x):
    raise torch.OutOfMemoryError


def truth(x):
    return square(x.detach().double()), 2 * x.detach().double()


def op(*providers, truth=truth, sizes=(2, 3)):
    return OpBench(
        op="square",
        cases=lambda device: [Case(f"{n}", torch.float32, "normal", {"N": n}) for n in sizes],
        make=lambda case, device: (torch.arange(1.0, case.options["N"] + 1).requires_grad_(),),
        truth=truth,
        providers=lambda device: list(providers),
        least_bytes=lambda case, backward: 8,
        tolerance=lambda case, provider: (1e-6, 1e-6),
    )


@pytest.fixture
def go(monkeypatch):
    """Runs a benchmark; the rows recorded for each case, and what was wrong."""
    monkeypatch.setattr(bench_run, "copy_bandwidth", lambda device: 1e9)

    def go(bench, **options):
        recorded = []
        wrong = bench_run.run(bench, torch.device("cpu"), [1], CONDITIONS, 0.0, record=recorded.append, **options)
        return recorded, wrong

    return go


def providers_of(rows):
    return {row["provider"] for row in rows}


def test_a_provider_that_fails_is_reported_and_the_others_get_their_rows(go):
    bench = op(Provider("eager", square), Provider("broken", fails), Provider("off", lambda x: 2 * square(x)))
    recorded, wrong = go(bench)
    assert [providers_of(rows) for rows in recorded] == [{"eager"}, {"eager"}]
    assert len(wrong) == 4
    assert "broken failed on square 2 torch.float32 normal: RuntimeError('launch failed')" in wrong
    assert sum("off is wrong" in line for line in wrong) == 2


def test_where_nobody_has_the_memory_there_are_no_rows_and_the_next_case_goes_on(go, capsys):
    recorded, wrong = go(op(Provider("eager", out_of_memory)))
    assert (recorded, wrong) == ([[], []], [])
    assert "eager left out: out of memory on 3" in capsys.readouterr().out


def test_a_truth_that_fails_costs_its_own_case(go):
    def only_three(x):
        if len(x) == 2:
            raise torch.OutOfMemoryError
        return truth(x)

    recorded, wrong = go(op(Provider("eager", square), truth=only_three))
    assert [len(rows) for rows in recorded] == [0, 2]
    assert len(wrong) == 1
    assert "the float64 truth failed on square 2" in wrong[0]


def test_the_truth_of_a_case_is_computed_once_for_all_providers(go):
    seen = []

    def counted(x):
        seen.append(len(x))
        return truth(x)

    go(op(Provider("eager", square), Provider("other", square), truth=counted))
    assert seen == [2, 3]


def test_providers_can_be_left_out(go):
    recorded, wrong = go(op(Provider("eager", square), Provider("broken", fails)), without=["broken"])
    assert [providers_of(rows) for rows in recorded] == [{"eager"}, {"eager"}]
    assert wrong == []


def test_a_row_with_a_failing_timing_is_missing_alone(go, monkeypatch):
    def only_forward(calls, device, seconds):
        if torch.is_grad_enabled() and timed:
            raise RuntimeError("context lost")
        timed.append(1)
        return {name: SimpleNamespace(median=1.0, p20=1.0, p80=1.0, peak_bytes=None) for name in calls}

    timed = []
    monkeypatch.setattr(bench_run, "time_all", only_forward)
    recorded, wrong = go(op(Provider("eager", square), sizes=(2,)))
    assert [row["pass"] for row in recorded[0]] == ["fwd"]
    assert "timing failed on square 2" in wrong[0]


def test_the_truth_of_softmax_kl_in_parts_is_that_of_the_whole(monkeypatch):
    case = Case("5x7", torch.bfloat16, "spread", {"N": 5, "C": 7})
    student, teacher = softmax_kl.make(case, torch.device("cpu"))
    whole, whole_grad = softmax_kl.truth(student, teacher)
    monkeypatch.setattr(softmax_kl, "TRUTH_LOGITS", 14)
    loss, grad = softmax_kl.truth(student, teacher)
    exact = student.detach().double().requires_grad_()
    want = softmax_kl.ours(exact, teacher.double(), "reference")
    (want_grad,) = torch.autograd.grad(want, exact)
    for found, found_grad in ((whole, whole_grad), (loss, grad)):
        torch.testing.assert_close(found, want.detach())
        torch.testing.assert_close(found_grad, want_grad)


@pytest.mark.parametrize("name", registry.names())
def test_every_truth_is_a_loss_and_a_gradient_in_float64(name):
    bench = registry.load(name)
    inputs = bench.make(bench.cases("cpu")[0], torch.device("cpu"))
    loss, grad = bench.truth(*inputs)
    assert loss.dtype == grad.dtype == torch.float64
    assert loss.shape == ()
    assert grad.shape == inputs[0].shape
    assert (loss.requires_grad, grad.requires_grad) == (False, False)


def test_a_result_file_grows_case_by_case(tmp_path):
    file = tmp_path / "new" / "rows.csv"
    results.start(file)
    results.append(file, [{"op": "a"}])
    results.append(file, [{"op": "b"}])
    with file.open(newline="") as opened:
        assert [row["op"] for row in csv.DictReader(opened)] == ["a", "b"]


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert results.current_commit() == "unknown"


def test_it_starts_without_the_packages_of_recipes(tmp_path):
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['pydantic', 'omegaconf', 'docstring_parser'])); "
        "runpy.run_module('bench', run_name='__main__')"
    )
    arguments = ["run", "rkd_distance", "--only", "64x512", "--seconds", "0.01", "--threads", "1"]
    file = tmp_path / "rows.csv"
    command = [sys.executable, "-c", code, *arguments, "--out", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with file.open(newline="") as opened:
        assert "eager" in {row["provider"] for row in csv.DictReader(opened)}


@pytest.fixture
def machine(monkeypatch):
    """A GPU machine whose steps end as told, in order: an exit code, or an exception."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(results, "conditions", lambda device, commit: CONDITIONS | {"commit": commit or "abc"})
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda device: 3e12)
    steps = []

    def end(*outcomes):
        left = list(outcomes)

        def step(command, **options):
            steps.append((command, options["env"]))
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return SimpleNamespace(returncode=outcome)

        monkeypatch.setattr(subprocess, "run", step)
        return steps

    return end


def test_every_op_is_run_in_a_process_of_its_own_that_adds_to_one_file(machine, tmp_path):
    steps = machine(0, 0, 0)
    assert gpu.run(["rkd_angle", "softmax_kl"], tmp_path / "h100.csv", "1234", ["kdx cuda"]) == 0
    tests, *ops = steps
    assert tests[0][-1] == "tests/ops/test_softmax_kl_gpu.py"
    assert [command[4] for command, _ in ops] == ["rkd_angle", "softmax_kl"]
    for command, environment in ops:
        assert command[-4:] == ["--out", str(tmp_path / "h100.csv"), "--append", "--without=kdx cuda"]
        assert environment["KDX_COMMIT"] == "1234"
    with (tmp_path / "h100.csv").open(newline="") as opened:
        assert [(row["op"], row["gb_per_s"]) for row in csv.DictReader(opened)] == [("copy", "3000")]


def test_ops_may_follow_the_providers_that_are_left_out(monkeypatch):
    seen = []
    monkeypatch.setattr(gpu, "run", lambda *arguments: seen.append(arguments) or 0)
    monkeypatch.setattr(sys, "argv", ["bench", "gpu", "--without", "kdx cuda", "rkd_angle"])
    assert bench_main.main() == 0
    assert seen == [(["rkd_angle"], None, None, ["kdx cuda"])]


def test_an_op_that_fails_or_hangs_fails_the_command_after_the_others_have_run(machine, tmp_path, capsys):
    steps = machine(0, 1, subprocess.TimeoutExpired("bench", 240), 0)
    assert gpu.run(["a", "b", "c"], tmp_path / "h100.csv") == 1
    assert len(steps) == 4
    said = capsys.readouterr().out
    assert "FAILED: the benchmark of a: exit code 1" in said
    assert "FAILED: the benchmark of b: stopped after 300 s" in said


@pytest.mark.parametrize("outcome", [1, subprocess.TimeoutExpired("pytest", 240)], ids=["failed", "hung"])
def test_numbers_on_red_are_kept_where_no_table_reads_them(machine, tmp_path, outcome):
    machine(outcome, 0)
    assert gpu.run(["a"], tmp_path / "h100.csv") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["h100.red"]
