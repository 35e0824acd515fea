// Products of rounded matrices in float64, where every partial sum is exact: rounding happens while the operands
// are brought into the order of the tiles, so nothing rounded is written anywhere else.
//
// The left side's rows lie in panels of LEFT, the right side's columns in panels of RIGHT: [panel][inner][of it].
// An element's double fills no more than it needs; what a panel lacks is zero.

#pragma once

#include "quantise.hpp"

namespace {

constexpr ptrdiff_t LEFT = 6;
// A panel of the right side's share of the first-level cache, and a block of the left side's of the second.
constexpr ptrdiff_t BLOCK_INNER = 256;
constexpr ptrdiff_t BLOCK_LEFT = 16 * LEFT;
// Panels a power of two apart would fall into one cache set.
constexpr ptrdiff_t PANEL_GAP = 8;

inline ptrdiff_t panel_step(ptrdiff_t inner, ptrdiff_t tile) { return inner * tile + PANEL_GAP; }
inline ptrdiff_t room_of(ptrdiff_t outers, ptrdiff_t inner, ptrdiff_t tile) {
    return (outers + tile - 1) / tile * panel_step(inner, tile);
}

// One side of a product before it is rounded: element (o, i) is x[o * outer_step + i * inner_step], one step 1.
template <class Number>
struct Side {
    const Number* x;
    ptrdiff_t outers, inner, outer_step, inner_step;
};

template <class Number>
inline uint64_t largest_of(const Number* x, ptrdiff_t count) {
    if constexpr (sizeof(Number) == sizeof(double)) return largest_magnitude(x, count);
    // Magnitudes of float32 order as integers too.
    int32_t most = 0;
    for (ptrdiff_t i = 0; i < count; ++i) {
        int32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        most = std::max(most, bits & 0x7fffffff);
    }
    float magnitude;
    std::memcpy(&magnitude, &most, sizeof magnitude);
    return bits_of(magnitude);
}

// Rounds one row into its place in a panel.
template <ptrdiff_t TILE, class Number>
inline void put_row(const Number* x, ptrdiff_t inner, double constant, double scale, double* to) {
    for (ptrdiff_t i = 0; i < inner; ++i) to[i * TILE] = ((double(x[i]) + constant) - constant) * scale;
}

// Rounds each outer to `bits` magnitude bits of its largest element and puts it into panels. Returns the bits of
// the largest magnitude.
template <ptrdiff_t TILE, class Number>
__attribute__((noinline)) uint64_t pack_rounded(const Side<Number>& side, int bits, double* to) {
    const ptrdiff_t step = panel_step(side.inner, TILE);
    const ptrdiff_t missing = (TILE - side.outers % TILE) % TILE;
    if (missing) {
        double* last = to + side.outers / TILE * step + (TILE - missing);
        for (ptrdiff_t i = 0; i < side.inner; ++i) std::fill(last + i * TILE, last + i * TILE + missing, 0.0);
    }
    uint64_t most = 0;
    if (side.inner_step == 1) {
        for (ptrdiff_t o = 0; o < side.outers; ++o) {
            const Number* row = side.x + o * side.outer_step;
            const uint64_t largest = largest_of(row, side.inner);
            most = std::max(most, largest);
            put_row<TILE>(row, side.inner, rounder(largest, bits), 1.0, to + o / TILE * step + o % TILE);
        }
        return most;
    }
    constexpr ptrdiff_t STRIP = 8 * TILE;
    int64_t magnitudes_of[STRIP];
    double constants[STRIP];
    for (ptrdiff_t first = 0; first < side.outers; first += STRIP) {
        const ptrdiff_t count = std::min(STRIP, side.outers - first);
        const Number* x = side.x + first;
        std::fill(magnitudes_of, magnitudes_of + STRIP, 0);
        for (ptrdiff_t i = 0; i < side.inner; ++i)
            for (ptrdiff_t o = 0; o < count; ++o) {
                const auto found = static_cast<int64_t>(bits_of(double(x[i * side.inner_step + o])) & MAGNITUDE);
                magnitudes_of[o] = found > magnitudes_of[o] ? found : magnitudes_of[o];
            }
        for (ptrdiff_t o = 0; o < STRIP; ++o) {
            most = std::max(most, static_cast<uint64_t>(magnitudes_of[o]));
            constants[o] = rounder(static_cast<uint64_t>(magnitudes_of[o]), bits);
        }
        for (ptrdiff_t i = 0; i < side.inner; ++i)
            for (ptrdiff_t o = 0; o < count; o += TILE) {
                double* at = to + (first + o) / TILE * step + i * TILE;
                const Number* from = x + i * side.inner_step + o;
                if (count - o >= TILE)
                    UNROLLED for (ptrdiff_t j = 0; j < TILE; ++j)
                        at[j] = (double(from[j]) + constants[o + j]) - constants[o + j];
                else
                    for (ptrdiff_t j = 0; j < count - o; ++j)
                        at[j] = (double(from[j]) + constants[o + j]) - constants[o + j];
            }
    }
    return most;
}

// One panel of either side, over `inner` of what it contracts: `rows` x `columns` of sums, put or added. Sums begin at
// 0.0, so one of zeros of either sign is 0.0.
inline void float64_tile(
    const double* a, const double* b, ptrdiff_t inner, double* to, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t columns,
    bool add) {
    Vector sums[LEFT][2] = {};
    add_tile<LEFT, 1, LEFT>(sums, a, b, inner);
    if (rows == LEFT && columns == RIGHT) {
        UNROLLED for (ptrdiff_t row = 0; row < LEFT; ++row)
            UNROLLED for (ptrdiff_t v = 0; v < 2; ++v) {
                double* at = to + row * step + v * WIDTH;
                store_vector(at, add ? load_vector(at) + sums[row][v] : sums[row][v]);
            }
        return;
    }
    double edge[LEFT][RIGHT];
    std::memcpy(edge, sums, sizeof edge);
    for (ptrdiff_t row = 0; row < rows; ++row)
        for (ptrdiff_t column = 0; column < columns; ++column) {
            double* at = to + row * step + column;
            *at = add ? *at + edge[row][column] : edge[row][column];
        }
}

// Both sides in panels.
struct Panels64 {
    const double *left, *right;
    ptrdiff_t inner;

    const double* row(ptrdiff_t row, ptrdiff_t i) const { return left + row / LEFT * panel_step(inner, LEFT) + i * LEFT; }
    const double* column(ptrdiff_t column, ptrdiff_t i) const {
        return right + column / RIGHT * panel_step(inner, RIGHT) + i * RIGHT;
    }
};

// Puts (rows, columns) sums over [first, stop), which must be exact, `step` apart.
inline void multiply_float64(
    const Panels64& sides, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t first, ptrdiff_t stop, double* to,
    ptrdiff_t step) {
    for (ptrdiff_t k = first; k < stop; k += BLOCK_INNER) {
        const ptrdiff_t inner = std::min(BLOCK_INNER, stop - k);
        for (ptrdiff_t block = 0; block < rows; block += BLOCK_LEFT)
            for (ptrdiff_t column = 0; column < columns; column += RIGHT)
                for (ptrdiff_t row = block; row < std::min(rows, block + BLOCK_LEFT); row += LEFT)
                    float64_tile(
                        sides.row(row, k), sides.column(column, k), inner, to + row * step + column, step,
                        std::min(LEFT, rows - row), std::min(RIGHT, columns - column), k > first);
    }
}

}  // namespace

extern "C" {

// Numbers that a packed side takes.
int64_t p2p_packed_size(int64_t is_left, int64_t outers, int64_t inner) {
    return room_of(outers, inner, is_left ? LEFT : RIGHT);
}

// Rounds and packs one side, of float32 or float64. Returns the bits of the largest magnitude, NaN and Inf ordered
// above all numbers.
uint64_t p2p_pack_side(const void* x, int64_t is_float32, int64_t is_left, int64_t outers, int64_t inner,
                       int64_t outer_step, int64_t inner_step, int64_t bits, double* to) {
    const int b = static_cast<int>(bits);
    if (is_float32) {
        const Side<float> side{static_cast<const float*>(x), outers, inner, outer_step, inner_step};
        return is_left ? pack_rounded<LEFT>(side, b, to) : pack_rounded<RIGHT>(side, b, to);
    }
    const Side<double> side{static_cast<const double*>(x), outers, inner, outer_step, inner_step};
    return is_left ? pack_rounded<LEFT>(side, b, to) : pack_rounded<RIGHT>(side, b, to);
}

// out (rows, columns) = the sides' product over [first, stop) of their `inner`.
void p2p_multiply_sides(const double* left, const double* right, int64_t rows, int64_t columns, int64_t inner,
                        int64_t first, int64_t stop, double* out) {
    multiply_float64({left, right, inner}, rows, columns, first, stop, out, columns);
}

}  // extern "C"
