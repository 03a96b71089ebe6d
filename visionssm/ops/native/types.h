/* What the operators are given. */
#ifndef VISIONSSM_TYPES_H
#define VISIONSSM_TYPES_H

#include <stddef.h>
#include <stdint.h>

_Static_assert(sizeof(void *) == 8, "the native scans need a 64-bit platform");

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

/* A sequence (batch, tokens or steps, routes, contiguous channels); strides in elements, 0 along what is shared. */
struct rows {
    const void *data;
    int64_t batch, step, route;
    int64_t dtype;
};

/* A float32 parameter (routes, channels[, states]); data may be NULL. */
struct parameter {
    const float *data;
    int64_t route, channel, state;
};

#endif
