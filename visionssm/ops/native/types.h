/* What the scans are given. */
#ifndef VISIONSSM_TYPES_H
#define VISIONSSM_TYPES_H

#include <stddef.h>
#include <stdint.h>

_Static_assert(sizeof(void *) == 8, "the native scans need a 64-bit platform");

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

/* A float32 parameter (routes, channels[, states]); data may be NULL. */
struct parameter {
    const float *data;
    int64_t route, channel, state;
};

#endif
