// SIMD by the compiler's vector extensions: one source for AVX-512, AVX2 and any other processor (4 lanes: SSE2, NEON).
// Here: loads, stores, arithmetic, sums, exp and what is built on it. Not here: loops over memory (gemm.h, ops).
// Invariant: no function reads or writes outside the VL numbers it is given.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define FF_VL 16
#elif defined(__AVX2__)
#define FF_VL 8
#else
#define FF_VL 4
#endif
#define FF_INLINE inline __attribute__((always_inline))

namespace ff {

constexpr int VL = FF_VL;
constexpr int PAD = 16;  // lanes every last axis is filled up to, whatever the processor
inline constexpr int padded(int n) { return (n + PAD - 1) / PAD * PAD; }
inline constexpr int64_t padded64(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static FF_INLINE vf load(const float* p) { return *(const vf_any*)p; }
static FF_INLINE void store(float* p, vf v) { *(vf_any*)p = v; }
static FF_INLINE vi loadi(const void* p) { return *(const vi_any*)p; }
static FF_INLINE vf all(float x) { return x - vf{}; }
static FF_INLINE vi alli(int32_t x) { return x - vi{}; }
static FF_INLINE vf zero() { return vf{}; }
static FF_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }  // b where a is not a number
static FF_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
static FF_INLINE vf pick(vi mask, vf a, vf b) { return mask ? a : b; }
static FF_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }
// max(a, 0) that keeps what is not a number, so that a diverged client is seen
static FF_INLINE vf relu(vf a) { return a <= zero() ? zero() : a; }

static FF_INLINE float sum(vf v) {  // a tree, in one fixed order
  float t[VL];
  memcpy(t, &v, sizeof t);
  for (int n = VL / 2; n; n /= 2)
    for (int i = 0; i < n; i++) t[i] += t[i + n];
  return t[0];
}
static FF_INLINE float most(vf v) {
  float t[VL];
  memcpy(t, &v, sizeof t);
  for (int n = VL / 2; n; n /= 2)
    for (int i = 0; i < n; i++) t[i] = t[i] > t[i + n] ? t[i] : t[i + n];
  return t[0];
}

// exp to two units in the last place; below -87 it is 0 (no denormals), above 88 infinity; NaN stays
static FF_INLINE vf vexp(vf x0) {
  vf x = vmin(vmax(x0, all(-88.f)), all(89.f));
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  vf n = (x * 1.44269504f + magic) - magic;
  vf r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  vf p = all(1.f / 5040);
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + .5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  vi e = __builtin_convertvector(n, vi);
  vi half = e >> 1;  // in two steps, so that 2^128 is reached without overflow of the exponent
  p = p * (vf)((half + 127) << 23) * (vf)((e - half + 127) << 23);
  p = x0 < -87.f ? zero() : p;
  p = x0 > 88.7f ? all(__builtin_inff()) : p;
  return x0 == x0 ? p : x0;
}
static FF_INLINE vf vsigmoid(vf x) { return 1.f / (1.f + vexp(-x)); }
static FF_INLINE vf vtanh(vf x) {
  // near 0 the quotient would cancel: an odd polynomial there (error below 2e-7 relative)
  vf a = vabs(x), e = vexp(-2.f * a);
  vf far = (1.f - e) / (1.f + e);
  vf s = x * x;
  vf near = x * (1.f + s * (-1.f / 3 + s * (2.f / 15 + s * (-17.f / 315 + s * (62.f / 2835)))));
  far = x < 0.f ? -far : far;
  vf out = a < .25f ? near : far;
  return x == x ? out : x;
}

// lane j < n
static FF_INLINE vi first(int n) {
  vi lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  return lane < n;
}

}  // namespace ff
