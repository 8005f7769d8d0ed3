"""The losses of the knowledge components as plain functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.knowledge.ab import activation_boundaries as activation_boundaries
    from kdx.knowledge.adaptive_kl import adaptive_kl as adaptive_kl
    from kdx.knowledge.alm import binary_divergence as binary_divergence
    from kdx.knowledge.alm import chunk_surprisals as chunk_surprisals
    from kdx.knowledge.alpha_beta import alpha_beta as alpha_beta
    from kdx.knowledge.attention_scores import attention_scores as attention_scores
    from kdx.knowledge.attention_scores import scores_of as scores_of
    from kdx.knowledge.attention_transfer import attention_transfer as attention_transfer
    from kdx.knowledge.cc import cc as cc
    from kdx.knowledge.cosine import cosine as cosine
    from kdx.knowledge.crd import crd as crd
    from kdx.knowledge.ctkd import tempered_kl as tempered_kl
    from kdx.knowledge.cwd import cwd as cwd
    from kdx.knowledge.dist import dist as dist
    from kdx.knowledge.dkd import dkd as dkd
    from kdx.knowledge.fsp import flow as flow
    from kdx.knowledge.fsp import fsp as fsp
    from kdx.knowledge.ft import factor_transfer as factor_transfer
    from kdx.knowledge.hard_targets import hard_targets as hard_targets
    from kdx.knowledge.hidden_states import hidden_states as hidden_states
    from kdx.knowledge.hint import hint as hint
    from kdx.knowledge.irg import irg as irg
    from kdx.knowledge.jsd import jsd as jsd
    from kdx.knowledge.logit_standardisation import standardise as standardise
    from kdx.knowledge.logits import match_logits as match_logits
    from kdx.knowledge.minilm import minilm as minilm
    from kdx.knowledge.mlld import mlld as mlld
    from kdx.knowledge.nkd import nkd as nkd
    from kdx.knowledge.nst import nst as nst
    from kdx.knowledge.ofa import ofa as ofa
    from kdx.knowledge.ofd import batchnorm_margin as batchnorm_margin
    from kdx.knowledge.ofd import ofd as ofd
    from kdx.knowledge.pkt import pkt as pkt
    from kdx.knowledge.reverse_kl import reverse_kl as reverse_kl
    from kdx.knowledge.review_kd import hcl as hcl
    from kdx.knowledge.rkd import rkd as rkd
    from kdx.knowledge.semckd import semckd as semckd
    from kdx.knowledge.simkd import simkd as simkd
    from kdx.knowledge.skew_kl import skew_kl as skew_kl
    from kdx.knowledge.sp import sp as sp
    from kdx.knowledge.token_surprisals import token_surprisals as token_surprisals
    from kdx.knowledge.uld import sorted_distance as sorted_distance
    from kdx.knowledge.vid import vid as vid
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.knowledge.ab": ["activation_boundaries"],
            "kdx.knowledge.alm": ["binary_divergence", "chunk_surprisals"],
            "kdx.knowledge.attention_scores": ["attention_scores", "scores_of"],
            "kdx.knowledge.attention_transfer": ["attention_transfer"],
            "kdx.knowledge.cc": ["cc"],
            "kdx.knowledge.cosine": ["cosine"],
            "kdx.knowledge.crd": ["crd"],
            "kdx.knowledge.ctkd": ["tempered_kl"],
            "kdx.knowledge.cwd": ["cwd"],
            "kdx.knowledge.dist": ["dist"],
            "kdx.knowledge.dkd": ["dkd"],
            "kdx.knowledge.fsp": ["flow", "fsp"],
            "kdx.knowledge.ft": ["factor_transfer"],
            "kdx.knowledge.hard_targets": ["hard_targets"],
            "kdx.knowledge.hidden_states": ["hidden_states"],
            "kdx.knowledge.hint": ["hint"],
            "kdx.knowledge.irg": ["irg"],
            "kdx.knowledge.adaptive_kl": ["adaptive_kl"],
            "kdx.knowledge.alpha_beta": ["alpha_beta"],
            "kdx.knowledge.jsd": ["jsd"],
            "kdx.knowledge.logit_standardisation": ["standardise"],
            "kdx.knowledge.logits": ["match_logits"],
            "kdx.knowledge.minilm": ["minilm"],
            "kdx.knowledge.mlld": ["mlld"],
            "kdx.knowledge.nkd": ["nkd"],
            "kdx.knowledge.nst": ["nst"],
            "kdx.knowledge.ofa": ["ofa"],
            "kdx.knowledge.ofd": ["batchnorm_margin", "ofd"],
            "kdx.knowledge.pkt": ["pkt"],
            "kdx.knowledge.reverse_kl": ["reverse_kl"],
            "kdx.knowledge.review_kd": ["hcl"],
            "kdx.knowledge.rkd": ["rkd"],
            "kdx.knowledge.semckd": ["semckd"],
            "kdx.knowledge.simkd": ["simkd"],
            "kdx.knowledge.skew_kl": ["skew_kl"],
            "kdx.knowledge.sp": ["sp"],
            "kdx.knowledge.token_surprisals": ["token_surprisals"],
            "kdx.knowledge.uld": ["sorted_distance"],
            "kdx.knowledge.vid": ["vid"],
        },
    )
