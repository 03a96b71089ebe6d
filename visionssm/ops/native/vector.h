/* Vectors of float32 in the width of the instruction set this is compiled for, and the functions the scan needs. */
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * VL)));
typedef int32_t ivec __attribute__((vector_size(4 * VL)));
typedef uint32_t uvec __attribute__((vector_size(4 * VL)));
typedef float loose __attribute__((vector_size(4 * VL), aligned(4), may_alias));

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec x) { *(loose *)p = x; }
INLINE vec splat(float x) { return (vec){0} + x; }

/* max and min: the second operand where one of the two is not a number */
INLINE vec maximum(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    ivec larger = a > b;
    return (vec)(((ivec)a & larger) | ((ivec)b & ~larger));
#endif
}

INLINE vec minimum(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vec)_mm_min_ps((__m128)a, (__m128)b);
#else
    ivec smaller = a < b;
    return (vec)(((ivec)a & smaller) | ((ivec)b & ~smaller));
#endif
}

INLINE float sum_lanes(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#elif defined(__aarch64__)
    return vaddvq_f32((float32x4_t)x);
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

/* to[i] = the sum of the lanes of the i-th */
INLINE void sum_lanes_of_four(float *to, vec a, vec b, vec c, vec d) {
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b));
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps((__m256)c, (__m256)d), _mm256_unpackhi_ps((__m256)c, (__m256)d));
    __m256 half = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
#endif
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    to[0] = sum_lanes(a), to[1] = sum_lanes(b), to[2] = sum_lanes(c), to[3] = sum_lanes(d);
#endif
}

/* 2^x. Relative error below 1.1e-7 where the result is a normal number; below that an absolute one of 2^-126, and 0 from
   x = -127 on; infinite from 128 on. */
INLINE vec exp2_of(vec x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    vec r = (vec)_mm512_reduce_ps((__m512)x, 1); /* x - floor(x), 0 for infinities */
    vec p = splat(0x1.c54174p-13f);
    p = p * r + 0x1.46d64ep-10f;
    p = p * r + 0x1.3d0b92p-7f;
    p = p * r + 0x1.c68912p-5f;
    p = p * r + 0x1.ebfd58p-3f;
    p = p * r + 0x1.62e42cp-1f;
    p = p * r + 1.0f;
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    x = minimum(splat(128.0f), maximum(splat(-127.0f), x));
    vec shifted = x + 12582912.0f; /* 1.5 * 2^23: the nearest integer comes to lie in the last bits */
    vec r = x - (shifted - 12582912.0f);
    vec p = splat(0x1.41fbbcp-13f);
    p = p * r + 0x1.5f3e52p-10f;
    p = p * r + 0x1.3b2d4cp-7f;
    p = p * r + 0x1.c6aee8p-5f;
    p = p * r + 0x1.ebfbdcp-3f;
    p = p * r + 0x1.62e430p-1f;
    p = p * r + 1.0f;
    return (vec)((uvec)p + ((uvec)shifted << 23));
#endif
}

#define LOG2_E 1.44269504088896341f
#define LN_2 0.693147180559945309f

/* e^x for x up to 88, with the error of exp2_of: x is split with care, for its error would grow with its size. */
INLINE vec exp_of(vec x) {
#if defined(__AVX512F__)
    x = maximum(splat(-104.0f), x);
    vec n = (vec)_mm512_roundscale_ps((__m512)(x * LOG2_E), 0);
#else
    x = maximum(splat(-88.0f), x);
    vec shifted = x * LOG2_E + 12582912.0f;
    vec n = shifted - 12582912.0f;
#endif
    vec r = (x - n * 0x1.62p-1f) - n * 0x1.c85fep-10f; /* the first product is exact */
    vec p = splat(0x1.6a23d0p-10f);
    p = p * r + 0x1.123a20p-7f;
    p = p * r + 0x1.5558f2p-5f;
    p = p * r + 0x1.555492p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return (vec)((uvec)p + ((uvec)shifted << 23));
#endif
}

/* log2(1 + e^z), linear from z = 20 on, with a relative error below 3e-7; *slope, if asked for, is the sigmoid. */
INLINE vec softplus2_of(vec z, vec *slope) {
    vec e = exp_of(minimum(splat(20.0f), z));
    vec w = e + 1.0f;
    if (slope) *slope = e / w;
    vec lost = e - (w - 1.0f); /* by the rounding of w */
    ivec k = ((ivec)w - 0x3f3504f3) >> 23; /* w = m 2^k, m from sqrt(1/2) to sqrt(2) */
    vec m = (vec)((uvec)w - ((uvec)k << 23));
    vec scale = (vec)(0x3f800000u - ((uvec)k << 23));
    vec f = (m - 1.0f) + lost * scale;
    vec s = f / (f + 2.0f); /* log(1 + f) = 2 artanh(s) */
    vec s2 = s * s;
    vec p = splat(0x1.b9ea1ap-2f);
    p = p * s2 + 0x1.274850p-1f;
    p = p * s2 + 0x1.ec70e2p-1f;
    p = p * s2 + 0x1.715476p+1f;
    return maximum(z * LOG2_E, p * s + __builtin_convertvector(k, vec));
}

/* --- reading other dtypes ---------------------------------------------------------------------------------------- */

INLINE float widen_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

INLINE float widen_float16(uint16_t x) {
    uint32_t magnitude = x & 0x7fffu, sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t bits = (magnitude << 13) + (magnitude < 0x7c00u ? 0x38000000u : 0x70000000u);
    float small = (float)(int32_t)magnitude * 0x1p-24f, y;
    uint32_t subnormal;
    memcpy(&subnormal, &small, 4);
    bits = (magnitude < 0x400u ? subnormal : bits) | sign;
    memcpy(&y, &bits, 4);
    return y;
}

/* `count` elements from `offset` on, as float32 */
INLINE void widen(float *restrict to, const void *from, int64_t dtype, int64_t offset, int64_t count) {
    if (dtype == FLOAT32) {
        const float *x = (const float *)from + offset;
        for (int64_t i = 0; i < count; i++) to[i] = x[i];
    } else if (dtype == BFLOAT16) {
        const uint16_t *x = (const uint16_t *)from + offset;
        for (int64_t i = 0; i < count; i++) to[i] = widen_bfloat16(x[i]);
    } else {
        const uint16_t *x = (const uint16_t *)from + offset;
        for (int64_t i = 0; i < count; i++) to[i] = widen_float16(x[i]);
    }
}

INLINE float element(const void *from, int64_t dtype, int64_t offset) {
    if (dtype == FLOAT32) return ((const float *)from)[offset];
    uint16_t x = ((const uint16_t *)from)[offset];
    return dtype == BFLOAT16 ? widen_bfloat16(x) : widen_float16(x);
}
