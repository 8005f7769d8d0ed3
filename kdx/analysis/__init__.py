"""A model's layers, and its cost in operations, time and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.analysis.cost import Cost as Cost
    from kdx.analysis.cost import measure_cost as measure_cost
    from kdx.analysis.cost import measure_latency as measure_latency
    from kdx.analysis.costs import cost_table as cost_table
    from kdx.analysis.flops import count_flops as count_flops
    from kdx.analysis.flops import counting_flops as counting_flops
    from kdx.analysis.layers import Comparison as Comparison
    from kdx.analysis.layers import Layer as Layer
    from kdx.analysis.layers import compare_layers as compare_layers
    from kdx.analysis.layers import list_layers as list_layers
    from kdx.analysis.stored import Stored as Stored
    from kdx.analysis.stored import count_parameters as count_parameters
    from kdx.analysis.stored import count_stored as count_stored
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.analysis.cost": ["Cost", "measure_cost", "measure_latency"],
            "kdx.analysis.costs": ["cost_table"],
            "kdx.analysis.flops": ["count_flops", "counting_flops"],
            "kdx.analysis.layers": ["Comparison", "Layer", "compare_layers", "list_layers"],
            "kdx.analysis.stored": ["Stored", "count_parameters", "count_stored"],
        },
    )
