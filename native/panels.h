// Products with a matrix that is used again and again: its columns in strips as wide as a tile, each strip contiguous, so
// that a tile streams memory in order and no two of its rows fall on the same lines of the cache.
// Here: packing (straight and transposed), the product, the weight gradient over blocks of rows. Not here: any op.
// Invariant: the order of additions of a number depends on the shapes only. Widths (N) are multiples of PAD.
#pragma once
#include "gemm.h"

namespace ff {

// floats between rows of a buffer of our own: no power of two, so that a column of it spreads over the cache's sets
inline constexpr int64_t apart(int64_t n) { return padded64(n) % 128 ? padded64(n) : padded64(n) + PAD; }

// vectors in a strip for products of `rows` rows: fewest loads of a (rows / nr) and of strips (parts)
static int strip(int64_t rows) {
  int best = 1;
  double least = 1e30;
  for (int nr = MOST_NR; nr; nr--) {
    const double cost = (double)rows / nr + 1.5 * (double)((rows + most_mr(nr) - 1) / most_mr(nr));
    if (cost < least) least = cost, best = nr;
  }
  return best;
}

// W[K][ldw] (N columns) in strips of at most nr vectors; column c of the strips is column (c + turn) mod N of W
static void pack(cf W, int64_t ldw, int K, int N, int nr, int turn, float* out) {
  const int whole = N / VL, turned = turn / VL;
  FF_SPLIT(n0, nz, whole, nr) {
    int64_t from[MOST_NR];
    for (int j = 0; j < nz; j++) from[j] = (int64_t)VL * ((n0 + j + turned) % whole);
    cf w = W;
    for (int k = 0; k < K; k++, w += ldw)
      for (int j = 0; j < nz; j++, out += VL) store(out, load(w + from[j]));
  }
}

#if FF_VL == 16
#define FF_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define FF_HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif FF_VL == 8
#define FF_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define FF_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define FF_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define FF_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

// VL vectors, rows to columns: log2(VL) perfect shuffles of the rows
static FF_INLINE void transpose(vf* v) {
#pragma GCC unroll 4
  for (int round = 1; round < VL; round *= 2) {
    vf u[VL];
#pragma GCC unroll 8
    for (int i = 0; i < VL / 2; i++) {
      u[2 * i] = FF_LOW(v[i], v[i + VL / 2]);
      u[2 * i + 1] = FF_HIGH(v[i], v[i + VL / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) v[i] = u[i];
  }
}

// One strip of the transpose of W[K][ldw] (N columns): N rows of kz vectors, 0 beyond the K columns there are; row n is W's
// column (n + turn) mod N
static void turn_strip(cf W, int64_t ldw, int K, int N, int kz, int turn, float* out) {
  for (int n = 0; n < N; n += VL) {
    const int from = (n + turn) % N;
    for (int j = 0; j < kz; j++) {
      vf v[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; i++) v[i] = VL * j + i < K ? load(W + (int64_t)(VL * j + i) * ldw + from) : zero();
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < VL; i++) store(out + ((int64_t)(n + i) * kz + j) * VL, v[i]);
    }
  }
}

// The transpose of W[K][ldw] (N columns) in strips: N rows of padded(K) columns
static void pack_transposed(cf W, int64_t ldw, int K, int N, int nr, int turn, float* out) {
  FF_SPLIT(k0, kz, padded(K) / VL, nr) {
    turn_strip(W + (int64_t)VL * k0 * ldw, ldw, K - VL * k0, N, kz, turn, out);
    out += (int64_t)N * kz * VL;
  }
}

// Z[M][ldz] (columns 0..N) = start + A[M][lda] times the K x N matrix in `strips`: start 0, a row `cin`, or what is in Z
static void by_strips(cf A, int64_t lda, cf strips, int nr, Start start, cf cin, float* Z, int64_t ldz, int64_t M, int K, int N) {
  constexpr int MB = 192, KB = 128;  // a block of A stays in the second level of cache, of a strip in the first
  for (int64_t b0 = 0; b0 < M; b0 += MB) {
    const int rows = (int)(M - b0 < MB ? M - b0 : MB), kb = rows <= most_mr(nr) ? K : KB;
    cf w0 = strips;
    FF_SPLIT(n0, nz, N / VL, nr) {
      const int64_t width = (int64_t)nz * VL;
      for (int k0 = 0; k0 < K; k0 += kb) {
        const int kc = K - k0 < kb ? K - k0 : kb;
        const Start s = k0 ? ADD : start;
        FF_RUNS(m0, mr, times, rows, most_mr(nz)) {
          cf a = A + (b0 + m0) * lda + k0, w = w0 + k0 * width;
          float* z = Z + (b0 + m0) * ldz + VL * n0;
          tiles(mr, nz, Tile{1, &a, &w, kc, lda, 1, width, s, s == ADD ? z : s == BIAS ? cin + VL * n0 : nullptr, ldz, 1.f, false, z, ldz, times, mr * lda});
        }
      }
      w0 += K * width;
    }
  }
}

// out[M][ldo] (columns 0..padded(K), those beyond K + 0) (+)= D[M][ldd] W[K][ldw]' over N columns; `room`: by_turned_room(N)
// floats. One strip is turned at a time, and used while it is in the cache: for few rows of many columns dots are faster.
inline constexpr int64_t by_turned_room(int64_t N) { return N * MOST_NR * VL; }
static inline bool by_turned_is_faster(int64_t M, int N) { return M >= 10 || N <= 64; }
[[maybe_unused]] static void by_turned(cf D, int64_t ldd, cf W, int64_t ldw, float* out, int64_t ldo, int64_t M, int K, int N, bool add, float* room) {
  FF_SPLIT(k0, kz, padded(K) / VL, strip(M)) {
    turn_strip(W + (int64_t)VL * k0 * ldw, ldw, K - VL * k0, N, kz, 0, room);
    by_strips(D, ldd, room, kz, add ? ADD : ZERO, nullptr, out + VL * k0, ldo, M, N, kz * VL);
  }
}

// out[K][ldw] (columns 0..N) = cin[K][ldw] + alpha * A' D, over M rows (0 too) of A[M][lda] and D[M][ldd]; cin may be out
static void outer_blocks(cf A, int64_t lda, cf D, int64_t ldd, int64_t M, int K, int N, cf cin, float alpha, float* out, int64_t ldw) {
  constexpr int MB = 96, NB = 256 / VL;  // of D the block's columns of a tile stay in the first level, `out`'s in the second
  if (M == 0 && out != cin)
    for (int k = 0; k < K; k++) memcpy(out + k * ldw, cin + k * ldw, N * sizeof(float));
  const int64_t parts = (M + MB - 1) / MB;
  FF_SPLIT(c0, cz, N / VL, NB) for (int64_t part = 0; part < parts; part++) {
    const int64_t m0 = M * part / parts, m1 = M * (part + 1) / parts;
    cf from = part ? out : cin;
    FF_SPLIT(n0, nz, cz, MOST_NR) FF_RUNS(k0, mr, times, K, most_mr(nz)) {
      const int64_t column = (int64_t)VL * (c0 + n0), at = k0 * ldw + column;
      cf a = A + m0 * lda + k0, d = D + m0 * ldd + column;
      tiles(mr, nz, Tile{1, &a, &d, (int)(m1 - m0), 1, lda, ldd, ADD, from + at, ldw, alpha, false, out + at, ldw, times, mr});
    }
  }
}

}  // namespace ff
