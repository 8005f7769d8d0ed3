"""What a structure is given: rows in order, evaluation, the task."""

from __future__ import annotations

import pytest
import torch

from kdx.errors import PlanError
from kdx.experiment.assembly import Assembly
from kdx.experiment.plan import stages_of
from kdx.modes import hold
from kdx.ref import Ref
from kdx.stage import Produced, Stage, Structure
from tests.experiment.test_assembly import InMemory
from tests.experiment.tiny import TINY, recipe

AUGMENTED = {
    **TINY["data"],
    "labelled": 200,
    "augment": {"shift": 2},
    "views": {"weak": {"augment": None}},
}


def assembly(**changes) -> Assembly:
    given = recipe(**{"data": AUGMENTED, **changes})
    return Assembly(given, stages_of(given), InMemory())


@pytest.mark.parametrize("rows", ["all", "few", "labelled", "validation"])
def test_rows_come_in_order_without_augmentation_the_same_every_time(rows: str) -> None:
    made = assembly(train={"batch_size": 96, "epochs": 3})
    view, batches, state = getattr(made.data, rows), made.batches(rows), torch.get_rng_state()
    first, second = list(batches), list(batches)
    assert {len(batch.index) for batch in first[:-1]} <= {96}
    assert torch.cat([batch.index for batch in first]).equal(view.indices)
    inputs = torch.cat([batch.inputs for batch in first])
    assert inputs.equal(torch.stack([view.dataset[row][0] for row in view.indices.tolist()]))
    assert inputs.equal(torch.cat([batch.inputs for batch in second]))
    targets = torch.cat([batch.targets for batch in first])
    hidden = targets == -100
    assert hidden.any() == (rows == "few")
    assert targets[~hidden].equal(made.data.all.dataset.targets[view.indices][~hidden])
    assert torch.get_rng_state().equal(state)


def test_no_test_row_is_among_them_and_no_other_rows_can_be_asked_for() -> None:
    made = assembly()
    train, test = made.data.all.dataset, made.data.test.dataset
    assert train is not test
    for rows in ("all", "few", "labelled", "validation"):
        assert made.batches(rows).dataset.dataset is train
    for wrong in ("test", "validatoin", "shape"):
        with pytest.raises(PlanError, match=f"there are no rows {wrong!r}"):
            made.batches(wrong)


def test_a_teacher_with_inputs_of_its_own_gets_those() -> None:
    views = {"small": {"size": [4, 4]}}
    made = assembly(data={**TINY["data"], "views": views}, teacher={**TINY["teacher"], "view": "small"})
    assert next(iter(made.batches("few"))).inputs.shape[1:] == (1, 8, 8)
    assert next(iter(made.batches("few", stage="teacher"))).inputs.shape[1:] == (1, 4, 4)


class Judged(Structure):
    """Looks at everything and changes nothing."""

    def produce(self, finished) -> Produced:
        model = finished.model("alone").train()
        before = torch.get_rng_state()
        found = finished.evaluate(model)
        assert model.training
        assert torch.get_rng_state().equal(before)
        assert found == pytest.approx(finished.result("alone")["validation"])
        assert found[finished.metric] == pytest.approx(finished.quality("alone"))
        batch = next(iter(finished.batches("labelled")))
        assert finished.task(hold(model) or model(batch.inputs), batch.targets).isfinite()
        return Produced(Ref("mlp", hidden=[8, 8]))


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning", "ignore::kdx.assistants.gap.GapWarning")
def test_a_structure_judges_a_model_by_what_its_stage_was_judged_by(run, planned) -> None:
    run(assistant=planned([Stage("distilled", "distilled", Judged(), ("teacher",))]))
