/* What wavefront_scan is called with, and where its gradients go. Every member has eight bytes. */
#ifndef VISIONSSM_WAVEFRONT_H
#define VISIONSSM_WAVEFRONT_H

#include "types.h"

enum { WAVEFRONT_LANES = 16 }; /* channels of a task */

/* A map (batch, rows, columns, contiguous channels or states); strides in elements. */
struct map {
    const void *data;
    int64_t batch, row, column;
    int64_t dtype;
};

struct wavefront {
    int64_t batch, height, width, channels, states;
    int64_t segment;                 /* rows of a segment: the states above each are saved */
    struct map x, delta_top, delta_left, B_top, B_left, C;
    struct parameter A_top, A_left, D;
    float *out;                      /* (batch, height, width, channels) contiguous */
    float *saved;                    /* (batch, segments, width, states, channels) contiguous, or NULL */
    int64_t threads;
};

/* Float32, contiguous, in the shapes of what they are the gradients of. */
struct wavefront_gradients {
    struct map out;                  /* of the output; all zero strides are allowed */
    float *x, *delta_top, *delta_left, *A_top, *A_left, *B_top, *B_left, *C, *D;  /* D: NULL if absent */
};

/* Where the tasks of a backward pass leave what is summed over channels or images afterwards. */
struct wavefront_partial {
    float *B_top, *B_left, *C;       /* (blocks, batch, cells, states) */
    float *A_top, *A_left, *D;       /* (batch, states or nothing, channels) */
};

#endif
