"""Schemes: who teaches whom, and what each term weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.losses import LossTerm as LossTerm
    from kdx.schemes.base import KnowledgeTerms as KnowledgeTerms
    from kdx.schemes.base import Scheme as Scheme
    from kdx.schemes.base import Task as Task
    from kdx.schemes.base import TaskFn as TaskFn
    from kdx.schemes.base import own_copies as own_copies
    from kdx.schemes.base import setup_components as setup_components
    from kdx.schemes.boundary_stage import BoundaryStage as BoundaryStage
    from kdx.schemes.byot import BYOT as BYOT
    from kdx.schemes.byot import BranchDistance as BranchDistance
    from kdx.schemes.cs_kd import CSKD as CSKD
    from kdx.schemes.data_free import DataFree as DataFree
    from kdx.schemes.dense_guidance import DenseGuidance as DenseGuidance
    from kdx.schemes.ema_teacher import EmaTeacher as EmaTeacher
    from kdx.schemes.hint_stage import HintStage as HintStage
    from kdx.schemes.kdcl import KDCL as KDCL
    from kdx.schemes.layer_stage import LayerStage as LayerStage
    from kdx.schemes.multi_teacher import MultiTeacher as MultiTeacher
    from kdx.schemes.mutual import Mutual as Mutual
    from kdx.schemes.offline import Offline as Offline
    from kdx.schemes.on_policy import OnPolicy as OnPolicy
    from kdx.schemes.one import ONE as ONE
    from kdx.schemes.one import NativeEnsemble as NativeEnsemble
    from kdx.schemes.one_student import OneStudent as OneStudent
    from kdx.schemes.online import Online as Online
    from kdx.schemes.paraphrase import Paraphrase as Paraphrase
    from kdx.schemes.phase import Phase as Phase
    from kdx.schemes.ps_kd import PSKD as PSKD
    from kdx.schemes.residual import Residual as Residual
    from kdx.schemes.residual_features import ResidualFeatures as ResidualFeatures
    from kdx.schemes.sad import SAD as SAD
    from kdx.schemes.simkd import SimKD as SimKD
    from kdx.schemes.snapshot_distillation import SnapshotDistillation as SnapshotDistillation
    from kdx.schemes.supervised import Supervised as Supervised
    from kdx.schemes.tf_kd import TfKD as TfKD
    from kdx.schemes.weights import Balanced as Balanced
    from kdx.schemes.weights import Cosine as Cosine
    from kdx.schemes.weights import Warmup as Warmup
    from kdx.schemes.weights import Weight as Weight
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.losses": ["LossTerm"],
            "kdx.schemes.base": ["KnowledgeTerms", "Scheme", "Task", "TaskFn", "own_copies", "setup_components"],
            "kdx.schemes.boundary_stage": ["BoundaryStage"],
            "kdx.schemes.byot": ["BYOT", "BranchDistance"],
            "kdx.schemes.cs_kd": ["CSKD"],
            "kdx.schemes.data_free": ["DataFree"],
            "kdx.schemes.dense_guidance": ["DenseGuidance"],
            "kdx.schemes.ema_teacher": ["EmaTeacher"],
            "kdx.schemes.hint_stage": ["HintStage"],
            "kdx.schemes.kdcl": ["KDCL"],
            "kdx.schemes.layer_stage": ["LayerStage"],
            "kdx.schemes.multi_teacher": ["MultiTeacher"],
            "kdx.schemes.mutual": ["Mutual"],
            "kdx.schemes.offline": ["Offline"],
            "kdx.schemes.on_policy": ["OnPolicy"],
            "kdx.schemes.one": ["NativeEnsemble", "ONE"],
            "kdx.schemes.one_student": ["OneStudent"],
            "kdx.schemes.online": ["Online"],
            "kdx.schemes.paraphrase": ["Paraphrase"],
            "kdx.schemes.phase": ["Phase"],
            "kdx.schemes.ps_kd": ["PSKD"],
            "kdx.schemes.residual": ["Residual"],
            "kdx.schemes.residual_features": ["ResidualFeatures"],
            "kdx.schemes.sad": ["SAD"],
            "kdx.schemes.simkd": ["SimKD"],
            "kdx.schemes.snapshot_distillation": ["SnapshotDistillation"],
            "kdx.schemes.supervised": ["Supervised"],
            "kdx.schemes.tf_kd": ["TfKD"],
            "kdx.schemes.weights": ["Balanced", "Cosine", "Warmup", "Weight"],
        },
    )
