/* Squared norm and linear sketch of tensors in one read of their memory.
 *
 * Compiled once per machine by native.py, and called with plain pointers; sketch.py says what the sketch is and
 * computes the same one with torch operations. Legend: p sketch size, w chunk width, n elements of a tensor.
 */

#include <stdint.h>
#include <string.h>

#define LANES 16

static uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    return x;
}

static inline float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16; /* bfloat16 is the upper half of a float */
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Adds factor * s_k * x_k into acc_k for k < n and returns the sum of x_k^2, in single precision over at most p elements. */
#define DEFINE_RUN(NAME, TYPE, READ)                                                   \
    static double NAME(const TYPE *restrict x, const float *restrict signs, float factor,          \
                       float *restrict acc, int64_t n) {                                \
        float part[LANES] = {0};                                                       \
        int64_t k = 0;                                                                 \
        for (; k + LANES <= n; k += LANES)                                             \
            for (int lane = 0; lane < LANES; lane++) {                                 \
                float v = READ(x[k + lane]);                                           \
                acc[k + lane] += v * (factor * signs[k + lane]);                       \
                part[lane] += v * v;                                                   \
            }                                                                          \
        double total = 0;                                                              \
        for (; k < n; k++) {                                                           \
            float v = READ(x[k]);                                                      \
            acc[k] += v * (factor * signs[k]);                                         \
            total += (double)v * v;                                                    \
        }                                                                              \
        for (int lane = 0; lane < LANES; lane++) total += part[lane];                  \
        return total;                                                                  \
    }

#define SAME(value) (value)
DEFINE_RUN(run_float, float, SAME)
DEFINE_RUN(run_bfloat16, uint16_t, widen)

/* One tensor whose first element has index `position` in its unit. */
static double tensor_pass(const void *data, int bfloat16, int64_t n, int64_t position, int64_t p, int64_t w,
                          const float *signs, float *out) {
    double norm = 0;
    int64_t i = 0;
    while (i < n) {
        int64_t chunk = position / w, inside = position % w, bucket = position % p;
        int64_t length = p - bucket;
        if (length > n - i) length = n - i;
        int64_t shift = mix((uint32_t)(chunk + 0x51ED270B)) % (uint32_t)(w / p) * p + chunk % p;
        float factor = chunk && (mix((uint32_t)(chunk + 0x7F4A7C15)) & 1) ? -1.0f : 1.0f;
        const float *s = signs + shift + inside;
        norm += bfloat16 ? run_bfloat16((const uint16_t *)data + i, s, factor, out + bucket, length)
                         : run_float((const float *)data + i, s, factor, out + bucket, length);
        i += length;
        position += length;
    }
    return norm;
}

/* A unit of at most p elements: each has a bucket of its own, and no sign. */
static double tensor_copy(const void *data, int bfloat16, int64_t n, int64_t position, float *out) {
    double norm = 0;
    for (int64_t i = 0; i < n; i++) {
        float v = bfloat16 ? widen(((const uint16_t *)data)[i]) : ((const float *)data)[i];
        out[position + i] = v;
        norm += (double)v * v;
    }
    return norm;
}

/* Units [first, last). Per tensor t: address data[t] (0 for a missing one), kind[t] (1 for bfloat16), and place + 4t:
 * start, number of runs, elements a run, distance of runs, in the flat index of the unit; unit u has tensors
 * [begin[u], begin[u + 1]) and chunk width width[u], 0 for a unit that is copied.
 * Writes norms[t] and row u of the sketches, out + u * stride. */
void thermoclaw_measure(int64_t first, int64_t last, const int64_t *begin, const int64_t *width, const int64_t *data,
                        const int64_t *kind, const int64_t *place, int64_t p, const float *signs, float *out,
                        int64_t stride, double *norms) {
    for (int64_t u = first; u < last; u++) {
        float *row = out + u * stride;
        memset(row, 0, (size_t)p * sizeof *row);
        for (int64_t t = begin[u]; t < begin[u + 1]; t++) {
            const char *x = (const char *)(intptr_t)data[t];
            const int64_t *at = place + 4 * t, run = at[2];
            const int64_t step = run * (kind[t] ? 2 : 4);
            norms[t] = 0;
            for (int64_t r = 0; x != 0 && r < at[1]; r++, x += step) {
                const int64_t position = at[0] + r * at[3];
                norms[t] += width[u] == 0
                                ? tensor_copy(x, (int)kind[t], run, position, row)
                                : tensor_pass(x, (int)kind[t], run, position, p, width[u], signs, row);
            }
        }
    }
}
