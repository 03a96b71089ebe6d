/* Choice of the instruction set, and entry points for tests. */
#include <stdatomic.h>
#include <string.h>

#include "library.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* --- instruction sets --------------------------------------------------------------------------------------------- */

extern const struct kernels visionssm_kernels_baseline;
#if defined(__x86_64__)
extern const struct kernels visionssm_kernels_avx2, visionssm_kernels_avx512;
#endif

#if defined(__x86_64__)
/* Whether the processor has AVX2 (with FMA and 16-bit floats), or AVX-512 too, and the system keeps their registers. The
   compilers' own functions for this depend on the library they bring. */
static int has_vectors(int wide) {
    unsigned int a, b, c, d, kept, high;
    const unsigned int basic = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29; /* FMA, OSXSAVE, AVX, F16C */
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & basic) != basic) return 0;
    __asm__ volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5) || (kept & 0x6) != 0x6) return 0;
    const unsigned int more = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX-512 F, DQ, BW, VL */
    return !wide || ((b & more) == more && (kept & 0xe6) == 0xe6);
}
#endif

static const struct kernels *candidate(int i) {
#if defined(__x86_64__)
    if (i == 0) return has_vectors(1) ? &visionssm_kernels_avx512 : NULL;
    if (i == 1) return has_vectors(0) ? &visionssm_kernels_avx2 : NULL;
#else
    if (i < 2) return NULL;
#endif
    return &visionssm_kernels_baseline;
}

static const struct kernels *_Atomic forced, *_Atomic best;

const struct kernels *visionssm_chosen(void) {
    const struct kernels *kernels = forced;
    if (!kernels) kernels = best; /* cpuid can take microseconds in a virtual machine */
    if (!kernels) {
        for (int i = 0; !kernels; i++) kernels = candidate(i);
        best = kernels;
    }
    return kernels;
}

API const char *visionssm_instruction_set(void) { return visionssm_chosen()->name; }

/* Take the named one from now on, NULL for the best. Returns 0, or -1 if this machine has none of the name. */
API int visionssm_force_instruction_set(const char *name) {
    const struct kernels *found = NULL;
    for (int i = 0; name && !found && i < 3; i++)
        if (candidate(i) && strcmp(candidate(i)->name, name) == 0) found = candidate(i);
    if (name && !found) return -1;
    forced = found;
    return 0;
}

API const char *visionssm_sources(void) { return SOURCES; }

/* --- for tests ---------------------------------------------------------------------------------------------------- */

API void visionssm_exp2(const float *x, float *y, int64_t count) { visionssm_chosen()->exp2(x, y, count); }
API void visionssm_softplus(const float *x, float *y, float *slope, int64_t count) {
    visionssm_chosen()->softplus(x, y, slope, count);
}
API void visionssm_widen(const void *x, int64_t dtype, float *y, int64_t count) {
    struct rows from = {x, 0, 0, 0, dtype};
    visionssm_chosen()->widen(&from, y, count);
}
