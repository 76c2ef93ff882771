// A linear layer over vectors, flattened pictures, or each position of a sequence.
#pragma once
#include "half.h"
#include "op.h"
#include "panels.h"

namespace ff {

struct Linear final : Op {
  int K, N;
  int64_t lda, ldo, each;  // floats between rows of the input and of the output; rows an example
  bool relu;
  float scale;             // of h W + b in training

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 1, 2);
    auto op = std::make_unique<Linear>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    const bool each = whole(s, 2, 0, 1);
    must(!x.tokens && !z.tokens, "linear: takes numbers");
    op->each = each ? x.positions() : 1;
    op->lda = each ? x.ld : x.size();
    op->K = (int)whole(s, 0, 1, op->lda);
    op->N = z.ld;
    op->ldo = z.ld;
    op->relu = whole(s, 1, 0, 1);
    op->scale = s.floats.empty() ? 1.f : (float)s.floats[0];
    must(z.positions() == op->each, "linear: the output has the wrong number of positions");
    must(z.ld % PAD == 0, "linear: the output is filled to 16 lanes");
    sized(at, s, 0, (int64_t)op->K * z.ld);
    if (s.params.size() > 1) sized(at, s, 1, z.ld);
    return op;
  }

  int64_t scratch(int) const override { return by_turned_room(N); }
  int64_t half(int rows) const override {
    const int64_t M = rows * each;
    return std::max(pairs_size(K, N) + M * ((K + 1) / 2), pairs_size(M, K) + pairs_size(M, N));
  }

  bool in_place() const override { return true; }

  void forward(const Pass& t, float*) const override {
    const int M = (int)(t.rows * each);
    float* z = t.act[out];
    const bool scaled = t.train && scale != 1.f;
    if (t.half)
      half_product(t.act[in[0]], lda, t.at(params[0]), params.size() > 1 ? t.at(params[1]) : nullptr, z, ldo, M, K, N, relu && !scaled, t.half);
    else product(t.act[in[0]], lda, t.at(params[0]), N, params.size() > 1 ? t.at(params[1]) : nullptr, z, ldo, M, K, N, false, relu && !scaled, t.ahead);
    if (scaled)
      for (int64_t i = 0; i < (int64_t)M * N; i += VL) {
        vf v = scale * load(z + i);
        store(z + i, relu ? ff::relu(v) : v);
      }
  }

  void backward(const Pass& t, float*) const override {
    const int M = (int)(t.rows * each);
    float* d = t.grad[out];
    if (relu) through_relu(t.act[out], d, (int64_t)M * N);
    if (scale != 1.f)
      for (int64_t i = 0; i < (int64_t)M * N; i += VL) store(d + i, scale * load(d + i));
    if (want[0]) {
      float* below = t.grad[in[0]];
      if (padded(K) <= lda && by_turned_is_faster(M, N))
        by_turned(d, N, t.at(params[0]), N, below, lda, M, K, N, add[0], t.scratch);
      else
        product_transposed(d, N, t.at(params[0]), N, below, lda, M, K, N, add[0]);
      if (K < lda && !add[0])
        for (int m = 0; m < M; m++) memset(below + m * lda + K, 0, (lda - K) * sizeof(float));
    }
    if (t.trained(params[0])) {
      const auto g = t.target(params[0]);
      if (t.half)
        half_outer(t.act[in[0]], lda, d, N, M, K, N, g.in, g.scale, g.out, t.half);
      else
        outer(t.act[in[0]], lda, d, N, M, K, N, g.in, g.scale, g.out, N, t.ahead);
    }
    if (params.size() > 1 && t.trained(params[1])) {
      const auto g = t.target(params[1]);
      column_sums(d, N, M, N, g.in, g.scale, g.out);
    }
  }
};

}  // namespace ff
