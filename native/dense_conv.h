// A dense convolution of several pictures, forward and backward: what conv2d and the ops fused with it are made of.
// Here: the checks of its numbers, products where it is one, bordered copies otherwise. Not here: the kernels
// (convolve.h), ops. Invariant: of the weights all is read before any of their update is written.
#pragma once
#include "winograd_conv.h"

namespace ff {

// What the ten numbers of a convolution say, checked against its input and output; groups and relu are left to the op.
inline Geometry convolution(const Spec& s, const Value& x, int oh, int ow, int N) {
  Geometry g{};
  must(!x.tokens, "conv2d: takes numbers");
  g.h = x.h, g.w = x.w, g.ld = x.ld;
  g.oh = oh, g.ow = ow, g.N = N;
  g.kh = (int)whole(s, 0, 1, 4096), g.kw = (int)whole(s, 1, 1, 4096);
  g.sh = (int)whole(s, 2, 1, 4096), g.sw = (int)whole(s, 3, 1, 4096);
  g.ph = (int)whole(s, 4, 0, 4096), g.pw = (int)whole(s, 5, 0, 4096);
  g.dh = (int)whole(s, 6, 1, 4096), g.dw = (int)whole(s, 7, 1, 4096);
  const int64_t down = x.h + 2 * g.ph - (int64_t)g.dh * (g.kh - 1) - 1, along = x.w + 2 * g.pw - (int64_t)g.dw * (g.kw - 1) - 1;
  must(down >= 0 && along >= 0, "conv2d: the kernel is larger than the padded picture");
  must(oh == down / g.sh + 1 && ow == along / g.sw + 1, "conv2d: the output is not of the size that kernel, stride and padding give");
  must(g.taps() <= 1 << 16 && g.taps() * g.ld <= ((int64_t)1 << 31) / N && (int64_t)std::min(g.sh, g.h) * std::min(g.sw, g.w) * g.taps() <= 1 << 22,
       "conv2d: the kernel or the stride is too large");
  must((int64_t)x.h * (x.w + 2 * g.pw + along) * std::max(x.ld, padded(x.ld)) < (int64_t)1 << 31 &&
           (int64_t)oh * (ow + 2 * ((int64_t)g.dw * g.kw + g.pw)) * N < (int64_t)1 << 31,
       "conv2d: the kernel or the padded picture is too large");
  return g;
}

// Gradients of a dense convolution of `rows` pictures, and where they go. Scratch: bordered pictures of a few examples,
// the weights transposed, the weight gradient.
struct DenseConvolution {
  Geometry g;
  bool by_tiles = false;      // by Winograd's transforms
  WinogradConvolution tiled;
  bool plain;     // a product: 1x1, or a kernel as large as the picture
  int64_t each;   // rows of the product an example
  int K;          // and its inner width

  static DenseConvolution of(Geometry g) {
    DenseConvolution c;
    const bool dense = g.ph == 0 && g.pw == 0, point = g.taps() == 1 && g.sh == 1 && g.sw == 1 && dense;
    const bool picture = dense && g.kh == g.h && g.kw == g.w;
    c.plain = point || picture;
    c.each = point ? (int64_t)g.h * g.w : 1;
    c.K = point ? g.ld : g.h * g.w * g.ld;
    c.by_tiles = !c.plain && WinogradConvolution::takes(g);
    c.tiled = WinogradConvolution::of(g);
    g.prepare();
    c.g = g;
    return c;
  }

  int together() const { return std::max<int64_t>(1, 128 / ((int64_t)g.oh * g.ow)); }  // examples at a time, going back
  int64_t picture() const { return padded64(g.h * g.row()); }
  int64_t dpicture() const { return padded64(g.oh * g.drow()); }
  int64_t forward_scratch(int rows) const { return by_tiles ? tiled.forward_scratch(rows) : plain || !g.bordered() ? 0 : picture(); }
  int64_t backward_scratch(int rows) const {
    if (by_tiles) return tiled.backward_scratch(rows);
    const int n = std::min(rows, together());
    return 2 * padded64(g.weights()) + padded64(g.N) + (plain ? 0 : n * ((g.bordered() ? picture() : 0) + dpicture()));
  }

  void forward(cf x, int rows, cf W, cf bias, bool relu, float* z, float* scratch) const {
    if (by_tiles) return tiled.forward(x, rows, W, bias, relu, z, scratch);
    if (plain) return product(x, K, W, g.N, bias, z, g.N, (int)(rows * each), K, g.N, false, relu);
    const int64_t size = (int64_t)g.h * g.w * g.ld, osize = (int64_t)g.oh * g.ow * g.N, row = g.row();
    float* at = scratch + g.left * g.ld;
    if (g.bordered()) memset(scratch, 0, picture() * sizeof(float));
    for (int b = 0; b < rows; b++) {
      cf in = x + b * size;
      if (g.bordered()) lay(in, g.h, (int64_t)g.w * g.ld, at, row), in = at;
      sweep(g.forward, g.sh, g.sw, in, g.h, row, g.ld, W, g.N, bias, relu, false, z + b * osize, (int64_t)g.ow * g.N, g.N, 0, g.oh, g.ow);
    }
  }

  // below: null, or the gradient of x, written (or added to). W is read before target.out is written.
  void backward(cf x, cf z, float* d, int rows, cf W, bool relu, float* below, bool add, const Pass::Target* weights,
                const Pass::Target* bias, float* scratch) const {
    if (by_tiles) return tiled.backward(x, z, d, rows, W, relu, below, add, weights, bias, scratch);
    float *turned = scratch, *G = turned + padded64(g.weights()), *sums = G + padded64(g.weights()), *D = sums + padded64(g.N);
    memset(sums, 0, g.N * sizeof(float));
    if (plain) {
      const int M = (int)(rows * each);
      if (relu || bias) prepare_gradient(d, z, relu, 1, M, g.N, d, 0, sums);
      if (below && M >= 8) {
        transpose(W, K, g.N, g.N, turned, K);
        product(d, g.N, turned, K, nullptr, below, K, M, g.N, K, add, false);
      } else if (below)
        product_transposed(d, g.N, W, g.N, below, K, M, K, g.N, add);
      if (weights) outer(x, K, d, g.N, M, K, g.N, weights->in, weights->scale, weights->out, g.N);
    } else {
      const int n = std::min(rows, together());
      const int64_t size = (int64_t)g.h * g.w * g.ld, osize = (int64_t)g.oh * g.ow * g.N;
      float* X = D + n * dpicture();
      if (g.dbordered()) memset(D, 0, n * dpicture() * sizeof(float));
      if (g.bordered()) memset(X, 0, n * picture() * sizeof(float));
      if (weights) memset(G, 0, g.weights() * sizeof(float));
      if (below) turn(g, W, turned);
      for (int b0 = 0; b0 < rows; b0 += n) {
        const int count = std::min(n, rows - b0);
        float* at = D + g.dleft * g.N;
        for (int b = 0; b < count; b++)
          prepare_gradient(d + (b0 + b) * osize, z + (b0 + b) * osize, relu, g.oh, g.ow, g.N, at + b * dpicture(), g.drow(), sums);
        if (below)
          for (int b = 0; b < count; b++) input_gradient(g, at + b * dpicture(), g.drow(), turned, below + (b0 + b) * size, add);
        if (!weights) continue;
        if (g.bordered())
          for (int b = 0; b < count; b++) lay(x + (b0 + b) * size, g.h, (int64_t)g.w * g.ld, X + b * picture() + g.left * g.ld, g.row());
        lean(g, g.bordered() ? X + g.left * g.ld : x + b0 * size, g.row(), g.bordered() ? picture() : size, at, g.drow(), dpicture(), count, G);
      }
      if (weights) put(*weights, G, g.weights());
    }
    if (bias) put(*bias, sums, g.N);
  }
};

}  // namespace ff
