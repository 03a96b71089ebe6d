/* Division of work over threads, and sums over what they leave. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { MAX_THREADS = 64, ELEMENTS_PER_THREAD = 400000 }; /* starting a thread costs as much as some 100,000 elements */

/* Tasks are handed out one by one, so a thread that the system holds back holds back one task. Threads live for one call:
   nothing is left that a fork could break. */
struct queue {
    void (*task)(const void *work, int64_t i, float *scratch);
    const void *work;
    int64_t count;
    atomic_llong next;
};

struct worker {
    struct queue *queue;
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
    struct queue *queue = worker->queue;
    float_mode mode = flush_subnormal();
    for (;;) {
        int64_t i = atomic_fetch_add(&queue->next, 1);
        if (i >= queue->count) break;
        queue->task(queue->work, i, worker->scratch);
    }
    restore(mode);
    return NULL;
}

int visionssm_run(void (*task)(const void *work, int64_t i, float *scratch), const void *work, int64_t count,
                  size_t scratch, int64_t elements, int64_t threads) {
    int64_t useful = elements / ELEMENTS_PER_THREAD;
    threads = threads < count ? threads : count;
    threads = threads < useful ? threads : useful;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    size_t bytes = (scratch + 4095) / 4096 * 4096;
    char *memory = aligned_alloc(4096, bytes * threads);
    if (!memory) return -1;
    struct queue queue = {.task = task, .work = work, .count = count};
    atomic_init(&queue.next, 0);
    pthread_t ids[MAX_THREADS];
    struct worker workers[MAX_THREADS];
    int64_t started = 0;
    sigset_t all, before;
    sigfillset(&all);
    /* signals are the caller's */
    if (threads > 1) pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int64_t i = 0; i < threads; i++) {
        workers[i] = (struct worker){&queue, (float *)(memory + i * bytes)};
        if (i > 0) {
            if (pthread_create(&ids[started], NULL, take_tasks, &workers[i])) break; /* the others do its work */
            started++;
        }
    }
    if (threads > 1) pthread_sigmask(SIG_SETMASK, &before, NULL);
    take_tasks(&workers[0]);
    for (int64_t i = 0; i < started; i++) pthread_join(ids[i], NULL);
    free(memory);
    return 0;
}

void visionssm_sum_parts(float *to, const float *from, int64_t parts, int64_t count) {
    memcpy(to, from, count * sizeof(float));
    for (int64_t i = 1; i < parts; i++) {
        const float *part = from + i * count;
        for (int64_t j = 0; j < count; j++) to[j] += part[j];
    }
}

void visionssm_sum_images(float *to, const float *from, int64_t batch, int64_t routes, int64_t channels, int64_t inner,
                          int apart) {
    memset(to, 0, (apart ? routes : 1) * channels * inner * sizeof(float));
    for (int64_t b = 0; b < batch; b++)
        for (int64_t k = 0; k < routes; k++)
            for (int64_t n = 0; n < inner; n++) {
                const float *row = from + ((b * routes + k) * inner + n) * channels;
                float *column = to + (apart ? k : 0) * channels * inner + n;
                for (int64_t c = 0; c < channels; c++) column[c * inner] += row[c];
            }
}
