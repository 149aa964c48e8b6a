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

enum { RUN = 256, OUTPUTS = 8 };
enum { POLICY, REFERENCE, KL, KL_REF, ENTROPY, CROSS_ENTROPY, TV, JS };

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
    double kl, kl_ref, entropy, cross_entropy, tv, js;
} Sums;

static inline __attribute__((always_inline)) Sums sums(const float *a, const float *b, int64_t n, float most_a, float most_b, float mass_a,
                        float mass_b, float inverse_temperature, int with_js) {
    Sums total = {0};
    for (int64_t from = 0; from < n; from += RUN) {
        int64_t until = from + RUN < n ? from + RUN : n;
        float kl = 0, kl_ref = 0, entropy = 0, cross = 0, tv = 0, js = 0;
#pragma omp simd reduction(+ : kl, kl_ref, entropy, cross, tv, js)
        for (int64_t v = from; v < until; v++) {
            float la = (a[v] - most_a) * inverse_temperature - mass_a;
            float lb = (b[v] - most_b) * inverse_temperature - mass_b;
            float p = exp_of_negative(la < 0 ? la : la * 0), q = exp_of_negative(lb < 0 ? lb : lb * 0);
            float d = la - lb, d2 = d * d;
            int near = d < 1.0f && d > -1.0f;
            /* expm1(-d) + d = even - odd, expm1(d) - d = even + odd */
            float even = 1.0f / 3628800, odd = 1.0f / 39916800;
            even = even * d2 + 1.0f / 40320;
            even = even * d2 + 1.0f / 720;
            even = even * d2 + 1.0f / 24;
            even = (even * d2 + 0.5f) * d2;
            odd = odd * d2 + 1.0f / 362880;
            odd = odd * d2 + 1.0f / 5040;
            odd = odd * d2 + 1.0f / 120;
            odd = (odd * d2 + 1.0f / 6) * d2 * d;
            float far_kl = p * d - p + q, far_ref = p - q - q * d;
            far_kl = p == 0 ? q : far_kl;
            far_ref = q == 0 ? p : far_ref;
            kl += near ? p * (even - odd) : far_kl;
            kl_ref += near ? q * (even + odd) : far_ref;
            entropy -= p == 0 ? 0 : p * la;
            cross -= p == 0 ? 0 : p * lb;
            float apart = near ? p * (d - (even - odd)) : p - q;
            tv += apart < 0 ? -apart : apart;
            if (with_js) {
                float s2 = d2 * 0.25f;
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
        total.cross_entropy += cross, total.tv += tv, total.js += js;
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
    out[JS] = (float)all.js;
}

void kleash_scores(const float *a, const float *b, const int64_t *ids, int64_t rows, int64_t vocab,
                   float inverse_temperature, int level, int threads, float *out) {
    (void)threads; /* without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        score_row(a + row * vocab, b + row * vocab, vocab, ids[row], inverse_temperature, level, out + row * OUTPUTS);
}
