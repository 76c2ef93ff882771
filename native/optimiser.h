// What turns a client's gradient into its next weights where plain SGD inside the ops is not enough; and the exact fold.
// Here: drift, clipping, SGD with momentum, Adam (Kingma and Ba, ICLR 2015, alg. 1), int64 sums. Not here: gradients.
// Invariant: only trained ranges change; a fold's sum is a sum of integers, so no order matters.
#pragma once
#include <algorithm>
#include <cmath>

#include "arena.h"

namespace ff {

struct Drift {           // g <- mask * (g + weight_decay * w + a + mu * (w - ref)), all packed
  const float* a;        // or null
  const float* ref;      // or null
  const float* mask;     // or null
  float mu;
};

// The order of `work.net.Drift`: mask, clip, decay, a, mu, mask, then the optimiser; m, s: moments; taken from 1
static void advance(const Plan& plan, const Settings& set, const Drift& drift, float rate, float* w, float* g, float* m, float* s, double taken) {
  float scale = 1.f;
  if (drift.mask)
    for (const Range& r : plan.trained)
      for (int64_t i = r.at; i < r.at + r.size; i += VL) store(g + i, load(g + i) * load(drift.mask + i));
  if (set.clip_norm > 0) {
    double square = 0;
    for (const Range& r : plan.trained)
      for (int64_t i0 = r.at; i0 < r.at + r.size; i0 += 512) {
        vf part = zero();
        for (int64_t i = i0; i < i0 + 512 && i < r.at + r.size; i += VL) part += load(g + i) * load(g + i);
        square += sum(part);
      }
    const float by = (float)set.clip_norm / ((float)std::sqrt(square) + 1e-6f);
    scale = by > 1.f ? 1.f : by;
  }
  const float decay = (float)set.weight_decay, rho = (float)set.momentum;
  const float b1 = (float)set.beta1, b2 = (float)set.beta2, eps = (float)set.eps;
  const float c1 = set.adam ? (float)(rate / (1 - std::pow(set.beta1, taken))) : 0.f;
  const float c2 = set.adam ? (float)(1 / (1 - std::pow(set.beta2, taken))) : 0.f;
  for (const Range& r : plan.trained)
    for (int64_t i = r.at; i < r.at + r.size; i += VL) {
      const vf now = load(w + i);
      vf d = load(g + i) * scale + decay * now;
      if (drift.a) d += load(drift.a + i);
      if (drift.ref) d += drift.mu * (now - load(drift.ref + i));
      if (drift.mask) d *= load(drift.mask + i);
      if (set.adam) {
        const vf mean = b1 * load(m + i) + (1 - b1) * d, square = b2 * load(s + i) + (1 - b2) * (d * d);
        store(m + i, mean);
        store(s + i, square);
        vf root;
        for (int j = 0; j < VL; j++) root[j] = std::sqrt(square[j] * c2);
        root += eps;
        d = pick(root > zero(), mean / root, mean == zero() ? zero() : mean / root);
        store(w + i, now - c1 * d);
        continue;
      }
      if (m) {
        const vf speed = rho * load(m + i) + d;
        store(m + i, speed);
        d = set.nesterov ? d + rho * speed : speed;
      }
      store(w + i, now - rate * d);
    }
}

// vectors of half as many lanes, of twice the bits
typedef double vd __attribute__((vector_size(VL * 4)));
typedef uint64_t vl __attribute__((vector_size(VL * 4)));
typedef uint64_t vl_any __attribute__((vector_size(VL * 4), aligned(8), may_alias));
typedef float vf_half __attribute__((vector_size(VL * 2), aligned(4), may_alias));
static FF_INLINE vd wide(const float* p) { return __builtin_convertvector(*(const vf_half*)p, vd); }
static FF_INLINE double exact_square(float x) { return (double)x * (double)x; }

// The norm of x[n] in the order of `aggregate.rows.norms`: 64 lanes of sums in double, added up as a tree
static double norm_of(const float* x, int64_t n) {
  constexpr int LANES = 64;
  double sums[LANES] = {0};
  for (int64_t i = 0; i < n; i += LANES)
    for (int64_t j = 0, most = std::min<int64_t>(LANES, n - i); j < most; j++) sums[j] = sums[j] + exact_square(x[i + j]);
  for (int half = LANES / 2; half; half /= 2)
    for (int j = 0; j < half; j++) sums[j] += sums[j + half];
  return std::sqrt(sums[0]);
}

// A factor that shrinks the delta w - start to the norm `clip`, or 1; `flat` [P] is scratch, in the vector's order
static double shrinking(const Plan& plan, double clip, const float* w, const float* start, float* flat) {
  for (int64_t i = 0; i < plan.packed_size; i++)
    if (plan.index[i] >= 0) flat[plan.index[i]] = w[i] - start[i];
  const double length = norm_of(flat, plan.vector_size);
  return std::isfinite(length) && length > clip ? clip / length : 1.0;
}

// x[n] = shrunk * (w - start) as floats; gives the largest magnitude, not a number or infinite where any is
static FF_INLINE float deltas(const float* w, const float* start, double shrunk, int64_t n, float* x) {
  vi top{};  // bits of magnitudes are in order as whole numbers, those of what is not finite above all others
  for (int64_t i = 0; i < n; i += VL) {
    const vf d = load(w + i) - load(start + i);
    store(x + i, d);
    const vi size = (vi)vabs(d);
    top = size > top ? size : top;
  }
  int32_t bits = 0;
  for (int j = 0; j < VL; j++) bits = std::max(bits, (int32_t)top[j]);
  float most;
  memcpy(&most, &bits, sizeof most);
  if (shrunk == 1.0) return most;
  for (int64_t i = 0; i < n; i += VL / 2) *(vf_half*)(x + i) = __builtin_convertvector(wide(x + i) * shrunk, vf_half);
  return (float)((double)most * shrunk);
}

// total[n] += weight * round_half_even(x / step), for |x| of at most `most`
static FF_INLINE void add_rounded(const float* x, int64_t n, float most, double step, int64_t weight, int64_t* total) {
  const double magic = 1.5 * 4503599627370496.0 * step, by = (double)weight;
  uint64_t bits;
  memcpy(&bits, &magic, 8);
  // where weight * |x| stays below 2^50 steps, the product of whole numbers is exact in a double
  if ((double)most * std::abs(by) < 1125899906842623.5 * step)
    for (int64_t i = 0; i < n; i += VL / 2) *(vl_any*)(total + i) += (vl)((wide(x + i) + magic - magic) * by + magic) - bits;
  else
    for (int64_t i = 0; i < n; i += VL / 2) *(vl_any*)(total + i) += ((vl)(wide(x + i) + magic) - bits) * (uint64_t)weight;
}

// total += weight * round_half_even(delta / step) with delta = shrunk * (w - start) as a float; false, and nothing done,
// where one is not finite or beyond the cap: a block that holds such a one ends the sum, and those before are taken back
static bool fold_in(const Plan& plan, const Fold& fold, int64_t weight, const float* w, const float* start, double shrunk,
                    int64_t* total) {
  constexpr int64_t BLOCK = 512;
  const double cap = std::min(fold.cap / (double)std::max<int64_t>(weight, 1), 2251799813685248.0 * fold.step);
  alignas(64) float x[BLOCK];
  const auto add = [&](int64_t by, int64_t limit) {  // of at most `limit` blocks; gives how many there were, -1 for all
    int64_t done = 0;
    for (const Range& r : plan.trained)
      for (int64_t i = r.at, end = r.at + r.size; i < end; i += BLOCK, done++) {
        const int64_t n = std::min(BLOCK, end - i);
        const float most = done == limit ? 0 : deltas(w + i, start + i, shrunk, n, x);
        if (done == limit || !((double)most <= cap)) return done;
        add_rounded(x, n, most, fold.step, by, total + i);
      }
    return int64_t(-1);
  };
  const int64_t done = add(weight, INT64_MAX);
  if (done > 0) add(-weight, done);
  return done < 0;
}

}  // namespace ff
