// The largest of each window, windows side by side, of channels-last pictures, with a ReLU on demand;
// and the linear passes that go with it, for which a code says where in a window the largest lies.
//
// Axes: n pictures, [H, W, C] of a picture, [H', W'] windows of [kh, kw] within it. Codes
// [n, H', W', C]: r * kw + c of the place (r, c), kClosed where a ReLU gave 0.

#include <algorithm>
#include <cstdint>

namespace {

using Int = std::int64_t;
using Code = std::uint8_t;

constexpr Code kClosed = 255;
constexpr int kWide = 32;  // channels side by side

// How windows lie in pictures.
struct Grid {
    Int height, width, channels, rows, cols;  // H, W, C, kh, kw

    Int down() const { return height / rows; }
    Int across() const { return width / cols; }
    // Where a window begins in a picture.
    Int at(Int i, Int j) const { return (i * rows * width + j * cols) * channels; }
    // `visit(k, offset)` for each place of a window, the offset from where it begins.
    template <typename Visit>
    inline void each_place(Visit visit) const {
        int k = 0;
        for (Int r = 0; r < rows; ++r)
            for (Int c = 0; c < cols; ++c, ++k) visit(k, (r * width + c) * channels);
    }
};

// `visit.template run<L>(c)` for channels c … c + L - 1 of a window, in strips of L.
template <typename Visit>
inline void each_strip(Int channels, Visit visit) {
    Int c = 0;
    for (; c + kWide <= channels; c += kWide) visit.template run<kWide>(c);
    for (; c + 8 <= channels; c += 8) visit.template run<8>(c);
    for (; c < channels; ++c) visit.template run<1>(c);
}

template <typename T> struct SameWidth { using type = Int; };
template <> struct SameWidth<float> { using type = std::int32_t; };

template <typename T>
struct Largest {
    const T* window;  // its first place
    T* y;
    Code* codes;
    const Grid& grid;
    bool rectify;

    template <int L>
    void run(Int c0) const {
        typename SameWidth<T>::type code[L];
        T best[L];
        for (int c = 0; c < L; ++c) best[c] = window[c0 + c], code[c] = 0;
        grid.each_place([&](int k, Int place) {
            const T* from = window + place + c0;
            for (int c = 0; c < L; ++c) {
                const T value = from[c];
                const bool larger = value > best[c] || value != value;  // torch's max_pool2d
                best[c] = larger ? value : best[c];
                code[c] = larger ? k : code[c];
            }
        });
        for (int c = 0; c < L; ++c) {
            const bool closed = rectify && best[c] <= T(0);
            y[c0 + c] = closed ? T(0) : best[c];
            codes[c0 + c] = Code(closed ? kClosed : code[c]);
        }
    }
};

template <typename T>
struct Taken {
    const T* window;
    const Code* codes;
    T* y;
    const Grid& grid;

    template <int L>
    void run(Int c0) const {
        T sum[L] = {};
        grid.each_place([&](int k, Int place) {
            const T* from = window + place + c0;
            for (int c = 0; c < L; ++c) sum[c] = codes[c0 + c] == k ? from[c] : sum[c];
        });
        for (int c = 0; c < L; ++c) y[c0 + c] = sum[c];
    }
};

template <typename T>
struct PutBack {
    const T* dy;
    const Code* codes;
    T* window;
    const Grid& grid;

    template <int L>
    void run(Int c0) const {
        grid.each_place([&](int k, Int place) {
            T* __restrict to = window + place + c0;
            for (int c = 0; c < L; ++c) to[c] = codes[c0 + c] == k ? dy[c0 + c] : T(0);
        });
    }
};

// `visit(picture, window, pooled)` for each window: offsets in elements.
template <typename Visit>
void each_window(Int count, const Grid& g, int threads, Visit visit) {
    const Int down = g.down(), across = g.across(), size = g.height * g.width * g.channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (Int row = 0; row < count * down; ++row)
        for (Int j = 0; j < across; ++j)
            visit(row / down * size + g.at(row % down, j), (row * across + j) * g.channels);
}

template <typename T>
void pool(const T* z, T* y, Code* codes, Int count, const Grid& g, bool rectify, int threads) {
    each_window(count, g, threads, [&](Int at, Int to) {
        each_strip(g.channels, Largest<T>{z + at, y + to, codes + to, g, rectify});
    });
}

template <typename T>
void pool_take(const T* z, const Code* codes, T* y, Int count, const Grid& g, int threads) {
    each_window(count, g, threads, [&](Int at, Int to) {
        each_strip(g.channels, Taken<T>{z + at, codes + to, y + to, g});
    });
}

template <typename T>
void pool_back(const T* dy, const Code* codes, T* dz, Int count, const Grid& g, int threads) {
    const Int size = g.height * g.width * g.channels;
    const Int low = g.down() * g.rows, right = g.across() * g.cols;  // no window beyond these
    for (Int n = 0; n < count; ++n) {
        T* picture = dz + n * size;
        std::fill(picture + low * g.width * g.channels, picture + size, T(0));
        for (Int i = 0; right < g.width && i < low; ++i)
            std::fill(picture + (i * g.width + right) * g.channels,
                      picture + (i + 1) * g.width * g.channels, T(0));
    }
    each_window(count, g, threads, [&](Int at, Int from) {
        each_strip(g.channels, PutBack<T>{dy + from, codes + from, dz + at, g});
    });
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                        \
    extern "C" void pool_##NAME(const T* z, T* y, Code* codes, Int count, Int height, Int width, \
                                Int channels, Int rows, Int cols, int rectify, int threads) {    \
        pool(z, y, codes, count, Grid{height, width, channels, rows, cols}, rectify, threads);   \
    }                                                                                            \
    extern "C" void pool_take_##NAME(const T* z, const Code* codes, T* y, Int count, Int height, \
                                     Int width, Int channels, Int rows, Int cols, int threads) { \
        pool_take(z, codes, y, count, Grid{height, width, channels, rows, cols}, threads);       \
    }                                                                                            \
    extern "C" void pool_back_##NAME(const T* dy, const Code* codes, T* dz, Int count,           \
                                     Int height, Int width, Int channels, Int rows, Int cols,    \
                                     int threads) {                                              \
        pool_back(dy, codes, dz, count, Grid{height, width, channels, rows, cols}, threads);     \
    }

FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
