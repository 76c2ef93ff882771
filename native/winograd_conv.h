// A dense 3x3 convolution of several pictures by Winograd's transforms, forward and backward.
// Not here: the transforms (winograd.h), other convolutions (dense_conv.h). Invariant: as there.
#pragma once
#include "convolve.h"
#include "winograd.h"

namespace ff {

struct WinogradConvolution {
  Geometry g;
  Winograd ahead, back;  // of the output; of the input's gradient

  // Whether it is one, and large enough that it pays
  static bool takes(const Geometry& g) {
    return g.kh == 3 && g.kw == 3 && g.sh == 1 && g.sw == 1 && g.dh == 1 && g.dw == 1 && g.ph <= 2 && g.pw <= 2 && g.ld % PAD == 0 && (int64_t)g.ld * g.N >= 512 &&
           g.oh >= 3 && g.ow >= 3;
  }
  static WinogradConvolution of(const Geometry& g) { return {g, {g.ld, g.N, g.oh, g.ow}, {g.N, g.ld, g.h, g.w}}; }

  bool bordered() const { return g.ph || g.pw || ahead.in_rows() > g.h || ahead.in_cols() > g.w; }
  int64_t row() const { return bordered() ? (int64_t)ahead.in_cols() * g.ld : (int64_t)g.w * g.ld; }
  int64_t drow() const { return (int64_t)back.in_cols() * g.N; }
  int64_t size() const { return (int64_t)g.h * g.w * g.ld; }
  int64_t osize() const { return (int64_t)g.oh * g.ow * g.N; }
  int64_t picture() const { return bordered() ? ahead.in_rows() * row() : 0; }
  int64_t dpicture() const { return back.in_rows() * drow(); }
  int together() const { return std::max(1, 16 / (ahead.down() * ahead.along())); }
  int64_t forward_scratch(int rows) const { return ahead.weights() + ahead.scratch() + std::min(rows, together()) * picture(); }
  int64_t backward_scratch(int rows) const {
    return ahead.weights() + back.weights() + std::max(ahead.scratch(), back.scratch()) + g.weights() + g.N + std::min(rows, together()) * (picture() + dpicture());
  }

  // Pictures b0.. of x with their border in X; or where they lie
  cf laid(cf x, int b0, int count, float* X) const {
    if (!bordered()) return x + b0 * size();
    // rows and columns that no output reaches are left out
    const int h = std::min(g.h, ahead.in_rows() - g.ph), w = std::min(g.w, ahead.in_cols() - g.pw);
    for (int b = 0; b < count; b++) lay(x + (b0 + b) * size(), h, (int64_t)g.w * g.ld, (int64_t)w * g.ld, X + b * picture() + g.ph * row() + g.pw * g.ld, row());
    return X;
  }

  void forward(cf x, int rows, cf W, cf bias, bool relu, float* z, float* scratch) const {
    float *U = scratch, *VM = U + ahead.weights(), *X = VM + ahead.scratch();
    const int n = std::min(rows, together());
    ahead.transform_weights(W, false, U);
    memset(X, 0, n * picture() * sizeof(float));
    for (int b0 = 0; b0 < rows; b0 += n) {
      const int count = std::min(n, rows - b0);
      cf in = laid(x, b0, count, X);
      ahead.run(U, in, row(), bordered() ? picture() : size(), bias, relu, false, z + b0 * osize(), (int64_t)g.ow * g.N, osize(), 0, count * ahead.down(), 0, VM);
    }
  }

  void backward(cf x, cf z, float* d, int rows, cf W, bool relu, float* below, bool add, const Pass::Target* weights,
                const Pass::Target* bias, float* scratch) const {
    float *U = scratch, *dU = U + back.weights(), *VM = dU + ahead.weights(), *G = VM + std::max(ahead.scratch(), back.scratch());
    float *sums = G + g.weights(), *D = sums + g.N, *X = D + std::min(rows, together()) * dpicture();
    const int n = std::min(rows, together());
    if (below) turn(g, W, G), back.transform_weights(G, true, U);
    memset(sums, 0, g.N * sizeof(float));
    memset(dU, 0, ahead.weights() * sizeof(float));
    memset(D, 0, n * (picture() + dpicture()) * sizeof(float));
    for (int b0 = 0; b0 < rows; b0 += n) {
      const int count = std::min(n, rows - b0);
      float* at = D + (2 - g.ph) * drow() + (2 - g.pw) * (int64_t)g.N;
      for (int b = 0; b < count; b++)
        prepare_gradient(d + (b0 + b) * osize(), z + (b0 + b) * osize(), relu, g.oh, g.ow, g.N, at + b * dpicture(), drow(), sums);
      if (below)
        back.run(U, D, drow(), dpicture(), nullptr, false, add, below + b0 * size(), (int64_t)g.w * g.ld, size(), 0, count * back.down(), 0, VM);
      if (!weights) continue;
      cf in = laid(x, b0, count, X);
      ahead.lean(in, row(), bordered() ? picture() : size(), at, drow(), dpicture(), count, dU, VM);
    }
    if (weights) ahead.weights_back(dU, G), put(*weights, G, g.weights());
    if (bias) put(*bias, sums, g.N);
  }
};

}  // namespace ff
