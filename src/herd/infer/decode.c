/* One decode step of a Llama network in one call: a token each of a few sequences in, logits out.

   Decoding is bound by reading weights and by dispatch: 135M parameters are some 90 MB a token in 4 and 8 bits, and a
   step of torch is 400 calls. Here a thread reads its tiles of a matrix once, in order, for all rows of the batch, and
   threads meet five times a layer. Activations are rounded to 8 bits in groups of 32 (as llama.cpp's Q8_0), so that
   products of a group are integer; everything else is float32.

   A row's logits depend neither on its neighbours nor on the number of threads: no sum is split by either.
   Nothing is checked here; native.py checks. Compiles with gcc and clang; the vector types are theirs. One file past
   500 lines, so that one call of a compiler builds it and its text is all that a compiled copy depends on. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#include <sched.h>
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(HERD_PORTABLE)
#define HERD_VNNI
#endif
#if defined(__AVX2__) && !defined(HERD_PORTABLE)
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights are read as little-endian"
#endif

#define TILE 16   /* rows of a matrix that are computed together */
#define GROUP 32  /* inputs that share a scale */
#define CHUNK 128 /* places that one attention task sees: 16 KB of keys in bfloat16 at a head width of 64 */
#define WIDEST 256 /* head_dim */
#define AHEAD 4096 /* bytes of codes asked for early, into the second cache: 19 and 25 GB/s where none gave 12 and 14 */
#define SPINS 2000 /* some 20 microseconds of waiting before the processor is offered to others */

#if defined(__AVX512F__) && !defined(HERD_PORTABLE)
#define VECTOR 64
#elif defined(__AVX2__) && !defined(HERD_PORTABLE)
#define VECTOR 32
#else
#define VECTOR 16
#endif
#define LANES (VECTOR / 4)
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VECTOR)));
typedef int32_t vi __attribute__((vector_size(VECTOR)));
typedef uint32_t vu __attribute__((vector_size(VECTOR)));
typedef int16_t vs __attribute__((vector_size(VECTOR)));
typedef uint16_t vh __attribute__((vector_size(VECTOR / 2)));

/* A matrix of `rows` outputs and `columns` inputs. Tile by tile: the tile's scales (groups x 16 float16, filled up to
   64 bytes), then its codes. Of a group, 64 bytes hold 4 neighbouring inputs of 16 rows; with 4 bits a byte's low half
   belongs to one such four and its high half to the next. Codes are unsigned: value = (code - 8 or 128) * scale. */
typedef struct {
    const uint8_t *data;
    int64_t rows, columns, bits;
} Matrix;

typedef struct {
    Matrix wq, wk, wv, wo, w1, w2, w3;
    const float *attention_norm, *ffn_norm;
} Layer;

typedef struct {
    int64_t layers, dim, heads, kv_heads, head_dim, ffn_dim;
    int64_t block, places, bfloat16; /* of the cache: tokens a block, places in all, its dtype (else float32) */
    double eps;
    const Layer *layer;
    Matrix embeddings, output;
    const float *norm, *cosines, *sines; /* rotary tables: (positions, head_dim / 2) */
    char *cache;                         /* (layers, 2, kv_heads, places, head_dim) */
} Model;

/* 32 inputs of a product in 8 bits, and their sum, which the codes' offset is taken back with. */
typedef struct {
    int8_t code[GROUP];
    float scale;
    int32_t sum;
} Inputs;

INLINE vf load(const float *from) {
    vf v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store(float *to, vf v) { memcpy(to, &v, sizeof v); }
INLINE vf all(float x) { return x - (vf){0}; }
INLINE vf choose(vi where, vf yes, vf no) { return (vf)((where & (vi)yes) | (~where & (vi)no)); }
INLINE float sum(vf v) {
    typedef float four __attribute__((vector_size(16)));
    four parts[VECTOR / 16];
    memcpy(parts, &v, sizeof v);
    for (int i = 1; i < VECTOR / 16; i++) parts[0] += parts[i];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

/* Keys and values of the cache as float32; bfloat16 is a float32's upper half. */
INLINE vf load_cached(const char *from, int64_t at, const int bfloat16) {
    if (!bfloat16) return load((const float *)from + at);
    vh half;
    memcpy(&half, (const uint16_t *)from + at, sizeof half);
#if VECTOR == 64 /* gcc 12 makes six instructions of the general way */
    return (vf)((vu)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#elif VECTOR == 32
    return (vf)((vu)_mm256_cvtepu16_epi32((__m128i)half) << 16);
#else
    return (vf)(__builtin_convertvector(half, vu) << 16);
#endif
}

INLINE void store_cached(char *to, int64_t at, float x, int bfloat16) {
    if (!bfloat16) {
        ((float *)to)[at] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0; /* to nearest even, and NaN stays one */
    ((uint16_t *)to)[at] = (uint16_t)bits;
}

/* A finite float16. Its bits moved to a float32's place are too small by 2^112, denormal ones included. */
INLINE float half_to_float(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, 4);
    return half & 0x8000 ? -x * 0x1p112f : x * 0x1p112f;
}

/* e^x, with x brought to -87 .. 87 first. Relative error 1e-7: 2^n times Taylor's series up to x^7. */
INLINE vf exponential(vf x) {
    x = choose(x < -87.0f, all(-87.0f), choose(x > 87.0f, all(87.0f), x)); /* a NaN stays one */
    const vf shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the rounded quotient */
    const vf n = shifted - 12582912.0f;
    const vf r = (x - n * 0.693145752f) - n * 1.42860677e-6f; /* ln 2 in two pieces; n times the first is exact */
    vf y = all(1.0f / 5040);
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    return (vf)((vi)y + ((vi)shifted << 23)); /* the quotient's low bits, moved, add to the exponent */
}

INLINE int64_t scales_bytes(const Matrix *w) { return (w->columns / GROUP * TILE * 2 + 63) / 64 * 64; }
INLINE int64_t codes_bytes(const Matrix *w) { return TILE * GROUP * w->bits / 8; } /* of one group */
INLINE const uint8_t *tile_of(const Matrix *w, int64_t tile) {
    return w->data + tile * (scales_bytes(w) + w->columns / GROUP * codes_bytes(w));
}

#ifdef HERD_VNNI

/* 16 outputs of `count` rows. A group's codes are unpacked once; each row's fours are broadcast from memory. */
INLINE void tile_rows(const Matrix *w, const uint8_t *tile, const Inputs *x, float *out, const int count,
                      const int bits) {
    const int64_t groups = w->columns / GROUP;
    const uint8_t *codes = tile + scales_bytes(w);
    const __m512i low = _mm512_set1_epi8(15);
    __m512 y[8];
    for (int b = 0; b < count; b++) y[b] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, codes += TILE * GROUP * bits / 8) {
        __m512i four[8];
        for (int v = 0; v < bits; v++) {
            const __m512i loaded = _mm512_loadu_si512(codes + 64 * v);
            _mm_prefetch((const char *)codes + 64 * v + AHEAD, _MM_HINT_T1);
            if (bits == 8) {
                four[v] = loaded;
            } else {
                four[2 * v] = _mm512_and_si512(loaded, low);
                four[2 * v + 1] = _mm512_and_si512(_mm512_srli_epi16(loaded, 4), low);
            }
        }
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(tile + g * TILE * 2)));
        for (int b = 0; b < count; b++) {
            const Inputs *in = x + b * groups + g;
            __m512i even = _mm512_set1_epi32(-(bits == 8 ? 128 : 8) * in->sum), odd = _mm512_setzero_si512();
            for (int v = 0; v < 8; v += 2) {
                int32_t first, second;
                memcpy(&first, in->code + 4 * v, 4);
                memcpy(&second, in->code + 4 * v + 4, 4);
                even = _mm512_dpbusd_epi32(even, four[v], _mm512_set1_epi32(first));
                odd = _mm512_dpbusd_epi32(odd, four[v + 1], _mm512_set1_epi32(second));
            }
            const __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
            y[b] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(in->scale)), y[b]);
        }
    }
    for (int b = 0; b < count; b++) _mm512_storeu_ps(out + TILE * b, y[b]);
}

#else

/* 16 outputs of `count` rows, in 16-bit lanes, each two neighbouring inputs of one row. */
INLINE void tile_rows(const Matrix *w, const uint8_t *tile, const Inputs *x, float *out, const int count,
                      const int bits) {
    const int64_t groups = w->columns / GROUP;
    const uint8_t *codes = tile + scales_bytes(w);
    memset(out, 0, sizeof(float) * TILE * count);
    for (int64_t g = 0; g < groups; g++, codes += TILE * GROUP * bits / 8) {
        float scale[TILE];
        for (int r = 0; r < TILE; r++) {
            uint16_t half;
            memcpy(&half, tile + 2 * (g * TILE + r), 2);
            scale[r] = half_to_float(half);
        }
        for (int b = 0; b < count; b++) {
            const Inputs *in = x + b * groups + g;
            for (int part = 0; part < 64 / VECTOR; part++) { /* LANES rows */
                vi dot = {0};
                vs small = {0}; /* 16 products of at most 15 * 127 fit in 16 bits */
                for (int v = 0; v < bits; v++) {
                    vs code;
                    memcpy(&code, codes + 64 * v + VECTOR * part, VECTOR);
                    for (int half = 0; half < (bits == 4 ? 2 : 1); half++) {
                        const int8_t *four = in->code + (bits == 4 ? 8 * v + 4 * half : 4 * v);
                        const uint32_t first = (uint16_t)four[0] | (uint32_t)(uint16_t)four[2] << 16;
                        const uint32_t second = (uint16_t)four[1] | (uint32_t)(uint16_t)four[3] << 16;
                        const vs even = (vs)(first + (vu){0}), odd = (vs)(second + (vu){0});
                        if (bits == 4) {
                            small += (code >> 4 * half & 15) * even + (code >> (8 + 4 * half) & 15) * odd;
                        } else { /* two products of at most 127 * 127 fit */
                            const vs plain = code ^ (int16_t)0x8080;
                            const vi pair = (vi)((plain << 8 >> 8) * even + (plain >> 8) * odd);
                            dot += (pair << 16 >> 16) + (pair >> 16);
                        }
                    }
                }
                if (bits == 4) dot = ((vi)small << 16 >> 16) + ((vi)small >> 16) - 8 * in->sum;
                float *to = out + TILE * b + LANES * part;
                store(to, load(to) + __builtin_convertvector(dot, vf) * (load(scale + LANES * part) * in->scale));
            }
        }
    }
}

#endif

/* 16 outputs of every row, `out` of shape (rows, 16). Rows beyond eight read the tile again, from the nearest cache. */
static void product(const Matrix *w, int64_t tile, const Inputs *x, int64_t rows, float *out) {
    const uint8_t *at = tile_of(w, tile);
#define CASE(n)                                     \
    case n:                                         \
        if (w->bits == 4)                           \
            tile_rows(w, at, x, out, n, 4);         \
        else                                        \
            tile_rows(w, at, x, out, n, 8);         \
        break;
    for (int64_t done = 0; done < rows; done += 8, x += 8 * (w->columns / GROUP), out += 8 * TILE)
        switch (rows - done < 8 ? rows - done : 8) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* x += the product, this thread's tiles of it. */
static void add_product(const Matrix *w, const Inputs *in, int64_t rows, float *y, float *x) {
#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < w->rows / TILE; t++) {
        product(w, t, in, rows, y);
        for (int64_t i = 0; i < rows * TILE; i++) x[i / TILE * w->rows + t * TILE + i % TILE] += y[i];
    }
}

/* To 8 bits, the largest of each group to 127. What is not a number, or infinite, makes its group's scale NaN. */
static void quantize(const float *x, int64_t count, Inputs *out) {
    for (int64_t g = 0; g < count / GROUP; g++, x += GROUP, out++) {
        vi bits = {0}; /* a float's bits without the sign, compared as integers: NaN is the largest */
        for (int i = 0; i < GROUP; i += LANES) {
            const vi each = (vi)load(x + i) & 0x7fffffff;
            bits = (vi)choose(each > bits, (vf)each, (vf)bits);
        }
        int32_t most = 0;
        for (int i = 0; i < LANES; i++) most = bits[i] > most ? bits[i] : most;
        float largest;
        memcpy(&largest, &most, 4);
        if (!(largest < INFINITY)) {
            memset(out, 0, sizeof *out);
            out->scale = NAN;
            continue;
        }
        const float inverse = largest > 1e-35f ? 127 / largest : 0;
        vi total = {0};
        for (int i = 0; i < GROUP; i += LANES) {
            const vi rounded = (vi)(load(x + i) * inverse + 12582912.0f) - 0x4b400000; /* as in `exponential` */
            total += rounded;
            for (int lane = 0; lane < LANES; lane++) out->code[i + lane] = (int8_t)rounded[lane];
        }
        out->sum = 0;
        for (int i = 0; i < LANES; i++) out->sum += total[i];
        out->scale = largest / 127;
    }
}

/* RMSNorm of every row, in 8 bits. Each thread does it for itself: cheaper than to meet. */
static void normalize(const float *x, const float *weight, const Model *m, int64_t rows, float *row, Inputs *out) {
    for (int64_t b = 0; b < rows; b++, x += m->dim) {
        vf squares = {0};
        for (int64_t i = 0; i < m->dim; i += LANES) squares += load(x + i) * load(x + i);
        const float factor = 1 / sqrtf(sum(squares) / m->dim + (float)m->eps);
        for (int64_t i = 0; i < m->dim; i += LANES) store(row + i, load(x + i) * factor * load(weight + i));
        quantize(row, m->dim, out + b * (m->dim / GROUP));
    }
}

/* A row of a packed matrix in float32: a token's embedding. */
static void unpack_row(const Matrix *w, int64_t row, float *out) {
    const uint8_t *tile = tile_of(w, row / TILE), *codes = tile + scales_bytes(w);
    const int64_t lane = row % TILE;
    for (int64_t i = 0; i < w->columns; i++) {
        const uint8_t *group = codes + i / GROUP * codes_bytes(w) + 4 * lane + i % 4;
        const int64_t four = i % GROUP / 4;
        uint16_t half;
        memcpy(&half, tile + 2 * (i / GROUP * TILE + lane), 2);
        const int code = w->bits == 8 ? group[64 * four] - 128 : (group[four / 2 * 64] >> (four % 2 * 4) & 15) - 8;
        out[i] = code * half_to_float(half);
    }
}

static void rotate(float *x, const float *cosines, const float *sines, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cosines[i] - odd * sines[i];
        x[2 * i + 1] = even * sines[i] + odd * cosines[i];
    }
}

/* Attention of one key-value head's `group` query heads to `count` places. Each head's result is its weighted sum of
   values, then the weights' sum, then the largest score, which the weights are relative to. A key is loaded once. */
INLINE void attend(const float *q, int64_t group, const char *keys, const char *values, int64_t *place, int64_t count,
                   float *scores, float *out, int64_t stride, const int64_t width, const int bfloat16) {
    const int64_t place_bytes = width * (bfloat16 ? 2 : 4);
    for (int64_t i = 0; i < count; i++) {
        const int64_t later = place[i + 8 < count ? i + 8 : count - 1];
        for (int64_t line = 0; line < place_bytes; line += 64) { /* the values are wanted after the chunk's keys */
            __builtin_prefetch(keys + later * place_bytes + line, 0, 2);
            __builtin_prefetch(values + place[i] * place_bytes + line, 0, 2);
        }
        vf key[WIDEST / LANES];
        for (int64_t e = 0; e < width; e += LANES) key[e / LANES] = load_cached(keys, place[i] * width + e, bfloat16);
        for (int64_t h = 0; h < group; h++) {
            vf s = {0};
            for (int64_t e = 0; e < width; e += LANES) s += load(q + h * width + e) * key[e / LANES];
            scores[h * CHUNK + i] = sum(s);
        }
    }
    int64_t filled = (count + 15) / 16 * 16; /* places that fill up the last vector weigh nothing */
    for (int64_t i = count; i < filled; i++) place[i] = place[count - 1];
    for (int64_t h = 0; h < group; h++) {
        float *s = scores + h * CHUNK, most = s[0];
        for (int64_t i = 1; i < count; i++) most = s[i] > most ? s[i] : most;
        for (int64_t i = count; i < filled; i++) s[i] = most;
        for (int64_t i = 0; i < filled; i += LANES) store(s + i, exponential(load(s + i) - most));
        for (int64_t i = count; i < filled; i++) s[i] = 0;
        vf total = {0};
        for (int64_t i = 0; i < filled; i += LANES) total += load(s + i);
        memset(out + h * stride, 0, width * sizeof(float));
        out[h * stride + width] = sum(total);
        out[h * stride + width + 1] = most;
    }
    for (int64_t i = 0; i < filled; i += 4)
        for (int64_t e = 0; e < width; e += LANES) {
            vf v[4];
            for (int k = 0; k < 4; k++) v[k] = load_cached(values, place[i + k] * width + e, bfloat16);
            for (int64_t h = 0; h < group; h++) {
                const float *p = scores + h * CHUNK + i;
                float *to = out + h * stride + e;
                store(to, load(to) + v[0] * p[0] + v[1] * p[1] + v[2] * p[2] + v[3] * p[3]);
            }
        }
}

/* One chunk of one row and key-value head: turns its queries, stores the new key and value if they stand in it. */
static void attend_chunk(const Model *m, int64_t layer, int64_t kv, int64_t chunk, int64_t position,
                         const int32_t *table, float *qkv, float *scores, float *out, int64_t stride) {
    const int64_t width = m->head_dim, group = m->heads / m->kv_heads;
    const int64_t head_bytes = m->places * width * (m->bfloat16 ? 2 : 4);
    char *keys = m->cache + (2 * layer * m->kv_heads + kv) * head_bytes, *values = keys + m->kv_heads * head_bytes;
    const float *cosines = m->cosines + position * (width / 2), *sines = m->sines + position * (width / 2);
    const int64_t start = chunk * CHUNK, end = position + 1 < start + CHUNK ? position + 1 : start + CHUNK;
    int64_t place[CHUNK];
    for (int64_t i = start; i < end; i++) place[i - start] = table[i / m->block] * m->block + i % m->block;
    float *q = scores + group * CHUNK;
    memcpy(q, qkv + kv * group * width, group * width * sizeof(float));
    for (int64_t h = 0; h < group; h++) {
        rotate(q + h * width, cosines, sines, width);
        for (int64_t e = 0; e < width; e++) q[h * width + e] /= sqrtf((float)width);
    }
    if (end == position + 1) {
        float *key = qkv + (m->heads + kv) * width, *value = key + m->kv_heads * width;
        const int64_t at = place[position - start] * width;
        rotate(key, cosines, sines, width);
        for (int64_t e = 0; e < width; e++) store_cached(keys, at + e, key[e], m->bfloat16);
        for (int64_t e = 0; e < width; e++) store_cached(values, at + e, value[e], m->bfloat16);
    }
#define ATTEND(width, bfloat16) \
    attend(q, group, keys, values, place, end - start, scores, out, stride, width, bfloat16)
    if (m->bfloat16 && width == 64) /* the common shapes get loops of known length */
        ATTEND(64, 1);
    else if (m->bfloat16 && width == 128)
        ATTEND(128, 1);
    else if (m->bfloat16)
        ATTEND(width, 1);
    else
        ATTEND(width, 0);
#undef ATTEND
}

/* A head's chunks together: their sums, each relative to the largest score of all. */
static void merge(const float *chunk, int64_t count, int64_t stride, int64_t width, float *out) {
    float most = chunk[width + 1], total = 0;
    for (int64_t c = 1; c < count; c++)
        most = chunk[c * stride + width + 1] > most ? chunk[c * stride + width + 1] : most;
    memset(out, 0, width * sizeof(float));
    for (int64_t c = 0; c < count; c++, chunk += stride) {
        const float weight = expf(chunk[width + 1] - most);
        total += weight * chunk[width];
        for (int64_t e = 0; e < width; e++) out[e] += weight * chunk[e];
    }
    for (int64_t e = 0; e < width; e++) out[e] /= total;
}

/* Threads meet here, five times a layer. OpenMP's own barrier spins for milliseconds, and on a busy machine the thread
   that is waited for gets no processor: steps of 10 ms took 800. */
typedef struct {
    int64_t arrived, round;
} Meeting;

static void meet(Meeting *m) {
#ifdef _OPENMP
    const int64_t round = __atomic_load_n(&m->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_ACQ_REL) == omp_get_num_threads()) {
        __atomic_store_n(&m->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&m->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int64_t spins = 0; __atomic_load_n(&m->round, __ATOMIC_ACQUIRE) == round; spins++) {
        if (spins >= SPINS) sched_yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
#else
    (void)m;
#endif
}

/* Logits (rows, vocabulary) after one token each of `rows` sequences. `tables` (rows, columns) holds each sequence's
   blocks, `positions` where its token stands. 0, or 1 where memory for the step is missing. */
int herd_decode(const Model *m, int64_t rows, const int32_t *tokens, const int32_t *positions, const int32_t *tables,
                int64_t columns, float *logits, int64_t threads) {
    const int64_t width = m->head_dim, group = m->heads / m->kv_heads, attended = m->heads * width;
    const int64_t projected = attended + 2 * m->kv_heads * width, stride = width + LANES;
    int64_t chunks = 1, widest = m->dim;
    for (int64_t b = 0; b < rows; b++) chunks = positions[b] / CHUNK + 1 > chunks ? positions[b] / CHUNK + 1 : chunks;
    widest = m->ffn_dim > widest ? m->ffn_dim : widest;
    widest = attended > widest ? attended : widest;
    const int64_t shared = rows * (m->dim + projected + m->ffn_dim + m->heads * chunks * stride);
    const int64_t inputs = rows * widest / GROUP * (int64_t)sizeof(Inputs) / 4;
    const int64_t own = (inputs + widest + group * (CHUNK + width) + 2 * rows * TILE + 15) / 16 * 16;
    float *memory = malloc((shared + threads * own) * sizeof(float));
    if (!memory) return 1;
    Meeting meeting = {0, 0};
    float *x = memory, *qkv = x + rows * m->dim, *gated = qkv + rows * projected, *parts = gated + rows * m->ffn_dim;
#pragma omp parallel num_threads((int)threads)
    {
#ifdef _OPENMP
        float *mine = memory + shared + omp_get_thread_num() * own;
#else
        float *mine = memory + shared;
#endif
        Inputs *in = (Inputs *)mine;
        float *row = mine + inputs, *scores = row + widest, *y = scores + group * (CHUNK + width), *z = y + rows * TILE;
#pragma omp for schedule(static) nowait
        for (int64_t b = 0; b < rows; b++) unpack_row(&m->embeddings, tokens[b], x + b * m->dim);
        meet(&meeting);
        for (int64_t l = 0; l < m->layers; l++) {
            const Layer *layer = m->layer + l;
            const int64_t of_q = attended / TILE, of_k = m->kv_heads * width / TILE;
            normalize(x, layer->attention_norm, m, rows, row, in);
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < projected / TILE; t++) {
                const Matrix *w = t < of_q ? &layer->wq : t < of_q + of_k ? &layer->wk : &layer->wv;
                product(w, t < of_q ? t : (t - of_q) % of_k, in, rows, y);
                for (int64_t b = 0; b < rows; b++)
                    memcpy(qkv + b * projected + t * TILE, y + b * TILE, TILE * sizeof(float));
            }
            meet(&meeting);
#pragma omp for schedule(static) nowait
            for (int64_t task = 0; task < rows * m->kv_heads * chunks; task++) {
                const int64_t b = task / (m->kv_heads * chunks), kv = task / chunks % m->kv_heads, c = task % chunks;
                if (c * CHUNK <= positions[b])
                    attend_chunk(m, l, kv, c, positions[b], tables + b * columns, qkv + b * projected, scores,
                                 parts + ((b * m->heads + kv * group) * chunks + c) * stride, chunks * stride);
            }
            meet(&meeting);
            for (int64_t b = 0; b < rows; b++) {
                for (int64_t h = 0; h < m->heads; h++)
                    merge(parts + (b * m->heads + h) * chunks * stride, positions[b] / CHUNK + 1, stride, width,
                          row + h * width);
                quantize(row, attended, in + b * (attended / GROUP));
            }
            add_product(&layer->wo, in, rows, y, x);
            meet(&meeting);
            normalize(x, layer->ffn_norm, m, rows, row, in);
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < m->ffn_dim / TILE; t++) {
                product(&layer->w1, t, in, rows, y);
                product(&layer->w3, t, in, rows, z);
                for (int64_t i = 0; i < rows * TILE; i += LANES) { /* silu(y) * z */
                    const vf gate = load(y + i), silu = gate / (1.0f + exponential(-gate));
                    store(gated + i / TILE * m->ffn_dim + t * TILE + i % TILE, silu * load(z + i));
                }
            }
            meet(&meeting);
            for (int64_t b = 0; b < rows; b++)
                quantize(gated + b * m->ffn_dim, m->ffn_dim, in + b * (m->ffn_dim / GROUP));
            add_product(&layer->w2, in, rows, y, x);
            meet(&meeting);
        }
        normalize(x, m->norm, m, rows, row, in);
#pragma omp for schedule(static) nowait
        for (int64_t t = 0; t < (m->output.rows + TILE - 1) / TILE; t++) {
            product(&m->output, t, in, rows, y);
            const int64_t left = m->output.rows - t * TILE, count = left < TILE ? left : TILE;
            for (int64_t b = 0; b < rows; b++)
                memcpy(logits + b * m->output.rows + t * TILE, y + b * TILE, count * sizeof(float));
        }
    }
    free(memory);
    return 0;
}
