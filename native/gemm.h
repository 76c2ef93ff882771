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

// Rows of memory that are wanted soon: fetched a few lines at a time, from tile to tile, so that they are there when they
// are read and nothing waits for them. A hint: no result depends on it.
struct Ahead {
  const char* data = nullptr;
  int64_t width = 0;             // bytes of a row
  const int64_t* rows = nullptr;
  int64_t count = 0, at = 0;     // rows left; bytes of the first one that have been asked for

  FF_INLINE void few() {
    if (!count) return;
    const char* from = data + *rows * width;
    for (int i = 0; i < 8 && at < width; i++, at += 64) __builtin_prefetch(from + at, 0, 3);
    if (at >= width) at = 0, rows++, count--;
  }
};

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
  int times = 1;          // as many tiles below each other; from one to the next a goes on by `next`
  int64_t next = 0;
  Ahead* ahead = nullptr;
};

template <int MR, int NR>
static void tile(const Tile& t) {
  const int64_t ars = t.ars, aks = t.aks, bks = t.bks;
  const int kc = t.kc;
  cf cin = t.cin;
  float* out = t.out;
  int64_t at = 0;
  for (int left = t.times; left; left--, at += t.next, out += MR * t.cos) {
    if (t.ahead) t.ahead->few();
    if (left > 1 && t.start == ADD) {  // what the next tile begins with
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++) __builtin_prefetch(cin + (MR + i) * t.cis + VL * j, 0, 3);
    }
    vf acc[MR][NR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
      for (int j = 0; j < NR; j++) acc[i][j] = t.start == BIAS ? load(cin + VL * j) : zero();
    for (int s = 0; s < t.nseg; s++) {
      cf a = t.as[s] + at, b = t.bs[s];
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
        for (int j = 0; j < NR; j++) acc[i][j] = load(cin + i * t.cis + VL * j) + al * acc[i][j];
      cin += MR * t.cis;
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
      for (int j = 0; j < NR; j++) store(out + i * t.cos + VL * j, acc[i][j]);
  }
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
#define FF_SPLIT(first, length, n, most)                                                                       \
  for (int first##_of = (n), first##_parts = (first##_of + (most)-1) / (most), first##_left = first##_parts,   \
           first##_low = first##_of / (first##_parts ? first##_parts : 1),                                     \
           first##_more = first##_of - first##_low * first##_parts, first = 0, length = 0;                     \
       first##_left && (length = first##_low + (first##_more > 0), true);                                      \
       first += length, first##_left--, first##_more--)

// the same parts as (first, length, times): those of one length, which lie one behind the other, are taken together
#define FF_RUNS(first, length, times, n, most)                                                                \
  for (int first##_of = (n), first##_parts = (first##_of + (most)-1) / (most),                                \
           first##_low = first##_of / (first##_parts ? first##_parts : 1),                                    \
           first##_more = first##_of - first##_low * first##_parts, first##_run = 0, first = 0, length = 0, times = 0; \
       first##_run < 2 && (length = first##_low + !first##_run, times = first##_run ? first##_parts - first##_more : first##_more, true); \
       first += length * times, first##_run++)                                                                \
    if (times)

// Z[M][ldz] (columns 0..N) = start + A[M][lda] W[K][ldw]; N a multiple of PAD. `bias` [N], or null: start at 0, or with
// `add` at what is in Z. `relu` at the end.
[[maybe_unused]] static void product(cf A, int64_t lda, cf W, int64_t ldw, cf bias, float* Z, int64_t ldz, int M, int K, int N, bool add,
                    bool relu, Ahead* ahead = nullptr) {
  constexpr int KB = 128;  // rows of W at a time: with a tile's width they stay in the first level of cache
  FF_SPLIT(n0, nz, N / VL, MOST_NR) for (int k0 = 0; k0 < K; k0 += KB) {
    const int kc = K - k0 < KB ? K - k0 : KB;
    const bool last = k0 + kc == K, go_on = k0 || add;
    FF_RUNS(m0, mr, times, M, most_mr(nz)) {
      cf a = A + m0 * lda + k0, w = W + (int64_t)k0 * ldw + VL * n0;
      float* z = Z + m0 * ldz + VL * n0;
      tiles(mr, nz, Tile{1, &a, &w, kc, lda, 1, ldw, go_on ? ADD : bias ? BIAS : ZERO, go_on ? z : bias ? bias + VL * n0 : nullptr,
                         ldz, 1.f, relu && last, z, ldz, times, mr * lda, ahead});
    }
  }
}

// out[K][ldw] (columns 0..N) = cin[K][ldw] + alpha * A' D, over M rows of A[M][lda] and D[M][ldd]; cin may be out
[[maybe_unused]] static void outer(cf A, int64_t lda, cf D, int64_t ldd, int M, int K, int N, cf cin, float alpha, float* out,
                  int64_t ldw, Ahead* ahead = nullptr) {
  constexpr int MB = 256;
  for (int m0 = 0; m0 < M; m0 += MB) {
    const int mc = M - m0 < MB ? M - m0 : MB;
    cf from = m0 ? out : cin;
    FF_SPLIT(n0, nz, N / VL, MOST_NR) FF_RUNS(k0, mr, times, K, most_mr(nz)) {
      cf a = A + (int64_t)m0 * lda + k0, d = D + (int64_t)m0 * ldd + VL * n0;
      const int64_t at = (int64_t)k0 * ldw + VL * n0;
      tiles(mr, nz, Tile{1, &a, &d, mc, 1, lda, ldd, ADD, from + at, ldw, alpha, false, out + at, ldw, times, mr, ahead});
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
