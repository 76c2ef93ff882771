// Ops on each number by itself: activations, sums and products of two values, dropout, copies.
// Here: their functions and derivatives (more of them in ops_bends.h), the stream of dropout. Not here: what looks at
// several numbers (ops_norm.h), what is the same at all positions (ops_channels.h).
// Invariant: padded lanes of what is written are 0. A value that does not lie as the output does (inputs of the plan may
// be narrower than 16 lanes) is copied first; all else is one loop over the whole batch.
#pragma once
#include <cmath>
#include <type_traits>

#include "op.h"

#define FF_LAMBDA __attribute__((always_inline))

namespace ff {

// How an input lies beside an output of the same shape.
struct Frame {
  int64_t positions = 0;
  int c = 0, ldx = 0, ldz = 0;
  bool even() const { return ldx == ldz; }
  int64_t size() const { return positions * ldz; }  // floats an example of the output
  // floats for one copy, where one is needed
  int64_t room(int rows) const { return even() ? 0 : rows * size(); }

  static Frame of(const Spec& s, const Shapes& at, size_t input) {
    const Value &x = at.values[s.in[input]], &z = at.values[s.out];
    if (x.tokens || z.tokens) refuse("op " + s.kind + ": takes numbers, not tokens");
    if (x.h != z.h || x.w != z.w || x.c != z.c) refuse("op " + s.kind + ": the shapes of input and output differ");
    if (z.ld % PAD || z.ld < z.c || x.ld < x.c) refuse("op " + s.kind + ": the output does not lie in 16 lanes");
    return Frame{z.positions(), z.c, x.ld, z.ld};
  }

  // x as the output lies: x itself, or a copy in `room`
  cf lie(cf x, int rows, float* room) const {
    if (even()) return x;
    for (int64_t m = 0; m < rows * positions; m++) {
      memcpy(room + m * ldz, x + m * ldx, c * sizeof(float));
      memset(room + m * ldz + c, 0, (ldz - c) * sizeof(float));
    }
    return room;
  }
  // a gradient that lies as the output to where the input's lies
  void hand_back(cf d, int rows, float* below, bool add) const {
    for (int64_t m = 0; m < rows * positions; m++) {
      cf from = d + m * ldz;
      float* to = below + m * ldx;
      for (int j = 0; j < c; j++) to[j] = add ? to[j] + from[j] : from[j];
      if (!add) memset(to + c, 0, (ldx - c) * sizeof(float));
    }
  }
  void clear_pads(float* z, int rows) const {
    if (c < ldz)
      for (int64_t m = 0; m < rows * positions; m++) memset(z + m * ldz + c, 0, (ldz - c) * sizeof(float));
  }
};

// below[i] = value(i), or is added to, for i in steps of VL; `room` is where it is made if it cannot lie there
template <class F>
static FF_INLINE void give(const Frame& f, int rows, float* below, bool add, float* room, F value) {
  const int64_t n = rows * f.size();
  if (!f.even()) {
    for (int64_t i = 0; i < n; i += VL) store(room + i, value(i));
    f.hand_back(room, rows, below, add);
  } else if (add) {
    for (int64_t i = 0; i < n; i += VL) store(below + i, load(below + i) + value(i));
  } else {
    for (int64_t i = 0; i < n; i += VL) store(below + i, value(i));
  }
}

// exp of what is not above 0, to two units in the last place; below -87 it is 0; what is not a number gives anything
static FF_INLINE vf exp_down(vf x0) {
  const vf x = x0 < -87.f ? all(-87.f) : x0;
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds, and leaves the whole number in the low bits
  const vf t = x * 1.44269504f + magic, n = t - magic;
  const vf r = (x - n * .693145752f) - n * 1.42860677e-6f;
  vf p = all(1.f / 5040);
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + .5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  return x0 < -87.f ? zero() : (vf)((vi)p + ((vi)t << 23));
}
static FF_INLINE vf logistic(vf x) {
  const vf e = exp_down(-vabs(x)), s = 1.f / (1.f + e);
  const vf out = x < 0.f ? e * s : s;
  return x == x ? out : x;
}
static FF_INLINE vf hyperbolic_tangent(vf x) {
  // near 0 the quotient would cancel: an odd polynomial there
  const vf a = vabs(x), e = exp_down(-2.f * a), s = x * x;
  const vf far = (1.f - e) / (1.f + e);
  const vf near = x * (1.f + s * (-1.f / 3 + s * (2.f / 15 + s * (-17.f / 315 + s * (62.f / 2835)))));
  const vf out = a < .25f ? near : x < 0.f ? -far : far;
  return x == x ? out : x;
}

constexpr float PHI_K = .27f;
constexpr float PHI_Q[] = {.107719049f, .10756845f, .101639278f, .0726813897f, .106419481f, -.0672715381f, .16816380620f, -.125731274f, .0288113728f};
// The distribution function of the standard normal and its density: P(X < -a) = exp(-a a / 2) u q(u), u = 1 / (1 + k a),
// in the form of Abramowitz and Stegun 7.1.26 with more terms (relative error below 4e-7 in the tail, too).
struct Normal {  // of what is not a number, anything
  vf below, density;
};
static FF_INLINE Normal normal(vf x) {
  const vf a = vabs(x), e = exp_down(-.5f * x * x);
  const vf u = 1.f / (1.f + PHI_K * a);
  vf q = all(PHI_Q[sizeof PHI_Q / sizeof *PHI_Q - 1]);
#pragma GCC unroll 16
  for (int i = (int)(sizeof PHI_Q / sizeof *PHI_Q) - 2; i >= 0; i--) q = q * u + PHI_Q[i];
  const vf tail = e * u * q;
  return {x > 0.f ? 1.f - tail : tail, e * .39894228f};
}

// Numbers of an op that are the same for all it is given.
struct Constants {
  float a = 0, b = 0, c = 0;
};

// Each has f(x, k) and the gradient below given that above (d), x, y = f(x) and the op's constants k.
struct Relu {
  static constexpr bool READS_X = false;
  static FF_INLINE vf f(vf x, const Constants&) { return relu(x); }
  static FF_INLINE vf back(vf d, vf, vf y, const Constants&) { return y <= zero() ? zero() : d; }
};
struct Tanh {
  static constexpr bool READS_X = false;
  static FF_INLINE vf f(vf x, const Constants&) { return hyperbolic_tangent(x); }
  static FF_INLINE vf back(vf d, vf, vf y, const Constants&) { return d * (1.f - y * y); }
};
struct Sigmoid {
  static constexpr bool READS_X = false;
  static FF_INLINE vf f(vf x, const Constants&) { return logistic(x); }
  static FF_INLINE vf back(vf d, vf, vf y, const Constants&) { return d * (y * (1.f - y)); }
};
struct Gelu {
  static constexpr bool READS_X = true;
  static FF_INLINE vf f(vf x, const Constants&) { return x * normal(x).below; }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants&) {
    const Normal n = normal(x);
    return d * (n.below + x * n.density);
  }
};
struct GeluTanh {  // (1 + tanh t) / 2 = sigmoid(2 t), t = sqrt(2 / pi) (x + 0.044715 x^3)
  static constexpr bool READS_X = true;
  static FF_INLINE vf gate(vf x) { return logistic(x * (1.59576912f + .0713548163f * (x * x))); }
  static FF_INLINE vf f(vf x, const Constants&) { return x * gate(x); }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants&) {
    const vf s = gate(x);
    return d * (s + (x * s) * (1.f - s) * (1.59576912f + .214064449f * (x * x)));
  }
};
struct Silu {
  static constexpr bool READS_X = true;
  static FF_INLINE vf f(vf x, const Constants&) { return x * logistic(x); }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants&) {
    const vf s = logistic(x);
    return d * (s + (x * s) * (1.f - s));
  }
};
struct LeakyRelu {
  static constexpr bool READS_X = true;
  static Constants told(const Spec& s) {
    must(s.floats.size() == 1 && std::isfinite(s.floats[0]), "leaky_relu: takes one finite slope");
    return {(float)s.floats[0], 0, 0};
  }
  static FF_INLINE vf f(vf x, const Constants& k) { return x > zero() ? x : k.a * x; }
  static FF_INLINE vf back(vf d, vf x, vf, const Constants& k) { return x > zero() ? d : k.a * d; }
};

// What the floats of a plan's op say to F: nothing, or else F has its own `told`.
template <class F, class = void>
struct Told {
  static Constants of(const Spec&) { return {}; }
};
template <class F>
struct Told<F, decltype((void)F::told)> {
  static Constants of(const Spec& s) { return F::told(s); }
};

template <class F>
static bool clears_pads(const Constants& k) {  // f(0) is not 0
  return !(sum(vabs(F::f(zero(), k))) == 0);
}

template <class F>
struct Pointwise final : Op {
  Frame frame;
  Constants k;
  bool clears = false;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    auto op = std::make_unique<Pointwise>();
    op->frame = Frame::of(s, at, 0);
    op->k = Told<F>::of(s);
    op->clears = clears_pads<F>(op->k);
    return op;
  }
  int64_t scratch(int rows) const override { return 2 * frame.room(rows); }

  void forward(const Pass& t, float*) const override {
    float* z = t.act[out];
    cf x = frame.lie(t.act[in[0]], t.rows, z);
    const int64_t n = t.rows * frame.size();
    const Constants k = this->k;
    for (int64_t i = 0; i < n; i += VL) store(z + i, F::f(load(x + i), k));
    if (clears) frame.clear_pads(z, t.rows);
  }
  void backward(const Pass& t, float*) const override {
    if (!want[0]) return;
    cf d = t.grad[out], y = t.act[out], x = F::READS_X ? frame.lie(t.act[in[0]], t.rows, t.scratch) : y;
    const Constants k = this->k;
    give(frame, t.rows, t.grad[in[0]], add[0], t.scratch + frame.room(t.rows),
         [=](int64_t i) FF_LAMBDA { return F::back(load(d + i), load(x + i), load(y + i), k); });
  }
};

// The sum or the product of two values of one shape, or of one value with itself.
template <bool PRODUCT>
struct Two final : Op {
  Frame frames[2];

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 2, 0, 0);
    auto op = std::make_unique<Two>();
    for (int k = 0; k < 2; k++) op->frames[k] = Frame::of(s, at, k);
    return op;
  }
  int64_t scratch(int rows) const override { return 2 * (frames[0].room(rows) + frames[1].room(rows)); }

  void forward(const Pass& t, float*) const override {
    float* z = t.act[out];
    cf a = frames[0].lie(t.act[in[0]], t.rows, z), b = frames[1].lie(t.act[in[1]], t.rows, t.scratch);
    const int64_t n = t.rows * frames[0].size();
    for (int64_t i = 0; i < n; i += VL) store(z + i, PRODUCT ? load(a + i) * load(b + i) : load(a + i) + load(b + i));
  }
  void backward(const Pass& t, float*) const override {
    const bool one = in[0] == in[1];
    cf d = t.grad[out];
    for (int k = 0; k < 2; k++) {
      if (!want[k]) continue;
      const Frame &f = frames[k], &other = frames[1 - k];
      // of one value with itself the second adds to what the first wrote
      const bool adds = one ? k == 1 || (add[0] && add[1]) : add[k];
      float* room = t.scratch + other.room(t.rows);
      if (PRODUCT) {
        cf b = other.lie(t.act[in[1 - k]], t.rows, t.scratch);
        give(f, t.rows, t.grad[in[k]], adds, room, [=](int64_t i) FF_LAMBDA { return load(d + i) * load(b + i); });
      } else {
        give(f, t.rows, t.grad[in[k]], adds, room, [=](int64_t i) FF_LAMBDA { return load(d + i); });
      }
    }
  }
};
typedef Two<false> Add;
typedef Two<true> Mul;

// SplitMix64, as fieldfare.core.rng has it
typedef uint64_t vw __attribute__((vector_size(VL * 4)));
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;
template <class W>
static FF_INLINE W mix(W z) {
  z = (z ^ (z >> 30)) * (uint64_t)0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * (uint64_t)0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// y = x / (1 - p) where kept, else 0 x (so that what is not a number stays). Of the batch as it lies (place i of
// [rows][h w ld], padded lanes counted) the half i % 2 (low first) of the word i / 2 decides: kept iff it is at least
// floor(p 2^32). Words: rng.bits(mix((client's key ^ DROPOUT) + number), (step << 40) + i / 2). The backward pass hashes
// again. src/fieldfare/work/native/streams.py says the same in Python.
constexpr uint64_t DROPOUT = 0xa578d1035f0fc097u;  // derive(0, "dropout")
struct Dropout final : Op {
  Frame frame;
  uint64_t number = 0;
  uint32_t threshold = 0;
  float p = 0, kept_scale = 1;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    auto op = std::make_unique<Dropout>();
    op->frame = Frame::of(s, at, 0);
    op->number = (uint64_t)whole(s, 0, 0, INT32_MAX);
    must(s.floats.size() == 1 && s.floats[0] >= 0 && s.floats[0] <= 1, "dropout: takes one probability");
    op->p = (float)s.floats[0];
    op->threshold = s.floats[0] < 1 ? (uint32_t)(s.floats[0] * 4294967296.0) : 0;
    op->kept_scale = s.floats[0] < 1 ? (float)(1 / (1 - s.floats[0])) : 0.f;
    return op;
  }
  int64_t scratch(int rows) const override { return frame.room(rows); }

  // f(i, factor of the VL places from i)
  template <class F>
  FF_INLINE void masks(const Pass& t, F f) const {
    const uint64_t key = mix((t.key ^ DROPOUT) + number);
    const uint64_t base = mix(key) + (((uint64_t)t.step << 40) + 1) * GOLDEN;
    vw at;
    for (int i = 0; i < VL / 2; i++) at[i] = base + (uint64_t)i * GOLDEN;
    const vu least = vu{} + threshold;
    const vf scale = all(kept_scale);
    const int64_t n = t.rows * frame.size();
    for (int64_t i = 0; i < n; i += VL, at += (uint64_t)(VL / 2) * GOLDEN)
      f(i, pick((vu)mix(at) >= least, scale, zero()));
  }
  void forward(const Pass& t, float*) const override {
    float* z = t.act[out];
    cf x = frame.lie(t.act[in[0]], t.rows, z);
    if (t.train && p > 0)
      masks(t, [=](int64_t i, vf factor) FF_LAMBDA { store(z + i, load(x + i) * factor); });
    else if (x != z)
      memcpy(z, x, t.rows * frame.size() * sizeof(float));
  }
  void backward(const Pass& t, float*) const override {
    if (!want[0]) return;
    cf d = t.grad[out];
    float* below = t.grad[in[0]];
    if (!t.train || p <= 0) {
      give(frame, t.rows, below, add[0], t.scratch, [=](int64_t i) FF_LAMBDA { return load(d + i); });
    } else if (!frame.even()) {
      float* room = t.scratch;
      masks(t, [=](int64_t i, vf factor) FF_LAMBDA { store(room + i, load(d + i) * factor); });
      frame.hand_back(room, t.rows, below, add[0]);
    } else if (add[0]) {
      masks(t, [=](int64_t i, vf factor) FF_LAMBDA { store(below + i, load(below + i) + load(d + i) * factor); });
    } else {
      masks(t, [=](int64_t i, vf factor) FF_LAMBDA { store(below + i, load(d + i) * factor); });
    }
  }
};

}  // namespace ff
