// The widest float vector of the machine and what the kernels need on it, in the compiler's own vector types.
// One source serves AVX-512, AVX2, SSE and NEON: -march=native decides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace nightjar {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec broadcast(float x) { return Vec{} + x; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

// `v`, held in a register. GCC would rather load it again for each of its uses, and loads are what products wait for.
inline Vec held(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// Lane numbers 0, 1, 2 ...
inline IntVec lane_numbers() {
  IntVec lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// Lanes of `a` and `b` by number; kLanes and above name lanes of `b`.
inline Vec shuffle(Vec a, Vec b, IntVec lanes) {
#if defined(__clang__)
  Vec out;
  for (int i = 0; i < kLanes; ++i) out[i] = lanes[i] < kLanes ? a[lanes[i]] : b[lanes[i] - kLanes];
  return out;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

inline float sum(Vec v) {
  for (int width = kLanes / 2; width > 0; width /= 2) v += shuffle(v, v, lane_numbers() ^ width);
  return v[0];
}

inline float max_of(Vec v) {
  for (int width = kLanes / 2; width > 0; width /= 2) v = max(v, shuffle(v, v, lane_numbers() ^ width));
  return v[0];
}

// Sums of neighbours, kUnit lanes at a time within every kSpan lanes: [a0 + a1, a2 + a3, ..., b0 + b1, b2 + b3, ...].
template <int kUnit, int kSpan>
inline __attribute__((always_inline)) Vec add_neighbours(Vec a, Vec b) {
  const IntVec lane = lane_numbers(), in_span = lane % kSpan;
  const IntVec of_b = in_span >= kSpan / 2;  // -1 where true
  const IntVec even = lane - in_span + (in_span / kUnit * 2 % (kSpan / kUnit)) * kUnit + in_span % kUnit - of_b * kLanes;
  return shuffle(a, b, even) + shuffle(a, b, even + kUnit);
}

// The sums of kLanes vectors, in their order; a tree of neighbours, first within 16 bytes, where shuffles are cheap.
inline __attribute__((always_inline)) Vec sums(Vec (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2) v[i / 2] = add_neighbours<1, 4>(v[i], v[i + 1]);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes / 2; i += 2) v[i / 2] = add_neighbours<1, 4>(v[i], v[i + 1]);
  if constexpr (kLanes >= 8) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 4; i += 2) v[i / 2] = add_neighbours<4, kLanes>(v[i], v[i + 1]);
  }
  if constexpr (kLanes >= 16) v[0] = add_neighbours<4, kLanes>(v[0], v[1]);
  return v[0];
}

// e^x with a relative error below 2e-7; exactly 0 below -87 (so that masked scores of -infinity vanish).
// Range reduction x = n ln2 + r, |r| <= ln2 / 2, and the Taylor polynomial of degree 7 for e^r.
inline Vec exp(Vec x) {
  const Vec lowest = broadcast(-87.0f);
  const Vec clamped = min(max(x, lowest), broadcast(88.0f));
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const Vec magic = broadcast(12582912.0f);
  const Vec n = (clamped * 1.44269504088896341f + magic) - magic;
  const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = broadcast(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  const Vec power = reinterpret_cast<Vec>(exponent);
  return x < lowest ? Vec{} : p * power;
}

// The same function on one number, through the same instructions, so that tails agree with full vectors bit by bit.
inline float exp(float x) { return exp(broadcast(x))[0]; }

// Natural logarithm of positive normal x with an error below 2e-7, absolute or relative (polynomial of Cephes' logf).
inline Vec log(Vec x) {
  const IntVec bits = reinterpret_cast<IntVec>(x);
  Vec m = reinterpret_cast<Vec>((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const IntVec low = m < broadcast(0.70710678f);                    // -1 where true
  const Vec e = __builtin_convertvector((bits >> 23) - 126 + low, Vec);
  m = (low ? m + m : m) - 1.0f;
  const Vec z = m * m;
  Vec y = broadcast(7.0376836292e-2f);
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * z + e * -2.12194440e-4f - z * 0.5f;
  return m + y + e * 0.693359375f;
}

struct BFloat16 {
  uint16_t bits;
};

// IEEE half precision; kernels only read it.
struct Float16 {
  uint16_t bits;
};

inline Vec load_as_float(const float* p) { return load(p); }
inline Vec load_as_float(const BFloat16* p) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  return reinterpret_cast<Vec>(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), IntVec) << 16);
}

// Two weights that follow each other in depth, the first in the lower half. Widening a vector of single ones takes two
// instructions, and with eight rows a fifth of a product's time; either half of these takes one.
struct BFloat16Pair {
  uint32_t bits;
};

// How many rows of depth lie side by side in a row of a panel of these.
template <typename Weight>
constexpr int64_t kDepthOf = 1;
template <>
inline constexpr int64_t kDepthOf<BFloat16Pair> = 2;

inline Vec load_as_float(const Float16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && defined(__AVX__)
  return reinterpret_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  // The exponent is moved to float's place and its bias mended by a product, which is right for subnormals, too.
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  const UintVec h = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), UintVec);
  const Vec magnitude = reinterpret_cast<Vec>((h & 0x7fff) << 13) * 0x1p112f;
  return reinterpret_cast<Vec>(reinterpret_cast<UintVec>(magnitude) | (h & 0x8000) << 16);
#endif
}

// The kPart-th of those side by side.
template <int kPart, typename Weight>
inline Vec load_part(const Weight* p) {
  if constexpr (kDepthOf<Weight> == 1) {
    return load_as_float(p);
  } else {
    typedef uint32_t Pairs __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
    const UintVec pairs = *reinterpret_cast<const Pairs*>(p);
    return reinterpret_cast<Vec>(kPart == 0 ? pairs << 16 : pairs & 0xffff0000u);
  }
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

template <typename T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  if (std::isnan(x)) return {0x7fc0};
  // Round to nearest, ties to even.
  return {static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}

// Scores under a soft cap: cap * tanh(x / cap); unchanged if there is none (0).
inline Vec capped(Vec x, float cap) {
  if (cap > 0)
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = cap * std::tanh(x[lane] / cap);
  return x;
}

}  // namespace nightjar
