// More activations: between two bounds, the piecewise ones of networks for phones, ELU and its kin, softplus.
// Here: their functions and derivatives, torch's at the edges too. Not here: the op of them (ops_pointwise.h).
#pragma once
#include "ops_pointwise.h"

namespace ff {

// exp(x) - 1 for x not above 0, near 0 too; of others, anything
static FF_INLINE vf exp_less_one(vf x0) {
  const vf x = x0 < zero() ? x0 : zero();
  vf p = all(1.f / 5040);
  p = p * x + 1.f / 720;
  p = p * x + 1.f / 120;
  p = p * x + 1.f / 24;
  p = p * x + 1.f / 6;
  p = p * x + .5f;
  p = p * x + 1.f;
  return x > -.25f ? p * x : exp_down(x) - 1.f;
}
// log(1 + u) for u in 0..1: 2 artanh(s), s = u / (2 + u) at most a third
static FF_INLINE vf log_one_and(vf u) {
  const vf s = u / (2.f + u), q = s * s;
  vf p = all(1.f / 15);
  p = p * q + 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  return 2.f * (s + s * q * p);
}
static FF_INLINE vf within(vf x, float low, float high) {  // keeps what is not a number
  const vf least = all(low), greatest = all(high);
  const vf y = x < least ? least : x;
  return y > greatest ? greatest : y;
}

// Between a and b. At the bounds Hardtanh (and so ReLU6) has no gradient, and Clamp has.
struct Bounded {
  static Constants told(const Spec& s) {
    must(s.floats.size() == 2 && s.floats[0] <= s.floats[1], "op with bounds: takes the lower and the upper one");
    return {(float)s.floats[0], (float)s.floats[1], 0};
  }
  static FF_INLINE vf f(vf x, const Constants& k) { return within(x, k.a, k.b); }
};
struct Hardtanh : Bounded {
  static constexpr bool READS_X = false;
  static FF_INLINE vf back(vf d, vf, vf y, const Constants& k) { return ((y <= all(k.a)) | (y >= all(k.b))) ? zero() : d; }
};
struct Clamp : Bounded {
  static constexpr bool READS_X = true;
  static FF_INLINE vf back(vf d, vf x, vf, const Constants& k) { return ((x < all(k.a)) | (x > all(k.b))) ? zero() : d; }
};
// Howard et al. 2019 (MobileNetV3): min(max(x + 3, 0), 6) / 6, and x times it
struct Hardsigmoid {
  static constexpr bool READS_X = true;
  static FF_INLINE vf f(vf x, const Constants&) { return within(x + 3.f, 0.f, 6.f) * (1.f / 6); }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants&) { return ((x <= all(-3.f)) | (x >= all(3.f))) ? zero() : d * (1.f / 6); }
};
struct Hardswish {
  static constexpr bool READS_X = true;
  static FF_INLINE vf f(vf x, const Constants&) { return x * within(x + 3.f, 0.f, 6.f) * (1.f / 6); }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants&) {
    const vf middle = d * (x * (1.f / 3) + .5f);
    return x <= -3.f ? zero() : x < 3.f ? middle : d;
  }
};
// b x above 0, else a b (exp(c x) - 1): ELU (b = c = 1), SELU (c = 1), CELU (a = 1 / c, b = 1)
struct Elu {
  static constexpr bool READS_X = true;
  static Constants told(const Spec& s) {
    must(s.floats.size() == 3 && std::isfinite(s.floats[0]) && std::isfinite(s.floats[1]) && std::isfinite(s.floats[2]) && s.floats[2] >= 0,
         "elu: takes three finite numbers, the last not below 0");
    return {(float)s.floats[0], (float)s.floats[1], (float)s.floats[2]};
  }
  static FF_INLINE vf f(vf x, const Constants& k) {
    const vf down = k.a * k.b * exp_less_one(k.c * x);
    return x <= zero() ? down : k.b * x;
  }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants& k) {
    const vf t = k.c * x, down = k.a * k.b * k.c * exp_down(t < zero() ? t : zero());
    return x <= zero() ? d * down : k.b * d;
  }
};
// log(1 + exp(a x)) / a, and x where a x is above b
struct Softplus {
  static constexpr bool READS_X = true;
  static Constants told(const Spec& s) {
    must(s.floats.size() == 2 && std::isfinite(s.floats[0]) && s.floats[0] != 0, "softplus: takes a finite beta that is not 0, and a threshold");
    return {(float)s.floats[0], (float)s.floats[1], (float)(1 / s.floats[0])};
  }
  static FF_INLINE vf f(vf x, const Constants& k) {
    const vf t = k.a * x, bent = k.c * (relu(t) + log_one_and(exp_down(-vabs(t))));
    return t > all(k.b) ? x : bent;
  }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants& k) {
    const vf t = k.a * x, bent = d * logistic(t);
    return t > all(k.b) ? d : bent;
  }
};

}  // namespace ff
