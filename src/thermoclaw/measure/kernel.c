/* The CPU's part of measuring a step: squared norms and linear sketches in one read of memory, and their products.
 *
 * Compiled once per machine by native.py; native_pass.py and native_rows.py fill its tables and pass plain pointers.
 * sketch.py says what the sketch is, and sketched.py does the same with torch operations. What is added up in which
 * order depends on the tables alone, so any number of threads gives the same bits.
 *
 * Legend: p sketch size, w chunk width, U units.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 256  /* elements of a row that are added up in single precision at a time */
#define AHEAD 8192 /* bytes from what is being read to what is fetched into the cache */
#define LINE 64
#define LANES 32  /* sums of squares that go on side by side */

enum { PIECE_TENSOR, PIECE_OFFSET, PIECE_POSITION, PIECE_RUNS, PIECE_RUN, PIECE_STRIDE, PIECE };
enum { TASK_FIRST, TASK_LAST, TASK_UNIT, TASK_PARTIAL, TASK };
enum { FLOAT, BFLOAT16, FLOAT16 };

typedef struct {
    int64_t num_tasks, num_units, p;
    const int64_t *task;    /* [·, TASK] pieces [first, last) of a unit, and a row of `partial`, or −1: all of the unit */
    const int64_t *piece;   /* [·, PIECE] of tensor t, from element `offset` on: runs as place.py has them */
    const int64_t *width;   /* [U] w; 0 for a unit whose elements have buckets of their own, and no signs */
    const int64_t *buckets; /* [U] buckets that are in use */
    const uint32_t *signs;  /* [·, 2p] bit b of word (a, i) is the sign of index (32a + b)p + i */
    float *partial;         /* [·, p] sketches of parts of units */
    double *norm;           /* [tasks] */
} Plan;

static uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    return x;
}

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Exponents move up by 112, that of infinity and NaN to the end; subnormal numbers become normal ones. Without branches,
 * which compilers will not turn into vectors. */
static inline float from_float16(uint32_t half) {
    const uint32_t rest = half & 0x7FFFu, is_small = 0u - (uint32_t)(rest < 0x400u), is_last = rest >= 0x7C00u;
    const uint32_t normal = (rest << 13) + (112u << 23) + (is_last * (112u << 23));
    const uint32_t small = as_bits((float)(int32_t)rest * 0x1p-24f);
    return as_float((small & is_small) | (normal & ~is_small) | (half & 0x8000u) << 16);
}

static int64_t bytes_of(int64_t kind) { return kind == FLOAT ? 4 : 2; }

/* n elements in single precision: where they are, or widened into `room`. */
static const float *read(const char *x, int64_t kind, int64_t n, float *room) {
    const uint16_t *half = (const uint16_t *)x;
    if (kind == FLOAT) return (const float *)x;
    if (kind == BFLOAT16)
        for (int64_t k = 0; k < n; k++) room[k] = as_float((uint32_t)half[k] << 16);
    else {
        uint32_t wide[BLOCK];
        for (int64_t k = 0; k < n; k++) wide[k] = half[k];
        for (int64_t k = 0; k < n; k++) room[k] = from_float16(wide[k]);
    }
    return room;
}

/* Ask for the cache lines of `size` bytes that lie AHEAD of x, as far as there are any. */
static void fetch(const char *x, int64_t size, const char *end) {
    const int64_t left = end - x - AHEAD;
    for (int64_t at = 0; at < size && at < left; at += LINE) __builtin_prefetch(x + AHEAD + at);
}

/* A row of signs: one bit of each word. */
typedef struct {
    const uint32_t *word;
    int bit;
} Signs;

static Signs signs_at(const Plan *plan, int64_t index) {
    const int64_t row = index / plan->p;
    const Signs found = {plan->signs + (row >> 5) * 2 * plan->p + index % plan->p, (int)(row & 31)};
    return found;
}

#define TURN(x, word, left) as_float(as_bits(x) ^ ((word) << (left) & 0x80000000u))

/* The innermost loops, over `count` elements of a row or of two: add factor * s_k * x_k to acc_k, and x_k^2 to part_k. */
static inline void add_one(const float *restrict x, Signs s, float factor, float *restrict acc, float *restrict part,
                           int64_t count) {
    const uint32_t *restrict word = s.word;
    const int left = 31 - s.bit;
#pragma omp simd
    for (int64_t k = 0; k < count; k++) {
        part[k] += x[k] * x[k];
        acc[k] += factor * TURN(x[k], word[k], left);
    }
}

static inline void add_two(const float *restrict x, const float *restrict y, Signs s, Signs t, float factor,
                           float *restrict acc, float *restrict part, int64_t count) {
    const uint32_t *word = s.word, *word2 = t.word;
    const int left = 31 - s.bit, left2 = 31 - t.bit;
#pragma omp simd
    for (int64_t k = 0; k < count; k++) {
        part[k] += x[k] * x[k] + y[k] * y[k];
        acc[k] += factor * (TURN(x[k], word[k], left) + TURN(y[k], word2[k], left2));
    }
}

static Signs further(Signs s, int64_t by) {
    s.word += by;
    return s;
}

/* One row of n elements, or two of p, whose signs begin at `index`. Only a few squares are added up in single precision,
 * as many however wide the registers are: those of 16-bit numbers fall on few places between two floats, below the
 * middle more often than above. */
static double add_rows(const Plan *plan, const char *x, int64_t kind, int64_t rows, int64_t n, int64_t index,
                       float factor, float *acc, const char *end) {
    const int64_t size = bytes_of(kind);
    const Signs s = signs_at(plan, index), t = rows == 2 ? signs_at(plan, index + n) : s;
    float room[2][BLOCK];
    double total[LANES] = {0}, norm = 0;
    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t count = n - at < BLOCK ? n - at : BLOCK, whole = count - count % LANES;
        fetch(x + rows * at * size, rows * count * size, end);
        const float *v = read(x + at * size, kind, count, room[0]);
        const float *w = rows == 2 ? read(x + (n + at) * size, kind, count, room[1]) : v;
        const Signs sv = further(s, at), sw = further(t, at);
        float *into = acc + at, part[LANES] = {0};
        if (rows == 2) {
            for (int64_t k = 0; k < whole; k += LANES)
                add_two(v + k, w + k, further(sv, k), further(sw, k), factor, into + k, part, LANES);
            add_two(v + whole, w + whole, further(sv, whole), further(sw, whole), factor, into + whole, part, count - whole);
        } else {
            for (int64_t k = 0; k < whole; k += LANES) add_one(v + k, further(sv, k), factor, into + k, part, LANES);
            add_one(v + whole, further(sv, whole), factor, into + whole, part, count - whole);
        }
        for (int lane = 0; lane < LANES; lane++) total[lane] += part[lane];
    }
    for (int lane = 0; lane < LANES; lane++) norm += total[lane];
    return norm;
}

/* Elements that have buckets of their own, and no signs. */
static double copy_run(const char *x, int64_t kind, int64_t n, float *row) {
    float room[BLOCK];
    double norm = 0;
    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t count = n - at < BLOCK ? n - at : BLOCK;
        const float *v = read(x + at * bytes_of(kind), kind, count, room);
#pragma omp simd reduction(+ : norm)
        for (int64_t k = 0; k < count; k++) {
            row[at + k] = v[k];
            norm += (double)v[k] * v[k];
        }
    }
    return norm;
}

/* n elements in a row whose first has index `position` in its unit. */
static double add_run(const Plan *plan, const char *x, int64_t kind, int64_t n, int64_t position, int64_t w, float *row) {
    const int64_t p = plan->p, size = bytes_of(kind);
    const char *end = x + n * size;
    double norm = 0;
    if (w == 0) return copy_run(x, kind, n, row + position);
    while (n > 0) {
        const int64_t chunk = position / w;
        const uint32_t place = mix((uint32_t)(chunk + 0x51ED270B));
        const int64_t shift = place % (uint32_t)(w / p) * p + chunk % p;
        const float factor = chunk && (mix((uint32_t)(chunk + 0x7F4A7C15)) & 1) ? -1.0f : 1.0f;
        int64_t inside = position % w, bucket = inside % p;
        while (n > 0 && inside < w) {
            const int64_t rows = bucket == 0 && n >= 2 * p && inside + 2 * p <= w ? 2 : 1;
            const int64_t length = rows == 2 || p - bucket < n ? p - bucket : n;
            norm += add_rows(plan, x, kind, rows, length, shift + inside, factor, row + bucket, end);
            x += rows * length * size;
            n -= rows * length;
            inside += rows * length;
            position += rows * length;
            bucket = 0;
        }
    }
    return norm;
}

/* Sketches tensors into out + u * stride for each unit u, and sums up their squares. Any number of threads may call this
 * together, with one `next` that began at 0; when all are back, thermoclaw_finish comes.
 * data[t], kind[t]: address of tensor t, 0 if it is missing, and what it is made of. */
void thermoclaw_measure(const Plan *plan, const int64_t *data, const int64_t *kind, float *out, int64_t stride,
                        _Atomic int64_t *next) {
    for (;;) {
        const int64_t number = atomic_fetch_add(next, 1);
        if (number >= plan->num_tasks) return;
        const int64_t *task = plan->task + TASK * number, unit = task[TASK_UNIT];
        float *row = task[TASK_PARTIAL] < 0 ? out + unit * stride : plan->partial + task[TASK_PARTIAL] * plan->p;
        double norm = 0;
        memset(row, 0, (size_t)plan->p * sizeof *row);
        for (int64_t i = task[TASK_FIRST]; i < task[TASK_LAST]; i++) {
            const int64_t *piece = plan->piece + PIECE * i, tensor = piece[PIECE_TENSOR];
            if (data[tensor] == 0) continue;
            const int64_t run = piece[PIECE_RUN], size = bytes_of(kind[tensor]);
            const char *x = (const char *)(intptr_t)data[tensor] + piece[PIECE_OFFSET] * size;
            for (int64_t r = 0; r < piece[PIECE_RUNS]; r++)
                norm += add_run(plan, x + r * run * size, kind[tensor], run,
                                piece[PIECE_POSITION] + r * piece[PIECE_STRIDE], plan->width[unit], row);
        }
        plan->norm[number] = norm;
    }
}

/* Adds up the parts of units, in order. Writes norm[u]. */
void thermoclaw_finish(const Plan *plan, float *out, int64_t stride, double *norm) {
    memset(norm, 0, (size_t)plan->num_units * sizeof *norm);
    int64_t last = -1;
    for (int64_t number = 0; number < plan->num_tasks; number++) {
        const int64_t *task = plan->task + TASK * number, unit = task[TASK_UNIT];
        norm[unit] += plan->norm[number];
        if (task[TASK_PARTIAL] >= 0) {
            const float *part = plan->partial + task[TASK_PARTIAL] * plan->p;
            float *row = out + unit * stride;
            if (unit != last) memset(row, 0, (size_t)plan->p * sizeof *row);
            for (int64_t k = 0; k < plan->p; k++) row[k] += part[k];
        }
        last = unit;
    }
}

/* Places in a unit's memory [slots, p]: gradients now and up to three steps before, steps now and before, parameters now,
 * before and at the start. */
enum { G, G1, G2, G3, D, D1, NOW, BEFORE, START, SLOTS };
/* The columns of a row, in the order of columns.py. */
enum { G_G, P_P, GS_GS, G_G1, G_G2, G_G3, G_D, G_D1, G_P, PS_PS, D_D, D_P, F_F, LR, SKIPPED, COLUMNS };

/* Forms the step now − before of each unit and writes row u of `out` [U, COLUMNS]. */
void thermoclaw_products(const Plan *plan, float *state, const int64_t *slot, const double *g_g, const double *p_p,
                         double *out) {
    for (int64_t u = 0; u < plan->num_units; u++) {
        float *memory = state + u * SLOTS * plan->p;
        double *row = out + u * COLUMNS;
        memset(row, 0, COLUMNS * sizeof *row);
        for (int64_t at = 0; at < plan->buckets[u]; at += BLOCK) {
            const int64_t n = plan->buckets[u] - at < BLOCK ? plan->buckets[u] - at : BLOCK;
#define SLOT(name) (memory + slot[name] * plan->p + at)
            const float *g = SLOT(G), *g1 = SLOT(G1), *g2 = SLOT(G2), *g3 = SLOT(G3), *d1 = SLOT(D1);
            const float *now = SLOT(NOW), *before = SLOT(BEFORE), *start = SLOT(START);
            float *restrict d = SLOT(D);
            float gg = 0, gg1 = 0, gg2 = 0, gg3 = 0, gd = 0, gd1 = 0, gp = 0, pp = 0, dd = 0, dp = 0, ff = 0;
#pragma omp simd reduction(+ : gg, gg1, gg2, gg3, gd, gd1, gp, pp, dd, dp, ff)
            for (int64_t k = 0; k < n; k++) {
                const float step = now[k] - before[k], drift = now[k] - start[k];
                d[k] = step;
                gg += g[k] * g[k];
                gg1 += g[k] * g1[k];
                gg2 += g[k] * g2[k];
                gg3 += g[k] * g3[k];
                gd += g[k] * step;
                gd1 += g[k] * d1[k];
                gp += g[k] * before[k];
                pp += before[k] * before[k];
                dd += step * step;
                dp += step * before[k];
                ff += drift * drift;
            }
            row[GS_GS] += gg;
            row[G_G1] += gg1;
            row[G_G2] += gg2;
            row[G_G3] += gg3;
            row[G_D] += gd;
            row[G_D1] += gd1;
            row[G_P] += gp;
            row[PS_PS] += pp;
            row[D_D] += dd;
            row[D_P] += dp;
            row[F_F] += ff;
        }
        row[G_G] = g_g[u];
        row[P_P] = p_p[u];
        row[LR] = as_float(0x7FC00000u); /* not a number: no learning rate on a device */
    }
}

/* A matrix as the probe sees it, [OUTER, ROWS, INNER] in memory, and the place of its rows among all. */
enum { SHEET_OUTER, SHEET_ROWS, SHEET_INNER, SHEET_UNIT, SHEET_WATCHED, SHEET_FIRST, SHEET };
enum { ZEROS, SILENT, DEAD };

/* How many of n elements are not zero; of either sign. */
static int64_t count_nonzero(const char *x, int64_t kind, int64_t n) {
    int64_t total = 0;
    while (n > 0) {
        const int64_t count = n < 16384 ? n : 16384;
        if (kind == FLOAT) {
            const uint32_t *bits = (const uint32_t *)x;
            uint32_t found = 0;
#pragma omp simd reduction(+ : found)
            for (int64_t k = 0; k < count; k++) found += (bits[k] & 0x7FFFFFFFu) != 0;
            total += found;
        } else {
            const uint16_t *bits = (const uint16_t *)x;
            uint16_t found = 0;
#pragma omp simd reduction(+ : found)
            for (int64_t k = 0; k < count; k++) found = (uint16_t)(found + ((bits[k] & 0x7FFFu) != 0));
            total += found;
        }
        x += count * bytes_of(kind);
        n -= count;
    }
    return total;
}

/* Adds, to found[r], whether element r is not zero. */
static void note_nonzero(const char *x, int64_t kind, int64_t n, int64_t *found) {
    if (kind == FLOAT)
        for (int64_t r = 0; r < n; r++) found[r] += (((const uint32_t *)x)[r] & 0x7FFFFFFFu) != 0;
    else
        for (int64_t r = 0; r < n; r++) found[r] += (((const uint16_t *)x)[r] & 0x7FFFu) != 0;
}

/* Counts the zeros of gradients and, in `silence`, for how many probes each row has been zero, at most `dead`.
 * out [U, width]: zeros, rows silent for `silent` probes and for `dead`; the other columns become NaN.
 * found: room for the rows of one matrix. */
void thermoclaw_rows(const int64_t *sheet, int64_t num_sheets, const int64_t *data, const int64_t *kind,
                     uint8_t *silence, int64_t *found, int64_t silent, int64_t dead, double *out, int64_t num_units,
                     int64_t width) {
    for (int64_t u = 0; u < num_units; u++)
        for (int64_t k = 0; k < width; k++) out[u * width + k] = k <= DEAD ? 0.0 : as_float(0x7FC00000u);
    for (int64_t m = 0; m < num_sheets; m++, sheet += SHEET) {
        const int64_t outer = sheet[SHEET_OUTER], rows = sheet[SHEET_ROWS], inner = sheet[SHEET_INNER];
        const char *x = (const char *)(intptr_t)data[m];
        double *sums = out + sheet[SHEET_UNIT] * width;
        uint8_t *count = silence + sheet[SHEET_FIRST];
        if (x == 0) continue;
        memset(found, 0, (size_t)rows * sizeof *found);
        for (int64_t a = 0; a < outer; a++)
            if (inner == 1)
                note_nonzero(x + a * rows * bytes_of(kind[m]), kind[m], rows, found);
            else
                for (int64_t r = 0; r < rows; r++)
                    found[r] += count_nonzero(x + (a * rows + r) * inner * bytes_of(kind[m]), kind[m], inner);
        for (int64_t r = 0; r < rows; r++) {
            sums[ZEROS] += (double)(outer * inner - found[r]);
            if (!sheet[SHEET_WATCHED]) continue;
            count[r] = found[r] ? 0 : count[r] < dead ? count[r] + 1 : (uint8_t)dead;
            sums[SILENT] += count[r] >= silent;
            sums[DEAD] += count[r] >= dead;
        }
    }
}

/* Adds n elements to sum[], each at its own place or all at the first; returns their squares added up. */
static double add_columns(const char *x, int64_t kind, int64_t n, int is_one, double *sum) {
    float room[BLOCK];
    double norm = 0, total = 0;
    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t count = n - at < BLOCK ? n - at : BLOCK;
        const float *v = read(x + at * bytes_of(kind), kind, count, room);
        if (is_one)
#pragma omp simd reduction(+ : norm, total)
            for (int64_t k = 0; k < count; k++) {
                norm += (double)v[k] * v[k];
                total += v[k];
            }
        else {
            double *restrict into = sum + at;
#pragma omp simd reduction(+ : norm)
            for (int64_t k = 0; k < count; k++) {
                norm += (double)v[k] * v[k];
                into[k] += v[k];
            }
        }
    }
    if (is_one) sum[0] += total;
    return norm;
}

/* How much the rows of matrices are alike: like[m] = |sum of rows|^2 / (rows * |W|^2). sum: room for a row of each. */
void thermoclaw_likeness(const int64_t *sheet, int64_t num_sheets, const int64_t *data, const int64_t *kind, double *sum,
                         double *like) {
    for (int64_t m = 0; m < num_sheets; m++, sheet += SHEET) {
        const int64_t outer = sheet[SHEET_OUTER], rows = sheet[SHEET_ROWS], inner = sheet[SHEET_INNER];
        const int64_t size = bytes_of(kind[m]);
        const char *x = (const char *)(intptr_t)data[m];
        double norm = 0, top = 0;
        for (int64_t a = 0; a < outer; a++) {
            memset(sum, 0, (size_t)inner * sizeof *sum);
            if (inner == 1)
                norm += add_columns(x + a * rows * size, kind[m], rows, 1, sum);
            else
                for (int64_t r = 0; r < rows; r++)
                    norm += add_columns(x + (a * rows + r) * inner * size, kind[m], inner, 0, sum);
            for (int64_t k = 0; k < inner; k++) top += sum[k] * sum[k];
        }
        like[m] = top / ((double)rows * norm);
    }
}
