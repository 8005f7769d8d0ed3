"""Rules of what torch functions do to channels: name of the function -> rule.

A rule gets the trace, the result and the function's own arguments; it labels the result, joins or fixes channels, and
returns True. A rule that returns False, or cannot take the arguments, leaves the function to the default: all channels
it reads are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

from kdx.students import rules_layers as layers
from kdx.students import rules_shapes as shapes

__all__ = ["RULES", "Rule"]

Rule = Callable[..., bool]
_ELEMENTWISE = """
    relu relu_ relu6 gelu silu silu_ sigmoid sigmoid_ tanh tanh_ hardswish hardtanh hardsigmoid elu elu_ celu selu
    leaky_relu leaky_relu_ softplus softsign mish logsigmoid softmax log_softmax dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_alpha_dropout add add_ sub sub_ mul mul_ div div_ true_divide __radd__ __rsub__ __rmul__
    __rtruediv__ __rpow__ rsub pow square sqrt rsqrt exp log abs neg sin cos erf clamp clamp_min clamp_max clip clone
    contiguous to float half double bfloat16 type type_as detach maximum minimum where masked_fill masked_fill_ copy_
    normalize reciprocal nan_to_num cpu cuda eq ne lt le gt ge addcmul lerp threshold hardshrink softshrink
"""
_SPATIAL = [
    f"{kind}{n}d" for n in (1, 2, 3) for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
]
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), shapes.elementwise),
    **dict.fromkeys([*_SPATIAL, "lp_pool1d", "lp_pool2d", "interpolate", "upsample"], shapes.spatial),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], layers.convolution),
    "linear": layers.linear,
    **dict.fromkeys(["matmul", "bmm", "mm", "__matmul__"], layers.matmul),
    "embedding": layers.embedding,
    **dict.fromkeys(["batch_norm", "instance_norm"], layers.batch_norm),
    **dict.fromkeys(["layer_norm", "rms_norm"], layers.layer_norm),
    "group_norm": layers.group_norm,
    "prelu": layers.prelu,
    "multi_head_attention_forward": layers.attention,
    "pad": shapes.pad,
    **dict.fromkeys(["reshape", "view", "flatten", "unflatten", "ravel"], shapes.reshape),
    "permute": shapes.permute,
    **dict.fromkeys(["transpose", "swapaxes", "swapdims", "t", "T", "mT"], shapes.transpose),
    "unsqueeze": shapes.unsqueeze,
    "squeeze": shapes.squeeze,
    **dict.fromkeys(["expand", "expand_as"], shapes.expand),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std", "logsumexp"], shapes.reduce),
    **dict.fromkeys(["cat", "concat", "concatenate"], shapes.concatenate),
    "__getitem__": shapes.index,
}
"""Name of a torch function -> its rule."""
