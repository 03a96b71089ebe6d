/* What selective_scan is called with: one scan, and where its gradients go. Every member has eight bytes. */
#ifndef VISIONSSM_SCAN_H
#define VISIONSSM_SCAN_H

#include "types.h"

enum { CHUNK = 32 };      /* steps that are worked on together; states are stored at the chunks' starts */
enum { GROUP = 4 };       /* routes that are worked on together where their states decay alike */

struct scan {
    int64_t batch, tokens, steps, routes, channels, states;
    int64_t rank;           /* of a low-rank step size; 0 if delta has the channels */
    int64_t u_by_step;      /* u is stored by step, else by token */
    int64_t by_step;        /* delta, B and C are stored by step, else by token */
    int64_t out_by_step;
    int64_t softplus;
    int64_t permuted;       /* every route visits every token once */
    int64_t wide;           /* entries of order have 64 bits, else 32 */
    const void *order;      /* (routes, steps) contiguous, -1 for a zero token; NULL for tokens as stored */
    struct rows u, delta, B, C;
    struct parameter A, D, bias;
    const void *weight;     /* (routes, channels, rank), expands delta */
    int64_t weight_dtype, weight_route, weight_channel, weight_rank;
    const float *initial;   /* (batch, routes, channels, states) contiguous, or NULL */
    float *out;             /* contiguous channels */
    int64_t out_batch, out_step, out_route;  /* out_route is 0 where the routes are summed */
    float *last;            /* (batch, routes, channels, states) contiguous, or NULL */
    float *saved;           /* (batch, routes, chunks, states, channels) contiguous, or NULL */
    int64_t threads;
};

/* Float32, contiguous, in the shapes of what they are the gradients of; sized along the routes as that is. */
struct gradients {
    struct rows out;        /* of the output; all zero strides are allowed */
    const float *last;      /* of the last state, or NULL */
    float *u, *delta, *A, *B, *C, *D, *bias, *weight;  /* C, D, bias, weight: NULL if absent */
    float *initial;         /* or NULL */
    int64_t u_routes, delta_routes, A_routes, B_routes, C_routes, D_routes, bias_routes, weight_routes;
};

/* Where the tasks of a backward pass leave what is summed over channels or images afterwards. */
struct partial {
    float *delta, *B, *C;             /* (blocks, batch, length, routes or 1, rank or states) */
    float *A, *D, *bias, *weight;     /* (batch, routes, states or nothing or rank, channels) */
};

#endif
