/* The entry points of selective_scan: division into tasks, and the sums over channels and images. */
#include <stdlib.h>

#include "library.h"

struct work {
    const struct kernels *kernels;
    const struct scan *scan;
    const struct gradients *gradients; /* NULL in a forward pass */
    struct partial partial;
    int64_t lanes, blocks;
};

static void one_block(const void *work, int64_t i, float *scratch) {
    const struct work *w = work;
    int64_t image = i / w->blocks, first = i % w->blocks * w->lanes;
    if (w->gradients)
        w->kernels->backward(w->scan, w->gradients, &w->partial, image, first, w->lanes, scratch);
    else
        w->kernels->forward(w->scan, image, first, w->lanes, scratch);
}

static int run(const struct work *w, size_t scratch) {
    const struct scan *a = w->scan;
    int64_t elements = a->batch * a->routes * a->steps * a->channels * (a->states + 3);
    return visionssm_run(one_block, w, a->batch * w->blocks, scratch, elements, a->threads);
}

/* Returns 0, or -1 without memory. */
API int visionssm_scan(const struct scan *a) {
    /* channels do not meet in the forward pass, so blocks may be as wide as the threads have use for */
    int64_t wide = (a->channels + 31) / 32;
    int64_t lanes = a->channels <= 16 || (a->threads > 1 && a->batch * wide < 4 * a->threads) ? 16 : 32;
    struct work w = {.kernels = visionssm_chosen(), .scan = a, .lanes = lanes};
    w.blocks = (a->channels + lanes - 1) / lanes;
    return run(&w, w.kernels->forward_scratch(a, lanes));
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
    struct work w = {.kernels = visionssm_chosen(), .scan = a, .gradients = g, .lanes = lanes, .blocks = blocks};
    w.partial.delta = TAKE(blocks * delta_size);
    w.partial.B = TAKE(blocks * B_size);
    w.partial.C = TAKE(blocks * C_size);
    w.partial.A = TAKE(parameter * a->states);
    w.partial.D = TAKE(parameter);
    w.partial.bias = TAKE(parameter);
    w.partial.weight = TAKE(parameter * a->rank);
#undef TAKE
    int status = run(&w, w.kernels->backward_scratch(a, lanes));
    if (status == 0) {
        if (a->rank) visionssm_sum_parts(g->delta, w.partial.delta, blocks, delta_size);
        visionssm_sum_parts(g->B, w.partial.B, blocks, B_size);
        if (g->C) visionssm_sum_parts(g->C, w.partial.C, blocks, C_size);
#define SUM(to, from, inner) visionssm_sum_images(to, from, a->batch, a->routes, a->channels, inner, to##_routes > 1)
        SUM(g->A, w.partial.A, a->states);
        if (g->D) SUM(g->D, w.partial.D, 1);
        if (g->bias) SUM(g->bias, w.partial.bias, 1);
        if (g->weight) SUM(g->weight, w.partial.weight, a->rank);
#undef SUM
    }
    free(memory);
    return status;
}
