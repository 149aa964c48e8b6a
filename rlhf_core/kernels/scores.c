/* Per-token scores of two models from their logits: two sweeps over each row pair, which fits the second-level cache.
 *
 * The sums over the vocabulary are those of numerics of rlhf_core/kl.py (`kl_terms`): every term of a divergence is
 * never negative and second order in an error of the log-sum-exps. Terms are summed in float over short runs and in
 * double over these. A row's result does not depend on other rows or on the number of threads.
 *
 * Compiled by rlhf_core/kernels/build.py; plain C, no header but the standard library's.
 */
#include <math.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif

enum { RUN = 256, OUTPUTS = 11 };
enum { POLICY, REFERENCE, KL, KL_REF, ENTROPY, CROSS_ENTROPY, TV, ENTROPY_REF, POLICY_RANK, REFERENCE_RANK, JS };

/* e^x for x <= 0, relative error 1.2e-7; 0 below -87.3; NaN stays NaN. */
static inline __attribute__((always_inline)) float exp_of_negative(float x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    union { float f; int32_t i; } n;
    n.f = x * 1.44269504088896341f + round;
    float whole = n.f - round;
    float r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    union { int32_t i; float f; } scale;
    scale.i = (int32_t)((uint32_t)n.i << 23) + 0x3f800000; /* 2^n */
    return x < -87.3f ? 0.0f : p * scale.f;
}

/* ln x for 1/2 <= x <= 0.69 */
static inline __attribute__((always_inline)) float log_near_half(float x) {
    float z = (x - 1.0f) / (x + 1.0f), z2 = z * z;
    float s = 1.0f / 15;
    s = s * z2 + 1.0f / 13;
    s = s * z2 + 1.0f / 11;
    s = s * z2 + 1.0f / 9;
    s = s * z2 + 1.0f / 7;
    s = s * z2 + 1.0f / 5;
    s = s * z2 + 1.0f / 3;
    return 2.0f * z * (1.0f + z2 * s);
}

static inline __attribute__((always_inline)) float largest(const float *x, int64_t n) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t v = 0; v < n; v++) most = x[v] > most ? x[v] : most;
    return most;
}

/* 1 + how many are larger than x[id] */
static inline __attribute__((always_inline)) float rank(const float *x, int64_t n, int64_t id) {
    float own = x[id];
    int32_t larger = 1;
#pragma omp simd reduction(+ : larger)
    for (int64_t v = 0; v < n; v++) larger += x[v] > own;
    return own == own ? (float)larger : own; /* NaN has none */
}

/* expm1(-d) + d = even - odd, expm1(d) - d = even + odd, for |d| < 1 */
typedef struct {
    float even, odd;
} Series;

static inline __attribute__((always_inline)) Series series(float d) {
    float d2 = d * d;
    Series s = {1.0f / 3628800, 1.0f / 39916800};
    s.even = s.even * d2 + 1.0f / 40320;
    s.even = s.even * d2 + 1.0f / 720;
    s.even = s.even * d2 + 1.0f / 24;
    s.even = (s.even * d2 + 0.5f) * d2;
    s.odd = s.odd * d2 + 1.0f / 362880;
    s.odd = s.odd * d2 + 1.0f / 5040;
    s.odd = s.odd * d2 + 1.0f / 120;
    s.odd = (s.odd * d2 + 1.0f / 6) * d2 * d;
    return s;
}

/* ln sum e^((x - most) / T), and NaN for a row without any mass */
static inline __attribute__((always_inline)) double log_mass(const float *x, int64_t n, float most, float inverse_temperature) {
    double mass = 0;
    for (int64_t from = 0; from < n; from += RUN) {
        int64_t until = from + RUN < n ? from + RUN : n;
        float run = 0;
#pragma omp simd reduction(+ : run)
        for (int64_t v = from; v < until; v++) run += exp_of_negative((x[v] - most) * inverse_temperature);
        mass += run;
    }
    return log(mass);
}

typedef struct {
    double kl, kl_ref, entropy, cross_entropy, tv, entropy_ref, js;
} Sums;

static inline __attribute__((always_inline)) Sums sums(const float *a, const float *b, int64_t n, float most_a, float most_b, float mass_a,
                        float mass_b, float inverse_temperature, int with_js) {
    Sums total = {0};
    for (int64_t from = 0; from < n; from += RUN) {
        int64_t until = from + RUN < n ? from + RUN : n;
        float kl = 0, kl_ref = 0, entropy = 0, cross = 0, tv = 0, entropy_ref = 0, js = 0;
#pragma omp simd reduction(+ : kl, kl_ref, entropy, cross, tv, entropy_ref, js)
        for (int64_t v = from; v < until; v++) {
            float la = (a[v] - most_a) * inverse_temperature - mass_a;
            float lb = (b[v] - most_b) * inverse_temperature - mass_b;
            float p = exp_of_negative(la < 0 ? la : la * 0), q = exp_of_negative(lb < 0 ? lb : lb * 0);
            float d = la - lb;
            int near = d < 1.0f && d > -1.0f;
            float even = series(d).even, odd = series(d).odd;
            float far_kl = p * d - p + q, far_ref = p - q - q * d;
            far_kl = p == 0 ? q : far_kl;
            far_ref = q == 0 ? p : far_ref;
            kl += near ? p * (even - odd) : far_kl;
            kl_ref += near ? q * (even + odd) : far_ref;
            entropy -= p == 0 ? 0 : p * la;
            cross -= p == 0 ? 0 : p * lb;
            entropy_ref -= q == 0 ? 0 : q * lb;
            float apart = near ? p * (d - (even - odd)) : p - q;
            tv += apart < 0 ? -apart : apart;
            if (with_js) {
                float s2 = d * d * 0.25f;
                float g = -559.0f / 5443200;
                g = g * s2 + 443.0f / 1209600;
                g = g * s2 - 1.0f / 720;
                g = g * s2 + 1.0f / 144;
                g = (g * (s2 * s2) + 0.5f) * s2;
                float high = p > q ? p : q, low = p > q ? q : p, gap = d < 0 ? -d : d;
                float l = log_near_half((1.0f + low / high) * 0.5f);
                float far_js = low == 0 ? high * 0.693147181f : -(high + low) * l - low * gap;
                far_js = high == 0 ? 0 : far_js * 0.5f;
                js += near ? sqrtf(p * q) * g : (low == 0 ? high * 0.34657359f : far_js);
            }
        }
        total.kl += kl, total.kl_ref += kl_ref, total.entropy += entropy;
        total.cross_entropy += cross, total.tv += tv, total.entropy_ref += entropy_ref, total.js += js;
    }
    return total;
}

/* level 0: log-probabilities only, 1: all but JS, 2: all. */
EVERY_CPU
static void score_row(const float *a, const float *b, int64_t n, int64_t id, float inverse_temperature, int level,
                      float *out) {
    float most_a = largest(a, n), most_b = largest(b, n);
    double mass_a = log_mass(a, n, most_a, inverse_temperature), mass_b = log_mass(b, n, most_b, inverse_temperature);
    out[POLICY] = (float)((a[id] - most_a) * inverse_temperature - mass_a);
    out[REFERENCE] = (float)((b[id] - most_b) * inverse_temperature - mass_b);
    if (level == 0) return;
    Sums all = level == 1 ? sums(a, b, n, most_a, most_b, (float)mass_a, (float)mass_b, inverse_temperature, 0)
                          : sums(a, b, n, most_a, most_b, (float)mass_a, (float)mass_b, inverse_temperature, 1);
    out[KL] = (float)all.kl;
    out[KL_REF] = (float)all.kl_ref;
    out[ENTROPY] = (float)all.entropy;
    out[CROSS_ENTROPY] = (float)all.cross_entropy;
    out[TV] = (float)(all.tv / 2);
    out[ENTROPY_REF] = (float)all.entropy_ref;
    out[POLICY_RANK] = rank(a, n, id);
    out[REFERENCE_RANK] = rank(b, n, id);
    out[JS] = (float)all.js;
}

void kleash_scores(const float *a, const float *b, const int64_t *ids, int64_t rows, int64_t vocab,
                   float inverse_temperature, int level, int threads, float *out) {
    (void)threads; /* without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        score_row(a + row * vocab, b + row * vocab, vocab, ids[row], inverse_temperature, level, out + row * OUTPUTS);
}

/* The k largest terms of KL(a || b), largest first, of equal ones the first: items, and three numbers of each. */
EVERY_CPU
static void top_of_row(const float *a, const float *b, int64_t n, float inverse_temperature, int k, int32_t *items,
                       float *policy, float *reference, float *terms) {
    float most_a = largest(a, n), most_b = largest(b, n);
    float mass_a = (float)log_mass(a, n, most_a, inverse_temperature);
    float mass_b = (float)log_mass(b, n, most_b, inverse_temperature);
    float h[RUN];
    int found = 0;
    for (int64_t from = 0; from < n; from += RUN) {
        int64_t until = from + RUN < n ? from + RUN : n;
        float most = -INFINITY;
#pragma omp simd reduction(max : most)
        for (int64_t v = from; v < until; v++) {
            float la = (a[v] - most_a) * inverse_temperature - mass_a;
            float lb = (b[v] - most_b) * inverse_temperature - mass_b;
            float p = exp_of_negative(la < 0 ? la : la * 0), q = exp_of_negative(lb < 0 ? lb : lb * 0);
            float d = la - lb, far = p == 0 ? q : p * d - p + q;
            float term = d < 1.0f && d > -1.0f ? p * (series(d).even - series(d).odd) : far;
            h[v - from] = term;
            most = term > most ? term : most;
        }
        if (found == k && !(most > terms[k - 1])) continue;
        for (int64_t v = from; v < until; v++) {
            float term = h[v - from];
            if (found == k && !(term > terms[k - 1])) continue;
            int place = found < k ? found++ : k - 1;
            for (; place > 0 && term > terms[place - 1]; place--) {
                terms[place] = terms[place - 1];
                items[place] = items[place - 1];
            }
            terms[place] = term;
            items[place] = (int32_t)v;
        }
    }
    for (int i = 0; i < k; i++) {
        policy[i] = (a[items[i]] - most_a) * inverse_temperature - mass_a;
        reference[i] = (b[items[i]] - most_b) * inverse_temperature - mass_b;
    }
}

/* k <= vocab */
void kleash_top_terms(const float *a, const float *b, int64_t rows, int64_t vocab, float inverse_temperature, int k,
                      int threads, int32_t *items, float *policy, float *reference, float *terms) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        top_of_row(a + row * vocab, b + row * vocab, vocab, inverse_temperature, k, items + row * k, policy + row * k,
                   reference + row * k, terms + row * k);
}

/* out = of_logprob d logprob/da + of_entropy d entropy/da + of_kl d KL/da, the weights given for the row:
 *   d logprob/da = onehot - p,  d H/da = -p (ln p + H),  d KL/da = p (ln p - ln q - KL);  all by inverse_temperature.
 * b may be null; out may be b. */
EVERY_CPU
static void row_gradient(const float *a, const float *b, float *out, int64_t n, int64_t id, float inverse_temperature, float of_logprob,
                         float of_entropy, float of_kl, float entropy, float kl) {
    float most_a = largest(a, n), mass_a = (float)log_mass(a, n, most_a, inverse_temperature);
    float most_b = 0, mass_b = 0;
    if (b) {
        most_b = largest(b, n);
        mass_b = (float)log_mass(b, n, most_b, inverse_temperature);
    } else {
        b = a; /* read and multiplied by 0 */
        of_kl = 0;
    }
    float own = of_logprob * inverse_temperature;
    if (of_entropy == 0 && of_kl == 0) {
#pragma omp simd
        for (int64_t v = 0; v < n; v++) {
            float la = (a[v] - most_a) * inverse_temperature - mass_a;
            out[v] = -own * exp_of_negative(la < 0 ? la : la * 0);
        }
    } else {
#pragma omp simd
        for (int64_t v = 0; v < n; v++) {
            float la = (a[v] - most_a) * inverse_temperature - mass_a;
            float lb = (b[v] - most_b) * inverse_temperature - mass_b;
            float p = exp_of_negative(la < 0 ? la : la * 0);
            float apart = of_kl == 0 ? 0 : of_kl * (la - lb - kl), spread = of_entropy * (la + entropy);
            out[v] = p == 0 ? 0 : p * (apart - spread - of_logprob) * inverse_temperature;
        }
    }
    out[id] += own;
}

void kleash_gradient(const float *a, const float *b, const int64_t *ids, float *out, int64_t rows, int64_t vocab,
                     float inverse_temperature, int threads, const float *of_logprob, const float *of_entropy, const float *of_kl,
                     const float *entropy, const float *kl) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        row_gradient(a + row * vocab, b ? b + row * vocab : 0, out + row * vocab, vocab, ids[row], inverse_temperature,
                     of_logprob[row], of_entropy[row], of_kl[row], entropy[row], kl[row]);
}
