// Convolutions of several groups: depthwise (a kernel a channel), and any other number of groups.
// Here: depthwise kernels over vectors of channels; groups bundled to blocks of at most 16 channels (or one group), each a
// dense convolution of a slice. Not here: the dense convolution (dense_conv.h). Invariant: bundles that are wider than
// their groups hold zeros outside the groups' blocks, and only the blocks' gradients are used.
#pragma once
#include "dense_conv.h"

namespace ff {

template <int Q>
static FF_INLINE void depthwise_outputs(const Grid& g, int r, int sh, int64_t step, cf in, int h, int64_t row, int64_t N, cf W,
                                        cf bias, bool relu, bool add, float* out, int64_t out_col) {
  for (int64_t j = 0; j < N; j += VL) {
    vf acc[Q];
    for (int i = 0; i < Q; i++) acc[i] = add ? load(out + i * out_col + j) : bias ? load(bias + j) : zero();
    for (const Segment& e : g.segments) {
      const int at = r * sh + e.row;
      if (at < 0 || at >= h) continue;
      cf x = in + at * row + e.column * N + j;
      const vf w = load(W + e.b * N + j);
      for (int i = 0; i < Q; i++) acc[i] += w * load(x + i * step);
    }
    for (int i = 0; i < Q; i++) store(out + i * out_col + j, relu ? ff::relu(acc[i]) : acc[i]);
  }
}
static void depthwise_sweep(const Grid& g, int sh, int sw, cf in, int h, int64_t row, int64_t N, cf W, cf bias, bool relu,
                            bool add, float* out, int64_t out_row, int64_t out_col) {
  const int64_t step = sw * N;
  for (int r = 0; r < g.rows; r++) {
    int q = 0;
    for (; q + 8 <= g.cols; q += 8) depthwise_outputs<8>(g, r, sh, step, in + q * step, h, row, N, W, bias, relu, add, out + r * out_row + q * out_col, out_col);
    for (; q + 2 <= g.cols; q += 2) depthwise_outputs<2>(g, r, sh, step, in + q * step, h, row, N, W, bias, relu, add, out + r * out_row + q * out_col, out_col);
    for (; q < g.cols; q++) depthwise_outputs<1>(g, r, sh, step, in + q * step, h, row, N, W, bias, relu, add, out + r * out_row + q * out_col, out_col);
  }
}

// G[tap][N] += the products of d and of what T places of the kernel read, over a picture's outputs; of rows beyond the
// picture the numbers are `none`. Every number of d is loaded once for T sums.
template <int T>
static void depthwise_lean(const Geometry& g, const Segment* e, cf x, cf none, cf d, float* G) {
  const int64_t N = g.N, step = (int64_t)g.sw * N;
  for (int64_t j = 0; j < N; j += VL) {
    vf acc[T];
#pragma GCC unroll 9
    for (int k = 0; k < T; k++) acc[k] = zero();
    for (int r = 0; r < g.oh; r++) {
      cf xs[T], ds = d + r * g.drow() + j;
      for (int k = 0; k < T; k++) {
        const int at = r * g.sh + e[k].row;
        xs[k] = (at < 0 || at >= g.h ? none : x + at * g.row()) + e[k].column * N + j;
      }
      for (int q = 0; q < g.ow; q++) {
        const vf dv = load(ds + q * N);
#pragma GCC unroll 9
        for (int k = 0; k < T; k++) acc[k] += load(xs[k] + q * step) * dv;
      }
    }
#pragma GCC unroll 9
    for (int k = 0; k < T; k++) store(G + e[k].b * N + j, load(G + e[k].b * N + j) + acc[k]);
  }
}
static void depthwise_leans(int taps, const Geometry& g, const Segment* e, cf x, cf none, cf d, float* G) {
  switch (taps) {
#define FF_CASE(T) case T: return depthwise_lean<T>(g, e, x, none, d, G);
    FF_CASE(1) FF_CASE(2) FF_CASE(3) FF_CASE(4) FF_CASE(5) FF_CASE(6) FF_CASE(7) FF_CASE(8) FF_CASE(9)
#undef FF_CASE
  }
  __builtin_trap();
}

struct Depthwise final : Op {
  Geometry g;         // ld = N, whatever the input's
  Grid ahead;         // a segment is one place of the kernel
  std::vector<Grid> back;
  int c, ldx;
  bool relu;

  static std::unique_ptr<Op> make(const Spec& s, Geometry g, const Shapes& at) {
    auto op = std::make_unique<Depthwise>();
    const Value& x = at.values[s.in[0]];
    op->c = x.c, op->ldx = x.ld;
    g.ld = g.N;
    g.prepare();
    op->g = g;
    op->relu = whole(s, 9, 0, 1);
    op->ahead = g.forward;
    op->ahead.segments.clear();
    op->back = g.backward;
    for (int y = 0; y < g.kh; y++)
      for (int x0 = 0; x0 < g.kw; x0++) op->ahead.segments.push_back({y * g.dh - g.ph, x0 * g.dw - g.pw, (int64_t)y * g.kw + x0});
    for (Grid& p : op->back) {
      p.segments.clear();
      for (int y = 0; y < g.kh; y++)
        for (int x0 = 0; x0 < g.kw; x0++) {
          const int up = p.row0 + g.ph - y * g.dh, along = p.col0 + g.pw - x0 * g.dw;
          if (up % g.sh == 0 && along % g.sw == 0) p.segments.push_back({up / g.sh, along / g.sw, (int64_t)y * g.kw + x0});
        }
    }
    sized(at, s, 0, g.taps() * g.N);
    if (s.params.size() > 1) sized(at, s, 1, g.N);
    return op;
  }

  int64_t picture() const { return padded64(g.h * g.row()); }
  int64_t dpicture() const { return padded64(g.oh * g.drow()); }
  int64_t scratch(int) const override { return picture() + dpicture() + g.taps() * g.N + g.N + padded64(g.row()); }

  void lay_in(cf x, float* at) const {
    if (ldx == g.N) return lay(x, g.h, (int64_t)g.w * g.N, at, g.row());
    for (int r = 0; r < g.h; r++)
      for (int q = 0; q < g.w; q++) memcpy(at + r * g.row() + (int64_t)q * g.N, x + ((int64_t)r * g.w + q) * ldx, c * sizeof(float));
  }

  void forward(const Pass& t, float*) const override {
    const int64_t size = (int64_t)g.h * g.w * ldx, osize = (int64_t)g.oh * g.ow * g.N;
    float* at = t.scratch + g.left * g.N;
    memset(t.scratch, 0, picture() * sizeof(float));
    for (int b = 0; b < t.rows; b++) {
      lay_in(t.act[in[0]] + b * size, at);
      depthwise_sweep(ahead, g.sh, g.sw, at, g.h, g.row(), g.N, t.at(params[0]), params.size() > 1 ? t.at(params[1]) : nullptr, relu, false,
                      t.act[out] + b * osize, (int64_t)g.ow * g.N, g.N);
    }
  }

  void backward(const Pass& t, float*) const override {
    const int64_t N = g.N, size = (int64_t)g.h * g.w * ldx, osize = (int64_t)g.oh * g.ow * N;
    float *X = t.scratch, *D = X + picture(), *G = D + dpicture(), *sums = G + g.taps() * N, *none = sums + N;
    memset(t.scratch, 0, scratch(t.rows) * sizeof(float));
    float* below = want[0] && ldx == N ? t.grad[in[0]] : nullptr;
    cf x = X + g.left * N;
    float* d = D + g.dleft * N;
    for (int b = 0; b < t.rows; b++) {
      if (relu || params.size() > 1)
        prepare_gradient(t.grad[out] + b * osize, t.act[out] + b * osize, relu, g.oh, g.ow, N, d, g.drow(), sums);
      else
        lay(t.grad[out] + b * osize, g.oh, (int64_t)g.ow * N, d, g.drow());
      if (below)
        for (const Grid& p : back)
          depthwise_sweep(p, 1, 1, d, g.oh, g.drow(), N, t.at(params[0]), nullptr, false, add[0], below + b * size + ((int64_t)p.row0 * g.w + p.col0) * N,
                          (int64_t)p.step_row * g.w * N, (int64_t)p.step_col * N);
      if (!t.trained(params[0])) continue;
      lay_in(t.act[in[0]] + b * size, X + g.left * N);
      FF_SPLIT(e0, taps, (int)ahead.segments.size(), 9) depthwise_leans(taps, g, &ahead.segments[e0], x, none + g.left * N, d, G);
    }
    if (t.trained(params[0])) put(t.target(params[0]), G, g.taps() * N);
    if (params.size() > 1 && t.trained(params[1])) put(t.target(params[1]), sums, N);
  }
};

struct GroupedConv2d final : Op {
  DenseConvolution c;  // of one bundle
  int groups, bundle, in_each, out_each, ldx, N;
  bool relu;

  static std::unique_ptr<Op> make(const Spec& s, Geometry g, const Shapes& at) {
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    const int groups = (int)whole(s, 8, 2, 1 << 20);
    must(x.c % groups == 0 && z.c % groups == 0, "conv2d: channels cannot be parted in groups");
    if (groups == x.c && groups == z.c) return Depthwise::make(s, g, at);
    auto op = std::make_unique<GroupedConv2d>();
    op->groups = groups, op->in_each = x.c / groups, op->out_each = z.c / groups;
    op->ldx = x.ld, op->N = z.ld;
    op->bundle = std::min(groups, std::max(1, PAD / std::max(op->in_each, op->out_each)));
    op->relu = whole(s, 9, 0, 1);
    g.ld = padded(op->bundle * op->in_each), g.N = padded(op->bundle * op->out_each);
    op->c = DenseConvolution::of(g);
    sized(at, s, 0, padded64(groups * op->block()));
    if (s.params.size() > 1) sized(at, s, 1, z.ld);
    return op;
  }

  int64_t block() const { return c.g.taps() * in_each * out_each; }  // weights of a group
  int64_t in_size() const { return (int64_t)c.g.h * c.g.w; }
  int64_t out_size() const { return (int64_t)c.g.oh * c.g.ow; }
  int64_t scratch(int) const override {
    return 2 * in_size() * c.g.ld + out_size() * c.g.N + 2 * c.g.weights() + 2 * padded64(N) + std::max(c.forward_scratch(1), c.backward_scratch(1));
  }

  // W[taps][bundle's inputs][bundle's outputs] with the groups' weights on the diagonal
  void spread(cf W, int g0, int n, float* out) const {
    memset(out, 0, c.g.weights() * sizeof(float));
    for (int k = 0; k < n; k++)
      for (int64_t tap = 0; tap < c.g.taps(); tap++)
        for (int i = 0; i < in_each; i++)
          memcpy(out + (tap * c.g.ld + k * in_each + i) * c.g.N + k * out_each, W + (g0 + k) * block() + (tap * in_each + i) * out_each, out_each * sizeof(float));
  }
  static void slice(cf in, int64_t n, int64_t ldi, int width, float* out, int64_t ldo) {
    for (int64_t i = 0; i < n; i++) memcpy(out + i * ldo, in + i * ldi, width * sizeof(float));
  }

  void forward(const Pass& t, float*) const override {
    float *X = t.scratch, *Z = X + 2 * in_size() * c.g.ld, *W = Z + out_size() * c.g.N, *bias = W + 2 * c.g.weights(), *rest = bias + 2 * padded64(N);
    memset(t.act[out], 0, t.rows * out_size() * N * sizeof(float));
    memset(X, 0, in_size() * c.g.ld * sizeof(float));
    memset(bias, 0, c.g.N * sizeof(float));
    for (int g0 = 0; g0 < groups; g0 += bundle) {
      const int n = std::min(bundle, groups - g0);
      if (n < bundle) memset(X, 0, in_size() * c.g.ld * sizeof(float));
      spread(t.at(params[0]), g0, n, W);
      if (params.size() > 1) memcpy(bias, t.at(params[1]) + g0 * out_each, n * out_each * sizeof(float));
      for (int b = 0; b < t.rows; b++) {
        slice(t.act[in[0]] + b * in_size() * ldx + g0 * in_each, in_size(), ldx, n * in_each, X, c.g.ld);
        c.forward(X, 1, W, bias, relu, Z, rest);
        slice(Z, out_size(), c.g.N, n * out_each, t.act[out] + b * out_size() * N + g0 * out_each, N);
      }
    }
  }

  void backward(const Pass& t, float*) const override {
    float *X = t.scratch, *below = X + in_size() * c.g.ld, *D = below + in_size() * c.g.ld, *W = D + out_size() * c.g.N, *G = W + c.g.weights();
    float *sums = G + c.g.weights(), *rest = sums + 2 * padded64(N), *d = t.grad[out];
    const int64_t n_out = t.rows * out_size();
    const bool down = want[0] && ldx % PAD == 0, weights = t.trained(params[0]);
    memset(sums, 0, N * sizeof(float));
    prepare_gradient(d, t.act[out], relu, 1, (int)n_out, N, d, 0, sums);
    if (down && !add[0]) memset(t.grad[in[0]], 0, t.rows * in_size() * ldx * sizeof(float));
    for (int g0 = 0; g0 < groups; g0 += bundle) {
      const int n = std::min(bundle, groups - g0);
      memset(X, 0, in_size() * c.g.ld * sizeof(float));
      memset(D, 0, out_size() * c.g.N * sizeof(float));
      spread(t.at(params[0]), g0, n, W);
      memset(G, 0, c.g.weights() * sizeof(float));
      const Pass::Target target{G, 1.f, G};
      for (int b = 0; b < t.rows; b++) {
        slice(t.act[in[0]] + b * in_size() * ldx + g0 * in_each, in_size(), ldx, n * in_each, X, c.g.ld);
        slice(d + b * out_size() * N + g0 * out_each, out_size(), N, n * out_each, D, c.g.N);
        c.backward(X, nullptr, D, 1, W, false, down ? below : nullptr, false, weights ? &target : nullptr, nullptr, rest);
        if (!down) continue;
        float* to = t.grad[in[0]] + b * in_size() * ldx + g0 * in_each;
        for (int64_t i = 0; i < in_size(); i++)
          for (int k = 0; k < n * in_each; k++) to[i * ldx + k] += below[i * c.g.ld + k];
      }
      if (!weights) continue;
      const auto to = t.target(params[0]);
      for (int k = 0; k < n; k++)
        for (int64_t tap = 0; tap < c.g.taps(); tap++)
          for (int i = 0; i < in_each; i++) {
            const int64_t at = (g0 + k) * block() + (tap * in_each + i) * out_each;
            cf from = G + (tap * c.g.ld + k * in_each + i) * c.g.N + k * out_each;
            for (int o = 0; o < out_each; o++) to.out[at + o] = to.in[at + o] + to.scale * from[o];
          }
    }
    if (weights) {
      const auto to = t.target(params[0]);
      for (int64_t i = groups * block(); i < padded64(groups * block()); i++) to.out[i] = to.in[i];
    }
    if (params.size() > 1 && t.trained(params[1])) put(t.target(params[1]), sums, N);
  }
};

}  // namespace ff
