/* What causal_conv1d is called with, and where its gradients go. Every member has eight bytes. */
#ifndef VISIONSSM_CONV_H
#define VISIONSSM_CONV_H

#include "types.h"

enum { CONV_LANES = 32 }; /* channels of a task */

struct conv {
    int64_t batch, tokens, steps, routes, channels, taps;
    int64_t silu;           /* of the sum */
    int64_t wide;           /* entries of order have 64 bits, else 32 */
    const void *order;      /* (routes, steps) contiguous, -1 for a zero token; NULL for tokens as stored */
    struct rows x;          /* by token */
    struct parameter weight, bias;  /* (routes, channels, taps); (routes, channels) */
    float *out;             /* (batch, steps, routes, channels) contiguous */
    int64_t threads;
};

/* Float32, contiguous, in the shapes of what they are the gradients of. */
struct conv_gradients {
    struct rows out;        /* of the output, by step; all zero strides are allowed */
    float *x, *weight, *bias;  /* bias: NULL if absent */
    int64_t x_routes, weight_routes, bias_routes;
};

/* Where the tasks of a backward pass leave what is summed over images afterwards. */
struct conv_partial {
    float *weight, *bias;   /* (batch, routes, taps, channels), (batch, routes, channels) */
};

#endif
