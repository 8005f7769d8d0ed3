"""Damage to the files of a run: ``kdx verify`` finds it, and no run goes on from it unnoticed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import DamageWarning, Interrupted, KdxError
from kdx.experiment.experiment import Experiment
from kdx.experiment.run_files import read_summary
from kdx.experiment.verify import verify_run
from kdx.hookspecs import hookimpl
from tests.experiment.tiny import TINY, recipe, same, weights

ROOT = Path(__file__).parents[2]
LONG = {"epochs": 2, "batch_size": 512}
STAGES = ("teacher", "alone", "distilled")
pytestmark = pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")


def given():
    return recipe(train=LONG, teacher={**TINY["teacher"], "train": LONG, "reuse": False, "store": {"views": 1}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    kdx.run(given(), folder=folder)
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its last stage, with two checkpoints there."""

    class Late:
        @hookimpl
        def kdx_step_end(self, run, step) -> None:
            if run.folder.name == "distilled" and step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path_factory.mktemp("broken") / "run"
    with pytest.raises(Interrupted):
        kdx.run(given(), folder=folder, observers=[Late()])
    assert len(list((folder / "distilled" / "checkpoints").iterdir())) == 2
    return folder


def files_of(folder: Path) -> list[Path]:
    """All files that are checked: TensorBoard's events are not read again."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "tfevents" not in path.name)
    return [path.relative_to(folder) for path in found]


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def zero(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


DAMAGES = {
    "flip": flip,
    "zero": zero,
    "cut": lambda path, chance: os.truncate(path, chance.randrange(path.stat().st_size)),
    "empty": lambda path, chance: path.write_bytes(b""),
    "garbage": lambda path, chance: path.write_bytes(chance.randbytes(path.stat().st_size)),
    "delete": lambda path, chance: path.unlink(),
}


def test_a_run_is_verified_with_its_stores_and_without_torch(whole: Path, broken: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(whole)])
    assert done.exit_code == 0, done.output
    found = verify_run(whole)
    assert (found.finished, found.damaged) == (True, [])
    assert done.output == f"{whole}: {len(found.files)} files, all as written\n"
    checked = {Path(name) for name in found.files}
    stored = Path("teacher/store")
    assert checked == {path for path in files_of(whole) if path.parent != stored and path.name != ".lock"} | {stored}
    found = verify_run(broken)
    assert (found.finished, found.damaged) == (False, [])
    done = CliRunner().invoke(app, ["verify", str(whole.parent)])
    assert done.exit_code == 0, done.output
    code = "import sys, kdx.experiment.verify as v; v.verify_run(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True, cwd=ROOT)
    with pytest.raises(KdxError, match=r"holds no run: there is neither recipe.yaml nor summary.json"):
        verify_run(whole / "teacher")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_verify_names_every_damaged_file_of_a_finished_run(whole: Path, tmp_path: Path, damage: str) -> None:
    for number, name in enumerate(path for path in files_of(whole) if path.parent.name != "checkpoints"):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        chance = random.Random(7)
        DAMAGES[damage](folder / name, chance)
        done = CliRunner().invoke(app, ["verify", str(folder)])
        if damage == "flip" and done.exit_code == 0:
            assert name.suffix == ".json"  # a space of the layout
            continue
        if (damage, name.name) == ("delete", "summary.json"):
            assert "not finished" in done.output  # nothing tells it from a run that was stopped before its end
            continue
        assert done.exit_code == 1, (name, done.output)
        assert name.name in done.output or name.parent.name == "store"
        shutil.rmtree(folder)


@pytest.mark.slow
def test_no_damage_to_a_run_that_goes_on_ends_in_a_traceback_or_in_other_numbers(
    whole: Path, broken: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("KDX_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"KDX_SEED={seed}")
    chance, counts, wrong = random.Random(seed), Counter(), []
    expected = read_summary(whole)
    for number in range(150):
        source = (broken, whole)[number % 2]
        name, damage = chance.choice(files_of(source)), chance.choice(sorted(DAMAGES))
        folder = tmp_path / "run"
        shutil.copytree(source, folder)
        DAMAGES[damage](folder / name, chance)
        found = [*verify_run(folder).damaged] if (folder / "recipe.yaml").exists() else ["no run"]
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                summary = Experiment(given(), folder, report=False).run(resume=True)
        except KdxError as error:
            outcome = "error"
            if str(folder) not in str(error):
                wrong.append((damage, name, "does not name the file", str(error)))
        except Exception as error:  # what a user would see as a traceback
            outcome = "traceback"
            wrong.append((damage, name, "traceback", repr(error)))
        else:
            fell_back = any(issubclass(each.category, DamageWarning) for each in said)
            outcome = "older checkpoint" if fell_back else "recovered" if found else "unharmed"
            tests = {stage: result["test"] for stage, result in summary["stages"].items()}
            if tests != {stage: result["test"] for stage, result in expected["stages"].items()}:
                wrong.append((damage, name, "other numbers", tests))
            if found == [] and not all(same(weights(whole, stage), weights(folder, stage)) for stage in STAGES):
                wrong.append((damage, name, "other weights", ""))
        counts[
            "finished" if source is whole else "stopped", outcome, "verify: damage" if found else "verify: none"
        ] += 1
        shutil.rmtree(folder)
    print(*sorted(counts.items()), sep="\n")
    assert not wrong
