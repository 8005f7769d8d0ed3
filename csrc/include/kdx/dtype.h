// Element types that cross the language border; the numbers are those of kdx/ops/_dtypes.py.
#pragma once

namespace kdx {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

}  // namespace kdx
