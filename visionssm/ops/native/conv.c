/* The entry points of causal_conv1d: division into tasks, and the sums over images. */
#include <stdlib.h>

#include "library.h"

struct work {
    const struct kernels *kernels;
    const struct conv *conv;
    const struct conv_gradients *gradients; /* NULL in a forward pass */
    struct conv_partial partial;
    int64_t blocks;
};

static void one_block(const void *work, int64_t i, float *scratch) {
    const struct work *w = work;
    int64_t image = i / w->blocks, first = i % w->blocks * CONV_LANES;
    if (w->gradients)
        w->kernels->conv_backward(w->conv, w->gradients, &w->partial, image, first, scratch);
    else
        w->kernels->conv_forward(w->conv, image, first, scratch);
}

static int run(struct work *w) {
    const struct conv *a = w->conv;
    int64_t elements = a->batch * a->steps * a->routes * a->channels;
    w->kernels = visionssm_chosen();
    size_t scratch = w->kernels->conv_scratch(a, w->gradients != NULL);
    return visionssm_run(one_block, w, a->batch * w->blocks, scratch, elements, a->threads);
}

static int64_t count_blocks(const struct conv *a) { return (a->channels + CONV_LANES - 1) / CONV_LANES; }

/* Returns 0, or -1 without memory. */
API int visionssm_conv(const struct conv *a) {
    struct work w = {.conv = a, .blocks = count_blocks(a)};
    return run(&w);
}

/* Returns 0, or -1 without memory. */
API int visionssm_conv_backward(const struct conv *a, const struct conv_gradients *g) {
    struct work w = {.conv = a, .gradients = g, .blocks = count_blocks(a)};
    int64_t rows = a->batch * a->routes * a->channels;
    float *memory = malloc(rows * (a->taps + 1) * sizeof(float));
    if (!memory) return -1;
    w.partial.weight = memory;
    w.partial.bias = g->bias ? memory + rows * a->taps : NULL;
    int status = run(&w);
    if (status == 0) {
        visionssm_sum_images(g->weight, w.partial.weight, a->batch, a->routes, a->channels, a->taps,
                             g->weight_routes > 1);
        if (g->bias)
            visionssm_sum_images(g->bias, w.partial.bias, a->batch, a->routes, a->channels, 1, g->bias_routes > 1);
    }
    free(memory);
    return status;
}
