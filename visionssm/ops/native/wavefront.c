/* The entry points of wavefront_scan: division into tasks, and the sums over channels and images. */
#include <stdlib.h>

#include "library.h"

struct work {
    const struct kernels *kernels;
    const struct wavefront *scan;
    const struct wavefront_gradients *gradients; /* NULL in a forward pass */
    struct wavefront_partial partial;
    int64_t blocks;
};

static void one_block(const void *work, int64_t i, float *scratch) {
    const struct work *w = work;
    int64_t image = i / w->blocks, first = i % w->blocks * WAVEFRONT_LANES;
    if (w->gradients)
        w->kernels->wavefront_backward(w->scan, w->gradients, &w->partial, image, first, scratch);
    else
        w->kernels->wavefront_forward(w->scan, image, first, scratch);
}

static int run(struct work *w) {
    const struct wavefront *a = w->scan;
    int64_t elements = a->batch * a->height * a->width * a->channels * (2 * a->states + 3);
    size_t scratch = w->kernels->wavefront_scratch(a, w->gradients != NULL);
    return visionssm_run(one_block, w, a->batch * w->blocks, scratch, elements, a->threads);
}

static int64_t count_blocks(const struct wavefront *a) { return (a->channels + WAVEFRONT_LANES - 1) / WAVEFRONT_LANES; }

/* Returns 0, or -1 without memory. */
API int visionssm_wavefront(const struct wavefront *a) {
    struct work w = {.kernels = visionssm_chosen(), .scan = a, .blocks = count_blocks(a)};
    return run(&w);
}

/* Needs a->saved as the forward pass filled it. Returns 0, or -1 without memory. */
API int visionssm_wavefront_backward(const struct wavefront *a, const struct wavefront_gradients *g) {
    struct work w = {.kernels = visionssm_chosen(), .scan = a, .gradients = g, .blocks = count_blocks(a)};
    int64_t cells = a->batch * a->height * a->width * a->states, parameter = a->batch * a->channels;
    float *memory = malloc((3 * w.blocks * cells + parameter * (2 * a->states + 1)) * sizeof(float)), *next = memory;
    if (!memory) return -1;
#define TAKE(count) (next += (count), next - (count))
    w.partial.B_top = TAKE(w.blocks * cells);
    w.partial.B_left = TAKE(w.blocks * cells);
    w.partial.C = TAKE(w.blocks * cells);
    w.partial.A_top = TAKE(parameter * a->states);
    w.partial.A_left = TAKE(parameter * a->states);
    w.partial.D = TAKE(parameter);
#undef TAKE
    int status = run(&w);
    if (status == 0) {
        visionssm_sum_parts(g->B_top, w.partial.B_top, w.blocks, cells);
        visionssm_sum_parts(g->B_left, w.partial.B_left, w.blocks, cells);
        visionssm_sum_parts(g->C, w.partial.C, w.blocks, cells);
        visionssm_sum_images(g->A_top, w.partial.A_top, a->batch, 1, a->channels, a->states, 0);
        visionssm_sum_images(g->A_left, w.partial.A_left, a->batch, 1, a->channels, a->states, 0);
        if (g->D) visionssm_sum_images(g->D, w.partial.D, a->batch, 1, a->channels, 1, 0);
    }
    free(memory);
    return status;
}
