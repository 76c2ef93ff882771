// Sums over few places of a picture: the gradients of a convolution of whose outputs only some have a gradient.
// Here: lists of such places and the kernels over them, by channel of the output (gather: weights; scatter: input) and by
// 2x2 window (spread: input). Not here: which places those are (ops_conv_pool.h). Invariant: the order of additions of a
// number depends on the places only.
#pragma once
#include "op.h"
#if FF_VL == 16
#include <immintrin.h>
#endif

namespace ff {

constexpr int SPARSE_Y = 3, SPARSE_V = 8;              // rows and vectors of a kernel at a time, at most
constexpr int SPARSE_MOST = VL == 16 ? 24 : 12;        // in registers

// to[y][v] += sum of value * x[at + y * row ...]
template <int Y, int V>
static void sparse_gather(const int32_t* at, cf value, int n, cf x, int64_t row, float* to, int64_t to_row) {
  vf acc[Y][V];
#pragma GCC unroll 4
  for (int y = 0; y < Y; y++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) acc[y][v] = load(to + y * to_row + v * VL);
  for (int i = 0; i < n; i++) {
    cf from = x + at[i];
    const vf d = all(value[i]);
#pragma GCC unroll 4
    for (int y = 0; y < Y; y++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) acc[y][v] += d * load(from + y * row + v * VL);
  }
#pragma GCC unroll 4
  for (int y = 0; y < Y; y++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(to + y * to_row + v * VL, acc[y][v]);
}
// x[at + y * row ...] += value * w[y][v]
template <int Y, int V>
static void sparse_scatter(const int32_t* at, cf value, int n, float* x, int64_t row, cf w, int64_t w_row) {
  vf kernel[Y][V];
#pragma GCC unroll 4
  for (int y = 0; y < Y; y++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) kernel[y][v] = load(w + y * w_row + v * VL);
  for (int i = 0; i < n; i++) {
    float* to = x + at[i];
    const vf d = all(value[i]);
#pragma GCC unroll 4
    for (int y = 0; y < Y; y++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) store(to + y * row + v * VL, load(to + y * row + v * VL) + d * kernel[y][v]);
  }
}
#define FF_SPARSE_ROW(F, Y) \
  case Y * 16 + 1: return F<Y, 1>(at, value, n, x, row, w, w_row); case Y * 16 + 2: return F<Y, 2>(at, value, n, x, row, w, w_row); \
  case Y * 16 + 3: return F<Y, 3>(at, value, n, x, row, w, w_row); case Y * 16 + 4: return F<Y, 4>(at, value, n, x, row, w, w_row);
#define FF_SPARSE_WIDE(F, Y) \
  case Y * 16 + 5: return F<Y, 5>(at, value, n, x, row, w, w_row); case Y * 16 + 6: return F<Y, 6>(at, value, n, x, row, w, w_row); \
  case Y * 16 + 7: return F<Y, 7>(at, value, n, x, row, w, w_row); case Y * 16 + 8: return F<Y, 8>(at, value, n, x, row, w, w_row);
#if FF_VL == 16
#define FF_SPARSE_ALL(F) FF_SPARSE_ROW(F, 1) FF_SPARSE_WIDE(F, 1) FF_SPARSE_ROW(F, 2) FF_SPARSE_WIDE(F, 2) FF_SPARSE_ROW(F, 3) FF_SPARSE_WIDE(F, 3)
#else
#define FF_SPARSE_ALL(F) \
  FF_SPARSE_ROW(F, 1) FF_SPARSE_WIDE(F, 1) FF_SPARSE_ROW(F, 2) case 2 * 16 + 5: return F<2, 5>(at, value, n, x, row, w, w_row); \
  case 2 * 16 + 6: return F<2, 6>(at, value, n, x, row, w, w_row); FF_SPARSE_ROW(F, 3)
#endif
static void gathers(int y, int v, const int32_t* at, cf value, int n, cf x, int64_t row, float* w, int64_t w_row) {
  switch (y * 16 + v) { FF_SPARSE_ALL(sparse_gather) }
  __builtin_trap();
}
static void scatters(int y, int v, const int32_t* at, cf value, int n, float* x, int64_t row, cf w, int64_t w_row) {
  switch (y * 16 + v) { FF_SPARSE_ALL(sparse_scatter) }
  __builtin_trap();
}
#undef FF_SPARSE_ROW
#undef FF_SPARSE_WIDE
#undef FF_SPARSE_ALL

#if FF_VL == 16
static FF_INLINE void turn_block(vf* v) {  // 16 vectors: lane i of vector j becomes lane j of vector i
#pragma GCC unroll 4
  for (int step = 0; step < 4; step++) {
    vf t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      t[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      t[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = t[i];
  }
}
#endif

// Where the numbers of `windows` windows that are not 0 lie, by channel: corner[i] + row * down + column * along, in lists
// `most` apart (filled beyond their ends, by less than VL); sums += them all.
static void channel_lists(cf d, cf z, const uint16_t* where, bool relu, int64_t N, int windows, const int32_t* corner, int down, int along, int32_t* at, float* value, int64_t most,
                          int32_t* count, float* sums) {
  for (int64_t j = 0; j < N; j += VL) {
    vf total = load(sums + j);
    int32_t n[VL] = {0};
    for (int i0 = 0; i0 < windows; i0 += VL) {
      const int m = windows - i0 < VL ? windows - i0 : VL;
      vf v[VL], k[VL];  // k: of integers
      for (int i = 0; i < VL; i++) {
        if (i >= m) {
          v[i] = k[i] = zero();
          continue;
        }
        const int64_t from = (i0 + i) * N + j;
        v[i] = load(d + from);
        if (relu) v[i] = pick(load(z + from) > zero(), v[i], zero());
        total += v[i];
        typedef uint16_t halves __attribute__((vector_size(VL * 2), aligned(2), may_alias));
        const vi place = __builtin_convertvector(*(const halves*)(where + from), vi);
        k[i] = (vf)((place >> 8) * down + (place & 255) * along + corner[i0 + i]);
      }
#if FF_VL == 16
      turn_block(v);
      turn_block(k);
      for (int l = 0; l < VL; l++) {
        const __mmask16 some = _mm512_cmp_ps_mask((__m512)v[l], _mm512_setzero_ps(), _CMP_NEQ_UQ);
        _mm512_storeu_ps(value + (j + l) * most + n[l], _mm512_maskz_compress_ps(some, (__m512)v[l]));
        _mm512_storeu_si512(at + (j + l) * most + n[l], _mm512_maskz_compress_epi32(some, (__m512i)k[l]));
        n[l] += __builtin_popcount(some);
      }
#else
      for (int i = 0; i < m; i++)
        for (int l = 0; l < VL; l++) {
          value[(j + l) * most + n[l]] = v[i][l];
          at[(j + l) * most + n[l]] = ((vi)k[i])[l];
          n[l] += v[i][l] != 0.f;
        }
#endif
    }
    store(sums + j, total);
    memcpy(count + j, n, sizeof n);
  }
}

// Of one 2x2 window: its channels with a gradient, by the place of their maximum
struct Window_places {
  int32_t first;     // in `channel` and `value`
  int32_t count[4];  // of those at (0, 0), (0, 1), (1, 0), (1, 1), one behind the other
};
constexpr int SPREAD_X = 5;
constexpr int SPREAD_MOST = VL == 16 ? 24 : 12;  // sums in registers: (rows + 1) * (columns + 1)

// The channels of a window by place: d, and where the maxima were (row << 8 | column). Writes up to VL beyond n.
static FF_INLINE int channels_by_place(cf d, const uint16_t* where, cf z, bool relu, int64_t N, int stride, int32_t* channel, float* value, int32_t* count) {
  int n = 0;
#if FF_VL == 16
  for (int k = 0; k < 4; k++) {
    const int before = n;
    const __m256i want = _mm256_set1_epi16((short)((k >> 1) << 8 | (k & 1)));
    for (int64_t j = 0; j < N; j += VL) {
      const __m512 v = _mm512_loadu_ps(d + j);
      __mmask16 m = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      m &= _mm256_cmpeq_epi16_mask(_mm256_loadu_si256((const __m256i*)(where + j)), want);
      if (relu) m &= _mm512_cmp_ps_mask(_mm512_loadu_ps(z + j), _mm512_setzero_ps(), _CMP_GT_OQ);
      const __m512i at = _mm512_mullo_epi32(_mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)j)), _mm512_set1_epi32(stride));
      _mm512_storeu_ps(value + n, _mm512_maskz_compress_ps(m, v));
      _mm512_storeu_si512(channel + n, _mm512_maskz_compress_epi32(m, at));
      n += __builtin_popcount(m);
    }
    count[k] = n - before;
  }
#else
  for (int k = 0; k < 4; k++) {
    const int before = n;
    for (int64_t j = 0; j < N; j++) {
      value[n] = d[j];
      channel[n] = (int32_t)j * stride;
      n += d[j] != 0.f && where[j] == ((k >> 1) << 8 | (k & 1)) && (!relu || z[j] > 0.f);
    }
    count[k] = n - before;
  }
#endif
  return n;
}

// x, two columns on for every window: the sums over its channels of value * w[channel][Y][X], each from its own place
template <int Y, int X>
static void spread(const Window_places* window, int windows, const int32_t* channel, cf value, cf w, float* x, int64_t row, int64_t ld) {
  for (int q = 0; q < windows; q++, x += 2 * ld) {
    int e = window[q].first;
    vf acc[Y + 1][X + 1];
#pragma GCC unroll 4
    for (int i = 0; i <= Y; i++)
#pragma GCC unroll 8
      for (int j = 0; j <= X; j++) acc[i][j] = load(x + i * row + j * ld);
#define FF_PLACE(A, B)                                                            \
  for (const int end = e + window[q].count[2 * A + B]; e < end; e++) {            \
    cf from = w + channel[e];                                                     \
    const vf d = all(value[e]);                                                   \
    _Pragma("GCC unroll 4") for (int i = 0; i < Y; i++)                           \
        _Pragma("GCC unroll 8") for (int j = 0; j < X; j++) acc[i + A][j + B] += d * load(from + (i * X + j) * VL); \
  }
    FF_PLACE(0, 0) FF_PLACE(0, 1) FF_PLACE(1, 0) FF_PLACE(1, 1)
#undef FF_PLACE
#pragma GCC unroll 4
    for (int i = 0; i <= Y; i++)
#pragma GCC unroll 8
      for (int j = 0; j <= X; j++) store(x + i * row + j * ld, acc[i][j]);
  }
}
constexpr int most_spread_rows(int x) { return SPREAD_MOST / (x + 1) - 1 < 3 ? SPREAD_MOST / (x + 1) - 1 : 3; }
static void spreads(int y, int x, const Window_places* window, int windows, const int32_t* channel, cf value, cf w, float* to, int64_t row, int64_t ld) {
  switch (y * 8 + x) {
#define FF_CASE(Y, X) case Y * 8 + X: if constexpr (Y <= most_spread_rows(X)) return spread<Y, X>(window, windows, channel, value, w, to, row, ld); break;
    FF_CASE(1, 1) FF_CASE(1, 2) FF_CASE(1, 3) FF_CASE(1, 4) FF_CASE(1, 5)
    FF_CASE(2, 1) FF_CASE(2, 2) FF_CASE(2, 3) FF_CASE(2, 4) FF_CASE(2, 5)
    FF_CASE(3, 1) FF_CASE(3, 2) FF_CASE(3, 3) FF_CASE(3, 4) FF_CASE(3, 5)
#undef FF_CASE
  }
  __builtin_trap();
}

}  // namespace ff
