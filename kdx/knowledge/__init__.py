"""Knowledge: what is transferred. One method, one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.knowledge import functional as functional
    from kdx.knowledge.ab import AB as AB
    from kdx.knowledge.adaptive_kl import AdaptiveKL as AdaptiveKL
    from kdx.knowledge.alm import ALM as ALM
    from kdx.knowledge.alpha_beta import AlphaBeta as AlphaBeta
    from kdx.knowledge.attention_layers import AttentionLayers as AttentionLayers
    from kdx.knowledge.attention_scores import AttentionScores as AttentionScores
    from kdx.knowledge.attention_transfer import AttentionTransfer as AttentionTransfer
    from kdx.knowledge.base import Knowledge as Knowledge
    from kdx.knowledge.cc import CC as CC
    from kdx.knowledge.cosine import Cosine as Cosine
    from kdx.knowledge.crd import CRD as CRD
    from kdx.knowledge.ctkd import CTKD as CTKD
    from kdx.knowledge.cwd import CWD as CWD
    from kdx.knowledge.dist import DIST as DIST
    from kdx.knowledge.divergence import Divergence as Divergence
    from kdx.knowledge.dkd import DKD as DKD
    from kdx.knowledge.fsp import FSP as FSP
    from kdx.knowledge.ft import FT as FT
    from kdx.knowledge.function import FunctionKnowledge as FunctionKnowledge
    from kdx.knowledge.gaussian_kl import GaussianKL as GaussianKL
    from kdx.knowledge.hard_targets import HardTargets as HardTargets
    from kdx.knowledge.hidden_states import HiddenLayers as HiddenLayers
    from kdx.knowledge.hidden_states import HiddenStates as HiddenStates
    from kdx.knowledge.hint import Hint as Hint
    from kdx.knowledge.irg import IRG as IRG
    from kdx.knowledge.jsd import JSD as JSD
    from kdx.knowledge.labels import label_masks as label_masks
    from kdx.knowledge.logit_standardisation import LogitStandardisation as LogitStandardisation
    from kdx.knowledge.logits import Logits as Logits
    from kdx.knowledge.margin_mse import MarginMSE as MarginMSE
    from kdx.knowledge.minilm import MiniLM as MiniLM
    from kdx.knowledge.mlld import MLLD as MLLD
    from kdx.knowledge.nkd import NKD as NKD
    from kdx.knowledge.nst import NST as NST
    from kdx.knowledge.ofa import OFA as OFA
    from kdx.knowledge.ofd import OFD as OFD
    from kdx.knowledge.other_tokenizer import BothTokenisations as BothTokenisations
    from kdx.knowledge.other_tokenizer import OtherTokenizer as OtherTokenizer
    from kdx.knowledge.paired import PairedLayers as PairedLayers
    from kdx.knowledge.pkt import PKT as PKT
    from kdx.knowledge.relation import Relation as Relation
    from kdx.knowledge.response import Outputs as Outputs
    from kdx.knowledge.response import Response as Response
    from kdx.knowledge.response import class_axis as class_axis
    from kdx.knowledge.response import void_mask as void_mask
    from kdx.knowledge.reverse_kl import ReverseKL as ReverseKL
    from kdx.knowledge.review_kd import ReviewKD as ReviewKD
    from kdx.knowledge.rkd import RKD as RKD
    from kdx.knowledge.semckd import SemCKD as SemCKD
    from kdx.knowledge.sigmoid_targets import SigmoidTargets as SigmoidTargets
    from kdx.knowledge.simkd import SimKD as SimKD
    from kdx.knowledge.skew_kl import SkewKL as SkewKL
    from kdx.knowledge.soft_targets import SoftTargets as SoftTargets
    from kdx.knowledge.sp import SP as SP
    from kdx.knowledge.tokens import TokenLayers as TokenLayers
    from kdx.knowledge.tokens import real_tokens as real_tokens
    from kdx.knowledge.uld import ULD as ULD
    from kdx.knowledge.vid import VID as VID
    from kdx.responses import class_rows as class_rows
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.responses": ["class_rows"],
            "kdx.knowledge.ab": ["AB"],
            "kdx.knowledge.alm": ["ALM"],
            "kdx.knowledge.attention_layers": ["AttentionLayers"],
            "kdx.knowledge.attention_scores": ["AttentionScores"],
            "kdx.knowledge.attention_transfer": ["AttentionTransfer"],
            "kdx.knowledge.base": ["Knowledge"],
            "kdx.knowledge.cc": ["CC"],
            "kdx.knowledge.cosine": ["Cosine"],
            "kdx.knowledge.crd": ["CRD"],
            "kdx.knowledge.ctkd": ["CTKD"],
            "kdx.knowledge.cwd": ["CWD"],
            "kdx.knowledge.dist": ["DIST"],
            "kdx.knowledge.divergence": ["Divergence"],
            "kdx.knowledge.dkd": ["DKD"],
            "kdx.knowledge.fsp": ["FSP"],
            "kdx.knowledge.function": ["FunctionKnowledge"],
            "kdx.knowledge.ft": ["FT"],
            "kdx.knowledge.gaussian_kl": ["GaussianKL"],
            "kdx.knowledge.hard_targets": ["HardTargets"],
            "kdx.knowledge.hidden_states": ["HiddenLayers", "HiddenStates"],
            "kdx.knowledge.hint": ["Hint"],
            "kdx.knowledge.irg": ["IRG"],
            "kdx.knowledge.adaptive_kl": ["AdaptiveKL"],
            "kdx.knowledge.alpha_beta": ["AlphaBeta"],
            "kdx.knowledge.jsd": ["JSD"],
            "kdx.knowledge.labels": ["label_masks"],
            "kdx.knowledge.logit_standardisation": ["LogitStandardisation"],
            "kdx.knowledge.logits": ["Logits"],
            "kdx.knowledge.margin_mse": ["MarginMSE"],
            "kdx.knowledge.minilm": ["MiniLM"],
            "kdx.knowledge.mlld": ["MLLD"],
            "kdx.knowledge.nkd": ["NKD"],
            "kdx.knowledge.nst": ["NST"],
            "kdx.knowledge.ofa": ["OFA"],
            "kdx.knowledge.ofd": ["OFD"],
            "kdx.knowledge.other_tokenizer": ["BothTokenisations", "OtherTokenizer"],
            "kdx.knowledge.paired": ["PairedLayers"],
            "kdx.knowledge.pkt": ["PKT"],
            "kdx.knowledge.relation": ["Relation"],
            "kdx.knowledge.response": ["Outputs", "Response", "class_axis", "void_mask"],
            "kdx.knowledge.reverse_kl": ["ReverseKL"],
            "kdx.knowledge.review_kd": ["ReviewKD"],
            "kdx.knowledge.rkd": ["RKD"],
            "kdx.knowledge.semckd": ["SemCKD"],
            "kdx.knowledge.sigmoid_targets": ["SigmoidTargets"],
            "kdx.knowledge.simkd": ["SimKD"],
            "kdx.knowledge.skew_kl": ["SkewKL"],
            "kdx.knowledge.soft_targets": ["SoftTargets"],
            "kdx.knowledge.sp": ["SP"],
            "kdx.knowledge.tokens": ["TokenLayers", "real_tokens"],
            "kdx.knowledge.uld": ["ULD"],
            "kdx.knowledge.vid": ["VID"],
        },
        packages=["functional"],
    )
