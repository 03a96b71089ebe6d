/* The causal convolution, forward and backward, over one block of channels of one image.

A block walks the routes one after the other, step by step, with the last tokens read in a ring of as many rows as there are
taps. In the backward pass a second ring holds the gradients of these tokens: a row is complete, and added to where it
belongs, when its token leaves the ring. */

#define LANES CONV_LANES
#define NV (LANES / VL)

struct conv_block {
    float *x, *weight, *bias;        /* (taps, LANES) each; LANES */
    float *dx, *dweight, *dbias;     /* the same */
    int64_t *token;                  /* of each row of the rings, -1 for none */
};

/* Divide `memory` (NULL to count only); returns the number of floats. */
static int64_t conv_lay_out(struct conv_block *s, const struct conv *a, float *memory, int backward) {
    int64_t used = 0;
#define PLACE(member, count) (s->member = memory ? memory + used : NULL, used += ((count) + 15) / 16 * 16)
    PLACE(x, a->taps * LANES);
    PLACE(weight, a->taps * LANES);
    PLACE(bias, LANES);
    if (backward) {
        PLACE(dx, a->taps * LANES);
        PLACE(dweight, a->taps * LANES);
        PLACE(dbias, LANES);
    }
#undef PLACE
    s->token = memory ? (int64_t *)(void *)(memory + used) : NULL;
    return used + 2 * a->taps;
}

static size_t conv_scratch(const struct conv *a, int backward) {
    struct conv_block s;
    return sizeof(float) * conv_lay_out(&s, a, NULL, backward);
}

INLINE int64_t conv_token(const struct conv *a, int64_t k, int64_t t) {
    if (!a->order) return t;
    return a->wide ? ((const int64_t *)a->order)[k * a->steps + t] : ((const int32_t *)a->order)[k * a->steps + t];
}

/* A row of a block, filled up with zeros. */
INLINE void conv_read(float *restrict to, const struct rows *from, int64_t offset, int64_t width) {
    if (width == LANES) {
        widen(to, from->data, from->dtype, offset, LANES);
    } else {
        widen(to, from->data, from->dtype, offset, width);
        for (int64_t c = width; c < LANES; c++) to[c] = 0;
    }
}

INLINE vec sigmoid_of(vec y) { return 1.0f / (1.0f + exp_of(minimum(splat(88.0f), -y))); }

/* The parameters of a route, taps in the order of the ring's ages: the first belongs to the present token. */
static void conv_read_route(struct conv_block *s, const struct conv *a, int64_t k, int64_t first, int64_t width) {
    for (int64_t j = 0; j < a->taps; j++) {
        const float *from = a->weight.data + k * a->weight.route + (a->taps - 1 - j) * a->weight.state;
        for (int64_t c = 0; c < LANES; c++)
            s->weight[j * LANES + c] = c < width ? from[(first + c) * a->weight.channel] : 0;
    }
    for (int64_t c = 0; c < LANES; c++)
        s->bias[c] = a->bias.data && c < width ? a->bias.data[k * a->bias.route + (first + c) * a->bias.channel] : 0;
    memset(s->x, 0, a->taps * LANES * sizeof(float));
    for (int64_t j = 0; j < a->taps; j++) s->token[j] = -1;
}

/* Read step t's token into its row of the ring. */
INLINE void conv_advance(struct conv_block *s, const struct conv *a, int64_t W, int64_t image, int64_t k, int64_t t,
                         int64_t first, int64_t width) {
    int64_t token = conv_token(a, k, t), slot = t % W;
    s->token[slot] = token;
    if (token < 0)
        memset(s->x + slot * LANES, 0, LANES * sizeof(float));
    else
        conv_read(s->x + slot * LANES, &a->x, image * a->x.batch + token * a->x.step + k * a->x.route + first, width);
}

/* bias + sum over the ring */
INLINE void conv_sum(vec *y, const struct conv_block *s, int64_t W, int64_t t) {
    for (int v = 0; v < NV; v++) y[v] = load(s->bias + v * VL);
    for (int64_t j = 0; j < W; j++) {
        const float *row = s->x + (t + W - j) % W * LANES;
        for (int v = 0; v < NV; v++) y[v] += load(s->weight + j * LANES + v * VL) * load(row + v * VL);
    }
}

INLINE void conv_forward_route(struct conv_block *s, const struct conv *a, int64_t W, int64_t image, int64_t k,
                               int64_t first, int64_t width) {
    float *out = a->out + (image * a->steps * a->routes + k) * a->channels + first;
    for (int64_t t = 0; t < a->steps; t++, out += a->routes * a->channels) {
        vec y[NV];
        conv_advance(s, a, W, image, k, t, first, width);
        conv_sum(y, s, W, t);
        if (a->silu)
            for (int v = 0; v < NV; v++) y[v] *= sigmoid_of(y[v]);
        if (width == LANES)
            for (int v = 0; v < NV; v++) store(out + v * VL, y[v]);
        else
            memcpy(out, y, width * sizeof(float));
    }
}

static void conv_forward(const struct conv *a, int64_t image, int64_t first, float *memory) {
    struct conv_block s;
    conv_lay_out(&s, a, memory, 0);
    int64_t width = a->channels - first < LANES ? a->channels - first : LANES;
    for (int64_t k = 0; k < a->routes; k++) {
        conv_read_route(&s, a, k, first, width);
        if (a->taps == 4)
            conv_forward_route(&s, a, 4, image, k, first, width);
        else
            conv_forward_route(&s, a, a->taps, image, k, first, width);
    }
}

/* Add the gradient in a row of the ring to its token's. */
INLINE void conv_leave(struct conv_block *s, int64_t slot, float *dx, int64_t step, int64_t width) {
    if (s->token[slot] < 0) return;
    float *to = dx + s->token[slot] * step;
    const float *from = s->dx + slot * LANES;
    if (width == LANES)
        for (int v = 0; v < NV; v++) store(to + v * VL, load(to + v * VL) + load(from + v * VL));
    else
        for (int64_t c = 0; c < width; c++) to[c] += from[c];
}

INLINE void conv_backward_route(struct conv_block *s, const struct conv *a, const struct conv_gradients *g, int64_t W,
                                float *dx, int64_t image, int64_t k, int64_t first, int64_t width) {
    const int64_t step = g->x_routes * a->channels;
    float buffer[LANES];
    for (int64_t t = 0; t < a->steps; t++) {
        int64_t slot = t % W;
        vec d[NV];
        if (t >= W) conv_leave(s, slot, dx, step, width);
        memset(s->dx + slot * LANES, 0, LANES * sizeof(float));
        conv_advance(s, a, W, image, k, t, first, width);
        conv_read(buffer, &g->out, image * g->out.batch + t * g->out.step + k * g->out.route + first, width);
        for (int v = 0; v < NV; v++) d[v] = load(buffer + v * VL);
        if (a->silu) {
            vec y[NV];
            conv_sum(y, s, W, t);
            for (int v = 0; v < NV; v++) {
                vec p = sigmoid_of(y[v]);
                d[v] *= p + y[v] * p * (1.0f - p);
            }
        }
        for (int v = 0; v < NV; v++) store(s->dbias + v * VL, load(s->dbias + v * VL) + d[v]);
        for (int64_t j = 0; j < W; j++) {
            int64_t row = (t + W - j) % W * LANES;
            for (int v = 0; v < NV; v++) {
                int64_t i = j * LANES + v * VL, r = row + v * VL;
                store(s->dweight + i, load(s->dweight + i) + d[v] * load(s->x + r));
                store(s->dx + r, load(s->dx + r) + d[v] * load(s->weight + i));
            }
        }
    }
    for (int64_t t = a->steps < W ? 0 : a->steps - W; t < a->steps; t++) conv_leave(s, t % W, dx, step, width);
}

static void conv_backward(const struct conv *a, const struct conv_gradients *g, const struct conv_partial *p,
                          int64_t image, int64_t first, float *memory) {
    struct conv_block s;
    conv_lay_out(&s, a, memory, 1);
    const int64_t W = a->taps, d = a->channels, width = d - first < LANES ? d - first : LANES;
    float *dx = g->x + image * a->tokens * g->x_routes * d + first;
    for (int64_t i = 0; i < a->tokens * g->x_routes; i++) memset(dx + i * d, 0, width * sizeof(float));
    for (int64_t k = 0; k < a->routes; k++) {
        conv_read_route(&s, a, k, first, width);
        memset(s.dweight, 0, W * LANES * sizeof(float));
        memset(s.dbias, 0, LANES * sizeof(float));
        float *dx_route = dx + (g->x_routes > 1 ? k : 0) * d;
        if (W == 4)
            conv_backward_route(&s, a, g, 4, dx_route, image, k, first, width);
        else
            conv_backward_route(&s, a, g, W, dx_route, image, k, first, width);
        const int64_t route = image * a->routes + k;
        for (int64_t j = 0; j < W; j++)
            memcpy(p->weight + (route * W + W - 1 - j) * d + first, s.dweight + j * LANES, width * sizeof(float));
        if (p->bias) memcpy(p->bias + route * d + first, s.dbias, width * sizeof(float));
    }
}

#undef NV
#undef LANES
