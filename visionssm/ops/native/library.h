/* What the parts of the library know of each other. */
#ifndef VISIONSSM_LIBRARY_H
#define VISIONSSM_LIBRARY_H

#include "conv.h"
#include "scan.h"
#include "wavefront.h"

#define API __attribute__((visibility("default")))

/* One instruction set's versions. A task is a block of channels, from `first` on, of one image; it has `lanes` of them, or
   WAVEFRONT_LANES, or CONV_LANES. */
struct kernels {
    const char *name;
    size_t (*forward_scratch)(const struct scan *, int64_t lanes);
    size_t (*backward_scratch)(const struct scan *, int64_t lanes);
    void (*forward)(const struct scan *, int64_t image, int64_t first, int64_t lanes, float *scratch);
    void (*backward)(const struct scan *, const struct gradients *, const struct partial *, int64_t image,
                     int64_t first, int64_t lanes, float *scratch);
    size_t (*wavefront_scratch)(const struct wavefront *, int backward);
    void (*wavefront_forward)(const struct wavefront *, int64_t image, int64_t first, float *scratch);
    void (*wavefront_backward)(const struct wavefront *, const struct wavefront_gradients *,
                               const struct wavefront_partial *, int64_t image, int64_t first, float *scratch);
    size_t (*conv_scratch)(const struct conv *, int backward);
    void (*conv_forward)(const struct conv *, int64_t image, int64_t first, float *scratch);
    void (*conv_backward)(const struct conv *, const struct conv_gradients *, const struct conv_partial *, int64_t image,
                          int64_t first, float *scratch);
    void (*exp2)(const float *, float *, int64_t);       /* for tests; lengths are multiples of 16 */
    void (*softplus)(const float *, float *, float *, int64_t);
    void (*widen)(const struct rows *, float *, int64_t);
};

/* The versions that run. */
const struct kernels *visionssm_chosen(void);

/* Call task(work, i, scratch) for every i below `count`, each thread with `scratch` bytes of its own. `elements` says how
   much work all tasks are: threads are started where it pays, up to `threads`. Returns 0, or -1 without memory. */
int visionssm_run(void (*task)(const void *work, int64_t i, float *scratch), const void *work, int64_t count,
                  size_t scratch, int64_t elements, int64_t threads);

/* to = the sum of `parts` of `count` elements each; always in the same order */
void visionssm_sum_parts(float *to, const float *from, int64_t parts, int64_t count);

/* to (routes or 1, channels, inner) = sums over the images of from (batch, routes, inner, channels), and over the routes
   where `apart` is 0 */
void visionssm_sum_images(float *to, const float *from, int64_t batch, int64_t routes, int64_t channels, int64_t inner,
                          int apart);

#endif
