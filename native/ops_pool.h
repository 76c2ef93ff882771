// Pooling: maximum (with a ReLU behind it), mean, adaptive mean, mean over all positions.
// Not here: pooling fused behind a convolution (ops_conv_pool.h). Invariant: only positions of the picture are read; of
// equal numbers of a window the first (in rows) is the maximum, and what is not a number is one.
#pragma once
#include <algorithm>

#include "op.h"

namespace ff {

struct Window {
  int h, w, oh, ow, ld;
  int kh, kw, sh, sw, ph, pw;

  static Window of(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    same_channels(x, z);
    Window p{x.h, x.w, z.h, z.w, x.ld, 0, 0, 0, 0, 0, 0};
    p.kh = (int)whole(s, 0, 1, 256), p.kw = (int)whole(s, 1, 1, 256);
    p.sh = (int)whole(s, 2, 1, 4096), p.sw = (int)whole(s, 3, 1, 4096);
    p.ph = (int)whole(s, 4, 0, p.kh / 2), p.pw = (int)whole(s, 5, 0, p.kw / 2);
    // torch's size, rounded down or up (ceil_mode: the last window then begins inside the picture or its first border)
    must(fits(x.h, z.h, p.kh, p.sh, p.ph) && fits(x.w, z.w, p.kw, p.sw, p.pw), "pooling: the output is not of the size that window, stride and padding give");
    return p;
  }
  static void same_channels(const Value& x, const Value& z) {
    must(!x.tokens && !z.tokens && x.c == z.c && z.ld == padded(z.c) && (x.ld == z.ld || x.ld == x.c), "pooling: the output's channels are not the input's");
  }
  static bool fits(int64_t n, int64_t out, int64_t k, int64_t stride, int64_t pad) {
    const int64_t room = n + 2 * pad - k;
    if (room < 0) return false;
    return out == room / stride + 1 || (out == (room + stride - 1) / stride + 1 && (out - 1) * stride < n + pad);
  }
  bool apart() const { return kh <= sh && kw <= sw; }  // no position is in two windows
};

struct MaxPool final : Op {
  Window p;
  bool relu;
  int ldx;

  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    auto op = std::make_unique<MaxPool>();
    must(s.ints.size() == 7, "max_pool: takes seven numbers");
    takes(s, 1, 0, 0);
    op->p = Window::of(s, at);
    op->relu = whole(s, 6, 0, 1);
    op->ldx = at.values[s.in[0]].ld;
    op->p.ld = at.values[s.out].ld;
    return op;
  }
  int64_t outputs() const { return (int64_t)p.oh * p.ow * p.ld; }
  int64_t kept(int rows) const override { return rows * outputs() / 2; }  // 16 bits a number: its place in the window
  // an unpadded input is laid out padded first
  int64_t scratch(int) const override { return ldx == p.ld ? 0 : (int64_t)p.h * p.w * p.ld; }

  typedef uint16_t places __attribute__((vector_size(VL * 2)));
  typedef uint16_t places_any __attribute__((vector_size(VL * 2), aligned(2), may_alias));

  void forward(const Pass& t, float* kept) const override {
    const int64_t size = (int64_t)p.h * p.w * ldx, ld = p.ld;
    uint16_t* place = (uint16_t*)kept;
    if (ldx != ld) memset(t.scratch, 0, scratch(1) * sizeof(float));
    for (int b = 0; b < t.rows; b++) {
      cf x = t.act[in[0]] + b * size;
      if (ldx != ld) {
        for (int64_t i = 0; i < (int64_t)p.h * p.w; i++) memcpy(t.scratch + i * ld, x + i * ldx, ldx * sizeof(float));
        x = t.scratch;
      }
      for (int r = 0; r < p.oh; r++)
        for (int q = 0; q < p.ow; q++) {
          const int y0 = r * p.sh - p.ph, x0 = q * p.sw - p.pw;
          const int ya = std::max(0, -y0), yb = std::min(p.kh, p.h - y0), xa = std::max(0, -x0), xb = std::min(p.kw, p.w - x0);
          const int64_t at = b * outputs() + ((int64_t)r * p.ow + q) * ld;
          for (int64_t j = 0; j < ld; j += VL) {
            cf from = x + ((int64_t)y0 * p.w + x0) * ld + j;
            vf m = load(from + ((int64_t)ya * p.w + xa) * ld);
            vi k = alli(ya * p.kw + xa);
            for (int y = ya; y < yb; y++)
              for (int c = xa; c < xb; c++) {
                const vf v = load(from + ((int64_t)y * p.w + c) * ld);
                const vi more = (v > m) | ((v != v) & (m == m));
                m = pick(more, v, m);
                k = more ? alli(y * p.kw + c) : k;
              }
            store(t.act[out] + at + j, relu ? ff::relu(m) : m);
            *(places_any*)(place + at + j) = __builtin_convertvector(k, places);
          }
        }
    }
  }

  void backward(const Pass& t, float* kept) const override {
    if (!want[0] || ldx != p.ld) return;  // an input of the plan needs no gradient
    const int64_t size = (int64_t)p.h * p.w * p.ld, ld = p.ld;
    const uint16_t* place = (const uint16_t*)kept;
    float* d = t.grad[out];
    if (relu) through_relu(t.act[out], d, t.rows * outputs());
    const bool adds = add[0] || !p.apart();
    const bool whole_picture = p.apart() && p.kh == p.sh && p.kw == p.sw && !p.ph && !p.pw && p.oh * p.sh == p.h && p.ow * p.sw == p.w;
    for (int b = 0; b < t.rows; b++) {
      float* below = t.grad[in[0]] + b * size;
      if (!add[0] && !whole_picture) memset(below, 0, size * sizeof(float));
      for (int r = 0; r < p.oh; r++)
        for (int q = 0; q < p.ow; q++) {
          const int y0 = r * p.sh - p.ph, x0 = q * p.sw - p.pw;
          const int ya = std::max(0, -y0), yb = std::min(p.kh, p.h - y0), xa = std::max(0, -x0), xb = std::min(p.kw, p.w - x0);
          const int64_t at = b * outputs() + ((int64_t)r * p.ow + q) * ld;
          for (int64_t j = 0; j < ld; j += VL) {
            const vf v = load(d + at + j);
            const vi k = __builtin_convertvector(*(const places_any*)(place + at + j), vi);
            float* to = below + ((int64_t)y0 * p.w + x0) * ld + j;
            for (int y = ya; y < yb; y++)
              for (int c = xa; c < xb; c++) {
                float* z = to + ((int64_t)y * p.w + c) * ld;
                const vf mine = pick(k == y * p.kw + c, v, zero());
                store(z, adds ? load(z) + mine : mine);
              }
          }
        }
    }
  }
};

// Means over windows: each output is a sum over a rectangle of the picture times a factor.
struct Means : Op {
  struct Span {
    int from, to;
  };
  std::vector<Span> down, along;    // of each output row and column
  std::vector<float> factor;        // of each output
  int h, w, c, ldx, ld;

  void take(const Spec& s, const Shapes& at) {
    takes(s, 1, 0, 0);
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    Window::same_channels(x, z);
    h = x.h, w = x.w, c = x.c, ldx = x.ld, ld = z.ld;
  }
  void mean() {  // of what is in each rectangle
    for (const Span& y : down)
      for (const Span& x : along) factor.push_back(1.f / ((float)(y.to - y.from) * (x.to - x.from)));
  }

  void forward(const Pass& t, float*) const override {
    const int64_t size = (int64_t)h * w * ldx, osize = (int64_t)down.size() * along.size() * ld;
    for (int b = 0; b < t.rows; b++)
      for (size_t r = 0; r < down.size(); r++)
        for (size_t q = 0; q < along.size(); q++) {
          const size_t i = r * along.size() + q;
          cf x = t.act[in[0]] + b * size;
          float* z = t.act[out] + b * osize + i * ld;
          if (ldx == ld)
            for (int64_t j = 0; j < ld; j += VL) {
              vf s = zero();
              for (int y = down[r].from; y < down[r].to; y++) {
                vf of_row = zero();
                for (int k = along[q].from; k < along[q].to; k++) of_row += load(x + ((int64_t)y * w + k) * ld + j);
                s += of_row;
              }
              store(z + j, s * factor[i]);
            }
          else
            for (int64_t j = 0; j < ld; j++) {
              float s = 0;
              for (int y = down[r].from; j < c && y < down[r].to; y++)
                for (int k = along[q].from; k < along[q].to; k++) s += x[((int64_t)y * w + k) * ldx + j];
              z[j] = s * factor[i];
            }
        }
  }

  void backward(const Pass& t, float*) const override {
    if (!want[0] || ldx != ld) return;
    const int64_t size = (int64_t)h * w * ld, osize = (int64_t)down.size() * along.size() * ld;
    if (!add[0]) memset(t.grad[in[0]], 0, t.rows * size * sizeof(float));
    for (int b = 0; b < t.rows; b++)
      for (size_t r = 0; r < down.size(); r++)
        for (size_t q = 0; q < along.size(); q++) {
          const size_t i = r * along.size() + q;
          cf d = t.grad[out] + b * osize + i * ld;
          for (int y = down[r].from; y < down[r].to; y++)
            for (int k = along[q].from; k < along[q].to; k++) {
              float* to = t.grad[in[0]] + b * size + ((int64_t)y * w + k) * ld;
              for (int64_t j = 0; j < ld; j += VL) store(to + j, load(to + j) + load(d + j) * factor[i]);
            }
        }
  }
};

struct AvgPool final : Means {
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    auto op = std::make_unique<AvgPool>();
    must(s.ints.size() == 7, "avg_pool: takes seven numbers");
    op->take(s, at);
    const Window p = Window::of(s, at);
    const bool count = whole(s, 6, 0, 1);
    std::vector<int> high, wide;  // positions of each window, the border's too
    for (int r = 0; r < p.oh; r++) op->down.push_back(span(r, p.kh, p.sh, p.ph, p.h, high));
    for (int q = 0; q < p.ow; q++) op->along.push_back(span(q, p.kw, p.sw, p.pw, p.w, wide));
    if (!count)
      op->mean();
    else
      for (int a : high)
        for (int b : wide) op->factor.push_back(1.f / ((float)a * b));
    return op;
  }
  static Span span(int i, int k, int stride, int pad, int n, std::vector<int>& counted) {
    const int from = i * stride - pad, to = std::min(from + k, n + pad);
    counted.push_back(to - from);
    return {std::max(from, 0), std::min(to, n)};
  }
};

struct AdaptiveAvgPool final : Means {
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    auto op = std::make_unique<AdaptiveAvgPool>();
    op->take(s, at);
    const Value& z = at.values[s.out];
    must(z.h >= 1 && z.w >= 1, "adaptive_avg_pool: the output has no position");
    for (int r = 0; r < z.h; r++) op->down.push_back(span(r, op->h, z.h));
    for (int q = 0; q < z.w; q++) op->along.push_back(span(q, op->w, z.w));
    op->mean();
    return op;
  }
  static Span span(int64_t i, int64_t n, int64_t out) { return {(int)(i * n / out), (int)(((i + 1) * n + out - 1) / out)}; }
};

struct MeanPositions final : Means {
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    auto op = std::make_unique<MeanPositions>();
    op->take(s, at);
    must(at.values[s.out].positions() == 1, "mean_positions: the output is one position");
    op->down.push_back({0, op->h});
    op->along.push_back({0, op->w});
    op->mean();
    return op;
  }
};

}  // namespace ff
