// Products of rows and panels of two digits in float64, for many rows: an instruction does four fused products of
// integers there, and six do 16 with digits, unless the processor multiplies and adds pairs of digits in one (VNNI).
//
// Rows are brought from digits to integers once, a panel a chunk of inputs at a time, which then stays near. Integers
// of 2**21 have exact sums in a block of the profile, so the bits are those of digits.

#pragma once

#include <memory>
#include <new>

#include "product.hpp"

namespace {

constexpr ptrdiff_t CHUNK_PAIRS = 256;
#if defined(__AVX512VNNI__)
constexpr ptrdiff_t UNPACKED_ROWS_MIN = PTRDIFF_MAX;
#else
// Fewer rows, or fewer outputs, don't pay for what is unpacked.
constexpr ptrdiff_t UNPACKED_ROWS_MIN = 48;
#endif
constexpr ptrdiff_t UNPACKED_OUTPUTS_MIN = 256;
// Rows that share an unpacked panel, and what their integers may take of the third-level cache.
constexpr ptrdiff_t UNPACKED_BLOCK_ROWS = 44 * TILE_ROWS;
constexpr ptrdiff_t UNPACKED_BYTES = 4 << 20;
static_assert(RIGHT == LANES && 2 * RIGHT == COLUMNS, "a panel is two tiles wide");

// Rows as integers: [tile][input][row of the tile].
struct Integers {
    double* tiles;
    ptrdiff_t rows, inputs;

    double* tile(ptrdiff_t row) const { return tiles + row * inputs; }
};

template <int ROWS>
inline void unpack_tile(const Rows& a, ptrdiff_t inputs, double* to) {
    for (int row = 0; row < ROWS; ++row) {
        const int16_t *high = a.high + row * a.stride, *low = a.low + row * a.stride;
        for (ptrdiff_t i = 0; i < inputs; ++i) to[i * ROWS + row] = high[i] * (1 << LOW_BITS) + low[i];
    }
}

// Integers of a panel: [tile][input][column].
__attribute__((noinline)) void unpack_panel(const int16_t* high, const int16_t* low, ptrdiff_t pairs, double* to) {
    for (ptrdiff_t k = 0; k < pairs; ++k)
        UNROLLED for (ptrdiff_t tile = 0; tile < 2; ++tile) {
            Ints h, l;
            std::memcpy(&h, high + 2 * (k * COLUMNS + tile * RIGHT), sizeof h);
            std::memcpy(&l, low + 2 * (k * COLUMNS + tile * RIGHT), sizeof l);
            const Doubles first = to_doubles(((h << 16) >> (16 - LOW_BITS)) + ((l << 16) >> 16));
            const Doubles second = to_doubles((h >> 16) * (1 << LOW_BITS) + (l >> 16));
            double* pair = to + 2 * (tile * CHUNK_PAIRS + k) * RIGHT;
            std::memcpy(pair, &first, sizeof first);
            std::memcpy(pair + RIGHT, &second, sizeof second);
        }
}

template <int ROWS>
inline void unpacked_tile(const double* a, const double* b, ptrdiff_t inputs, bool add, double* totals) {
    Vector sums[ROWS][2] = {};
    add_tile<ROWS, 1, ROWS>(sums, a, b, inputs);
    UNROLLED for (int row = 0; row < ROWS; ++row)
        UNROLLED for (int v = 0; v < 2; ++v) {
            double* at = totals + row * COLUMNS + v * WIDTH;
            store_vector(at, add ? load_vector(at) + sums[row][v] : sums[row][v]);
        }
}

// `multiply_wide` of integers.
inline void multiply_unpacked(
    const Integers& a, const int16_t* high, const int16_t* low, ptrdiff_t first, ptrdiff_t stop, double* totals) {
    alignas(64) double panel[2 * CHUNK_PAIRS * COLUMNS];
    for (ptrdiff_t k = first; k < stop; k += CHUNK_PAIRS) {
        const ptrdiff_t pairs = std::min(CHUNK_PAIRS, stop - k);
        unpack_panel(high + 2 * k * COLUMNS, low + 2 * k * COLUMNS, pairs, panel);
        for_each_tile(a.rows, [&](auto size, ptrdiff_t row) {
            for (ptrdiff_t tile = 0; tile < 2; ++tile)
                unpacked_tile<size()>(
                    a.tile(row) + 2 * k * size(), panel + 2 * tile * CHUNK_PAIRS * RIGHT, 2 * pairs, k > first,
                    totals + row * COLUMNS + tile * RIGHT);
        });
    }
}

inline bool is_unpacked(ptrdiff_t rows, const Matrix& matrix) {
    return matrix.low && rows >= UNPACKED_ROWS_MIN && matrix.outputs >= UNPACKED_OUTPUTS_MIN;
}

// How many rows to multiply at a time.
inline ptrdiff_t block_of(ptrdiff_t rows, const Matrix& matrix) {
    const ptrdiff_t pairs = (matrix.inputs + 1) / 2;
    const auto fitting = [](ptrdiff_t bytes, ptrdiff_t row_bytes, ptrdiff_t most) {
        return std::clamp<ptrdiff_t>(bytes / (row_bytes * TILE_ROWS) * TILE_ROWS, 4 * TILE_ROWS, most);
    };
    if (!is_unpacked(rows, matrix)) return fitting(BLOCK_BYTES, 4 * pairs * (matrix.low ? 3 : 1), BLOCK_ROWS);
    // As many in each block: few rows don't pay.
    const ptrdiff_t most = fitting(UNPACKED_BYTES, 16 * pairs, UNPACKED_BLOCK_ROWS);
    const ptrdiff_t blocks = (rows + most - 1) / most;
    return (rows + blocks - 1) / blocks;
}

// All rows times all columns.
void multiply(const Rows& a, ptrdiff_t rows, const Matrix& matrix, const Sink& sink) {
    const ptrdiff_t pairs = (matrix.inputs + 1) / 2;
    const ptrdiff_t block = block_of(rows, matrix);
    std::unique_ptr<double[]> integers;
    // Without memory for them, digits.
    if (is_unpacked(rows, matrix)) integers.reset(new (std::nothrow) double[block * 2 * pairs]);
    alignas(64) double totals[UNPACKED_BLOCK_ROWS * COLUMNS], block_totals[UNPACKED_BLOCK_ROWS * COLUMNS];
    for (ptrdiff_t first = 0; first < rows; first += block) {
        const Rows part = a.from(first);
        const ptrdiff_t count = std::min(block, rows - first);
        const Integers unpacked{integers.get(), count, 2 * pairs};
        if (integers)
            for_each_tile(count, [&](auto size, ptrdiff_t row) {
                unpack_tile<size()>(part.from(row), unpacked.inputs, unpacked.tile(row));
            });
        for (ptrdiff_t column = 0, panel = 0; column < matrix.outputs; column += COLUMNS, panel += matrix.panel) {
            const int16_t* high = matrix.high + panel;
            const int16_t* low = matrix.low ? matrix.low + panel : nullptr;
            if (low == nullptr) multiply_narrow(part, count, high, pairs, totals);
            for (ptrdiff_t k = 0; low && k < pairs; k += EXACT_PAIRS) {
                const ptrdiff_t stop = std::min(pairs, k + EXACT_PAIRS);
                double* to = k ? block_totals : totals;
                if (integers)
                    multiply_unpacked(unpacked, high, low, k, stop, to);
                else
                    multiply_wide(part, count, high, low, k, stop, to);
                for (ptrdiff_t i = 0; k && i < count * COLUMNS; ++i) totals[i] += block_totals[i];
            }
            const ptrdiff_t present = std::min<ptrdiff_t>(COLUMNS, matrix.outputs - column);
            switch (sink.use) {
                case Use::PUT: sink.put<Use::PUT>(first, count, column, present, part.grains, totals); break;
                case Use::DIVIDE: sink.put<Use::DIVIDE>(first, count, column, present, part.grains, totals); break;
                case Use::ADD: sink.put<Use::ADD>(first, count, column, present, part.grains, totals); break;
            }
        }
    }
}

}  // namespace
