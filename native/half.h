// Products with both operands rounded to bfloat16 and sums in float32, two terms at a time: an option of dense layers on
// processors that have AVX512-BF16; elsewhere `has_half()` is false and nothing here is called.
// Invariant: as in gemm.h; rounding is to nearest even, so a row's numbers do not depend on other rows.
#pragma once
#include "gemm.h"

#if FF_VL == 16 && defined(__x86_64__)
#include <immintrin.h>
#define FF_HALF __attribute__((target("avx512bf16")))
#endif

namespace ff {

#ifdef FF_HALF
static inline bool has_half() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
}

// uint32 needed for rows x columns in pairs of rows
inline constexpr int64_t pairs_size(int64_t rows, int64_t columns) { return (rows + 1) / 2 * padded64(columns); }

// out[rows / 2][width]: (x[2r][c], x[2r + 1][c]) as two bfloat16, 0 beyond the last row; width a multiple of 16
FF_HALF static void pairs_of(cf x, int64_t ldx, int rows, int columns, uint32_t* out) {
  alignas(64) static const uint16_t ORDER[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(ORDER);
  const int width = padded(columns);
  for (int r = 0; r < rows; r += 2) {
    cf a = x + (int64_t)r * ldx, b = a + ldx;
    for (int c = 0; c < width; c += 16, out += 16) {
      const __mmask16 mask = columns - c >= 16 ? 0xffff : (__mmask16)((1u << (columns - c)) - 1);
      const __m512 low = _mm512_maskz_loadu_ps(mask, a + c);
      const __m512 high = r + 1 < rows ? _mm512_maskz_loadu_ps(mask, b + c) : _mm512_setzero_ps();
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      __m512i bits;
      memcpy(&bits, &both, sizeof bits);
      _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, bits));
    }
  }
}

// out[rows][(columns + 1) / 2]: neighbours of a row as two bfloat16
FF_HALF static void neighbours_of(cf x, int64_t ldx, int rows, int columns, uint32_t* out) {
  const int64_t half = (columns + 1) / 2;
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c += 16) {
      const int left = columns - c;
      const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
      const __m256bh some = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + (int64_t)r * ldx + c));
      uint32_t bits[8];
      memcpy(bits, &some, sizeof bits);
      const int count = left >= 16 ? 8 : (left + 1) / 2;
      memcpy(out + r * half + c / 2, bits, count * sizeof(uint32_t));
    }
}

struct Half_tile {
  const uint32_t *a, *b;
  int64_t ars, aks, bks;
  int kc;
  Start start;
  cf cin;
  int64_t cis;
  float alpha;
  bool relu;
  float* out;
  int64_t cos;
};

template <int MR, int NR>
FF_HALF static void half_tile(const Half_tile& t) {
  __m512 acc[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) acc[i][j] = t.start == BIAS ? _mm512_loadu_ps(t.cin + 16 * j) : _mm512_setzero_ps();
  const uint32_t *a = t.a, *b = t.b;
  for (int k = 0; k < t.kc; k++, a += t.aks, b += t.bks) {
    __m512bh bv[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) {
      const __m512i bits = _mm512_loadu_si512(b + 16 * j);
      memcpy(&bv[j], &bits, sizeof bits);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const __m512i bits = _mm512_set1_epi32((int)a[i * t.ars]);
      __m512bh av;
      memcpy(&av, &bits, sizeof bits);
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], av, bv[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) {
      vf v = (vf)acc[i][j];
      if (t.start == ADD) v = load(t.cin + i * t.cis + 16 * j) + t.alpha * v;
      if (t.relu) v = relu(v);
      store(t.out + i * t.cos + 16 * j, v);
    }
}

static void half_tiles(int mr, int nr, const Half_tile& t) {
#define FF_CASE(M, N) \
  case M * 8 + N: return half_tile<M, N>(t);
  switch (mr * 8 + nr) {
    FF_CASE(1, 1) FF_CASE(2, 1) FF_CASE(3, 1) FF_CASE(4, 1) FF_CASE(5, 1) FF_CASE(6, 1)
    FF_CASE(1, 2) FF_CASE(2, 2) FF_CASE(3, 2) FF_CASE(4, 2) FF_CASE(5, 2) FF_CASE(6, 2)
    FF_CASE(1, 3) FF_CASE(2, 3) FF_CASE(3, 3) FF_CASE(4, 3) FF_CASE(5, 3) FF_CASE(6, 3)
    FF_CASE(1, 4) FF_CASE(2, 4) FF_CASE(3, 4) FF_CASE(4, 4) FF_CASE(5, 4) FF_CASE(6, 4)
  }
#undef FF_CASE
  __builtin_trap();
}

// Z[M][ldz] = bias + A[M][lda] W[K][N]; `room` of pairs_size(K, N) + M * ((K + 1) / 2) uint32
[[maybe_unused]] static void half_product(cf A, int64_t lda, cf W, cf bias, float* Z, int64_t ldz, int M, int K, int N,
                                          bool relu, uint32_t* room) {
  uint32_t *w = room, *a = room + pairs_size(K, N);
  const int half = (K + 1) / 2;
  pairs_of(W, N, K, N, w);
  neighbours_of(A, lda, M, K, a);
  FF_SPLIT(n0, nz, N / 16, 4) FF_SPLIT(m0, mr, M, 6) {
    half_tiles(mr, nz, Half_tile{a + (int64_t)m0 * half, w + 16 * n0, half, 1, N, half, bias ? BIAS : ZERO,
                                 bias ? bias + 16 * n0 : nullptr, 0, 1.f, relu, Z + m0 * ldz + 16 * n0, ldz});
  }
}

// out[K][N] = cin[K][N] + alpha * A' D over M rows; `room` of pairs_size(M, K) + pairs_size(M, N) uint32
[[maybe_unused]] static void half_outer(cf A, int64_t lda, cf D, int64_t ldd, int M, int K, int N, cf cin, float alpha,
                                        float* out, uint32_t* room) {
  uint32_t *a = room, *d = room + pairs_size(M, K);
  pairs_of(A, lda, M, K, a);
  pairs_of(D, ldd, M, N, d);
  const int64_t wide = padded64(K);
  FF_SPLIT(n0, nz, N / 16, 4) FF_SPLIT(k0, mr, K, 6) {
    const int64_t at = (int64_t)k0 * N + 16 * n0;
    half_tiles(mr, nz, Half_tile{a + k0, d + 16 * n0, 1, wide, N, (M + 1) / 2, ADD, cin + at, N, alpha, false, out + at, N});
  }
}
#else
static inline bool has_half() { return false; }
inline constexpr int64_t pairs_size(int64_t, int64_t) { return 0; }
[[maybe_unused]] static void half_product(cf, int64_t, cf, cf, float*, int64_t, int, int, int, bool, uint32_t*) {}
[[maybe_unused]] static void half_outer(cf, int64_t, cf, int64_t, int, int, int, cf, float, float*, uint32_t*) {}
#endif

}  // namespace ff
