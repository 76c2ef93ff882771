// Convolutions of one picture, directly in NHWC: no column matrix is ever made.
// Here: the geometry of a convolution as segments, bordered copies, sweep() (forward, and the gradient of the input as a
// convolution of the output's gradient), lean() (the gradient of the weights), transposed weights. Not here: ops
// (ops_conv.h). Invariant: a segment is read only in rows 0..h, and in columns that the bordered picture has.
//
// out[r][q] = sum over segments s of in[r * sh + row_s][q * sw + a_s ...][kc] . W[b_s ...][kc][N]: with dilation 1 the
// kw * cin numbers under a row of the kernel lie together, in the picture and in the weights, so that a kernel of kh rows
// is kh segments. Rows beyond the picture are left out (padding costs nothing there), columns are a zero border.
#pragma once
#include <algorithm>

#include "op.h"

namespace ff {

struct Segment {
  int row;         // of the input, from r * sh
  int64_t column;  // of the input, from q * sw
  int64_t b;       // row of the weights
};

// One set of segments over a grid of outputs: all of a forward pass, or one phase of a strided input gradient.
struct Grid {
  int rows = 0, cols = 0;      // outputs
  int row0 = 0, col0 = 0;      // of the first output in its picture
  int step_row = 1, step_col = 1;  // between outputs, in their picture
  int kc = 0;                  // numbers a segment
  bool three = false;          // a segment is three neighbours, and outputs are neighbours too
  std::vector<Segment> segments;
};

// One vector of outputs under kernels three wide: loads of the input would hold up the arithmetic, so that each number is
// loaded once for its three places of the kernel.
inline bool narrow(const Grid& g, int64_t N) { return VL == PAD && N == VL && g.three; }
constexpr int MOST_THREE = 16;  // outputs of such a tile; of its gradient, channels of the input
constexpr int MOST_LEAN_THREE = 8;

struct Geometry {
  int h, w, ld;      // input
  int oh, ow, N;     // output; N floats a position
  int kh, kw, sh, sw, ph, pw, dh, dw;
  int left = 0, right = 0;    // columns of border that the input needs
  int dleft = 0, dright = 0;  // the same of the output's gradient
  Grid forward;
  std::vector<Grid> backward;  // one for each phase of the stride
  int64_t taps() const { return (int64_t)kh * kw; }
  int64_t weights() const { return taps() * ld * N; }
  int64_t row() const { return (int64_t)(w + left + right) * ld; }      // floats of a bordered row
  int64_t drow() const { return (int64_t)(ow + dleft + dright) * N; }
  bool bordered() const { return left || right; }
  bool dbordered() const { return dleft || dright; }

  void prepare() {
    left = std::max(0, pw);
    right = std::max(0, (ow - 1) * sw + (kw - 1) * dw - pw - (w - 1));
    forward.rows = oh, forward.cols = ow;
    forward.kc = dw == 1 ? kw * ld : ld;
    forward.three = kw == 3 && sw == 1 && dw == 1;
    for (int y = 0; y < kh; y++)
      for (int x = 0; x < (dw == 1 ? 1 : kw); x++) forward.segments.push_back({y * dh - ph, x * dw - pw, ((int64_t)y * kw + x) * ld});
    const bool runs = sw == 1 && dw == 1;  // the transposed weights lie with x reversed, so that a row is a segment again
    int low = 0, high = ow - 1;
    for (int a = 0; a < std::min(sh, h); a++)
      for (int b = 0; b < std::min(sw, w); b++) {
        Grid g{(h - a + sh - 1) / sh, (w - b + sw - 1) / sw, a, b, sh, sw, runs ? kw * N : N, runs && kw == 3, {}};
        for (int y = 0; y < kh; y++)
          for (int x = 0; x < kw; x++) {
            const int up = a + ph - y * dh, along = b + pw - x * dw;
            if (up % sh || along % sw) continue;
            low = std::min(low, along / sw), high = std::max(high, g.cols - 1 + along / sw);
            if (!runs || x == kw - 1) g.segments.push_back({up / sh, along / sw, ((int64_t)y * kw + kw - 1 - x) * N});
          }
        backward.push_back(g);
      }
    dleft = -low, dright = high - (ow - 1);
    if (narrow(forward, N)) dleft = std::max(dleft, 2), dright = std::max(dright, 2);  // see lean_three
  }
};

template <int MR>
static void row_three(const Tile& t, int64_t ld) {
  vf acc[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) acc[i] = t.start == BIAS ? load(t.cin) : t.start == ADD ? load(t.cin + i * t.cis) : zero();
  const int K = t.kc / 3;
  for (int s = 0; s < t.nseg; s++) {
    cf a = t.as[s], b = t.bs[s];
    for (int k = 0; k < K; k++, a++, b += VL) {
      const vf b0 = load(b), b1 = load(b + K * VL), b2 = load(b + 2 * K * VL);
#pragma GCC unroll 18
      for (int i = 0; i < MR + 2; i++) {
        const vf av = all(a[i * ld]);
        if (i < MR) acc[i] += av * b0;
        if (i >= 1 && i <= MR) acc[i - 1] += av * b1;
        if (i >= 2) acc[i - 2] += av * b2;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) store(t.out + i * t.cos, t.relu ? relu(acc[i]) : acc[i]);
}
// G[dx][ci] += sum over places p of x[p][ci] * d[p - dx], p = 0..n + 2, d 0 at -2, -1, n, n + 1
template <int MI>
static void lean_three(int rows, const cf* xs, const cf* ds, int n, int64_t ld, float* G, int64_t next) {
  vf acc[MI][3];
#pragma GCC unroll 8
  for (int i = 0; i < MI; i++)
#pragma GCC unroll 3
    for (int x = 0; x < 3; x++) acc[i][x] = zero();
  for (int r = 0; r < rows; r++) {
    cf a = xs[r], d = ds[r];
    for (int p = 0; p < n + 2; p++, a += ld, d += VL) {
      const vf d0 = load(d), d1 = load(d - VL), d2 = load(d - 2 * VL);
#pragma GCC unroll 8
      for (int i = 0; i < MI; i++) {
        const vf av = all(a[i]);
        acc[i][0] += av * d0;
        acc[i][1] += av * d1;
        acc[i][2] += av * d2;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MI; i++)
#pragma GCC unroll 3
    for (int x = 0; x < 3; x++) store(G + x * next + i * VL, load(G + x * next + i * VL) + acc[i][x]);
}
static void rows_three(int mr, const Tile& t, int64_t ld) {
  switch (mr) {
#define FF_CASE(M) case M: return row_three<M>(t, ld);
    FF_CASE(1) FF_CASE(2) FF_CASE(3) FF_CASE(4) FF_CASE(5) FF_CASE(6) FF_CASE(7) FF_CASE(8) FF_CASE(9) FF_CASE(10)
    FF_CASE(11) FF_CASE(12) FF_CASE(13) FF_CASE(14) FF_CASE(15) FF_CASE(16)
#undef FF_CASE
  }
  __builtin_trap();
}
static void leans_three(int mi, int rows, const cf* xs, const cf* ds, int n, int64_t ld, float* G, int64_t next) {
  switch (mi) {
#define FF_CASE(M) case M: return lean_three<M>(rows, xs, ds, n, ld, G, next);
    FF_CASE(1) FF_CASE(2) FF_CASE(3) FF_CASE(4) FF_CASE(5) FF_CASE(6) FF_CASE(7) FF_CASE(8)
#undef FF_CASE
  }
  __builtin_trap();
}

// Copies h rows of `length` floats, in_row apart, into rows `row` apart; borders are the caller's.
static inline void lay(cf in, int h, int64_t in_row, int64_t length, float* out, int64_t row) {
  for (int r = 0; r < h; r++) memcpy(out + r * row, in + r * in_row, length * sizeof(float));
}
static inline void lay(cf in, int h, int64_t length, float* out, int64_t row) { lay(in, h, length, length, out, row); }

constexpr int MOST_SEGMENTS = 32;  // of one tile; more are done in turns
constexpr int64_t PANEL = 6144;    // floats of weights that a tile's loop should find in the first level of cache

// Rows r0..r1 of the grid: `in` is at row 0, column 0 of a picture of h rows, `row` floats apart, columns `ld` floats;
// out is at the grid's first output of row r0. N a multiple of PAD.
static void sweep(const Grid& g, int sh, int sw, cf in, int h, int64_t row, int64_t ld, cf W, int64_t N, cf bias, bool relu,
                  bool add, float* out, int64_t out_row, int64_t out_col, int r0, int r1, int cols) {
  const int count = (int)g.segments.size();
  FF_SPLIT(n0, nz, (int)(N / VL), MOST_NR) {
    const int most = (int)std::min<int64_t>(MOST_SEGMENTS, std::max<int64_t>(1, PANEL / ((int64_t)g.kc * nz * VL)));
    for (int s0 = 0; s0 < count || s0 == 0; s0 += most) {
      const int s1 = std::min(count, s0 + most);
      const bool last = s1 == count, go_on = s0 || add;
      for (int r = r0; r < r1; r++) {
        cf from[MOST_SEGMENTS], as[MOST_SEGMENTS], bs[MOST_SEGMENTS];
        int n = 0;
        for (int s = s0; s < s1; s++) {
          const Segment& e = g.segments[s];
          const int at = r * sh + e.row;
          if (at < 0 || at >= h) continue;
          from[n] = in + at * row + e.column * ld;
          bs[n++] = W + e.b * N + VL * n0;
        }
        if (!n && go_on && !(relu && last)) continue;
        float* z = out + (r - r0) * out_row + VL * n0;
        const bool thin = narrow(g, N);
        FF_SPLIT(q0, mr, cols, (thin ? MOST_THREE : most_mr(nz))) {
          for (int s = 0; s < n; s++) as[s] = from[s] + (int64_t)q0 * sw * ld;
          float* to = z + q0 * out_col;
          const Tile t{n, as, bs, g.kc, (int64_t)sw * ld, 1, N, go_on ? ADD : bias ? BIAS : ZERO, go_on ? to : bias ? bias + VL * n0 : nullptr,
                       out_col, 1.f, relu && last, to, out_col};
          if (thin)
            rows_three(mr, t, ld);
          else
            tiles(mr, nz, t);
        }
      }
    }
  }
}

// G[segment rows][N] += the outer products over outputs: `count` pictures, in (at row 0, column 0) `next` floats apart, D
// (at row 0, column 0) `dnext`.
static void lean(const Geometry& g, cf in, int64_t row, int64_t next, cf D, int64_t drow, int64_t dnext, int count, float* G) {
  const int most = (int)std::min<int64_t>(MOST_SEGMENTS, std::max<int64_t>(std::max(1, 48 / g.ow), 8192 / ((int64_t)g.ow * std::min(g.N, MOST_NR * VL) + (int64_t)g.sh * g.w * g.ld)));
  const int kc = g.forward.kc, all_rows = count * g.oh;
  FF_SPLIT(r0, rows, all_rows, most) for (const Segment& e : g.forward.segments) {
    cf x[MOST_SEGMENTS], d[MOST_SEGMENTS], as[MOST_SEGMENTS], bs[MOST_SEGMENTS];
    int n = 0;
    for (int i = r0; i < r0 + rows; i++) {
      const int b = i / g.oh, r = i % g.oh, at = r * g.sh + e.row;
      if (at < 0 || at >= g.h) continue;
      x[n] = in + b * next + at * row + e.column * g.ld;
      d[n++] = D + b * dnext + r * drow;
    }
    if (!n) continue;
    if (narrow(g.forward, g.N)) {
      FF_SPLIT(i0, mi, g.ld, MOST_LEAN_THREE) {
        for (int s = 0; s < n; s++) as[s] = x[s] + i0;
        leans_three(mi, n, as, d, g.ow, g.ld, G + (e.b + i0) * g.N, (int64_t)g.ld * g.N);
      }
      continue;
    }
    FF_SPLIT(n0, nz, g.N / VL, MOST_NR) FF_SPLIT(i0, mr, kc, most_mr(nz)) {
      for (int s = 0; s < n; s++) as[s] = x[s] + i0, bs[s] = d[s] + VL * n0;
      float* to = G + (e.b + i0) * g.N + VL * n0;
      tiles(mr, nz, Tile{n, as, bs, g.ow, 1, (int64_t)g.sw * g.ld, g.N, ADD, to, g.N, 1.f, false, to, g.N});
    }
  }
}

// out[n][k] = in[k][n] for blocks of the weights: [K][N] -> [N][K], rows of the result `ldo` apart
static inline void transpose(cf in, int K, int N, int64_t ldi, float* out, int64_t ldo) {
  for (int k0 = 0; k0 < K; k0 += 16)
    for (int n0 = 0; n0 < N; n0 += 16)
      for (int n = n0; n < std::min(N, n0 + 16); n++)
        for (int k = k0; k < std::min(K, k0 + 16); k++) out[n * ldo + k] = in[k * ldi + n];
}
// [kh][kw][ld][N] -> [kh][kw reversed][N][ld]
static inline void turn(const Geometry& g, cf W, float* out) {
  for (int y = 0; y < g.kh; y++)
    for (int x = 0; x < g.kw; x++)
      transpose(W + ((int64_t)y * g.kw + x) * g.ld * g.N, g.ld, g.N, g.N, out + ((int64_t)y * g.kw + g.kw - 1 - x) * g.N * g.ld, g.ld);
}

// The gradient of one input picture (dense, rows w * ld floats) from the bordered gradient D of the output
static inline void input_gradient(const Geometry& g, cf D, int64_t drow, cf turned, float* out, bool add) {
  for (const Grid& p : g.backward) {
    float* to = out + ((int64_t)p.row0 * g.w + p.col0) * g.ld;
    sweep(p, 1, 1, D, g.oh, drow, g.N, turned, g.ld, nullptr, false, add, to, (int64_t)p.step_row * g.w * g.ld, (int64_t)p.step_col * g.ld, 0, p.rows, p.cols);
  }
}

// out = in + scale * G
static inline void put(const Pass::Target& t, cf G, int64_t n) {
  const vf s = all(t.scale);
  for (int64_t i = 0; i < n; i += VL) store(t.out + i, load(t.in + i) + s * load(G + i));
}

// D (rows `row` apart, columns of N floats) = d, 0 where relu and z is not above 0; bias += column sums. D may be d.
static inline void prepare_gradient(cf d, cf z, bool relu, int h, int w, int64_t N, float* D, int64_t row, float* bias) {
  for (int64_t j = 0; j < N; j += VL) {
    vf s0 = zero(), s1 = zero();
    for (int r = 0; r < h; r++) {
      cf from = d + (int64_t)r * w * N + j, act = z + (int64_t)r * w * N + j;
      float* to = D + r * row + j;
      for (int q = 0; q < w; q++) {
        vf v = load(from + q * N);
        if (relu) v = pick(load(act + q * N) > zero(), v, zero());
        store(to + q * N, v);
        if (q & 1) s1 += v;
        else s0 += v;
      }
    }
    if (bias) store(bias + j, load(bias + j) + (s0 + s1));
  }
}

}  // namespace ff
