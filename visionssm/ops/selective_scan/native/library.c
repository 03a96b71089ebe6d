/* The entry points: choice of the instruction set, division over threads, and the sums over channels and images. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "scan.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

#define API __attribute__((visibility("default")))

enum { MAX_THREADS = 64, ELEMENTS_PER_THREAD = 400000 }; /* starting a thread costs as much as some 100,000 elements */

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

static const struct kernels *chosen(void) {
    const struct kernels *kernels = forced;
    if (!kernels) kernels = best; /* cpuid can take microseconds in a virtual machine */
    if (!kernels) {
        for (int i = 0; !kernels; i++) kernels = candidate(i);
        best = kernels;
    }
    return kernels;
}

API const char *visionssm_instruction_set(void) { return chosen()->name; }

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

/* --- threads ------------------------------------------------------------------------------------------------------ */

/* Tasks are handed out one by one, so a thread that the system holds back holds back one task. Threads live for one call:
   nothing is left that a fork could break. */
struct work {
    const struct kernels *kernels;
    const struct scan *scan;
    const struct gradients *gradients;
    struct partial partial;
    int64_t lanes, blocks, tasks;
    size_t scratch; /* bytes of a thread */
    char *memory;
    atomic_llong next;
};

struct worker {
    struct work *work;
    float *scratch;
};

/* Numbers below the normal range count as zero: they change no result that is larger, and can cost a CPU 100 times as
   long. */
#if defined(__x86_64__)
typedef unsigned int float_mode;
static float_mode flush_subnormal(void) {
    float_mode before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static void restore(float_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t float_mode;
static float_mode flush_subnormal(void) {
    float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1ull << 24)));
    return before;
}
static void restore(float_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int float_mode;
static float_mode flush_subnormal(void) { return 0; }
static void restore(float_mode mode) { (void)mode; }
#endif

static void *take_tasks(void *argument) {
    struct worker *worker = argument;
    struct work *w = worker->work;
    float_mode mode = flush_subnormal();
    for (;;) {
        int64_t task = atomic_fetch_add(&w->next, 1);
        if (task >= w->tasks) break;
        int64_t image = task / w->blocks, first = task % w->blocks * w->lanes;
        if (w->gradients)
            w->kernels->backward(w->scan, w->gradients, &w->partial, image, first, w->lanes, worker->scratch);
        else
            w->kernels->forward(w->scan, image, first, w->lanes, worker->scratch);
    }
    restore(mode);
    return NULL;
}

static int64_t count_threads(const struct scan *a, int64_t tasks) {
    int64_t work = a->batch * a->routes * a->steps * a->channels * (a->states + 3) / ELEMENTS_PER_THREAD;
    int64_t threads = a->threads < tasks ? a->threads : tasks;
    threads = threads < work ? threads : work;
    return threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
}

static int run(struct work *w) {
    int64_t threads = count_threads(w->scan, w->tasks);
    size_t bytes = (w->scratch + 4095) / 4096 * 4096;
    w->memory = aligned_alloc(4096, bytes * threads);
    if (!w->memory) return -1;
    atomic_init(&w->next, 0);
    pthread_t ids[MAX_THREADS];
    struct worker workers[MAX_THREADS];
    int64_t started = 0;
    sigset_t all, before;
    sigfillset(&all);
    /* signals are the caller's */
    if (threads > 1) pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int64_t i = 0; i < threads; i++) {
        workers[i] = (struct worker){w, (float *)(w->memory + i * bytes)};
        if (i > 0) {
            if (pthread_create(&ids[started], NULL, take_tasks, &workers[i])) break; /* the others do its work */
            started++;
        }
    }
    if (threads > 1) pthread_sigmask(SIG_SETMASK, &before, NULL);
    take_tasks(&workers[0]);
    for (int64_t i = 0; i < started; i++) pthread_join(ids[i], NULL);
    free(w->memory);
    return 0;
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

/* Returns 0, or -1 without memory. */
API int visionssm_scan(const struct scan *a) {
    /* channels do not meet in the forward pass, so blocks may be as wide as the threads have use for */
    int64_t wide = (a->channels + 31) / 32;
    int64_t lanes = a->channels <= 16 || (a->threads > 1 && a->batch * wide < 4 * a->threads) ? 16 : 32;
    struct work w = {.kernels = chosen(), .scan = a, .lanes = lanes, .blocks = (a->channels + lanes - 1) / lanes};
    w.tasks = a->batch * w.blocks;
    w.scratch = w.kernels->forward_scratch(a, lanes);
    return run(&w);
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

/* to = the sum of the parts; always in the same order */
static void sum_parts(float *to, const float *from, int64_t parts, int64_t count) {
    memcpy(to, from, count * sizeof(float));
    for (int64_t i = 1; i < parts; i++) {
        const float *part = from + i * count;
        for (int64_t j = 0; j < count; j++) to[j] += part[j];
    }
}

/* (routes or 1, channels, inner) from (batch, routes, inner, channels) */
static void sum_images(float *to, const float *from, const struct scan *a, int64_t routes, int64_t inner) {
    const int64_t d = a->channels;
    memset(to, 0, routes * d * inner * sizeof(float));
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t k = 0; k < a->routes; k++)
            for (int64_t n = 0; n < inner; n++) {
                const float *row = from + ((b * a->routes + k) * inner + n) * d;
                float *column = to + (routes > 1 ? k : 0) * d * inner + n;
                for (int64_t c = 0; c < d; c++) column[c * inner] += row[c];
            }
}

/* Needs a->saved as the forward pass filled it. Returns 0, or -1 without memory. */
API int visionssm_scan_backward(const struct scan *a, const struct gradients *g) {
    /* the width of the blocks decides which channels are summed first, so it depends on nothing but their number */
    int64_t lanes = a->channels <= 16 ? 16 : 32, blocks = (a->channels + lanes - 1) / lanes;
    int64_t length = a->by_step ? a->steps : a->tokens, rows = a->batch * length;
    int64_t delta_size = a->rank ? rows * g->delta_routes * a->rank : 0;
    int64_t B_size = rows * g->B_routes * a->states, C_size = g->C ? rows * g->C_routes * a->states : 0;
    int64_t parameter = a->batch * a->routes * a->channels;
    int64_t total = blocks * (delta_size + B_size + C_size) + parameter * (a->states + 2 + a->rank);
    float *memory = malloc(total * sizeof(float)), *next = memory;
    if (!memory) return -1;
#define TAKE(count) (next += (count), next - (count))
    struct work w = {.kernels = chosen(), .scan = a, .gradients = g, .lanes = lanes, .blocks = blocks};
    w.partial.delta = TAKE(blocks * delta_size);
    w.partial.B = TAKE(blocks * B_size);
    w.partial.C = TAKE(blocks * C_size);
    w.partial.A = TAKE(parameter * a->states);
    w.partial.D = TAKE(parameter);
    w.partial.bias = TAKE(parameter);
    w.partial.weight = TAKE(parameter * a->rank);
#undef TAKE
    w.tasks = a->batch * blocks;
    w.scratch = w.kernels->backward_scratch(a, lanes);
    int status = run(&w);
    if (status == 0) {
        if (a->rank) sum_parts(g->delta, w.partial.delta, blocks, delta_size);
        sum_parts(g->B, w.partial.B, blocks, B_size);
        if (g->C) sum_parts(g->C, w.partial.C, blocks, C_size);
        sum_images(g->A, w.partial.A, a, g->A_routes, a->states);
        if (g->D) sum_images(g->D, w.partial.D, a, g->D_routes, 1);
        if (g->bias) sum_images(g->bias, w.partial.bias, a, g->bias_routes, 1);
        if (g->weight) sum_images(g->weight, w.partial.weight, a, g->weight_routes, a->rank);
    }
    free(memory);
    return status;
}

/* --- for tests ---------------------------------------------------------------------------------------------------- */

API void visionssm_exp2(const float *x, float *y, int64_t count) { chosen()->exp2(x, y, count); }
API void visionssm_softplus(const float *x, float *y, float *slope, int64_t count) {
    chosen()->softplus(x, y, slope, count);
}
API void visionssm_widen(const void *x, int64_t dtype, float *y, int64_t count) {
    struct rows from = {x, 0, 0, 0, dtype};
    chosen()->widen(&from, y, count);
}
