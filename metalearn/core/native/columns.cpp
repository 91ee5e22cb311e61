// Windows of channels-last pictures as rows of a matrix, and back, in one pass each.
//
// Axes: n pictures, [H, W, C] of a picture, [H', W'] positions of the window, [kh, kw] of the window.

#include <algorithm>
#include <cstdint>

namespace {

using Int = std::int64_t;

// How a window slides; the order of its numbers is that of `Window.numbers` in core/ops/windows.py.
struct Window {
    Int height, width, channels;  // H, W, C
    Int down, across;             // H', W'
    Int rows, cols;               // kh, kw
    Int step_down, step_across;
    Int above, before;            // padding
    Int apart_down, apart_across; // dilation
};

// `visit(column, pixel, length)` for each stretch of a window that lies within the picture, and
// `outside(column, length)` for each that lies in its border; offsets in elements.
template <typename Visit, typename Outside>
inline void each_stretch(const Window& w, Int i, Int j, Visit visit, Outside outside) {
    const Int together = w.apart_across == 1 ? w.cols : 1;  // pixels that lie side by side
    const Int left = j * w.step_across - w.before;
    Int column = 0;
    for (Int r = 0; r < w.rows; ++r) {
        const Int h = i * w.step_down - w.above + r * w.apart_down;
        for (Int c = 0; c < w.cols; c += together, column += together * w.channels) {
            const Int first = left + c * w.apart_across;
            const Int low = std::clamp<Int>(-first, 0, together);
            const Int high = std::clamp<Int>(w.width - first, low, together);
            if (h < 0 || h >= w.height || low == high) {
                outside(column, together * w.channels);
                continue;
            }
            if (low > 0) outside(column, low * w.channels);
            visit(column + low * w.channels, (h * w.width + first + low) * w.channels,
                  (high - low) * w.channels);
            if (high < together)
                outside(column + high * w.channels, (together - high) * w.channels);
        }
    }
}

// x where the gate is above 0, or not a number, else 0: torch's threshold_backward.
template <typename T>
inline T gated(T x, T gate) { return gate <= T(0) ? T(0) : x; }

template <typename T>
void to_columns(const T* pictures, const T* gates, T* columns, Int count, const Window& w,
                int threads) {
    const Int size = w.height * w.width * w.channels, length = w.rows * w.cols * w.channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (Int n = 0; n < count; ++n) {
        const T* x = pictures + n * size;
        const T* gate = gates ? gates + n * size : nullptr;
        T* row = columns + n * w.down * w.across * length;
        for (Int i = 0; i < w.down; ++i)
            for (Int j = 0; j < w.across; ++j, row += length)
                each_stretch(
                    w, i, j,
                    [=](Int column, Int pixel, Int many) {
                        const T* from = x + pixel;
                        T* __restrict to = row + column;
                        if (gate) {
                            const T* open = gate + pixel;
                            for (Int k = 0; k < many; ++k) to[k] = gated(from[k], open[k]);
                        } else {
                            for (Int k = 0; k < many; ++k) to[k] = from[k];
                        }
                    },
                    [=](Int column, Int many) { std::fill_n(row + column, many, T(0)); });
    }
}

template <typename T>
void add_up(const T* columns, const T* gates, T* pictures, Int count, const Window& w,
            int threads) {
    const Int size = w.height * w.width * w.channels, length = w.rows * w.cols * w.channels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (Int n = 0; n < count; ++n) {
        T* x = pictures + n * size;
        const T* row = columns + n * w.down * w.across * length;
        std::fill_n(x, size, T(0));
        for (Int i = 0; i < w.down; ++i)
            for (Int j = 0; j < w.across; ++j, row += length)
                each_stretch(
                    w, i, j,
                    [=](Int column, Int pixel, Int many) {
                        const T* from = row + column;
                        T* __restrict to = x + pixel;
                        for (Int k = 0; k < many; ++k) to[k] += from[k];
                    },
                    [](Int, Int) {});
        if (gates) {
            const T* gate = gates + n * size;
            T* __restrict whole = x;
            for (Int k = 0; k < size; ++k) whole[k] = gated(whole[k], gate[k]);
        }
    }
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                        \
    extern "C" void to_columns_##NAME(const T* pictures, const T* gates, T* columns, Int count,  \
                                      const Window* window, int threads) {                       \
        to_columns(pictures, gates, columns, count, *window, threads);                           \
    }                                                                                            \
    extern "C" void add_up_##NAME(const T* columns, const T* gates, T* pictures, Int count,      \
                                  const Window* window, int threads) {                           \
        add_up(columns, gates, pictures, count, *window, threads);                               \
    }

FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
