/* The kernels of one instruction set: compiled several times, with VARIANT the name of the instruction set. */
#include "library.h"
#include "vector.h"
#include "wavefront_pass.h"
#include "conv_pass.h"

#define LANES 16
#include "scan_pass.h"
#define LANES 32
#include "scan_pass.h"

static size_t forward_scratch(const struct scan *a, int64_t lanes) {
    struct block_16 narrow;
    struct block_32 wide;
    return sizeof(float) * (lanes == 16 ? lay_out_16(&narrow, a, NULL, 0) : lay_out_32(&wide, a, NULL, 0));
}

static size_t backward_scratch(const struct scan *a, int64_t lanes) {
    struct block_16 narrow;
    struct block_32 wide;
    return sizeof(float) * (lanes == 16 ? lay_out_16(&narrow, a, NULL, 1) : lay_out_32(&wide, a, NULL, 1));
}

static void forward(const struct scan *a, int64_t image, int64_t first, int64_t lanes, float *scratch) {
    if (lanes == 16)
        forward_16(a, image, first, scratch);
    else
        forward_32(a, image, first, scratch);
}

static void backward(const struct scan *a, const struct gradients *g, const struct partial *p, int64_t image,
                     int64_t first, int64_t lanes, float *scratch) {
    if (lanes == 16)
        backward_16(a, g, p, image, first, first / lanes, scratch);
    else
        backward_32(a, g, p, image, first, first / lanes, scratch);
}

static void exp2_all(const float *x, float *y, int64_t count) {
    for (int64_t i = 0; i < count; i += VL) store(y + i, exp2_of(load(x + i)));
}

static void softplus_all(const float *x, float *y, float *slopes, int64_t count) {
    for (int64_t i = 0; i < count; i += VL) {
        vec slope, delta2 = softplus2_of(load(x + i), &slope);
        store(y + i, delta2 * LN_2);
        store(slopes + i, slope);
    }
}

static void widen_all(const struct rows *from, float *to, int64_t count) {
    widen(to, from->data, from->dtype, 0, count);
}

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define QUOTE_(x) #x
#define QUOTE(x) QUOTE_(x)
const struct kernels PASTE(visionssm_kernels, VARIANT) = {
    QUOTE(VARIANT), forward_scratch, backward_scratch, forward, backward, wavefront_scratch, wavefront_forward,
    wavefront_backward, conv_scratch, conv_forward, conv_backward, exp2_all, softplus_all, widen_all,
};
