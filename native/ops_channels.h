// Ops along channels: a number for each channel times, or plus, all positions; values side by side; some channels.
// Here: the product and the sum of a picture and a vector (the gates of squeeze-and-excitation), concat, channels (a part
// of them, or all in another order). Not here: values of one shape (ops_pointwise.h), scales that are parameters (ops_norm.h). Invariant: padded lanes of what is written are 0.
#pragma once
#include "ops_pointwise.h"

namespace ff {

// z = x * g or x + g, g being one position of as many channels.
template <bool PRODUCT>
struct Spread final : Op {
  Frame frame, one;  // x, and g, beside the output

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 2, 0, 0);
    auto op = std::make_unique<Spread>();
    op->frame = Frame::of(s, at, 0);
    const Value& g = at.values[s.in[1]];
    must(!g.tokens && g.positions() == 1 && g.c == op->frame.c && g.ld >= g.c, "an op along channels: takes one number a channel");
    op->one = Frame{1, g.c, g.ld, op->frame.ldz};
    return op;
  }
  int64_t scratch(int rows) const override { return 2 * (frame.room(rows) + one.room(rows)) + one.ldz; }

  void forward(const Pass& t, float*) const override {
    float* z = t.act[out];
    cf x = frame.lie(t.act[in[0]], t.rows, z), g = one.lie(t.act[in[1]], t.rows, t.scratch);
    const int64_t ld = frame.ldz;
    for (int b = 0; b < t.rows; b++, g += ld)
      for (int64_t m = 0; m < frame.positions; m++, x += ld, z += ld)
        for (int64_t j = 0; j < ld; j += VL) store(z + j, PRODUCT ? load(x + j) * load(g + j) : load(x + j) + load(g + j));
  }

  void backward(const Pass& t, float*) const override {
    float *sums = t.scratch, *copy = sums + one.ldz, *gates = copy + frame.room(t.rows), *below = gates + one.room(t.rows);
    const int64_t ld = frame.ldz, size = frame.size();
    const bool even = frame.even();
    cf d = t.grad[out], g = PRODUCT ? one.lie(t.act[in[1]], t.rows, gates) : nullptr;
    if (want[0])
      for (int b = 0; b < t.rows; b++) {
        cf of = d + b * size;
        float* to = even ? t.grad[in[0]] + b * size : below;
        for (int64_t m = 0; m < frame.positions; m++)
          for (int64_t j = 0; j < ld; j += VL) {
            const vf v = PRODUCT ? load(of + m * ld + j) * load(g + b * ld + j) : load(of + m * ld + j);
            store(to + m * ld + j, even && add[0] ? load(to + m * ld + j) + v : v);
          }
        if (!even) frame.hand_back(below, 1, t.grad[in[0]] + b * frame.positions * frame.ldx, add[0]);
      }
    if (!want[1]) return;
    cf x = PRODUCT ? frame.lie(t.act[in[0]], t.rows, copy) : nullptr;
    for (int b = 0; b < t.rows; b++) {
      for (int64_t j = 0; j < ld; j += VL) {
        cf of = d + b * size + j, by = PRODUCT ? x + b * size + j : nullptr;
        vf s[4] = {zero(), zero(), zero(), zero()};
        for (int64_t m = 0; m < frame.positions; m++) s[m & 3] += PRODUCT ? load(of + m * ld) * load(by + m * ld) : load(of + m * ld);
        store(sums + j, (s[0] + s[1]) + (s[2] + s[3]));
      }
      one.hand_back(sums, 1, t.grad[in[1]] + (int64_t)b * one.ldx, add[1]);
    }
  }
};

// The channels of several values of one height and width, one after the other.
struct Concat final : Op {
  std::vector<int> c, ld;  // of each input
  int64_t positions = 0;
  int ldz = 0, cz = 0;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, std::max<size_t>(1, s.in.size()), 0, 0);
    auto op = std::make_unique<Concat>();
    const Value& z = at.values[s.out];
    int64_t all_c = 0;
    for (int i : s.in) {
      const Value& x = at.values[i];
      must(!x.tokens && !z.tokens && x.h == z.h && x.w == z.w && x.ld >= x.c, "concat: the inputs are not of one height and width");
      op->c.push_back(x.c), op->ld.push_back(x.ld);
      all_c += x.c;
    }
    must(all_c == z.c && z.ld >= z.c, "concat: the output's channels are not those of the inputs");
    op->positions = z.positions(), op->ldz = z.ld, op->cz = z.c;
    return op;
  }

  void forward(const Pass& t, float*) const override {
    float* z = t.act[out];
    for (int64_t m = 0; m < t.rows * positions; m++, z += ldz) {
      float* to = z;
      for (size_t i = 0; i < c.size(); to += c[i], i++) memcpy(to, t.act[in[i]] + m * ld[i], c[i] * sizeof(float));
      memset(to, 0, (ldz - cz) * sizeof(float));
    }
  }
  void backward(const Pass& t, float*) const override {
    int64_t first = 0;
    for (size_t i = 0; i < c.size(); first += c[i], i++)
      if (want[i]) Frame{positions, c[i], ld[i], ldz}.hand_back(t.grad[out] + first, t.rows, t.grad[in[i]], add[i]);
  }
};

// The channels of a value that the ints name, in their order.
struct Channels final : Op {
  struct Run {
    int from, to, n;  // neighbours that stay neighbours
  };
  std::vector<Run> runs;
  int64_t positions = 0;
  int ldx = 0, ldz = 0, cz = 0;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    auto op = std::make_unique<Channels>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!x.tokens && !z.tokens && x.h == z.h && x.w == z.w, "channels: the input and the output are not of one height and width");
    must((int64_t)s.ints.size() == z.c && z.ld >= z.c && x.ld >= x.c, "channels: takes a number for each channel of the output");
    for (int i = 0; i < z.c; i++) {
      const int from = (int)whole(s, i, 0, x.c - 1);
      if (!op->runs.empty() && op->runs.back().from + op->runs.back().n == from)
        op->runs.back().n++;
      else
        op->runs.push_back({from, i, 1});
    }
    op->positions = z.positions(), op->ldx = x.ld, op->ldz = z.ld, op->cz = z.c;
    return op;
  }

  void forward(const Pass& t, float*) const override {
    cf x = t.act[in[0]];
    float* z = t.act[out];
    for (int64_t m = 0; m < t.rows * positions; m++, x += ldx, z += ldz) {
      for (const Run& r : runs)
        if (r.n == 1)
          z[r.to] = x[r.from];
        else
          memcpy(z + r.to, x + r.from, r.n * sizeof(float));
      memset(z + cz, 0, (ldz - cz) * sizeof(float));
    }
  }
  void backward(const Pass& t, float*) const override {
    if (!want[0]) return;
    cf d = t.grad[out];
    float* below = t.grad[in[0]];
    if (!add[0]) memset(below, 0, t.rows * positions * ldx * sizeof(float));
    for (int64_t m = 0; m < t.rows * positions; m++, d += ldz, below += ldx)
      for (const Run& r : runs)
        for (int i = 0; i < r.n; i++) below[r.from + i] += d[r.to + i];
  }
};

}  // namespace ff
