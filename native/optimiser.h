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

typedef double vd __attribute__((vector_size(VL * 8)));
typedef int64_t vl __attribute__((vector_size(VL * 8)));
static FF_INLINE vf delta_of(const float* w, const float* start, double shrunk) {
  const vf x = load(w) - load(start);
  return shrunk == 1.0 ? x : __builtin_convertvector(__builtin_convertvector(x, vd) * shrunk, vf);
}
static FF_INLINE double exact_square(float x) { return (double)x * (double)x; }

typedef int64_t vl_any __attribute__((vector_size(VL * 8), aligned(8), may_alias));

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

// total += weight * round_half_even(delta / step) with delta = shrunk * (w - start) as a float; false, and nothing done,
// where one is not finite or beyond the cap
static bool fold_in(const Plan& plan, const Fold& fold, int64_t weight, const float* w, const float* start, double shrunk,
                    int64_t* total) {
  const double exact = std::min(fold.cap / (double)std::max<int64_t>(weight, 1), 2251799813685248.0 * fold.step);
  float cap = exact < 3.0e38 ? (float)exact : 3.0e38f;
  if ((double)cap > exact) cap = std::nextafter(cap, 0.f);
  vi over{};
  vf most_of = zero();
  for (const Range& r : plan.trained)
    for (int64_t i = r.at; i < r.at + r.size; i += VL) {
      const vf x = vabs(delta_of(w + i, start + i, shrunk));
      over |= ~(vi)(x <= cap);
      most_of = vmax(x, most_of);
    }
  for (int j = 0; j < VL; j++)
    if (over[j]) return false;
  const double magic = 1.5 * 4503599627370496.0 * fold.step;
  int64_t bits;
  memcpy(&bits, &magic, 8);
  // where weight * |delta| stays below 2^51 steps, the product of whole numbers is exact in a double
  const bool small = (double)most(most_of) * (double)weight < 2251799813685247.0 * fold.step * 0.5;
  const double by = (double)weight;
  for (const Range& r : plan.trained)
    for (int64_t i = r.at; i < r.at + r.size; i += VL) {
      const vd x = __builtin_convertvector(delta_of(w + i, start + i, shrunk), vd);
      vd q = x + magic;
      vl now = *(const vl_any*)(total + i);
      if (small)
        now += (vl)((q - magic) * by + magic) - bits;
      else
        now += ((vl)q - bits) * weight;
      *(vl_any*)(total + i) = now;
    }
  return true;
}

}  // namespace ff
