// 3x3 convolutions with 16 products for four outputs instead of 36: F(2x2, 3x3).
// Here: transforms of weights, pictures and outputs, the products between them, and the same for the gradient of the
// weights. Not here: when it is used (dense_conv.h, ops_conv_pool.h). Invariant: pictures have their whole border: rows and
// columns up to 2 * tiles + 2. The order of additions of a number depends on the shapes only; its rounding error is a few
// times that of the direct sum.
// After: Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.1.
#pragma once
#include <algorithm>

#include "op.h"

namespace ff {

struct Winograd {
  int C, N;         // numbers a position: of the input, of the output; multiples of PAD
  int rows, cols;   // outputs
  int down() const { return (rows + 1) / 2; }
  int along() const { return (cols + 1) / 2; }
  int in_rows() const { return 2 * down() + 2; }  // of a picture with its border
  int in_cols() const { return 2 * along() + 2; }
  // rows of tiles at a time: enough for the products, few enough for the second level of cache
  int strip() const { return std::max(1, 24 / along()); }
  int lean_strip() const { return std::max(1, 48 / along()); }
  // planes of the 16 places; a vector more, so that they do not share sets of the cache
  int64_t weights_plane() const { return (int64_t)C * N + PAD; }
  int64_t in_plane() const { return (int64_t)std::max(strip(), lean_strip()) * along() * C + PAD; }
  int64_t out_plane() const { return (int64_t)std::max(strip(), lean_strip()) * along() * N + PAD; }
  int64_t weights() const { return 16 * weights_plane(); }
  int64_t scratch() const { return 16 * (in_plane() + out_plane()); }

  // U = G g G' of W[3][3][C][N], or with `flip` of the kernel upside down
  void transform_weights(cf W, bool flip, float* U) const {
    const int64_t CN = (int64_t)C * N, plane = weights_plane();
    for (int64_t i = 0; i < CN; i += VL) {
      vf t[4][3];
      for (int x = 0; x < 3; x++) {
        const vf a = load(W + ((flip ? 2 : 0) * 3 + x) * CN + i), b = load(W + (3 + x) * CN + i), c = load(W + ((flip ? 0 : 2) * 3 + x) * CN + i);
        t[0][x] = a, t[1][x] = .5f * ((a + c) + b), t[2][x] = .5f * ((a + c) - b), t[3][x] = c;
      }
      for (int y = 0; y < 4; y++) {
        const vf s = t[y][0] + t[y][2];
        float* to = U + 4 * y * plane + i;
        store(to, t[y][0]), store(to + plane, .5f * (s + t[y][1])), store(to + 2 * plane, .5f * (s - t[y][1])), store(to + 3 * plane, t[y][2]);
      }
    }
  }

  // V = B' d B of the tiles of one row, whose first input is at `in`
  void transform_row(cf in, int64_t row, float* V) const {
    const int64_t plane = in_plane();
    for (int c = 0; c < C; c += VL) {
      vf t[4][4];
      auto column = [&](int x, cf at) {
        const vf d0 = load(at), d1 = load(at + row), d2 = load(at + 2 * row), d3 = load(at + 3 * row);
        t[0][x] = d0 - d2, t[1][x] = d1 + d2, t[2][x] = d2 - d1, t[3][x] = d1 - d3;
      };
      column(2, in + c), column(3, in + C + c);
      for (int q = 0; q < along(); q++) {
        cf at = in + (int64_t)(2 * q + 2) * C + c;
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++) t[y][0] = t[y][2], t[y][1] = t[y][3];
        column(2, at), column(3, at + C);
        float* to = V + (int64_t)q * C + c;
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++) {
          store(to + (4 * y) * plane, t[y][0] - t[y][2]), store(to + (4 * y + 1) * plane, t[y][1] + t[y][2]);
          store(to + (4 * y + 2) * plane, t[y][2] - t[y][1]), store(to + (4 * y + 3) * plane, t[y][1] - t[y][3]);
        }
      }
    }
  }

  // Two rows of outputs A' m A of a row of tiles; `two`: whether the second row is there
  void transform_back(cf M, cf bias, bool relu, bool add, float* out, int64_t out_row, bool two) const {
    const int64_t plane = out_plane();
    for (int q = 0; q < along(); q++)
      for (int n = 0; n < N; n += VL) {
        cf m = M + (int64_t)q * N + n;
        vf s[4][2];
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++) {
          const vf a = load(m + 4 * y * plane), b = load(m + (4 * y + 1) * plane), c = load(m + (4 * y + 2) * plane), d = load(m + (4 * y + 3) * plane);
          s[y][0] = a + (b + c), s[y][1] = (b - c) - d;
        }
        const vf base = bias ? load(bias + n) : zero();
#pragma GCC unroll 2
        for (int x = 0; x < 2; x++) {
          if (2 * q + x >= cols) continue;
          float* to = out + (int64_t)(2 * q + x) * N + n;
          vf u = base + (s[0][x] + (s[1][x] + s[2][x])), v = base + ((s[1][x] - s[2][x]) - s[3][x]);
          if (add) u += load(to);
          store(to, relu ? ff::relu(u) : u);
          if (!two) continue;
          if (add) v += load(to + out_row);
          store(to + out_row, relu ? ff::relu(v) : v);
        }
      }
  }

  // Rows of tiles first..last of pictures lying `next` apart (row i of tiles: picture i / down()); in: at the corner of the
  // first border; out: at output row `from` of the first picture, pictures out_next apart
  void run(cf U, cf in, int64_t row, int64_t next, cf bias, bool relu, bool add, float* out, int64_t out_row, int64_t out_next, int first, int last, int from, float* scratch) const {
    float *V = scratch, *M = V + 16 * in_plane();
    for (int i0 = first; i0 < last; i0 += strip()) {
      const int i1 = std::min(last, i0 + strip()), T = (i1 - i0) * along();
      for (int i = i0; i < i1; i++) transform_row(in + i / down() * next + (int64_t)(i % down()) * 2 * row, row, V + (int64_t)(i - i0) * along() * C);
      for (int k = 0; k < 16; k++) FF_SPLIT(n0, nz, N / VL, MOST_NR) FF_SPLIT(m0, mr, T, most_mr(nz)) {
        cf a = V + k * in_plane() + (int64_t)m0 * C, b = U + k * weights_plane() + VL * n0;
        float* to = M + k * out_plane() + (int64_t)m0 * N + VL * n0;
        tiles(mr, nz, Tile{1, &a, &b, C, C, 1, N, ZERO, nullptr, 0, 1.f, false, to, N});
      }
      for (int i = i0; i < i1; i++) {
        const int r = i % down() * 2;
        transform_back(M + (int64_t)(i - i0) * along() * N, bias, relu, add, out + i / down() * out_next + (int64_t)(r - from) * out_row, out_row, r + 1 < rows);
      }
    }
  }

  // A d A' of a row of tiles' output gradients; `two`: whether their second row is there
  void transform_gradient(cf d, int64_t drow, bool two, float* M) const {
    const int64_t plane = out_plane();
    for (int q = 0; q < along(); q++)
      for (int n = 0; n < N; n += VL) {
        cf at = d + (int64_t)2 * q * N + n;
        const bool right = 2 * q + 1 < cols;
        const vf a = load(at), b = right ? load(at + N) : zero(), c = two ? load(at + drow) : zero(), e = two && right ? load(at + drow + N) : zero();
        const vf rows_[4][2] = {{a, b}, {a + c, b + e}, {a - c, b - e}, {-c, -e}};
        float* to = M + (int64_t)q * N + n;
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++) {
          const vf p = rows_[y][0], r = rows_[y][1];
          store(to + 4 * y * plane, p), store(to + (4 * y + 1) * plane, p + r), store(to + (4 * y + 2) * plane, p - r), store(to + (4 * y + 3) * plane, -r);
        }
      }
  }
  // dU (as transformed weights) += the gradients over all tiles of `count` pictures
  void lean(cf in, int64_t row, int64_t next, cf d, int64_t drow, int64_t dnext, int count, float* dU, float* scratch) const {
    float *V = scratch, *M = V + 16 * in_plane();
    for (int i0 = 0; i0 < count * down(); i0 += lean_strip()) {
      const int i1 = std::min(count * down(), i0 + lean_strip()), T = (i1 - i0) * along();
      for (int i = i0; i < i1; i++) {
        const int r = i % down() * 2;
        transform_row(in + i / down() * next + (int64_t)r * row, row, V + (int64_t)(i - i0) * along() * C);
        transform_gradient(d + i / down() * dnext + r * drow, drow, r + 1 < rows, M + (int64_t)(i - i0) * along() * N);
      }
      for (int k = 0; k < 16; k++) FF_SPLIT(n0, nz, N / VL, MOST_NR) FF_SPLIT(c0, mr, C, most_mr(nz)) {
        cf a = V + k * in_plane() + c0, b = M + k * out_plane() + VL * n0;
        float* to = dU + k * weights_plane() + (int64_t)c0 * N + VL * n0;
        tiles(mr, nz, Tile{1, &a, &b, T, 1, C, N, ADD, to, N, 1.f, false, to, N});
      }
    }
  }
  // G[3][3][C][N] = G' dU G
  void weights_back(cf dU, float* G) const {
    const int64_t CN = (int64_t)C * N, plane = weights_plane();
    for (int64_t i = 0; i < CN; i += VL) {
      vf t[3][4];
      for (int x = 0; x < 4; x++) {
        const vf a = load(dU + x * plane + i), b = load(dU + (4 + x) * plane + i), c = load(dU + (8 + x) * plane + i), d = load(dU + (12 + x) * plane + i);
        t[0][x] = a + .5f * (b + c), t[1][x] = .5f * (b - c), t[2][x] = .5f * (b + c) + d;
      }
      for (int y = 0; y < 3; y++) {
        const vf s = .5f * (t[y][1] + t[y][2]);
        float* to = G + 3 * y * CN + i;
        store(to, t[y][0] + s), store(to + CN, .5f * (t[y][1] - t[y][2])), store(to + 2 * CN, s + t[y][3]);
      }
    }
  }
};

}  // namespace ff
