/* The forward and the backward pass of the wavefront scan over one block of channels of one image.

A block walks the map row by row. One row of states is kept: before a cell is worked on, its place holds the state above, and
the place on its left the state on the left. The forward pass saves the row above every few rows, and the backward recomputes
the rows between. A direction's share in a cell, 1/2 where there are two, is part of the exponent and of B. */

#define LANES WAVEFRONT_LANES
#define NV (LANES / VL)

struct wavefront_block {
    float *A_top, *A_left;           /* (states, LANES) */
    float *D;                        /* LANES */
    float *B_top, *B_left, *C;       /* states, of a cell; B times the shares */
    float *nothing;                  /* (states, LANES), zeros */
    float *states;                   /* (width, states, LANES); in the backward of a segment and the row above it */
    float *later;                    /* (width, states, LANES): gradients of the states from the row below */
    float *right;                    /* (states, LANES): from the cell on the right */
    float *dA_top, *dA_left, *dD;    /* (states, LANES), LANES */
    float *products;                 /* (3, padded states, VL): gradients of B and C before the sum over channels */
};

/* Divide `memory` (NULL to count only); returns the number of floats. */
static int64_t wavefront_lay_out(struct wavefront_block *s, const struct wavefront *a, float *memory, int backward) {
    const int64_t n = a->states, row = a->width * n * LANES;
    int64_t used = 0;
#define PLACE(member, count) (s->member = memory ? memory + used : NULL, used += ((count) + 15) / 16 * 16)
    PLACE(A_top, n * LANES);
    PLACE(A_left, n * LANES);
    PLACE(D, LANES);
    PLACE(B_top, n);
    PLACE(B_left, n);
    PLACE(C, n);
    PLACE(nothing, n * LANES);
    PLACE(states, backward ? (a->segment + 1) * row : row);
    if (backward) {
        PLACE(later, row);
        PLACE(right, n * LANES);
        PLACE(dA_top, n * LANES);
        PLACE(dA_left, n * LANES);
        PLACE(dD, LANES);
        PLACE(products, 3 * ((n + 3) / 4 * 4) * VL);
    }
#undef PLACE
    return used;
}

static size_t wavefront_scratch(const struct wavefront *a, int backward) {
    struct wavefront_block s;
    return sizeof(float) * wavefront_lay_out(&s, a, NULL, backward);
}

/* --- moving between storage and buffers --------------------------------------------------------------------------- */

INLINE int64_t at_cell(const struct map *x, int64_t image, int64_t i, int64_t j) {
    return image * x->batch + i * x->row + j * x->column;
}

/* Channels of a cell, filled up with zeros. */
INLINE void read_cell(vec *to, const struct map *from, int64_t offset, int64_t width) {
    if (width == LANES && from->dtype == FLOAT32) {
        for (int v = 0; v < NV; v++) to[v] = load((const float *)from->data + offset + v * VL);
        return;
    }
    float lanes[LANES];
    memset(lanes, 0, sizeof lanes);
    widen(lanes, from->data, from->dtype, offset, width);
    for (int v = 0; v < NV; v++) to[v] = load(lanes + v * VL);
}

INLINE void write_cell(float *to, const vec *from, int64_t width) {
    if (width == LANES) {
        for (int v = 0; v < NV; v++) store(to + v * VL, from[v]);
        return;
    }
    float lanes[LANES];
    for (int v = 0; v < NV; v++) store(lanes + v * VL, from[v]);
    memcpy(to, lanes, width * sizeof(float));
}

/* (states or 1, LANES) from a parameter, or to a gradient (states or 1, channels) */
static void read_rates(float *to, const struct parameter *p, int64_t first, int64_t width, int64_t states) {
    for (int64_t n = 0; n < states; n++)
        for (int64_t c = 0; c < LANES; c++)
            to[n * LANES + c] = c < width ? p->data[(first + c) * p->channel + n * p->state] : 0;
}

static void write_rows(float *to, const float *from, int64_t count, int64_t stride, int64_t width) {
    for (int64_t n = 0; n < count; n++) memcpy(to + n * stride, from + n * LANES, width * sizeof(float));
}

static void read_rows(float *to, const float *from, int64_t count, int64_t stride, int64_t width) {
    for (int64_t n = 0; n < count; n++) {
        memcpy(to + n * LANES, from + n * stride, width * sizeof(float));
        memset(to + n * LANES + width, 0, (LANES - width) * sizeof(float));
    }
}

INLINE float *saved_row(const struct wavefront *a, int64_t image, int64_t segment, int64_t first) {
    int64_t segments = (a->height + a->segment - 1) / a->segment;
    return a->saved + (image * segments + segment) * a->width * a->states * a->channels + first;
}

/* The directions' share of a cell in units of ln 2, and which of them it has; the corner has the input from the left. */
struct sides {
    int top, left;
    float shift, share;
};

INLINE struct sides sides_of(int64_t i, int64_t j) {
    int both = i > 0 && j > 0;
    return (struct sides){i > 0, j > 0 || i == 0, both ? -1.0f : 0.0f, both ? 0.5f : 1.0f};
}

/* B and C of a cell, B times the shares. */
INLINE void read_projections(struct wavefront_block *s, const struct wavefront *a, int64_t image, int64_t i, int64_t j,
                             struct sides sides, const int64_t N) {
    if (sides.top) {
        widen(s->B_top, a->B_top.data, a->B_top.dtype, at_cell(&a->B_top, image, i, j), N);
        for (int64_t n = 0; n < N; n++) s->B_top[n] *= sides.share;
    }
    if (sides.left) {
        widen(s->B_left, a->B_left.data, a->B_left.dtype, at_cell(&a->B_left, image, i, j), N);
        for (int64_t n = 0; n < N; n++) s->B_left[n] *= sides.share;
    }
    widen(s->C, a->C.data, a->C.dtype, at_cell(&a->C, image, i, j), N);
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

/* The states of one cell from the ones above and on the left, and if `y` is given the output without D. */
INLINE void enter_cell(const struct wavefront_block *s, const int64_t N, const int top, const int left, float shift,
                       const vec *x, const vec *delta_top, const vec *delta_left, const float *above,
                       const float *on_left, float *to, vec *y) {
    /* stores might change the members of s, for all the compiler knows */
    const float *A_top = s->A_top, *A_left = s->A_left, *B_top = s->B_top, *B_left = s->B_left, *C = s->C;
    vec z_top[NV], z_left[NV], x_top[NV], x_left[NV];
    for (int v = 0; v < NV; v++) {
        if (top) z_top[v] = delta_top[v] * LOG2_E, x_top[v] = delta_top[v] * x[v];
        if (left) z_left[v] = delta_left[v] * LOG2_E, x_left[v] = delta_left[v] * x[v];
        if (y) y[v] = splat(0);
    }
    for (int64_t n = 0; n < N; n++)
        for (int v = 0; v < NV; v++) {
            int64_t k = n * LANES + v * VL;
            vec h = splat(0);
            if (top) h = exp2_of(z_top[v] * load(A_top + k) + shift) * load(above + k) + x_top[v] * B_top[n];
            if (left)
                h += exp2_of(z_left[v] * load(A_left + k) + shift) * load(on_left + k) + x_left[v] * B_left[n];
            store(to + k, h);
            if (y) y[v] += C[n] * h;
        }
}

/* The states of a row: `above` and `row` may be the same. With `out`, the outputs too. */
INLINE void enter_row(struct wavefront_block *s, const struct wavefront *a, const int64_t N, int64_t image, int64_t i,
                      int64_t first, int64_t width, const float *above, float *row, float *out) {
    for (int64_t j = 0; j < a->width; j++) {
        struct sides sides = sides_of(i, j);
        vec x[NV], delta_top[NV], delta_left[NV], y[NV];
        read_projections(s, a, image, i, j, sides, N);
        read_cell(x, &a->x, at_cell(&a->x, image, i, j) + first, width);
        if (sides.top) read_cell(delta_top, &a->delta_top, at_cell(&a->delta_top, image, i, j) + first, width);
        if (sides.left) read_cell(delta_left, &a->delta_left, at_cell(&a->delta_left, image, i, j) + first, width);
        const float *up = above + j * N * LANES, *back = j ? row + (j - 1) * N * LANES : s->nothing;
        float *to = row + j * N * LANES;
#define ENTER(top, left) \
    enter_cell(s, N, top, left, sides.shift, x, delta_top, delta_left, up, back, to, out ? y : NULL)
        if (sides.top && sides.left)
            ENTER(1, 1);
        else if (sides.top)
            ENTER(1, 0);
        else
            ENTER(0, 1);
#undef ENTER
        if (!out) continue;
        if (a->D.data)
            for (int v = 0; v < NV; v++) y[v] += load(s->D + v * VL) * x[v];
        write_cell(out + j * a->channels, y, width);
    }
}

static void wavefront_read(struct wavefront_block *s, const struct wavefront *a, int64_t first, int64_t width) {
    read_rates(s->A_top, &a->A_top, first, width, a->states);
    read_rates(s->A_left, &a->A_left, first, width, a->states);
    if (a->D.data) read_rates(s->D, &a->D, first, width, 1);
    memset(s->nothing, 0, a->states * LANES * sizeof(float));
}

static void wavefront_forward(const struct wavefront *a, int64_t image, int64_t first, float *memory) {
    struct wavefront_block s;
    wavefront_lay_out(&s, a, memory, 0);
    const int64_t width = a->channels - first < LANES ? a->channels - first : LANES;
    wavefront_read(&s, a, first, width);
    memset(s.states, 0, a->width * a->states * LANES * sizeof(float));
    for (int64_t i = 0; i < a->height; i++) {
        float *out = a->out + (image * a->height + i) * a->width * a->channels + first;
        if (a->saved && i % a->segment == 0)
            write_rows(saved_row(a, image, i / a->segment, first), s.states, a->width * a->states, a->channels, width);
        if (a->states == 16)
            enter_row(&s, a, 16, image, i, first, width, s.states, s.states, out);
        else
            enter_row(&s, a, a->states, image, i, first, width, s.states, s.states, out);
    }
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

/* What one direction of a cell passes to the state it came from, and to its parameters; `carried` may be `g`'s place. */
INLINE void leave_side(int64_t k, float B, float shift, vec g, vec delta, vec z, const float *A, const float *before,
                       float *carried, float *dA, vec *g_input, vec *g_rate) {
    vec rates = load(A + k);
    vec passed = g * exp2_of(z * rates + shift);
    vec rate = passed * load(before + k); /* gradient of delta A */
    store(carried + k, passed);
    store(dA + k, load(dA + k) + rate * delta);
    *g_rate += rate * rates;
    *g_input += g * B;
}

/* Gradients of one cell; those of B and C before the sum over channels are left in `products`. */
INLINE void leave_cell(struct wavefront_block *s, const int64_t N, const int top, const int left, struct sides sides,
                       const vec *x, const vec *delta_top, const vec *delta_left, const vec *dy, const float *above,
                       const float *on_left, const float *here, float *later, vec *dx, vec *ddelta_top,
                       vec *ddelta_left) {
    const int64_t padded = (N + 3) / 4 * 4;
    const float *A_top = s->A_top, *A_left = s->A_left, *B_top = s->B_top, *B_left = s->B_left, *C = s->C;
    float *dA_top = s->dA_top, *dA_left = s->dA_left, *right = s->right, *products = s->products;
    vec z_top[NV], z_left[NV], x_top[NV], x_left[NV], input_top[NV], input_left[NV], rate_top[NV], rate_left[NV];
    for (int v = 0; v < NV; v++) {
        if (top) z_top[v] = delta_top[v] * LOG2_E, x_top[v] = delta_top[v] * x[v] * sides.share;
        if (left) z_left[v] = delta_left[v] * LOG2_E, x_left[v] = delta_left[v] * x[v] * sides.share;
        input_top[v] = input_left[v] = rate_top[v] = rate_left[v] = splat(0);
    }
    for (int64_t n = 0; n < N; n++) {
        vec g_top = splat(0), g_left = splat(0), g_C = splat(0);
        for (int v = 0; v < NV; v++) {
            int64_t k = n * LANES + v * VL;
            vec g = load(later + k) + load(right + k) + C[n] * dy[v];
            g_C += load(here + k) * dy[v];
            if (top) {
                g_top += g * x_top[v];
                leave_side(k, B_top[n], sides.shift, g, delta_top[v], z_top[v], A_top, above, later, dA_top,
                           &input_top[v], &rate_top[v]);
            }
            if (left) {
                g_left += g * x_left[v];
                leave_side(k, B_left[n], sides.shift, g, delta_left[v], z_left[v], A_left, on_left, right,
                           dA_left, &input_left[v], &rate_left[v]);
            }
        }
        if (top) store(products + n * VL, g_top);
        if (left) store(products + (padded + n) * VL, g_left);
        store(products + (2 * padded + n) * VL, g_C);
    }
    for (int v = 0; v < NV; v++) {
        dx[v] = (top ? input_top[v] * delta_top[v] : splat(0)) + (left ? input_left[v] * delta_left[v] : splat(0));
        ddelta_top[v] = top ? input_top[v] * x[v] + rate_top[v] : splat(0);
        ddelta_left[v] = left ? input_left[v] * x[v] + rate_left[v] : splat(0);
    }
}

/* The sums of `count` vectors' lanes. */
INLINE void sum_products(float *to, const float *products, const int64_t count, int present) {
    if (!present) {
        memset(to, 0, count * sizeof(float));
        return;
    }
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) {
        const float *p = products + n * VL;
        sum_lanes_of_four(to + n, load(p), load(p + VL), load(p + 2 * VL), load(p + 3 * VL));
    }
    for (; n < count; n++) to[n] = sum_lanes(load(products + n * VL));
}

/* Gradients of a row from its last cell to its first. */
INLINE void leave_row(struct wavefront_block *s, const struct wavefront *a, const struct wavefront_gradients *g,
                      const struct wavefront_partial *p, const int64_t N, int64_t image, int64_t i, int64_t first,
                      int64_t width, const float *above, const float *row) {
    const int64_t padded = (N + 3) / 4 * 4;
    memset(s->right, 0, N * LANES * sizeof(float));
    for (int64_t j = a->width - 1; j >= 0; j--) {
        const int64_t cell = (image * a->height + i) * a->width + j;
        const int64_t at = cell * a->channels + first;
        const int64_t sums = (first / LANES * a->batch * a->height * a->width + cell) * N;
        struct sides sides = sides_of(i, j);
        vec x[NV], delta_top[NV], delta_left[NV], dy[NV], dx[NV], ddelta_top[NV], ddelta_left[NV];
        read_projections(s, a, image, i, j, sides, N);
        read_cell(x, &a->x, at_cell(&a->x, image, i, j) + first, width);
        read_cell(dy, &g->out, at_cell(&g->out, image, i, j) + first, width);
        if (sides.top) read_cell(delta_top, &a->delta_top, at_cell(&a->delta_top, image, i, j) + first, width);
        if (sides.left) read_cell(delta_left, &a->delta_left, at_cell(&a->delta_left, image, i, j) + first, width);
        const float *up = above + j * N * LANES, *back = j ? row + (j - 1) * N * LANES : s->nothing;
        const float *here = row + j * N * LANES;
        float *later = s->later + j * N * LANES;
#define LEAVE(top, left)                                                                                             \
    leave_cell(s, N, top, left, sides, x, delta_top, delta_left, dy, up, back, here, later, dx, ddelta_top, ddelta_left)
        if (sides.top && sides.left)
            LEAVE(1, 1);
        else if (sides.top)
            LEAVE(1, 0);
        else
            LEAVE(0, 1);
#undef LEAVE
        sum_products(p->B_top + sums, s->products, N, sides.top);
        sum_products(p->B_left + sums, s->products + padded * VL, N, sides.left);
        sum_products(p->C + sums, s->products + 2 * padded * VL, N, 1);
        if (a->D.data)
            for (int v = 0; v < NV; v++) {
                dx[v] += load(s->D + v * VL) * dy[v];
                store(s->dD + v * VL, load(s->dD + v * VL) + dy[v] * x[v]);
            }
        write_cell(g->x + at, dx, width);
        write_cell(g->delta_top + at, ddelta_top, width);
        write_cell(g->delta_left + at, ddelta_left, width);
    }
}

static void wavefront_backward(const struct wavefront *a, const struct wavefront_gradients *g,
                               const struct wavefront_partial *p, int64_t image, int64_t first, float *memory) {
    struct wavefront_block s;
    wavefront_lay_out(&s, a, memory, 1);
    const int64_t width = a->channels - first < LANES ? a->channels - first : LANES;
    const int64_t N = a->states, size = a->width * N * LANES;
    wavefront_read(&s, a, first, width);
    memset(s.later, 0, size * sizeof(float));
    memset(s.dA_top, 0, N * LANES * sizeof(float));
    memset(s.dA_left, 0, N * LANES * sizeof(float));
    memset(s.dD, 0, LANES * sizeof(float));
    for (int64_t start = (a->height - 1) / a->segment * a->segment; start >= 0; start -= a->segment) {
        const int64_t stop = start + a->segment < a->height ? start + a->segment : a->height;
        read_rows(s.states, saved_row(a, image, start / a->segment, first), a->width * N, a->channels, width);
#define WALK(n)                                                                                                 \
    for (int64_t i = start; i < stop; i++)                                                                      \
        enter_row(&s, a, n, image, i, first, width, s.states + (i - start) * size,                              \
                  s.states + (i - start + 1) * size, NULL);                                                     \
    for (int64_t i = stop - 1; i >= start; i--)                                                                 \
        leave_row(&s, a, g, p, n, image, i, first, width, s.states + (i - start) * size,                        \
                  s.states + (i - start + 1) * size)
        if (N == 16) {
            WALK(16);
        } else {
            WALK(N);
        }
#undef WALK
    }
    write_rows(p->A_top + image * N * a->channels + first, s.dA_top, N, a->channels, width);
    write_rows(p->A_left + image * N * a->channels + first, s.dA_left, N, a->channels, width);
    write_rows(p->D + image * a->channels + first, s.dD, 1, a->channels, width);
}

#undef NV
#undef LANES
