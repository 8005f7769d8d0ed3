"""Recipes, their stages and what a run leaves in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.experiment.data import ExperimentData as ExperimentData
    from kdx.experiment.experiment import Experiment as Experiment
    from kdx.experiment.experiment import run as run
    from kdx.experiment.exporting import export as export
    from kdx.experiment.recipe import Recipe as Recipe
    from kdx.experiment.recipe_files import check_recipe as check_recipe
    from kdx.experiment.recipe_files import find_recipe as find_recipe
    from kdx.experiment.recipe_files import load_recipe as load_recipe
    from kdx.experiment.recipe_files import recipe_names as recipe_names
    from kdx.experiment.report import write_report as write_report
    from kdx.experiment.trained import Prediction as Prediction
    from kdx.experiment.trained import TrainedModel as TrainedModel
    from kdx.experiment.trained import load as load
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.experiment.data": ["ExperimentData"],
            "kdx.experiment.experiment": ["Experiment", "run"],
            "kdx.experiment.exporting": ["export"],
            "kdx.experiment.recipe": ["Recipe"],
            "kdx.experiment.recipe_files": ["check_recipe", "find_recipe", "load_recipe", "recipe_names"],
            "kdx.experiment.report": ["write_report"],
            "kdx.experiment.trained": ["Prediction", "TrainedModel", "load"],
        },
    )
