// RKD-D on tiles of distances: the means, the loss with B = sum psi d, and V.
#pragma once

#include "cpu/rkd_square.h"

namespace kdx {
namespace KDX_ISA {

// Sums over ordered pairs (i, j).
struct DistanceSums {
  double student = 0, student_count = 0, teacher = 0, teacher_count = 0;  // positive distances
  double loss = 0, slope_times_distance = 0;                              // Huber, and B

  void add(const DistanceSums& o, double times) {
    student += times * o.student;
    student_count += times * o.student_count;
    teacher += times * o.teacher;
    teacher_count += times * o.teacher_count;
    loss += times * o.loss;
    slope_times_distance += times * o.slope_times_distance;
  }
};

// 1 / mean of the positive distances; 0 when there are none, which makes every normalised distance 0.
inline double inverse_mean(double sum, double count) { return count == 0 ? 0.0 : count / sum; }

// Squared distances below the smallest normal number count as exact duplicates: their inverse root would overflow. The
// comparison is written so that NaN is kept.
template <class T>
constexpr T kSmallest = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);

template <class T>
inline __attribute__((always_inline)) auto is_duplicate(Lanes<T> square) {
  return square < spread(kSmallest<T>);
}

// Squared to plain distances in place, and their sum and count.
template <class T>
void distances_in_place(T* tile, double& sum, double& count) {
  using V = Lanes<T>;
  V total{}, number{};
  for (int e = 0; e < kTile<T>; e += kLanes<T>) {
    const V s = load(tile + e);
    const auto zero = is_duplicate<T>(s);
    const V d = zero ? V{} : square_root(s);
    store(tile + e, d);
    total += d;
    number += zero ? V{} : spread(T(1));
  }
  sum += sum_lanes<T>(total);
  count += sum_lanes<T>(number);
}

template <class T>
void distance_loss(const T* student, const T* teacher, T inv_mu, T inv_nu, T delta_, DistanceSums& sums) {
  using V = Lanes<T>;
  const V mu = spread(inv_mu), nu = spread(inv_nu), delta = spread(delta_), half = spread(T(0.5));
  V loss{}, b{};
  for (int e = 0; e < kTile<T>; e += kLanes<T>) {
    const V d = load(student + e);
    const V z = d * mu - load(teacher + e) * nu;
    const V psi = huber_slope(z, delta);
    loss += huber_loss(z, psi, half);
    b += psi * d;
  }
  sums.loss += sum_lanes<T>(loss);
  sums.slope_times_distance += sum_lanes<T>(b);
}

// V_ij = scale (psi_ij - shift) / d_ij, with shift = B / (n mu) and scale = weight / (N^2 mu); 0 for duplicates. V may
// take the place of the student's distances.
template <class T>
void distance_gradient(const T* student, const T* teacher, T inv_mu, T inv_nu, T delta_, T shift_, T scale_, T* out) {
  using V = Lanes<T>;
  const V mu = spread(inv_mu), nu = spread(inv_nu), delta = spread(delta_), shift = spread(shift_),
          scale = spread(scale_);
  for (int e = 0; e < kTile<T>; e += kLanes<T>) {
    const V d = load(student + e);
    const V psi = huber_slope(V(d * mu - load(teacher + e) * nu), delta);
    const V v = scale * (psi - shift) / d;
    store(out + e, d == V{} ? V{} : v);
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
