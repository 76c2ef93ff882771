// Attention of several heads over sequences, and a parameter added to every example.
// Here: softmax(scale Q K' + mask) V for each head, its dropout. Not here: the linear layers around it (ops_linear.h).
// Invariant: rows of the softmax end at the last key, the rest of a row is 0.
// After: Vaswani et al. 2017, eq. 1. All of the softmax is kept for the backward pass: sequences here are short.
#pragma once
#include "ops_pointwise.h"
#include "panels.h"

namespace ff {

struct Attention final : Op {
  int Tq, Tk, d, D, Tp;    // queries, keys, floats of a head, both filled up
  int heads;
  int64_t ld[3], ldo;      // floats between positions of queries, keys, values; of the output
  bool causal;             // query i sees keys 0..i alone
  float factor;
  uint64_t number = 0;     // of its dropout
  uint32_t threshold = 0;
  float p = 0, kept_scale = 1;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 3, 0, 0);
    auto op = std::make_unique<Attention>();
    const Value &q = at.values[s.in[0]], &k = at.values[s.in[1]], &v = at.values[s.in[2]], &z = at.values[s.out];
    must(!q.tokens && !k.tokens && !v.tokens && !z.tokens, "attention: takes and gives numbers");
    must(q.w == 1 && k.w == 1 && v.w == 1 && z.w == 1 && z.h == q.h && k.h == v.h, "attention: takes sequences");
    must(q.c == k.c && q.c == v.c && z.c == q.c && z.ld >= z.c && z.ld % PAD == 0, "attention: widths do not fit");
    op->Tq = q.h, op->Tk = k.h, op->heads = (int)whole(s, 0, 1, q.c);
    must(q.c % op->heads == 0, "attention: the width is not that of whole heads");
    must(q.h <= 1 << 14 && k.h <= 1 << 14 && (int64_t)op->heads * q.h * padded(k.h) < (int64_t)1 << 30, "attention: sequences are too long");
    op->d = q.c / op->heads, op->D = padded(op->d), op->Tp = padded(k.h);
    op->ld[0] = q.ld, op->ld[1] = k.ld, op->ld[2] = v.ld, op->ldo = z.ld;
    op->causal = whole(s, 1, 0, 1);
    op->number = (uint64_t)whole(s, 2, 0, INT32_MAX);
    must(s.floats.size() == 2 && s.floats[1] >= 0 && s.floats[1] < 1, "attention: takes a scale and a probability");
    op->factor = (float)s.floats[0];
    op->p = (float)s.floats[1];
    op->threshold = (uint32_t)(s.floats[1] * 4294967296.0);
    op->kept_scale = (float)(1 / (1 - s.floats[1]));
    return op;
  }

  int64_t square() const { return (int64_t)Tq * Tp; }
  int64_t kept(int rows) const override { return (int64_t)rows * heads * square(); }
  // scratch: queries, keys, values and their gradients, the output's, of a head, each also as long as it is transposed
  int64_t side() const { return (int64_t)(padded(Tq) > Tp ? padded(Tq) : Tp) * D; }
  int64_t scratch(int) const override { return 6 * side() + 2 * square(); }

  // one head of one example, [T][D], 0 beyond d
  void take(cf x, int64_t stride, int T, float scale, float* to) const {
    for (int i = 0; i < T; i++) {
      for (int j = 0; j < d; j++) to[(int64_t)i * D + j] = scale * x[i * stride + j];
      for (int j = d; j < D; j++) to[(int64_t)i * D + j] = 0;
    }
  }
  // ... [D][Tp], 0 beyond d and Tk
  void take_turned(cf x, int64_t stride, float* to) const {
    for (int i = 0; i < Tp; i += VL)
      for (int j = 0; j < D; j += VL) {
        vf v[VL];
        for (int a = 0; a < VL; a++)
          for (int b = 0; b < VL; b++) v[a][b] = i + a < Tk && j + b < d ? x[(i + a) * stride + j + b] : 0.f;
        transpose(v);
        for (int b = 0; b < VL; b++) store(to + (int64_t)(j + b) * Tp + i, v[b]);
      }
  }

  // f(i, factor of the VL places from i) over the softmax that begins at place `first` of [rows][heads Tq][Tp]: as Dropout has it
  template <class F>
  FF_INLINE void masks(const Pass& t, int64_t first, F f) const {
    const uint64_t base = mix(mix((t.key ^ DROPOUT) + number)) + (((uint64_t)t.step << 40) + 1 + (uint64_t)first / 2) * GOLDEN;
    vw at;
    for (int i = 0; i < VL / 2; i++) at[i] = base + (uint64_t)i * GOLDEN;
    const vu least = vu{} + threshold;
    const vf scale = all(kept_scale);
    for (int64_t i = 0; i < square(); i += VL, at += (uint64_t)(VL / 2) * GOLDEN) f(i, pick((vu)mix(at) >= least, scale, zero()));
  }
  bool drops(const Pass& t) const { return t.train && p > 0; }
  int seen(int query) const { return causal && query + 1 < Tk ? query + 1 : Tk; }

  void softmax(float* row, int n) const {
    vf most_so_far = all(-__builtin_inff());
    for (int j = 0; j < n; j += VL) most_so_far = vmax(most_so_far, j + VL <= n ? load(row + j) : pick(first(n - j), load(row + j), all(-__builtin_inff())));
    const vf top = all(most(most_so_far));
    vf total = zero();
    for (int j = 0; j < Tp; j += VL) {
      const vf e = j + VL <= n ? vexp(load(row + j) - top) : j < n ? pick(first(n - j), vexp(load(row + j) - top), zero()) : zero();
      store(row + j, e);
      total += e;
    }
    const vf share = all(1.f / sum(total));
    for (int j = 0; j < n; j += VL) store(row + j, load(row + j) * share);
  }

  void forward(const Pass& t, float* kept) const override {
    float *q = t.scratch, *k = q + side(), *v = k + side(), *o = v + side(), *dropped = q + 6 * side();
    for (int64_t b = 0; b < t.rows; b++) {
      for (int h = 0; h < heads; h++) {
        const int64_t first_place = (b * heads + h) * square();
        float *P = kept + first_place, *z = t.act[out] + b * Tq * ldo + h * d;
        take(t.act[in[0]] + b * Tq * ld[0] + h * d, ld[0], Tq, factor, q);
        take_turned(t.act[in[1]] + b * Tk * ld[1] + h * d, ld[1], k);
        take(t.act[in[2]] + b * Tk * ld[2] + h * d, ld[2], Tk, 1, v);
        product(q, D, k, Tp, nullptr, P, Tp, Tq, d, Tp, false, false);
        for (int i = 0; i < Tq; i++) softmax(P + (int64_t)i * Tp, seen(i));
        cf weights = P;
        if (drops(t)) {
          masks(t, first_place, [=](int64_t i, vf f) FF_LAMBDA { store(dropped + i, load(P + i) * f); });
          weights = dropped;
        }
        product(weights, Tp, v, D, nullptr, o, D, Tq, Tk, D, false, false);
        for (int i = 0; i < Tq; i++) memcpy(z + i * ldo, o + (int64_t)i * D, d * sizeof(float));
      }
      for (int i = 0; i < Tq; i++) memset(t.act[out] + (b * Tq + i) * ldo + heads * d, 0, (ldo - heads * d) * sizeof(float));
    }
  }

  // adds the gradient [T][D] of one head times `scale`, or writes it
  void give(const Pass& t, int which, int64_t b, int h, int T, float scale, cf from) const {
    if (!want[which]) return;
    float* to = t.grad[in[which]] + b * T * ld[which];
    for (int i = 0; i < T; i++, to += ld[which], from += D) {
      if (add[which]) {
        for (int j = 0; j < d; j++) to[h * d + j] += scale * from[j];
      } else {
        for (int j = 0; j < d; j++) to[h * d + j] = scale * from[j];
        if (h == 0) memset(to + heads * d, 0, (ld[which] - heads * d) * sizeof(float));
      }
    }
  }

  void backward(const Pass& t, float* kept) const override {
    const int64_t n = side();
    float *q = t.scratch, *k = q + n, *v = k + n, *o = v + n, *dv = o + n, *some = dv + n, *dropped = q + 6 * n, *dP = dropped + square();
    for (int64_t b = 0; b < t.rows; b++)
      for (int h = 0; h < heads; h++) {
        const int64_t first_place = (b * heads + h) * square();
        cf P = kept + first_place, weights = P;
        take(t.act[in[0]] + b * Tq * ld[0] + h * d, ld[0], Tq, factor, q);
        take(t.act[in[1]] + b * Tk * ld[1] + h * d, ld[1], Tk, 1, k);
        take_turned(t.act[in[2]] + b * Tk * ld[2] + h * d, ld[2], v);
        take(t.grad[out] + b * Tq * ldo + h * d, ldo, Tq, 1, o);
        product(o, D, v, Tp, nullptr, dP, Tp, Tq, d, Tp, false, false);
        if (drops(t)) {
          masks(t, first_place, [=](int64_t i, vf f) FF_LAMBDA {
            store(dropped + i, load(P + i) * f);
            store(dP + i, load(dP + i) * f);
          });
          weights = dropped;
        }
        memset(dv, 0, (int64_t)Tk * D * sizeof(float));
        outer(weights, Tp, o, D, Tq, Tk, D, dv, 1.f, dv, D);
        for (int i = 0; i < Tq; i++) {
          cf own = P + (int64_t)i * Tp;
          float* row = dP + (int64_t)i * Tp;
          vf dot = zero();
          for (int j = 0; j < Tp; j += VL) dot += load(own + j) * load(row + j);
          const vf mean = all(sum(dot));
          for (int j = 0; j < Tp; j += VL) store(row + j, load(own + j) * (load(row + j) - mean));
        }
        product(dP, Tp, k, D, nullptr, some, D, Tq, Tk, D, false, false);
        give(t, 0, b, h, Tq, factor, some);
        memset(some, 0, (int64_t)Tk * D * sizeof(float));
        outer(dP, Tp, q, D, Tq, Tk, D, some, 1.f, some, D);
        give(t, 1, b, h, Tk, 1, some);
        give(t, 2, b, h, Tk, 1, dv);
      }
  }
};

// y = x + b, b a parameter of an example's size: positions that are learned
struct Offset final : Op {
  int64_t positions, ldx, ldz;
  int c;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 1, 1);
    auto op = std::make_unique<Offset>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!x.tokens && !z.tokens, "offset: takes and gives numbers");
    must(x.h == z.h && x.w == z.w && x.c == z.c && z.ld % PAD == 0 && z.ld >= z.c, "offset: the output has the wrong shape");
    op->positions = x.positions(), op->ldx = x.ld, op->ldz = z.ld, op->c = x.c;
    sized(at, s, 0, z.size());
    return op;
  }

  void forward(const Pass& t, float*) const override {
    cf b = t.at(params[0]), x = t.act[in[0]];
    float* z = t.act[out];
    for (int64_t r = 0; r < t.rows; r++)
      for (int64_t k = 0; k < positions; k++, x += ldx, z += ldz) {
        for (int j = 0; j < c; j++) z[j] = x[j] + b[k * ldz + j];
        for (int64_t j = c; j < ldz; j++) z[j] = 0;
      }
  }

  void backward(const Pass& t, float*) const override {
    cf d = t.grad[out];
    if (want[0]) {
      float* below = t.grad[in[0]];
      cf from = d;
      for (int64_t k = 0; k < t.rows * positions; k++, below += ldx, from += ldz) {
        if (add[0]) {
          for (int j = 0; j < c; j++) below[j] += from[j];
        } else {
          memcpy(below, from, c * sizeof(float));
          memset(below + c, 0, (ldx - c) * sizeof(float));
        }
      }
    }
    if (t.trained(params[0])) {
      const auto g = t.target(params[0]);
      const int64_t size = positions * ldz;
      for (int64_t i = 0; i < size; i += VL) {
        vf s = zero();
        for (int64_t r = 0; r < t.rows; r++) s += load(d + r * size + i);
        store(g.out + i, load(g.in + i) + g.scale * s);
      }
    }
  }
};

}  // namespace ff
