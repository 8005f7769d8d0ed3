"""Recipes, their stages and what a run leaves in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.experiment.assembly import Assembly as Assembly
    from kdx.experiment.components import task_of as task_of
    from kdx.experiment.data import ExperimentData as ExperimentData
    from kdx.experiment.evaluated import evaluate_run as evaluate_run
    from kdx.experiment.experiment import Experiment as Experiment
    from kdx.experiment.experiment import run as run
    from kdx.experiment.exporting import export as export
    from kdx.experiment.plan import stages_of as stages_of
    from kdx.experiment.quality import Quality as Quality
    from kdx.experiment.recipe import Recipe as Recipe
    from kdx.experiment.recipe_files import check_recipe as check_recipe
    from kdx.experiment.recipe_files import find_recipe as find_recipe
    from kdx.experiment.recipe_files import load_recipe as load_recipe
    from kdx.experiment.recipe_files import plugins_beside as plugins_beside
    from kdx.experiment.recipe_files import recipe_names as recipe_names
    from kdx.experiment.recipe_texts import check_interpolation as check_interpolation
    from kdx.experiment.recipe_texts import check_printable as check_printable
    from kdx.experiment.report import stages_table as stages_table
    from kdx.experiment.report import write_report as write_report
    from kdx.experiment.run_files import read_summary as read_summary
    from kdx.experiment.store_command import cache_teacher as cache_teacher
    from kdx.experiment.trained import Prediction as Prediction
    from kdx.experiment.trained import TrainedModel as TrainedModel
    from kdx.experiment.trained import load as load
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.experiment.components": ["task_of"],
            "kdx.experiment.plan": ["stages_of"],
            "kdx.experiment.run_files": ["read_summary"],
            "kdx.experiment.recipe_texts": ["check_interpolation", "check_printable"],
            "kdx.experiment.store_command": ["cache_teacher"],
            "kdx.experiment.quality": ["Quality"],
            "kdx.experiment.assembly": ["Assembly"],
            "kdx.experiment.data": ["ExperimentData"],
            "kdx.experiment.evaluated": ["evaluate_run"],
            "kdx.experiment.experiment": ["Experiment", "run"],
            "kdx.experiment.exporting": ["export"],
            "kdx.experiment.recipe": ["Recipe"],
            "kdx.experiment.recipe_files": [
                "check_recipe",
                "find_recipe",
                "load_recipe",
                "plugins_beside",
                "recipe_names",
            ],
            "kdx.experiment.report": ["stages_table", "write_report"],
            "kdx.experiment.trained": ["Prediction", "TrainedModel", "load"],
        },
    )
