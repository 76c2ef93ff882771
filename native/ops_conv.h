// Convolution as an op: dense (one group) here, depthwise and grouped in ops_grouped.h.
// Not here: the kernels (convolve.h, dense_conv.h), pooling fused behind a convolution (ops_conv_pool.h).
#pragma once
#include "dense_conv.h"
#include "ops_grouped.h"

namespace ff {

struct Conv2d final : Op {
  DenseConvolution c;
  bool relu;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 1, 2);
    must(s.ints.size() == 10, "conv2d: takes ten numbers");
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!z.tokens && z.ld % PAD == 0 && z.ld >= z.c, "conv2d: the output's width is not a multiple of 16");
    if (whole(s, 8, 1, 1 << 20) > 1) return GroupedConv2d::make(s, convolution(s, x, z.h, z.w, z.ld), at);
    auto op = std::make_unique<Conv2d>();
    op->relu = whole(s, 9, 0, 1);
    op->c = DenseConvolution::of(convolution(s, x, z.h, z.w, z.ld));
    sized(at, s, 0, op->c.g.weights());
    if (s.params.size() > 1) sized(at, s, 1, z.ld);
    return op;
  }

  int64_t scratch(int rows) const override { return std::max(c.forward_scratch(rows), c.backward_scratch(rows)); }
  void forward(const Pass& t, float*) const override {
    c.forward(t.act[in[0]], t.rows, t.at(params[0]), params.size() > 1 ? t.at(params[1]) : nullptr, relu, t.act[out], t.scratch);
  }
  void backward(const Pass& t, float*) const override {
    Pass::Target w{}, b{};
    const bool weights = t.trained(params[0]), bias = params.size() > 1 && t.trained(params[1]);
    if (weights) w = t.target(params[0]);
    if (bias) b = t.target(params[1]);
    // an input of the plan needs no gradient; every other value is padded
    float* below = want[0] && c.g.ld % PAD == 0 ? t.grad[in[0]] : nullptr;
    c.backward(t.act[in[0]], t.act[out], t.grad[out], t.rows, t.at(params[0]), relu, below, add[0], weights ? &w : nullptr, bias ? &b : nullptr, t.scratch);
  }
};

}  // namespace ff
