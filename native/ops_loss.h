// Losses: from outputs and targets to the mean loss of a batch, leaving its gradient in the outputs' place.
// Not here: which rows (train.h). Invariant: padded lanes of the gradient are 0; what is not a number reaches the loss.
#pragma once
#include <cmath>
#include <type_traits>

#include "plan.h"

namespace ff {

constexpr int64_t LEFT_OUT = -100;  // a label that does not count, as in torch

struct Targets {  // of the rows of a batch, one behind the other
  const int64_t* labels;   // [rows * positions], for the cross entropies
  const float* numbers;    // [rows * positions * c], for the others
  const char* absent;      // by class: not among the client's own labels; null: all count
};
struct Measured {
  double sum = 0;      // of losses over what counts
  double right = 0;    // of those, rightly classified
  double counted = 0;
};

// Softmax cross entropy of z[c] in place: gradient (softmax - onehot), unscaled; gives the loss
static inline double softmax_row(float* z, int64_t y, int c, int ld, const char* absent) {
  if (absent)
    for (int j = 0; j < c; j++)
      if (absent[j]) z[j] += -1e30f;
  const int whole_lanes = c / VL * VL;
  vf m = all(-__builtin_inff());
  for (int j = 0; j < whole_lanes; j += VL) m = vmax(load(z + j), m);
  float top = most(m);
  for (int j = whole_lanes; j < c; j++) top = z[j] > top ? z[j] : top;
  const float chosen = z[y] - top;
  vf s = zero();
  for (int j = 0; j < ld; j += VL) {
    vf e = vexp(load(z + j) - top);
    if (j + VL > c) e = pick(first(c - j), e, zero());
    store(z + j, e);
    s += e;
  }
  const float total = sum(s), inverse = 1.f / total;
  for (int j = 0; j < ld; j += VL) store(z + j, load(z + j) * inverse);
  z[y] -= 1.f;
  return std::log((double)total) - (double)chosen;
}

// Measures, and with `learn` turns z [rows * positions][ld] into the gradient of the mean over what counts
[[maybe_unused]] static Measured cross_entropy(float* z, const Targets& to, int64_t rows, int c, int ld, bool learn) {
  Measured out;
  for (int64_t r = 0; r < rows; r++) out.counted += to.labels[r] != LEFT_OUT;
  const float share = out.counted ? (float)(1.0 / out.counted) : 0.f;
  for (int64_t r = 0; r < rows; r++, z += ld) {
    const int64_t y = to.labels[r];
    if (y == LEFT_OUT) {
      if (learn) memset(z, 0, ld * sizeof(float));
      continue;
    }
    if (!learn) {
      int best = 0;
      for (int j = 1; j < c; j++)
        if (z[j] > z[best]) best = j;
      out.right += best == y;
    }
    out.sum += softmax_row(z, y, c, ld, learn ? to.absent : nullptr);
    if (learn)
      for (int j = 0; j < ld; j += VL) store(z + j, load(z + j) * share);
  }
  return out;
}

// The losses on numbers, by lane, of output x and target y: f, and its slope; as torch has them
struct Square {
  static FF_INLINE vf f(vf x, vf y) { return (x - y) * (x - y); }
  static FF_INLINE vf slope(vf x, vf y) { return 2.f * (x - y); }
};
struct Absolute {
  static FF_INLINE vf f(vf x, vf y) { return vabs(x - y); }
  static FF_INLINE vf slope(vf x, vf y) {
    const vf d = x - y;
    return d > 0.f ? all(1.f) : d < 0.f ? all(-1.f) : d;  // 0 at 0, and what is not a number stays
  }
};
struct Logistic {  // binary cross entropy of the logit x
  // log(1 + exp(-|x|)) = 2 artanh(s), s = e / (2 + e) at most a third
  static FF_INLINE vf f(vf x, vf y) {
    const vf e = vexp(-vabs(x)), s = e / (2.f + e), q = s * s;
    vf p = all(1.f / 17);
#pragma GCC unroll 8
    for (int i = 15; i > 0; i -= 2) p = p * q + 1.f / (float)i;
    return relu(x) - x * y + 2.f * s * p;
  }
  static FF_INLINE vf slope(vf x, vf y) { return vsigmoid(x) - y; }
};

// The mean over all numbers of z [rows][ld] against y [rows][c]
template <class F>
static Measured numbers(float* z, cf y, int64_t rows, int c, int ld, bool learn) {
  Measured out;
  out.counted = (double)rows * c;
  const float share = (float)(1.0 / out.counted);
  for (int64_t r = 0; r < rows; r++, z += ld, y += c)
    for (int j = 0; j < ld; j += VL) {
      const int n = c - j < VL ? c - j : VL;
      if (n <= 0) {  // padding
        if (learn) store(z + j, zero());
        continue;
      }
      float to[VL] = {0}, lost[VL];
      memcpy(to, y + j, n * sizeof(float));
      const vf x = load(z + j), want = load(to);
      store(lost, F::f(x, want));
      double s = 0;
      for (int i = 0; i < n; i++) s += lost[i];
      out.sum += s;
      if (std::is_same<F, Logistic>::value)
        for (int i = 0; i < n; i++) out.right += (z[j + i] > 0) == (to[i] > .5f);
      if (learn) {
        const vf slope = F::slope(x, want) * share;
        store(z + j, n == VL ? slope : pick(first(n), slope, zero()));
      }
    }
  return out;
}

[[maybe_unused]] static Measured measure(Loss loss, float* z, const Targets& to, int64_t rows, const Value& v, bool learn) {
  switch (loss) {
    case Loss::cross_entropy:
    case Loss::masked_cross_entropy: return cross_entropy(z, to, rows * v.positions(), v.c, v.ld, learn);
    case Loss::mse: return numbers<Square>(z, to.numbers, rows * v.positions(), v.c, v.ld, learn);
    case Loss::l1: return numbers<Absolute>(z, to.numbers, rows * v.positions(), v.c, v.ld, learn);
    case Loss::bce: return numbers<Logistic>(z, to.numbers, rows * v.positions(), v.c, v.ld, learn);
  }
  refuse("there is no such loss");
}

}  // namespace ff
