"""The shipped recipe of a stream, shortened: a live teacher, its student and the student alone are all tested."""

from __future__ import annotations

import kdx
from kdx.experiment.recipe_files import load_recipe


def test_the_recipe_tests_teacher_student_and_student_alone_on_the_same_stream(tmp_path) -> None:
    short = {"train.steps": 6, "data.validation": 4500, "teacher.model.width": 4, "threads": 1}
    summary = kdx.run("fashion-stream", folder=tmp_path / "run", report=False, **short)
    assert list(summary["stages"]) == ["alone", "distilled"]
    assert summary["stages"]["alone"]["prequential"].keys() == {"student"}
    assert summary["stages"]["distilled"]["prequential"].keys() == {"student", "teacher"}
    assert load_recipe("fashion-stream").data.stream.phases == 5
