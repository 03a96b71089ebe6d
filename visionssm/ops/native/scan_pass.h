/* The forward and the backward pass over one block of LANES channels; included once per number of lanes.

A block walks the routes one after the other, a route in chunks of CHUNK steps. What a chunk needs is first gathered
into float32 buffers that stay in the first-level cache, then the step sizes are computed for the whole chunk, then the
states advance step by step. In the forward pass, routes whose states decay alike go through a chunk together, up to GROUP
of them, and share the exponentials. Blocks at the end of the channels are filled up with zeros. */

#define NV (LANES / VL)
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name) PASTE(name, LANES)

/* Buffers of a block; those in the second part belong to the backward pass. */
struct NAME(block) {
    float *z, *x, *u;       /* (CHUNK, LANES): step size in units of ln 2, so that decays are powers of 2; step size times input; input */
    float *B, *C;           /* (CHUNK, states) */
    float *low;             /* (CHUNK, rank): low-rank step sizes */
    float *weight;          /* (rank, LANES) */
    float *A, *h;           /* (states, LANES) */
    float *D, *bias;        /* LANES */
    int valid[CHUNK];       /* whether a step reads a token */
    int64_t token[CHUNK];
    float *slope, *dy, *dz, *du;     /* (CHUNK, LANES) */
    float *states, *decays;          /* (CHUNK, states, LANES) */
    float *later, *dA;               /* (states, LANES) */
    float *dweight, *across, *dlow;  /* (rank, LANES), (LANES, padded rank), (CHUNK, padded rank) */
    float *dB, *dC;                  /* states */
    float *dD, *dbias;               /* LANES */
};

/* Whether all routes have the same step sizes and decays at a step. */
INLINE int NAME(decay_alike)(const struct scan *a) {
    return (a->by_step || !a->order) && !a->delta.route && !a->A.route && !a->bias.route && !a->weight_route;
}

/* Divide `memory` (NULL to count only); returns the number of floats. */
static int64_t NAME(lay_out)(struct NAME(block) *s, const struct scan *a, float *memory, int backward) {
    const int64_t n = a->states, r = a->rank, padded = (r + 15) / 16 * 16;
    const int64_t group = !backward && NAME(decay_alike)(a) ? GROUP : 1;
    int64_t used = 0;
#define PLACE(member, count) (s->member = memory ? memory + used : NULL, used += ((count) + 15) / 16 * 16)
    PLACE(z, CHUNK * LANES);
    PLACE(x, group * CHUNK * LANES);
    PLACE(u, group * CHUNK * LANES);
    PLACE(B, group * CHUNK * n);
    PLACE(C, group * CHUNK * n);
    PLACE(low, CHUNK * r);
    PLACE(weight, r * LANES);
    PLACE(A, n * LANES);
    PLACE(h, group * n * LANES);
    PLACE(D, group * LANES);
    PLACE(bias, LANES);
    if (backward) {
        PLACE(slope, CHUNK * LANES);
        PLACE(dy, CHUNK * LANES);
        PLACE(dz, CHUNK * LANES);
        PLACE(du, CHUNK * LANES);
        PLACE(states, CHUNK * n * LANES);
        PLACE(decays, CHUNK * n * LANES);
        PLACE(later, n * LANES);
        PLACE(dA, n * LANES);
        PLACE(dweight, r * LANES);
        PLACE(across, LANES * padded);
        PLACE(dlow, CHUNK * padded);
        PLACE(dB, n);
        PLACE(dC, n);
        PLACE(dD, LANES);
        PLACE(dbias, LANES);
    }
#undef PLACE
    /* products of the step sizes go over whole groups of steps, the gradient's over whole vectors of ranks */
    if (memory) memset(s->low, 0, CHUNK * r * sizeof(float));
    if (memory && backward) memset(s->across, 0, LANES * padded * sizeof(float));
    return used;
}

/* --- moving between storage and buffers --------------------------------------------------------------------------- */

/* A row of a block, filled up with zeros. */
INLINE void NAME(read_row)(float *restrict to, const struct rows *from, int64_t offset, int64_t width) {
    if (width == LANES) {
        widen(to, from->data, from->dtype, offset, LANES);
    } else {
        widen(to, from->data, from->dtype, offset, width);
        for (int64_t c = width; c < LANES; c++) to[c] = 0;
    }
}

INLINE void NAME(add_row)(float *restrict to, const float *restrict from, int64_t width) {
    if (width == LANES)
        for (int c = 0; c < LANES; c += VL) store(to + c, load(to + c) + load(from + c));
    else
        for (int64_t c = 0; c < width; c++) to[c] += from[c];
}

INLINE void NAME(write_row)(float *restrict to, const float *restrict from, int64_t width) {
    if (width == LANES)
        for (int c = 0; c < LANES; c += VL) store(to + c, load(from + c));
    else
        for (int64_t c = 0; c < width; c++) to[c] = from[c];
}

static void NAME(zero_rows)(float *to, int64_t count, int64_t stride, int64_t width) {
    for (int64_t i = 0; i < count; i++) memset(to + i * stride, 0, width * sizeof(float));
}

/* (states or none, LANES) from a parameter */
static void NAME(read_parameter)(float *to, const struct parameter *p, int64_t k, int64_t first, int64_t width,
                                 int64_t states) {
    for (int64_t n = 0; n < states; n++)
        for (int64_t c = 0; c < LANES; c++)
            to[n * LANES + c] =
                c < width ? p->data[k * p->route + (first + c) * p->channel + n * p->state] : 0;
}

static void NAME(read_state)(float *to, const float *from, const struct scan *a, int64_t image, int64_t k,
                             int64_t first, int64_t width) {
    const float *base = from + ((image * a->routes + k) * a->channels + first) * a->states;
    for (int64_t n = 0; n < a->states; n++)
        for (int64_t c = 0; c < LANES; c++) to[n * LANES + c] = c < width ? base[c * a->states + n] : 0;
}

static void NAME(write_state)(float *to, const float *from, const struct scan *a, int64_t image, int64_t k,
                              int64_t first, int64_t width) {
    float *base = to + ((image * a->routes + k) * a->channels + first) * a->states;
    for (int64_t c = 0; c < width; c++)
        for (int64_t n = 0; n < a->states; n++) base[c * a->states + n] = from[n * LANES + c];
}

INLINE float *NAME(saved_state)(const struct scan *a, int64_t image, int64_t k, int64_t chunk, int64_t first) {
    int64_t chunks = (a->steps + CHUNK - 1) / CHUNK;
    return a->saved + ((image * a->routes + k) * chunks + chunk) * a->states * a->channels + first;
}

static void NAME(read_route)(struct NAME(block) *s, const struct scan *a, int64_t k, int64_t first, int64_t width) {
    NAME(read_parameter)(s->A, &a->A, k, first, width, a->states);
    if (a->D.data) NAME(read_parameter)(s->D, &a->D, k, first, width, 1);
    if (a->bias.data) NAME(read_parameter)(s->bias, &a->bias, k, first, width, 1);
    for (int64_t r = 0; r < a->rank; r++)
        for (int64_t c = 0; c < LANES; c++)
            s->weight[r * LANES + c] =
                c < width ? element(a->weight, a->weight_dtype,
                                    k * a->weight_route + (first + c) * a->weight_channel + r * a->weight_rank)
                          : 0;
}

INLINE int64_t NAME(token_of)(const struct scan *a, int64_t k, int64_t step) {
    if (!a->order) return step;
    int64_t i = k * a->steps + step;
    return a->wide ? ((const int64_t *)a->order)[i] : ((const int32_t *)a->order)[i];
}

INLINE void NAME(prefetch_row)(const struct rows *x, int64_t image, int64_t row, int64_t k, int64_t first,
                               int64_t width) {
    int64_t size = x->dtype == FLOAT32 ? 4 : 2;
    const char *start = (const char *)x->data + (image * x->batch + row * x->step + k * x->route + first) * size;
    for (int64_t i = 0; i < width * size; i += 64) __builtin_prefetch(start + i);
}

/* Rows that lie a stride apart are not foreseen by the hardware: ask for those of a step while another chunk is worked
   on, few at a time, as more than some 20 under way hold up everything else. */
INLINE void NAME(prefetch)(const struct scan *a, int64_t image, int64_t k, int64_t first, int64_t width,
                           int64_t step) {
    if (step < 0 || step >= a->steps) return;
    int64_t token = NAME(token_of)(a, k, step);
    if (a->u_by_step || token >= 0) NAME(prefetch_row)(&a->u, image, a->u_by_step ? step : token, k, first, width);
    if (!a->rank && (a->by_step || token >= 0))
        NAME(prefetch_row)(&a->delta, image, a->by_step ? step : token, k, first, width);
}

/* Rows of a chunk, and what follows from the step sizes: z, x, and if asked for their slopes. With `again`, z is there from
   another route. The next chunk begins at `next`. */
INLINE void NAME(gather)(struct NAME(block) *s, const struct scan *a, int64_t image, int64_t k, int64_t first,
                         int64_t width, int64_t start, int64_t next, int count, const int slopes, const int again) {
    const int64_t N = a->states, R = a->rank;
    for (int t = 0; t < count; t++) {
        int64_t step = start + t, token = NAME(token_of)(a, k, step);
        s->token[t] = token;
        s->valid[t] = token >= 0;
        if (a->u_by_step || token >= 0)
            NAME(read_row)(s->u + t * LANES, &a->u,
                           image * a->u.batch + (a->u_by_step ? step : token) * a->u.step + k * a->u.route + first,
                           width);
        else
            memset(s->u + t * LANES, 0, LANES * sizeof(float));
        if (a->by_step || token >= 0) {
            int64_t row = a->by_step ? step : token;
            int64_t at = image * a->delta.batch + row * a->delta.step + k * a->delta.route;
            if (R && !again)
                widen(s->low + t * R, a->delta.data, a->delta.dtype, at, R);
            else if (!again)
                NAME(read_row)(s->z + t * LANES, &a->delta, at + first, width);
            widen(s->B + t * N, a->B.data, a->B.dtype, image * a->B.batch + row * a->B.step + k * a->B.route, N);
            if (a->C.data)
                widen(s->C + t * N, a->C.data, a->C.dtype, image * a->C.batch + row * a->C.step + k * a->C.route, N);
        } else { /* not `again`: where steps skip tokens, only what is stored by step is alike */
            if (R)
                memset(s->low + t * R, 0, R * sizeof(float));
            else
                memset(s->z + t * LANES, 0, LANES * sizeof(float));
            memset(s->B + t * N, 0, N * sizeof(float));
            if (a->C.data) memset(s->C + t * N, 0, N * sizeof(float));
        }
        if (!a->C.data) s->C[t] = 1; /* the state itself comes back */
    }
    if (again) {
        for (int t = 0; t < count; t++) {
            NAME(prefetch)(a, image, k, first, width, next + t);
            for (int i = t * LANES; i < (t + 1) * LANES; i += VL)
                store(s->x + i, load(s->z + i) * LN_2 * load(s->u + i));
        }
        return;
    }
    vec bias[NV];
    for (int v = 0; v < NV; v++) bias[v] = a->bias.data ? load(s->bias + v * VL) : splat(0);
    if (R) {
        enum { G = 4 }; /* steps that share a load of the weight */
        for (int t = 0; t < count; t += G) {
            vec sum[G][NV];
            for (int g = 0; g < G; g++)
                for (int v = 0; v < NV; v++) sum[g][v] = bias[v];
            for (int64_t r = 0; r < R; r++)
                for (int v = 0; v < NV; v++) {
                    vec w = load(s->weight + r * LANES + v * VL);
                    for (int g = 0; g < G; g++) sum[g][v] += s->low[(t + g) * R + r] * w;
                }
            for (int g = 0; g < G; g++)
                for (int v = 0; v < NV; v++) store(s->z + (t + g) * LANES + v * VL, sum[g][v]);
        }
        for (int v = 0; v < NV; v++) bias[v] = splat(0);
    }
    for (int t = 0; t < count; t++) {
        NAME(prefetch)(a, image, k, first, width, next + t);
        for (int v = 0; v < NV; v++) {
            int i = t * LANES + v * VL;
            vec z = load(s->z + i) + bias[v], slope = splat(1);
            vec delta2 = a->softplus ? softplus2_of(z, slopes ? &slope : NULL) : z * LOG2_E;
            store(s->z + i, delta2);
            store(s->x + i, delta2 * LN_2 * load(s->u + i));
            if (slopes) store(s->slope + i, slope);
        }
    }
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

/* Advance the states over a chunk; the outputs take the place of x. */
INLINE void NAME(advance)(struct NAME(block) *s, const int64_t N, int count, int skip) {
    vec D[NV];
    for (int v = 0; v < NV; v++) D[v] = skip ? load(s->D + v * VL) : splat(0);
    if (N == 1) {
        vec h[NV], A[NV];
        for (int v = 0; v < NV; v++) h[v] = load(s->h + v * VL), A[v] = load(s->A + v * VL);
        for (int t = 0; t < count; t++) {
            float B = s->B[t], C = s->C[t];
            for (int v = 0; v < NV; v++) {
                int i = t * LANES + v * VL;
                h[v] = exp2_of(load(s->z + i) * A[v]) * h[v] + load(s->x + i) * B;
                vec y = C * h[v];
                if (skip) y += D[v] * load(s->u + i);
                store(s->x + i, y);
            }
        }
        for (int v = 0; v < NV; v++) store(s->h + v * VL, h[v]);
        return;
    }
    for (int t = 0; t < count; t++) {
        vec z[NV], x[NV], y[NV];
        for (int v = 0; v < NV; v++) {
            int i = t * LANES + v * VL;
            z[v] = load(s->z + i);
            x[v] = load(s->x + i);
            y[v] = skip ? D[v] * load(s->u + i) : splat(0);
        }
        for (int64_t n = 0; n < N; n++) {
            float B = s->B[t * N + n], C = s->C[t * N + n];
            for (int v = 0; v < NV; v++) {
                int64_t i = n * LANES + v * VL;
                vec h = exp2_of(z[v] * load(s->A + i)) * load(s->h + i) + x[v] * B;
                store(s->h + i, h);
                y[v] += C * h;
            }
        }
        for (int v = 0; v < NV; v++) store(s->x + t * LANES + v * VL, y[v]);
    }
}

/* The same for `routes` routes that decay alike; their buffers follow each other from those of the first on. */
INLINE void NAME(advance_together)(struct NAME(block) *s, const int64_t N, const int routes, int count, int skip) {
    for (int t = 0; t < count; t++)
        for (int v = 0; v < NV; v++) {
            vec z = load(s->z + t * LANES + v * VL), x[GROUP], y[GROUP];
            for (int g = 0; g < routes; g++) {
                int i = (g * CHUNK + t) * LANES + v * VL;
                x[g] = load(s->x + i);
                y[g] = skip ? load(s->D + g * LANES + v * VL) * load(s->u + i) : splat(0);
            }
            for (int64_t n = 0; n < N; n++) {
                vec decay = exp2_of(z * load(s->A + n * LANES + v * VL));
                for (int g = 0; g < routes; g++) {
                    float *state = s->h + (g * N + n) * LANES + v * VL;
                    int64_t i = (g * CHUNK + t) * N + n;
                    vec h = decay * load(state) + x[g] * s->B[i];
                    store(state, h);
                    y[g] += s->C[i] * h;
                }
            }
            for (int g = 0; g < routes; g++) store(s->x + (g * CHUNK + t) * LANES + v * VL, y[g]);
        }
}

static void NAME(forward)(const struct scan *a, int64_t image, int64_t first, float *memory) {
    struct NAME(block) s[GROUP];
    NAME(lay_out)(&s[0], a, memory, 0);
    const int64_t N = a->states, chunks = (a->steps + CHUNK - 1) / CHUNK;
    const int alike = NAME(decay_alike)(a), skip = a->D.data != NULL;
    for (int g = 1; g < GROUP; g++) {
        s[g] = s[0];
        if (!alike) continue; /* the others are not used */
        s[g].x += g * CHUNK * LANES;
        s[g].u += g * CHUNK * LANES;
        s[g].B += g * CHUNK * N;
        s[g].C += g * CHUNK * N;
        s[g].h += g * N * LANES;
        s[g].D += g * LANES;
    }
    int64_t width = a->channels - first < LANES ? a->channels - first : LANES;
    float *out = a->out + image * a->out_batch + first;
    /* what the first route of a sum visits later than another one cannot be replaced by it */
    const int first_replaces = a->permuted && !(alike && a->routes > 1);
    if (!a->out_by_step && !(a->out_route ? a->permuted : first_replaces))
        for (int64_t k = 0; k < (a->out_route ? a->routes : 1); k++)
            NAME(zero_rows)(out + k * a->out_route, a->tokens, a->out_step, width);
    for (int64_t k = 0, routes; k < a->routes; k += routes) {
        const int64_t left = a->routes - k;
        routes = !alike || left == 1 ? 1 : left < GROUP ? 2 : GROUP;
        int replace = a->out_by_step || (a->out_route ? a->permuted : k == 0 && first_replaces);
        for (int g = 0; g < routes; g++) {
            NAME(read_route)(&s[g], a, k + g, first, width);
            if (a->initial)
                NAME(read_state)(s[g].h, a->initial, a, image, k + g, first, width);
            else
                memset(s[g].h, 0, N * LANES * sizeof(float));
        }
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            int64_t start = chunk * CHUNK;
            int count = a->steps - start < CHUNK ? (int)(a->steps - start) : CHUNK;
            if (a->saved)
                for (int g = 0; g < routes; g++)
                    for (int64_t n = 0; n < N; n++)
                        NAME(write_row)(NAME(saved_state)(a, image, k + g, chunk, first) + n * a->channels,
                                        s[g].h + n * LANES, width);
            const int64_t next = start + CHUNK;
            NAME(gather)(&s[0], a, image, k, first, width, start, next, count, 0, 0);
            for (int g = 1; g < routes; g++)
                NAME(gather)(&s[g], a, image, k + g, first, width, start, next, count, 0, 1);
            if (routes == GROUP && N == 16)
                NAME(advance_together)(s, 16, GROUP, count, skip);
            else if (routes == GROUP)
                NAME(advance_together)(s, N, GROUP, count, skip);
            else if (routes == 2)
                NAME(advance_together)(s, N, 2, count, skip);
            else if (N == 1)
                NAME(advance)(s, 1, count, skip);
            else if (N == 16)
                NAME(advance)(s, 16, count, skip);
            else
                NAME(advance)(s, N, count, skip);
            for (int g = 0; g < routes; g++)
                for (int t = 0; t < count; t++) {
                    const float *y = s[g].x + t * LANES;
                    int64_t row = a->out_by_step ? start + t : s[g].token[t];
                    float *to = out + (k + g) * a->out_route + row * a->out_step;
                    if (!s[g].valid[t]) {
                        if (a->out_by_step) memset(to, 0, width * sizeof(float));
                    } else if (replace) {
                        NAME(write_row)(to, y, width);
                    } else {
                        NAME(add_row)(to, y, width);
                    }
                }
        }
        if (a->last)
            for (int g = 0; g < routes; g++) NAME(write_state)(a->last, s[g].h, a, image, k + g, first, width);
    }
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

/* The states and decays of a chunk, from the state before it in h. */
INLINE void NAME(recompute)(struct NAME(block) *s, const int64_t N, int count) {
    for (int t = 0; t < count; t++) {
        const float *before = t ? s->states + (t - 1) * N * LANES : s->h;
        vec z[NV], x[NV];
        for (int v = 0; v < NV; v++) z[v] = load(s->z + t * LANES + v * VL), x[v] = load(s->x + t * LANES + v * VL);
        for (int64_t n = 0; n < N; n++) {
            float B = s->B[t * N + n];
            for (int v = 0; v < NV; v++) {
                int64_t i = n * LANES + v * VL;
                vec decay = exp2_of(z[v] * load(s->A + i));
                store(s->decays + t * N * LANES + i, decay);
                store(s->states + t * N * LANES + i, decay * load(before + i) + x[v] * B);
            }
        }
    }
}

/* Gradients of a chunk from its last step to its first; those of B and C are added to where the steps belong. */
INLINE void NAME(retreat)(struct NAME(block) *s, const int64_t N, int count, float *dB, float *dC, int64_t dB_step,
                          int64_t dC_step, int by_step, int skip, int64_t start) {
    vec D[NV], dD[NV], dbias[NV];
    for (int v = 0; v < NV; v++) {
        D[v] = skip ? load(s->D + v * VL) : splat(0);
        dD[v] = load(s->dD + v * VL);
        dbias[v] = load(s->dbias + v * VL);
    }
    for (int t = count - 1; t >= 0; t--) {
        const float *before = t ? s->states + (t - 1) * N * LANES : s->h;
        const float *after = s->states + t * N * LANES, *decays = s->decays + t * N * LANES;
        vec dy[NV], x[NV], delta[NV], g_input[NV], g_rate[NV];
        for (int v = 0; v < NV; v++) {
            int i = t * LANES + v * VL;
            dy[v] = load(s->dy + i);
            x[v] = load(s->x + i);
            delta[v] = load(s->z + i) * LN_2;
            g_input[v] = g_rate[v] = splat(0);
        }
        for (int64_t n = 0; n < N; n++) {
            float B = s->B[t * N + n], C = s->C[t * N + n];
            vec g_B = splat(0), g_C = splat(0);
            for (int v = 0; v < NV; v++) {
                int64_t i = n * LANES + v * VL;
                vec g = load(s->later + i) + C * dy[v];
                vec carried = g * load(decays + i);
                vec rate = carried * load(before + i); /* gradient of delta A */
                g_C += load(after + i) * dy[v];
                g_B += g * x[v];
                g_input[v] += g * B;
                g_rate[v] += rate * load(s->A + i);
                store(s->dA + i, load(s->dA + i) + rate * delta[v]);
                store(s->later + i, carried);
            }
            s->dB[n] = sum_lanes(g_B);
            s->dC[n] = sum_lanes(g_C);
        }
        int64_t row = by_step ? start + t : s->token[t];
        if (row >= 0) {
            for (int64_t n = 0; n < N; n++) dB[row * dB_step + n] += s->dB[n];
            if (dC)
                for (int64_t n = 0; n < N; n++) dC[row * dC_step + n] += s->dC[n];
        }
        for (int v = 0; v < NV; v++) {
            int i = t * LANES + v * VL;
            vec u = load(s->u + i);
            vec dz = (g_rate[v] + u * g_input[v]) * load(s->slope + i);
            store(s->dz + i, dz);
            store(s->du + i, g_input[v] * delta[v] + D[v] * dy[v]);
            dbias[v] += dz;
            dD[v] += dy[v] * u;
        }
    }
    for (int v = 0; v < NV; v++) {
        store(s->dD + v * VL, dD[v]);
        store(s->dbias + v * VL, dbias[v]);
    }
}

/* Both for one state, which stays in registers; the sums over channels are taken for four steps at a time. */
static void NAME(retreat_one)(struct NAME(block) *s, int count, float *dB, float *dC, int64_t dB_step, int64_t dC_step,
                              int by_step, int skip, int64_t start) {
    float g_B[CHUNK * VL], g_C[CHUNK * VL], sum_B[CHUNK], sum_C[CHUNK];
    vec A[NV], D[NV], dA[NV], dD[NV], dbias[NV], h[NV], later[NV];
    for (int v = 0; v < NV; v++) {
        A[v] = load(s->A + v * VL);
        h[v] = load(s->h + v * VL);
    }
    for (int t = 0; t < count; t++)
        for (int v = 0; v < NV; v++) {
            int i = t * LANES + v * VL;
            vec decay = exp2_of(load(s->z + i) * A[v]);
            h[v] = decay * h[v] + load(s->x + i) * s->B[t];
            store(s->decays + i, decay);
            store(s->states + i, h[v]);
        }
    for (int v = 0; v < NV; v++) {
        D[v] = skip ? load(s->D + v * VL) : splat(0);
        dA[v] = load(s->dA + v * VL);
        dD[v] = load(s->dD + v * VL);
        dbias[v] = load(s->dbias + v * VL);
        later[v] = load(s->later + v * VL);
    }
    for (int t = count - 1; t >= 0; t--) {
        const float *before = t ? s->states + (t - 1) * LANES : s->h;
        float B = s->B[t], C = s->C[t];
        vec to_B = splat(0), to_C = splat(0);
        for (int v = 0; v < NV; v++) {
            int i = t * LANES + v * VL;
            vec dy = load(s->dy + i), u = load(s->u + i), delta = load(s->z + i) * LN_2;
            vec g = later[v] + C * dy;
            later[v] = g * load(s->decays + i);
            vec rate = later[v] * load(before + v * VL); /* gradient of delta A */
            to_C += load(s->states + i) * dy;
            to_B += g * load(s->x + i);
            dA[v] += rate * delta;
            g *= B;
            vec dz = (rate * A[v] + u * g) * load(s->slope + i);
            store(s->dz + i, dz);
            store(s->du + i, g * delta + D[v] * dy);
            dbias[v] += dz;
            dD[v] += dy * u;
        }
        store(g_B + t * VL, to_B);
        store(g_C + t * VL, to_C);
    }
    for (int v = 0; v < NV; v++) {
        store(s->dA + v * VL, dA[v]);
        store(s->dD + v * VL, dD[v]);
        store(s->dbias + v * VL, dbias[v]);
        store(s->later + v * VL, later[v]);
    }
    for (int t = count; t % 4; t++) {
        store(g_B + t * VL, splat(0));
        store(g_C + t * VL, splat(0));
    }
    for (int t = 0; t < count; t += 4) {
        const float *b = g_B + t * VL, *c = g_C + t * VL;
        sum_lanes_of_four(sum_B + t, load(b), load(b + VL), load(b + 2 * VL), load(b + 3 * VL));
        sum_lanes_of_four(sum_C + t, load(c), load(c + VL), load(c + 2 * VL), load(c + 3 * VL));
    }
    for (int t = 0; t < count; t++) {
        int64_t row = by_step ? start + t : s->token[t];
        if (row < 0) continue;
        dB[row * dB_step] += sum_B[t];
        if (dC) dC[row * dC_step] += sum_C[t];
    }
}

/* What the gradients of the step sizes, dz, give for the low-rank ones and the weight. */
static void NAME(contract)(struct NAME(block) *s, int64_t R, int count) {
    const int64_t padded = (R + 15) / 16 * 16;
    for (int64_t r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) {
            vec sum = load(s->dweight + r * LANES + v * VL);
            for (int t = 0; t < count; t++) sum += s->low[t * R + r] * load(s->dz + t * LANES + v * VL);
            store(s->dweight + r * LANES + v * VL, sum);
        }
    enum { G = 4 };
    for (int t = 0; t < count; t += G)
        for (int64_t r = 0; r < padded; r += VL) {
            vec sum[G];
            for (int g = 0; g < G; g++) sum[g] = splat(0);
            for (int c = 0; c < LANES; c++) {
                vec w = load(s->across + c * padded + r);
                for (int g = 0; g < G; g++) sum[g] += s->dz[(t + g) * LANES + c] * w;
            }
            for (int g = 0; g < G; g++) store(s->dlow + (t + g) * padded + r, sum[g]);
        }
}

static void NAME(backward)(const struct scan *a, const struct gradients *g, const struct partial *p, int64_t image,
                           int64_t first, int64_t block, float *memory) {
    struct NAME(block) s;
    NAME(lay_out)(&s, a, memory, 1);
    const int64_t N = a->states, R = a->rank, d = a->channels, padded = (R + 15) / 16 * 16;
    const int64_t width = d - first < LANES ? d - first : LANES;
    const int64_t u_length = a->u_by_step ? a->steps : a->tokens, length = a->by_step ? a->steps : a->tokens;
    const int64_t chunks = (a->steps + CHUNK - 1) / CHUNK;
    const int64_t slice = block * a->batch + image; /* of what is summed over the blocks */
    float *du = g->u + image * u_length * g->u_routes * d + first;
    float *ddelta = R ? p->delta + slice * length * g->delta_routes * R : g->delta + image * length * g->delta_routes * d + first;
    float *dB = p->B + slice * length * g->B_routes * N;
    float *dC = a->C.data ? p->C + slice * length * g->C_routes * N : NULL;
    /* where each route visits a row once, its gradient is written, not added */
    const int u_once = a->u_by_step || a->permuted, once = a->by_step || a->permuted;
    if (!u_once) NAME(zero_rows)(du, u_length * g->u_routes, d, width);
    if (R)
        memset(ddelta, 0, length * g->delta_routes * R * sizeof(float));
    else if (!once)
        NAME(zero_rows)(ddelta, length * g->delta_routes, d, width);
    memset(dB, 0, length * g->B_routes * N * sizeof(float));
    if (dC) memset(dC, 0, length * g->C_routes * N * sizeof(float));

    for (int64_t k = 0; k < a->routes; k++) {
        NAME(read_route)(&s, a, k, first, width);
        for (int64_t r = 0; r < R; r++)
            for (int64_t c = 0; c < LANES; c++) s.across[c * padded + r] = s.weight[r * LANES + c];
        memset(s.dA, 0, N * LANES * sizeof(float));
        memset(s.dD, 0, LANES * sizeof(float));
        memset(s.dbias, 0, LANES * sizeof(float));
        if (R) memset(s.dweight, 0, R * LANES * sizeof(float));
        if (g->last)
            NAME(read_state)(s.later, g->last, a, image, k, first, width);
        else
            memset(s.later, 0, N * LANES * sizeof(float));
        const int64_t u_route = g->u_routes > 1 ? k : 0, delta_route = g->delta_routes > 1 ? k : 0;
        float *dB_route = dB + (g->B_routes > 1 ? k : 0) * N, *dC_route = dC ? dC + (g->C_routes > 1 ? k : 0) * N : NULL;

        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            int64_t start = chunk * CHUNK;
            int count = a->steps - start < CHUNK ? (int)(a->steps - start) : CHUNK;
            struct rows saved = {NAME(saved_state)(a, image, k, chunk, first), 0, 0, 0, FLOAT32};
            for (int64_t n = 0; n < N; n++) NAME(read_row)(s.h + n * LANES, &saved, n * d, width);
            NAME(gather)(&s, a, image, k, first, width, start, start - CHUNK, count, 1, 0);
            for (int t = 0; t < count; t++) {
                int64_t row = a->out_by_step ? start + t : s.token[t];
                if (s.valid[t])
                    NAME(read_row)(s.dy + t * LANES, &g->out,
                                   image * g->out.batch + row * g->out.step + k * g->out.route + first, width);
                else
                    memset(s.dy + t * LANES, 0, LANES * sizeof(float));
            }
#define RETREAT(n)                                                                                             \
    NAME(recompute)(&s, n, count);                                                                             \
    NAME(retreat)(&s, n, count, dB_route, dC_route, g->B_routes * N, g->C_routes * N, (int)a->by_step,         \
                  a->D.data != NULL, start)
            if (N == 1) {
                NAME(retreat_one)(&s, count, dB_route, dC_route, g->B_routes, g->C_routes, (int)a->by_step,
                                  a->D.data != NULL, start);
            } else if (N == 16) {
                RETREAT(16);
            } else {
                RETREAT(N);
            }
#undef RETREAT
            if (R) {
                for (int t = count; t % 4; t++) memset(s.dz + t * LANES, 0, LANES * sizeof(float));
                NAME(contract)(&s, R, count);
            }
            for (int t = 0; t < count; t++) {
                int64_t u_row = a->u_by_step ? start + t : s.token[t], row = a->by_step ? start + t : s.token[t];
                if (u_row >= 0) {
                    float *to = du + (u_row * g->u_routes + u_route) * d;
                    if (u_once && (k == 0 || g->u_routes > 1))
                        NAME(write_row)(to, s.du + t * LANES, width);
                    else
                        NAME(add_row)(to, s.du + t * LANES, width);
                }
                if (row < 0) continue;
                if (R) {
                    float *to = ddelta + (row * g->delta_routes + delta_route) * R;
                    for (int64_t r = 0; r < R; r++) to[r] += s.dlow[t * padded + r];
                } else {
                    float *to = ddelta + (row * g->delta_routes + delta_route) * d;
                    if (once && (k == 0 || g->delta_routes > 1))
                        NAME(write_row)(to, s.dz + t * LANES, width);
                    else
                        NAME(add_row)(to, s.dz + t * LANES, width);
                }
            }
        }
        const int64_t route = image * a->routes + k;
        for (int64_t n = 0; n < N; n++) NAME(write_row)(p->A + (route * N + n) * d + first, s.dA + n * LANES, width);
        if (p->D) NAME(write_row)(p->D + route * d + first, s.dD, width);
        if (p->bias) NAME(write_row)(p->bias + route * d + first, s.dbias, width);
        for (int64_t r = 0; r < R; r++)
            NAME(write_row)(p->weight + (route * R + r) * d + first, s.dweight + r * LANES, width);
        if (g->initial) NAME(write_state)(g->initial, s.later, a, image, k, first, width);
    }
}

#undef NV
#undef NAME
#undef PASTE
#undef PASTE_
#undef LANES
