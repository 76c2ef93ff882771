// A convolution with a max-pool behind it in one op, when nobody else reads the picture between them.
// Forward, a few rows of the convolution at a time are pooled where they lie. Backward, of each window and channel only the
// maximum has a gradient (and none where the ReLU is closed): the gradients of weights and input are sums over those places
// alone, exact, an eighth of the work or less. Windows do not overlap (window = stride, no padding); no dilation, one group.
// Invariant: places are read in a picture with its whole border, so that every one lies in it.
#pragma once
#include "dense_conv.h"
#include "ops_pool.h"
#include "sparse.h"

namespace ff {

struct ConvMaxPool final : Op {
  Geometry g;          // of the convolution, as far as windows reach
  int kh, kw, oh, ow;  // windows
  bool relu;
  int top, below_rows;     // border rows of the whole picture
  int run;             // floats of a row of the kernel, filled up to vectors
  bool by_tiles = false;  // by Winograd's transforms
  WinogradConvolution tiled;
  bool by_window;      // windows of 2x2 over neighbours: the input's gradient is summed window by window
  bool bordered;       // or of a width that vectors overrun: the picture is copied going back

  // ints: a convolution's ten, then a max-pool's seven
  static std::unique_ptr<Op> make(const Spec& s, const Shapes& at) {
    takes(s, 1, 1, 2);
    must(s.ints.size() == 17, "conv2d_max_pool: takes seventeen numbers");
    auto op = std::make_unique<ConvMaxPool>();
    const Value &x = at.values[s.in[0]], &z = at.values[s.out];
    must(!x.tokens && !z.tokens && z.ld == padded(z.c), "conv2d_max_pool: the output's width is not its channels'");
    op->kh = (int)whole(s, 10, 1, 256), op->kw = (int)whole(s, 11, 1, 256);
    must(whole(s, 12, 1, 256) == op->kh && whole(s, 13, 1, 256) == op->kw && whole(s, 14, 0, 0) == 0 && whole(s, 15, 0, 0) == 0, "conv2d_max_pool: windows lie side by side");
    whole(s, 6, 1, 1), whole(s, 7, 1, 1), whole(s, 8, 1, 1);  // no dilation, one group
    op->relu = whole(s, 9, 0, 1) | whole(s, 16, 0, 1);
    const int oh = size(x.h, whole(s, 0, 1, 4096), whole(s, 2, 1, 4096), whole(s, 4, 0, 4096));
    const int ow = size(x.w, whole(s, 1, 1, 4096), whole(s, 3, 1, 4096), whole(s, 5, 0, 4096));
    op->oh = oh / op->kh, op->ow = ow / op->kw;
    must(op->oh == z.h && op->ow == z.w && z.h >= 1 && z.w >= 1, "conv2d_max_pool: the output is not of the size that its numbers give");
    Geometry g = convolution(s, x, oh, ow, z.ld);
    g.oh = op->oh * op->kh, g.ow = op->ow * op->kw;
    g.prepare();
    op->g = g;
    op->by_tiles = WinogradConvolution::takes(g);
    op->tiled = WinogradConvolution::of(g);
    op->top = g.ph;
    op->below_rows = std::max(0, (g.oh - 1) * g.sh + g.kh - 1 - g.ph - (g.h - 1));
    op->run = (g.kw * g.ld + VL - 1) / VL * VL;
    op->by_window = op->kh == 2 && op->kw == 2 && g.sh == 1 && g.sw == 1 && g.kw <= SPREAD_X && g.ld % PAD == 0;
    op->bordered = op->top || op->below_rows || g.bordered() || g.ld % PAD;
    must(op->picture() < (int64_t)1 << 31, "conv2d_max_pool: the padded picture is too large");
    sized(at, s, 0, g.weights());
    if (s.params.size() > 1) sized(at, s, 1, z.ld);
    return op;
  }
  // Whether a convolution and the max-pool behind it can be one op; both are known to be right for themselves
  static bool fits(const Spec& conv, const Spec& pool, const Value& between, const Value& out) {
    const auto &c = conv.ints, &p = pool.ints;
    return c[6] == 1 && c[7] == 1 && c[8] == 1 && p[0] == p[2] && p[1] == p[3] && !p[4] && !p[5] && p[0] * p[1] > 1 && out.ld == padded(out.c) && between.ld == out.ld &&
           out.h == between.h / p[0] && out.w == between.w / p[1];
  }
  static int size(int64_t n, int64_t k, int64_t stride, int64_t pad) {
    must(n + 2 * pad >= k, "conv2d_max_pool: the kernel is larger than the padded picture");
    return (int)((n + 2 * pad - k) / stride + 1);
  }

  int64_t outputs() const { return (int64_t)oh * ow * g.N; }
  int64_t kept(int rows) const override { return rows * outputs() / 2; }  // 16 bits a number: row and column in its window
  int strip() const {  // rows of windows at a time, forward; tiles begin at even rows
    const int n = std::max(1, (by_tiles ? 96 : 48) / (kh * g.ow));
    return std::min(oh, by_tiles && kh % 2 ? 2 * n : n);
  }
  int64_t strip_size() const { return (int64_t)strip() * kh * g.ow * g.N; }
  int64_t row() const { return (int64_t)(g.w + g.left + g.right) * g.ld; }
  int64_t picture() const { return padded64((g.h + top + below_rows) * row() + PAD); }  // PAD: a vector's overrun
  int parts() const {  // rows of windows at a time, back: what they touch fits the first level of cache
    const int64_t rows = (8192 / row() - g.kh) / (kh * g.sh) + 1;
    return (int)std::min<int64_t>(oh, std::max<int64_t>(1, rows));
  }
  int64_t places() const { return padded64((int64_t)parts() * ow) + PAD; }  // of a channel, and a vector beyond
  int64_t in_windows() const { return padded64((int64_t)parts() * ow * g.N) + PAD; }
  int64_t turned() const { return (int64_t)g.N * g.kh * run; }
  int64_t scratch(int) const override {
    const int64_t ahead = by_tiles ? strip_size() + tiled.forward_scratch(1) : (g.bordered() ? padded64(g.h * g.row()) : 0) + strip_size();
    return std::max(ahead, 2 * turned() + 2 * padded64(g.N) + (2 * g.N + 1) * places() + 2 * picture() + g.weights() + (by_window ? 2 * in_windows() + 5 * padded64(parts() * ow) : 0));
  }

  typedef MaxPool::places halves;
  typedef MaxPool::places_any halves_any;

  void forward(const Pass& t, float* kept) const override {
    const int64_t size = (int64_t)g.h * g.w * g.ld, N = g.N;
    cf W = t.at(params[0]), bias = params.size() > 1 ? t.at(params[1]) : nullptr;
    float *Z = t.scratch, *X = Z + strip_size(), *U = X + tiled.picture(), *VM = U + tiled.ahead.weights();
    if (by_tiles) {
      tiled.ahead.transform_weights(W, false, U);
      memset(X, 0, tiled.picture() * sizeof(float));
    } else if (g.bordered()) {
      memset(X, 0, g.h * g.row() * sizeof(float));
    }
    for (int b = 0; b < t.rows; b++) {
      cf x = t.act[in[0]] + b * size;
      if (by_tiles) x = tiled.laid(x, 0, 1, X);
      else if (g.bordered()) lay(x, g.h, (int64_t)g.w * g.ld, X + g.left * g.ld, g.row()), x = X + g.left * g.ld;
      for (int r0 = 0; r0 < oh; r0 += strip()) {
        const int r1 = std::min(oh, r0 + strip());
        if (by_tiles)
          tiled.ahead.run(U, x, tiled.row(), 0, bias, false, false, Z, (int64_t)g.ow * N, 0, r0 * kh / 2, (r1 * kh + 1) / 2, r0 * kh, VM);
        else
          sweep(g.forward, g.sh, g.sw, x, g.h, g.row(), g.ld, W, N, bias, false, false, Z, (int64_t)g.ow * N, N, r0 * kh, r1 * kh, g.ow);
        const int64_t at = b * outputs() + (int64_t)r0 * ow * N;
        for (int r = r0; r < r1; r++) pool(Z + (int64_t)(r - r0) * kh * g.ow * N, t.act[out] + at + (int64_t)(r - r0) * ow * N, (uint16_t*)kept + at + (int64_t)(r - r0) * ow * N);
      }
    }
  }
  void pool(cf z, float* to, uint16_t* where) const {  // one row of windows
    const int64_t N = g.N;
    for (int q = 0; q < ow; q++)
      for (int64_t j = 0; j < N; j += VL) {
        cf from = z + (int64_t)q * kw * N + j;
        vf m = load(from);
        vi k = alli(0);
        for (int y = 0; y < kh; y++)
          for (int x = !y; x < kw; x++) {
            const vf v = load(from + ((int64_t)y * g.ow + x) * N);
            const vi more = (v > m) | ((v != v) & (m == m));
            m = pick(more, v, m);
            k = more ? alli(y << 8 | x) : k;
          }
        store(to + q * N + j, relu ? ff::relu(m) : m);
        *(halves_any*)(where + q * N + j) = __builtin_convertvector(k, halves);
      }
  }

  void window_by_window(cf d, cf z, const uint16_t* where, int r0, int r1, cf W, float* scratch, float* to) const {
    const int64_t N = g.N, taps = g.taps();
    int32_t* channel = (int32_t*)scratch;
    float* value = scratch + in_windows();
    Window_places* windows = (Window_places*)(value + in_windows());
    int n = 0;
    for (int i = r0 * ow; i < r1 * ow; i++) {
      Window_places& one = windows[i - r0 * ow];
      one.first = n;
      n += channels_by_place(d + i * N, where + i * N, z + i * N, relu, N, (int)taps * VL, channel + n, value + n, one.count);
    }
    for (int c = 0; c < g.ld; c += VL) FF_SPLIT(y0, ny, g.kh, most_spread_rows(g.kw)) for (int r = r0; r < r1; r++)
      spreads(ny, g.kw, windows + (r - r0) * ow, ow, channel, value, W + c * N * taps + y0 * g.kw * VL, to + (2 * r + y0) * row() + c, row(), g.ld);
  }

  void backward(const Pass& t, float* kept) const override {
    const int64_t N = g.N, size = (int64_t)g.h * g.w * g.ld, inside = top * row() + g.left * g.ld, line = (int64_t)g.w * g.ld;
    float *W = t.scratch, *G = W + turned(), *sums = G + turned(), *counts = sums + padded64(N), *lists = counts + padded64(N), *corners = lists + 2 * N * places(), *X = corners + places(), *D = X + picture(), *flat = D + picture();
    const bool weights = t.trained(params[0]), down = want[0] && g.ld % PAD == 0;
    memset(sums, 0, N * sizeof(float));
    memset(G, 0, turned() * sizeof(float));
    memset(X, 0, picture() * sizeof(float));
    if (down && by_window)
      for (int64_t k = 0; k < g.taps(); k++)
        for (int c = 0; c < g.ld; c += VL) transpose(t.at(params[0]) + (k * g.ld + c) * N, VL, (int)N, N, W + (c * N * g.taps() + k * VL), (int)g.taps() * VL);
    else if (down)
      for (int y = 0; y < g.kh; y++) transpose(t.at(params[0]) + (int64_t)y * g.kw * g.ld * N, g.kw * g.ld, (int)N, N, W + y * run, g.kh * (int64_t)run);
    for (int b = 0; b < t.rows; b++) {
      cf x = t.act[in[0]] + b * size;
      if (bordered) lay(x, g.h, line, X + inside, row()), x = X;
      float *below = down ? t.grad[in[0]] + b * size : nullptr, *to = below;
      if (down && bordered) memset(to = D, 0, picture() * sizeof(float));
      else if (down && !add[0]) memset(below, 0, size * sizeof(float));
      for (int r0 = 0; r0 < oh; r0 += parts()) {
        const int r1 = std::min(oh, r0 + parts());
        int32_t *count = (int32_t*)counts, *ats = (int32_t*)lists, *corner = (int32_t*)corners;
        float* values = lists + N * places();
        for (int r = r0, i = 0; r < r1; r++)
          for (int q = 0; q < ow; q++, i++) corner[i] = (int32_t)(r * kh * g.sh * row() + q * kw * g.sw * g.ld);
        const int64_t first = b * outputs() + (int64_t)r0 * ow * N;
        channel_lists(t.grad[out] + first, t.act[out] + first, (const uint16_t*)kept + first, relu, N, (r1 - r0) * ow, corner, (int)(g.sh * row()), g.sw * g.ld, ats, values, places(), count, sums);
        for (int turn = 0; turn < 2; turn++) {
          if (turn ? !down : !weights) continue;
          if (turn && by_window) {
            window_by_window(t.grad[out] + b * outputs(), t.act[out] + b * outputs(), (const uint16_t*)kept + b * outputs(), r0, r1, W, flat + g.weights(), to);
            continue;
          }
          for (int64_t j = 0; j < N; j++) {
            if (!count[j]) continue;
            const int32_t* p = ats + j * places();
            cf v = values + j * places();
            FF_SPLIT(v0, nv, run / VL, SPARSE_V) FF_SPLIT(y0, ny, g.kh, std::min(SPARSE_Y, SPARSE_MOST / nv)) {
              const int64_t at = (j * g.kh + y0) * run + v0 * VL, from = y0 * row() + v0 * VL;
              if (turn)
                scatters(ny, nv, p, v, count[j], to + from, row(), W + at, run);
              else
                gathers(ny, nv, p, v, count[j], x + from, row(), G + at, run);
            }
          }
        }
      }
      if (down && bordered)
        for (int r = 0; r < g.h; r++) {
          cf from = D + inside + r * row();
          if (add[0]) add_to(below + r * line, from, line);
          else memcpy(below + r * line, from, line * sizeof(float));
        }
    }
    if (weights) {
      for (int y = 0; y < g.kh; y++) transpose(G + y * run, (int)N, g.kw * g.ld, g.kh * (int64_t)run, flat + (int64_t)y * g.kw * g.ld * N, N);
      put(t.target(params[0]), flat, g.weights());
    }
    if (params.size() > 1 && t.trained(params[1])) put(t.target(params[1]), sums, N);
  }
};

}  // namespace ff
