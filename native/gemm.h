// Products of small matrices in registers: the three that a layer needs, and the tile they are made of.
// Here: tile() over segments (so that a convolution is one call per row of positions), forward, weight gradient, input
// gradient. Not here: threads, packing of whole models. Invariant: widths are multiples of PAD; the order of additions of
// a number depends on the shapes only.
// After: Goto and van de Geijn (ACM TOMS 2008) for the tile; ours never packs, as its operands fit the cache.
#pragma once
#include "vec.h"

namespace ff {

typedef const float* cf;
enum Start { ZERO, BIAS, ADD };  // what a tile begins with: 0, a row vector, or cin + alpha * sum

constexpr int MOST_NR = VL == 16 ? 4 : 2;  // vectors of a tile's width: with most_mr() rows they fill the registers
constexpr int most_mr(int nr) { return VL == 16 ? (nr <= 2 ? 12 : nr == 3 ? 8 : 6) : (nr == 1 ? 8 : 6); }

struct Tile {
  int nseg;
  const cf* as;
  const cf* bs;
  int kc;
  int64_t ars, aks, bks;  // strides of a's rows and of its k, and of b's k
  Start start;
  cf cin;
  int64_t cis;
  float alpha;
  bool relu;
  float* out;
  int64_t cos;
};

template <int MR, int NR>
static void tile(const Tile& t) {
  vf acc[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) acc[i][j] = t.start == BIAS ? load(t.cin + VL * j) : zero();
  const int64_t ars = t.ars, aks = t.aks, bks = t.bks;
  const int kc = t.kc;
  for (int s = 0; s < t.nseg; s++) {
    cf a = t.as[s], b = t.bs[s];
    for (int k = 0; k < kc; k++, a += aks, b += bks) {
      vf bv[NR];
#pragma GCC unroll 8
      for (int j = 0; j < NR; j++) bv[j] = load(b + VL * j);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        const vf av = all(a[i * ars]);
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++) acc[i][j] += av * bv[j];
      }
    }
  }
  if (t.start == ADD) {
    const vf al = all(t.alpha);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
      for (int j = 0; j < NR; j++) acc[i][j] = load(t.cin + i * t.cis + VL * j) + al * acc[i][j];
  }
  if (t.relu) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
      for (int j = 0; j < NR; j++) acc[i][j] = relu(acc[i][j]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) store(t.out + i * t.cos + VL * j, acc[i][j]);
}

// mr rows (1..most_mr(nr)) and nr vectors (1..MOST_NR)
[[maybe_unused]] static void tiles(int mr, int nr, const Tile& t) {
#define FF_CASE(M, N) \
  case M * 8 + N: return tile<M, N>(t);
  switch (mr * 8 + nr) {
    FF_CASE(1, 1) FF_CASE(2, 1) FF_CASE(3, 1) FF_CASE(4, 1) FF_CASE(5, 1) FF_CASE(6, 1) FF_CASE(7, 1) FF_CASE(8, 1)
    FF_CASE(1, 2) FF_CASE(2, 2) FF_CASE(3, 2) FF_CASE(4, 2) FF_CASE(5, 2) FF_CASE(6, 2)
#if FF_VL == 16
    FF_CASE(9, 1) FF_CASE(10, 1) FF_CASE(11, 1) FF_CASE(12, 1)
    FF_CASE(7, 2) FF_CASE(8, 2) FF_CASE(9, 2) FF_CASE(10, 2) FF_CASE(11, 2) FF_CASE(12, 2)
    FF_CASE(1, 3) FF_CASE(2, 3) FF_CASE(3, 3) FF_CASE(4, 3) FF_CASE(5, 3) FF_CASE(6, 3) FF_CASE(7, 3) FF_CASE(8, 3)
    FF_CASE(1, 4) FF_CASE(2, 4) FF_CASE(3, 4) FF_CASE(4, 4) FF_CASE(5, 4) FF_CASE(6, 4)
#endif
  }
#undef FF_CASE
  __builtin_trap();
}

// for (first, length) of parts of n of at most `most`, as equal as possible
#define FF_SPLIT(first, length, n, most)                                                                  \
  for (int first##_parts = ((n) + (most)-1) / (most), first##_at = 0, first = 0, length = 0;              \
       first##_at < first##_parts &&                                                                      \
       (length = ((n)-first + (first##_parts - first##_at) - 1) / (first##_parts - first##_at), true);    \
       first += length, first##_at++)

// Z[M][ldz] (columns 0..N) = start + A[M][lda] W[K][ldw]; N a multiple of PAD. `bias` [N], or null: start at 0, or with
// `add` at what is in Z. `relu` at the end.
[[maybe_unused]] static void product(cf A, int64_t lda, cf W, int64_t ldw, cf bias, float* Z, int64_t ldz, int M, int K, int N, bool add,
                    bool relu) {
  constexpr int KB = 128;  // rows of W at a time: with a tile's width they stay in the first level of cache
  FF_SPLIT(n0, nz, N / VL, MOST_NR) for (int k0 = 0; k0 < K; k0 += KB) {
    const int kc = K - k0 < KB ? K - k0 : KB;
    const bool last = k0 + kc == K, go_on = k0 || add;
    FF_SPLIT(m0, mr, M, most_mr(nz)) {
      cf a = A + m0 * lda + k0, w = W + (int64_t)k0 * ldw + VL * n0;
      float* z = Z + m0 * ldz + VL * n0;
      tiles(mr, nz, Tile{1, &a, &w, kc, lda, 1, ldw, go_on ? ADD : bias ? BIAS : ZERO, go_on ? z : bias ? bias + VL * n0 : nullptr,
                         ldz, 1.f, relu && last, z, ldz});
    }
  }
}

// out[K][ldw] (columns 0..N) = cin[K][ldw] + alpha * A' D, over M rows of A[M][lda] and D[M][ldd]; cin may be out
[[maybe_unused]] static void outer(cf A, int64_t lda, cf D, int64_t ldd, int M, int K, int N, cf cin, float alpha, float* out,
                  int64_t ldw) {
  constexpr int MB = 256;
  for (int m0 = 0; m0 < M; m0 += MB) {
    const int mc = M - m0 < MB ? M - m0 : MB;
    cf from = m0 ? out : cin;
    FF_SPLIT(n0, nz, N / VL, MOST_NR) FF_SPLIT(k0, mr, K, most_mr(nz)) {
      cf a = A + (int64_t)m0 * lda + k0, d = D + (int64_t)m0 * ldd + VL * n0;
      const int64_t at = (int64_t)k0 * ldw + VL * n0;
      tiles(mr, nz, Tile{1, &a, &d, mc, 1, lda, ldd, ADD, from + at, ldw, alpha, false, out + at, ldw});
    }
  }
}

#if FF_VL == 16
#define FF_EVEN(a, b) \
  __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define FF_ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#elif FF_VL == 8
#define FF_EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define FF_ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#else
#define FF_EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define FF_ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7)
#endif

// lane i of the result: the sum of v[i]; v is spent
static FF_INLINE vf sums(vf* v) {
#pragma GCC unroll 4
  for (int n = VL / 2; n; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) v[i] = FF_EVEN(v[2 * i], v[2 * i + 1]) + FF_ODD(v[2 * i], v[2 * i + 1]);
  return v[0];
}

// out[M][ldo] (columns 0..K) (+)= D[M][ldd] W[K][ldw]' over N columns, N a multiple of PAD
[[maybe_unused]] static void product_transposed(cf D, int64_t ldd, cf W, int64_t ldw, float* out, int64_t ldo, int M, int K, int N,
                               bool add) {
  constexpr int DB = VL == 16 ? 4 : 2, DK = 4;
  for (int k = 0; k < K; k += DK)
    for (int m = 0; m < M; m += DB) {
      const int kn = K - k < DK ? K - k : DK, mn = M - m < DB ? M - m : DB;
      cf w[DK], d[DB];
      for (int i = 0; i < DK; i++) w[i] = W + (int64_t)(k + (i < kn ? i : 0)) * ldw;
      for (int j = 0; j < DB; j++) d[j] = D + (int64_t)(m + (j < mn ? j : 0)) * ldd;
      vf acc[DB * DK];
#pragma GCC unroll 16
      for (int i = 0; i < DB * DK; i++) acc[i] = zero();
      for (int n = 0; n < N; n += VL) {
        vf wv[DK];
#pragma GCC unroll 4
        for (int i = 0; i < DK; i++) wv[i] = load(w[i] + n);
#pragma GCC unroll 4
        for (int j = 0; j < DB; j++) {
          const vf dv = load(d[j] + n);
#pragma GCC unroll 4
          for (int i = 0; i < DK; i++) acc[j * DK + i] += dv * wv[i];
        }
      }
      float t[DB * DK];
#pragma GCC unroll 4
      for (int i = 0; i < DB * DK; i += VL) store(t + i, sums(acc + i));
      for (int j = 0; j < mn; j++) {
        float* o = out + (int64_t)(m + j) * ldo + k;
        if (add)
          for (int i = 0; i < kn; i++) o[i] += t[j * DK + i];
        else
          for (int i = 0; i < kn; i++) o[i] = t[j * DK + i];
      }
    }
}

// out[N] = cin[N] + alpha * the column sums of D[M][ldd]
[[maybe_unused]] static void column_sums(cf D, int64_t ldd, int64_t M, int N, cf cin, float alpha, float* out) {
  for (int j = 0; j < N; j += VL) {
    vf s = zero();
    for (int64_t m = 0; m < M; m++) s += load(D + m * ldd + j);
    store(out + j, load(cin + j) + alpha * s);
  }
}

}  // namespace ff
