// Normalisation by moments with an optional leaky ReLU, and its first two derivatives; formulas
// stand in core/ops/normalization.py. A group stays in the cache from one pass to the next.
//
// Axes: [n, N, C]; a group is the N elements of one n and one channel.

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace {

using Int = std::int64_t;

constexpr int kWide = 32;  // channels side by side
constexpr int kRun = 32;   // elements that are summed before the sum is added to the total

// Sums over N of `many` values for each of L channels; of runs first, which are added up in double,
// so that rounding does not grow with N.
template <typename T, int L, int many>
struct Sums {
    double total[many][L] = {};
    T run[many][L] = {};

    template <typename Each>
    inline void over(Int count, Each each) {
        for (Int begin = 0; begin < count; begin += kRun) {
            const Int end = begin + kRun < count ? begin + kRun : count;
            for (Int i = begin; i < end; ++i) each(i, run);
            for (int m = 0; m < many; ++m)
                for (int c = 0; c < L; ++c) total[m][c] += run[m][c], run[m][c] = 0;
        }
    }
};

// `strip.template run<L>(n, c)` for channels c … c + L - 1 of each n, in strips as wide as fit.
template <typename Strip>
void each_strip(Int outer, Int channels, int threads, Strip strip) {
    const Int wide = channels / kWide, rest = wide + (channels % kWide ? 1 : 0);
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
    for (Int n = 0; n < outer; ++n)
        for (Int s = 0; s < rest; ++s) {
            Int c = s * kWide;
            if (s < wide) {
                strip.template run<kWide>(n, c);
                continue;
            }
            for (; c + 16 <= channels; c += 16) strip.template run<16>(n, c);
            for (; c + 8 <= channels; c += 8) strip.template run<8>(n, c);
            for (; c < channels; ++c) strip.template run<1>(n, c);
        }
}

// x where a result y of a leaky ReLU is above 0, else leak·x. If nothing leaks it is 0, also of an x
// that is not finite, and x where y is NaN, as torch has it. Of selected factors, so that no branch
// keeps a loop from being vectorised.
template <typename T>
inline T gated(T x, T y, T leak) {
    const T leaky = x * (y > T(0) ? T(1) : leak), closed = y <= T(0) ? T(0) : x;
    return leak == T(0) ? closed : leaky;
}

// The same at k where there is an activation (`acts`), else x.
template <bool acts, typename T>
inline T gated(T x, const T* y, Int k, T leak) {
    if constexpr (acts) return gated(x, y[k], leak);
    return x;
}

// `run(std::bool_constant<…>())`: whether such a slope below 0 is an activation.
template <typename Run>
void by_leak(double leak, Run run) {
    if (leak == 1) run(std::false_type());
    else run(std::true_type());
}

template <typename T, bool acts>
struct Forward {
    const T *z, *gamma, *beta;  // gamma, beta [n, C] or null
    T *y, *centred, *r;         // r [n, C]
    Int count, channels;
    T eps, leak;

    template <int L>
    void run(Int n, Int c0) const {
        const Int at = n * channels + c0;
        const T* from = z + n * count * channels + c0;
        T* __restrict mid = centred + n * count * channels + c0;
        T* __restrict to = y + n * count * channels + c0;
        Sums<T, L, 1> first, second;
        first.over(count, [&](Int i, T(&sum)[1][L]) {
#pragma omp simd
            for (int c = 0; c < L; ++c) sum[0][c] += from[i * channels + c];
        });
        T mean[L], slope[L], shift[L];
        for (int c = 0; c < L; ++c) mean[c] = T(first.total[0][c] / double(count));
        second.over(count, [&](Int i, T(&sum)[1][L]) {
#pragma omp simd
            for (int c = 0; c < L; ++c) {
                const T value = from[i * channels + c] - mean[c];
                mid[i * channels + c] = value;
                sum[0][c] += value * value;
            }
        });
        for (int c = 0; c < L; ++c) {
            r[at + c] = T(1) / std::sqrt(T(second.total[0][c] / double(count)) + eps);
            slope[c] = gamma ? r[at + c] * gamma[at + c] : r[at + c];
            shift[c] = beta ? beta[at + c] : T(0);
        }
        for (Int i = 0; i < count; ++i)
#pragma omp simd
            for (int c = 0; c < L; ++c) {
                const T value = mid[i * channels + c] * slope[c] + shift[c];
                to[i * channels + c] = acts ? gated(value, value, leak) : value;
            }
    }
};

template <typename T, bool acts>
struct Backward {
    const T *dy, *y, *centred, *gamma, *r;  // y read where there is something behind
    T *dz, *s1, *s2;                        // s1, s2 [n, C]
    Int count, channels;
    T leak;

    template <int L>
    void run(Int n, Int c0) const {
        const Int at = n * channels + c0, begin = n * count * channels + c0;
        const T *g = dy + begin, *gate = acts ? y + begin : y, *x = centred + begin;
        T* __restrict to = dz + begin;
        Sums<T, L, 2> sums;
        sums.over(count, [&](Int i, T(&sum)[2][L]) {
#pragma omp simd
            for (int c = 0; c < L; ++c) {
                const Int k = i * channels + c;
                const T value = gated<acts>(g[k], gate, k, leak);
                sum[0][c] += value;
                sum[1][c] += value * x[k];
            }
        });
        T a[L], c0_[L], c1_[L];
        for (int c = 0; c < L; ++c) {
            const T scale = r[at + c];
            s1[at + c] = T(sums.total[0][c]);
            s2[at + c] = T(sums.total[1][c]);
            a[c] = gamma ? scale * gamma[at + c] : scale;
            c0_[c] = -a[c] * s1[at + c] / T(count);
            c1_[c] = -a[c] * scale * scale * s2[at + c] / T(count);
        }
        for (Int i = 0; i < count; ++i)
#pragma omp simd
            for (int c = 0; c < L; ++c) {
                const Int k = i * channels + c;
                to[k] = c0_[c] + x[k] * c1_[c] + gated<acts>(g[k], gate, k, leak) * a[c];
            }
    }
};

template <typename T, bool acts>
struct Second {
    const T *u, *ugamma, *ubeta;  // cotangents of dz, dγ, dβ, null where there is none
    const T *dy, *y, *centred, *gamma, *r, *s1, *s2;
    T *gdy, *gz, *ggamma;  // ggamma [n, C]
    Int count, channels;
    T leak;

    template <int L>
    void run(Int n, Int c0) const {
        const Int at = n * channels + c0, begin = n * count * channels + c0;
        const T *g = dy + begin, *gate = acts ? y + begin : y, *x = centred + begin;
        const T* along = u ? u + begin : nullptr;
        T *__restrict to_dy = gdy + begin, *__restrict to_z = gz + begin;
        Sums<T, L, 1> first;
        Sums<T, L, 2> sums;
        T mean[L] = {}, a[L], a_[L], b_[L], c0_[L], c1[L], c1_[L];
        if (along) {
            first.over(count, [&](Int i, T(&sum)[1][L]) {
#pragma omp simd
                for (int c = 0; c < L; ++c) sum[0][c] += along[i * channels + c];
            });
            for (int c = 0; c < L; ++c) mean[c] = T(first.total[0][c] / double(count));
            sums.over(count, [&](Int i, T(&sum)[2][L]) {
#pragma omp simd
                for (int c = 0; c < L; ++c) {
                    const Int k = i * channels + c;
                    const T tangent = along[k] - mean[c];
                    sum[0][c] += tangent * x[k];
                    sum[1][c] += tangent * gated<acts>(g[k], gate, k, leak);
                }
            });
        }
        for (int c = 0; c < L; ++c) {
            const T scale = r[at + c], squared = scale * scale, many = -T(count);
            const T s2_ = T(sums.total[1][c]);
            const T r_ = T(sums.total[0][c]) * squared * scale / many;
            a[c] = gamma ? scale * gamma[at + c] : scale;
            a_[c] = (gamma ? r_ * gamma[at + c] : r_) + (ugamma ? scale * ugamma[at + c] : T(0));
            b_[c] = ubeta ? ubeta[at + c] : T(0);
            c0_[c] = a_[c] * s1[at + c] / many;
            c1[c] = a[c] * squared * s2[at + c] / many;
            c1_[c] = (a_[c] * squared * s2[at + c] + 2 * a[c] * scale * r_ * s2[at + c] +
                      a[c] * squared * s2_) / many;
            ggamma[at + c] = s2_ * scale + s2[at + c] * r_;
        }
        for (Int i = 0; i < count; ++i)
#pragma omp simd
            for (int c = 0; c < L; ++c) {
                const Int k = i * channels + c;
                const T tangent = along ? along[k] - mean[c] : T(0);
                to_dy[k] = gated<acts>(b_[c] + tangent * a[c] + x[k] * a_[c], gate, k, leak);
                to_z[k] = c0_[c] + x[k] * c1_[c] + tangent * c1[c] +
                          gated<acts>(g[k], gate, k, leak) * a_[c];
            }
    }
};

}  // namespace

#define FOR_TYPE(T, NAME)                                                                        \
    extern "C" void norm_##NAME(const T* z, const T* gamma, const T* beta, T* y, T* centred,     \
                                T* r, Int outer, Int count, Int channels, double eps,            \
                                double leak, int threads) {                                      \
        by_leak(leak, [&](auto acts) {                                                           \
            each_strip(outer, channels, threads,                                                 \
                       Forward<T, acts>{z, gamma, beta, y, centred, r, count, channels, T(eps),  \
                                       T(leak)});                                                \
        });                                                                                      \
    }                                                                                            \
    extern "C" void norm_backward_##NAME(const T* dy, const T* y, const T* centred,              \
                                         const T* gamma, const T* r, T* dz, T* s1, T* s2,        \
                                         Int outer, Int count, Int channels, double leak,        \
                                         int threads) {                                          \
        by_leak(leak, [&](auto acts) {                                                           \
            each_strip(outer, channels, threads,                                                 \
                       Backward<T, acts>{dy, y, centred, gamma, r, dz, s1, s2, count, channels,  \
                                        T(leak)});                                               \
        });                                                                                      \
    }                                                                                            \
    extern "C" void norm_second_##NAME(                                                          \
        const T* u, const T* ugamma, const T* ubeta, const T* dy, const T* y, const T* centred,  \
        const T* gamma, const T* r, const T* s1, const T* s2, T* gdy, T* gz, T* ggamma,          \
        Int outer, Int count, Int channels, double leak, int threads) {                          \
        by_leak(leak, [&](auto acts) {                                                           \
            each_strip(outer, channels, threads,                                                 \
                       Second<T, acts>{u, ugamma, ubeta, dy, y, centred, gamma, r, s1, s2, gdy,  \
                                      gz, ggamma, count, channels, T(leak)});                    \
        });                                                                                      \
    }

FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
