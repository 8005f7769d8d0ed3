"""Tools for features: adapters, pairing of layers, similarity, centring, gathering over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.features.adapters import BatchNorm as BatchNorm
    from kdx.features.adapters import bottleneck as bottleneck
    from kdx.features.adapters import channels as channels
    from kdx.features.adapters import convolution as convolution
    from kdx.features.adapters import full as full
    from kdx.features.adapters import match as match
    from kdx.features.adapters import match_maps as match_maps
    from kdx.features.adapters import pool as pool
    from kdx.features.adapters import project as project
    from kdx.features.adapters import regressor as regressor
    from kdx.features.adapters import to_map as to_map
    from kdx.features.adapters import to_maps as to_maps
    from kdx.features.adapters import to_vector as to_vector
    from kdx.features.adapters import trained as trained
    from kdx.features.centring import centred as centred
    from kdx.features.feature import Feature as Feature
    from kdx.features.feature import read_features as read_features
    from kdx.features.gathering import whole_batch as whole_batch
    from kdx.features.matching import STRATEGIES as STRATEGIES
    from kdx.features.matching import Pairs as Pairs
    from kdx.features.matching import Strategy as Strategy
    from kdx.features.matching import pair_by_depth as pair_by_depth
    from kdx.features.matching import pair_by_similarity as pair_by_similarity
    from kdx.features.matching import pair_layers as pair_layers
    from kdx.features.operands import Variant as Variant
    from kdx.features.operands import check_choice as check_choice
    from kdx.features.operands import check_same_outputs as check_same_outputs
    from kdx.features.operands import check_same_rows as check_same_rows
    from kdx.features.operands import check_same_shape as check_same_shape
    from kdx.features.operands import in_full_precision as in_full_precision
    from kdx.features.paraphraser import Paraphraser as Paraphraser
    from kdx.features.paraphraser import factor_layers as factor_layers
    from kdx.features.similarity import SIMILARITIES as SIMILARITIES
    from kdx.features.similarity import MinibatchCKA as MinibatchCKA
    from kdx.features.similarity import linear_cka as linear_cka
    from kdx.features.similarity import rsa as rsa
    from kdx.features.similarity import similarity_matrix as similarity_matrix
    from kdx.features.similarity import unbiased_cka as unbiased_cka
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.features.adapters": [
                "BatchNorm",
                "bottleneck",
                "channels",
                "convolution",
                "full",
                "match",
                "match_maps",
                "pool",
                "project",
                "regressor",
                "to_map",
                "to_maps",
                "to_vector",
                "trained",
            ],
            "kdx.features.centring": ["centred"],
            "kdx.features.feature": ["Feature", "read_features"],
            "kdx.features.gathering": ["whole_batch"],
            "kdx.features.matching": [
                "Pairs",
                "STRATEGIES",
                "Strategy",
                "pair_by_depth",
                "pair_by_similarity",
                "pair_layers",
            ],
            "kdx.features.operands": [
                "Variant",
                "check_choice",
                "check_same_rows",
                "check_same_outputs",
                "check_same_shape",
                "in_full_precision",
            ],
            "kdx.features.paraphraser": ["Paraphraser", "factor_layers"],
            "kdx.features.similarity": [
                "MinibatchCKA",
                "SIMILARITIES",
                "linear_cka",
                "rsa",
                "similarity_matrix",
                "unbiased_cka",
            ],
        },
    )
