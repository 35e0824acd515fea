// Products of quantised matrices in 16-bit integers: the integers of the float64 path, several times faster.
//
// A row is quantised to `bits` magnitude bits and a power of two, its grain. Up to 13 bits are one digit, int16.
// Up to 21 bits are two balanced digits, q = 2**11 * high + low, each of at most 2**10. A product of rows is then
// one sum of digit products, or three:
//     high high, low low and (high + low) (high + low), which holds the mixed terms (Karatsuba).
// Everything up to the float64 total of a block is integer arithmetic that cannot overflow, so no order of it
// matters. Columns lie in panels: [panel][pair of inputs][column][2], as the processor's pairwise
// multiply-and-add wants them.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "vector.hpp"

#if FLT_EVAL_METHOD != 0
#error "float64 must be computed in float64"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pairs of digits are read as little-endian words"
#endif

namespace {

using std::int16_t;
using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint64_t;

#if defined(__AVX512BW__)
constexpr int LANES = 16;
constexpr char INSTRUCTIONS[] = "avx512";
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr char INSTRUCTIONS[] = "avx2";
#else
constexpr int LANES = 4;
constexpr char INSTRUCTIONS[] = "plain";
#endif
constexpr int VECTORS = 2;
constexpr int COLUMNS = LANES * VECTORS;
// Accumulators of so many rows, and what multiplies them, fill 16 vector registers.
constexpr int TILE_ROWS = 6;
constexpr int BLOCK_ROWS = 96;
// What one block of rows may take of the second-level cache.
constexpr ptrdiff_t BLOCK_BYTES = 192 << 10;

constexpr int LOW_BITS = 11;
// One panel's share of the first-level cache.
constexpr ptrdiff_t NARROW_PAIRS = 256;
constexpr ptrdiff_t WIDE_PAIRS = 128;
// Sums of so many pairs fit int32: 15 * 2 * 2**26 + 2**16. Those of WIDE_PAIRS of two digits do: 128 * 2 * 2**22.
constexpr ptrdiff_t SPILL_PAIRS = 15;
// 2**11 products of 2**42 are exact in float64; beyond, the profile adds float64 totals of such blocks.
constexpr ptrdiff_t EXACT_PAIRS = 1024;

typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(8 * LANES)));

#if defined(__AVX512BW__)
struct Pair {
    __m512i twice;
};
using Pairs = __m512i;
inline Pairs load(const int16_t* from) { return _mm512_loadu_si512(from); }
inline Pair broadcast(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return {_mm512_set1_epi32(both)};
}
inline Ints multiply_add(Ints sum, Pair a, Pairs b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, a.twice, b);
#else
    return sum + (Ints)_mm512_madd_epi16(a.twice, b);
#endif
}
#elif defined(__AVX2__)
// The compiler's own name of the instruction: parsing all intrinsics takes longer than compiling the rest.
typedef int16_t Pairs __attribute__((vector_size(32)));
struct Pair {
    Ints twice;
};
inline Pairs load(const int16_t* from) {
    Pairs both;
    std::memcpy(&both, from, sizeof both);
    return both;
}
inline Pair broadcast(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return {Ints{} + both};
}
inline Ints multiply_add(Ints sum, Pair a, Pairs b) {
    return sum + (Ints)__builtin_ia32_pmaddwd256((Pairs)a.twice, b);
}
#else
struct Pair {
    int32_t first, second;
};
struct Pairs {
    Ints first, second;
};
inline Pairs load(const int16_t* from) {
    Ints both;
    std::memcpy(&both, from, sizeof both);
    return {(Ints)(both << 16) >> 16, both >> 16};
}
inline Pair broadcast(const int16_t* from) { return {from[0], from[1]}; }
inline Ints multiply_add(Ints sum, Pair a, Pairs b) { return sum + a.first * b.first + a.second * b.second; }
#endif

inline void put_or_add(double* to, Doubles sum, bool add) {
    if (add) {
        Doubles before;
        std::memcpy(&before, to, sizeof before);
        sum += before;
    }
    std::memcpy(to, &sum, sizeof sum);
}

inline Doubles to_doubles(Ints x) { return __builtin_convertvector(x, Doubles); }

// Adds pairs [k, stop) of ROWS rows of digits, `stride` apart, times one panel.
template <int ROWS>
inline void add_products(
    Ints (&sums)[ROWS][VECTORS], const int16_t* a, ptrdiff_t stride, const int16_t* panel, ptrdiff_t k,
    ptrdiff_t stop) {
    for (; k < stop; ++k) {
        Pairs b[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; ++v) b[v] = load(panel + 2 * (k * COLUMNS + v * LANES));
        UNROLLED for (int row = 0; row < ROWS; ++row) {
            const Pair x = broadcast(a + row * stride + 2 * k);
            UNROLLED for (int v = 0; v < VECTORS; ++v) sums[row][v] = multiply_add(sums[row][v], x, b[v]);
        }
    }
}

// Puts or adds (ROWS, COLUMNS) exact sums of one digit each. Before one could overflow, its upper part is put
// aside: its value is 2**16 * high + low.
template <int ROWS>
inline void narrow_tile(
    const int16_t* a, ptrdiff_t stride, const int16_t* panel, ptrdiff_t pairs, bool add, double* totals) {
    Ints low[ROWS][VECTORS] = {}, high[ROWS][VECTORS] = {};
    for (ptrdiff_t k = 0; k < pairs; k += SPILL_PAIRS) {
        if (k)
            UNROLLED for (int row = 0; row < ROWS; ++row)
                UNROLLED for (int v = 0; v < VECTORS; ++v) {
                    high[row][v] += low[row][v] >> 16;
                    low[row][v] &= 0xffff;
                }
        add_products(low, a, stride, panel, k, std::min(k + SPILL_PAIRS, pairs));
    }
    UNROLLED for (int row = 0; row < ROWS; ++row)
        UNROLLED for (int v = 0; v < VECTORS; ++v)
            put_or_add(
                totals + row * COLUMNS + v * LANES, to_doubles(high[row][v]) * 65536.0 + to_doubles(low[row][v]), add);
}

inline Doubles combine(Ints high, Ints mixed, Ints low) {
    return to_doubles(high) * 4194304.0 + to_doubles(mixed) * 2048.0 + to_doubles(low);
}

// The same for two digits. `both` holds the sums of the panel's.
template <int ROWS>
inline void wide_tile(
    const int16_t* a_high, const int16_t* a_low, const int16_t* a_sum, ptrdiff_t stride, const int16_t* high,
    const int16_t* low, const int16_t* both, ptrdiff_t pairs, bool add, double* totals) {
    Ints hh[ROWS][VECTORS] = {}, ll[ROWS][VECTORS] = {}, all[ROWS][VECTORS] = {};
    add_products(hh, a_high, stride, high, 0, pairs);
    add_products(ll, a_low, stride, low, 0, pairs);
    add_products(all, a_sum, stride, both, 0, pairs);
    UNROLLED for (int row = 0; row < ROWS; ++row)
        UNROLLED for (int v = 0; v < VECTORS; ++v) {
            const Ints h = hh[row][v], l = ll[row][v];
            put_or_add(totals + row * COLUMNS + v * LANES, combine(h, all[row][v] - h - l, l), add);
        }
}

// And for one row of two digits: adding the panel's digits first would cost it more than a fourth product does.
inline void wide_row(
    const int16_t* a_high, const int16_t* a_low, const int16_t* high, const int16_t* low, ptrdiff_t pairs, bool add,
    double* totals) {
    Ints hh[VECTORS] = {}, mixed[VECTORS] = {}, ll[VECTORS] = {};
    for (ptrdiff_t k = 0; k < pairs; ++k) {
        const Pair x = broadcast(a_high + 2 * k), y = broadcast(a_low + 2 * k);
        UNROLLED for (int v = 0; v < VECTORS; ++v) {
            const Pairs h = load(high + 2 * (k * COLUMNS + v * LANES));
            const Pairs l = load(low + 2 * (k * COLUMNS + v * LANES));
            hh[v] = multiply_add(hh[v], x, h);
            mixed[v] = multiply_add(multiply_add(mixed[v], x, l), y, h);
            ll[v] = multiply_add(ll[v], y, l);
        }
    }
    UNROLLED for (int v = 0; v < VECTORS; ++v) put_or_add(totals + v * LANES, combine(hh[v], mixed[v], ll[v]), add);
}

// Calls `tile(size, row)` for as many tiles as cover the rows; `size` is known when compiling.
template <class Tile>
inline void for_each_tile(ptrdiff_t rows, Tile tile) {
    ptrdiff_t row = 0;
    for (; row + TILE_ROWS <= rows; row += TILE_ROWS) tile(std::integral_constant<int, TILE_ROWS>(), row);
    switch (rows - row) {
        case 5: return tile(std::integral_constant<int, 5>(), row);
        case 4: return tile(std::integral_constant<int, 4>(), row);
        case 3: return tile(std::integral_constant<int, 3>(), row);
        case 2: return tile(std::integral_constant<int, 2>(), row);
        case 1: return tile(std::integral_constant<int, 1>(), row);
        default: return;
    }
}

// Quantised rows: digits `stride` apart, the second of a pair zero where a row's length is odd.
struct Rows {
    int16_t* high;
    int16_t* low;
    int16_t* sum;
    ptrdiff_t stride;
    double* grains;

    Rows from(ptrdiff_t row) const {
        const ptrdiff_t skip = row * stride;
        return {high + skip, low ? low + skip : nullptr, sum ? sum + skip : nullptr, stride, grains + row};
    }
};

// A matrix in panels. `low` is null where one digit is enough. Python fills this, so its fields are fixed.
struct Matrix {
    int64_t outputs;
    int64_t inputs;
    int64_t panel;  // digits from one panel to the next
    int16_t* high;
    int16_t* low;
    double* grains;  // of each output
};

inline bool is_wide(int bits) { return bits > 13; }

// Room between rows keeps them out of each other's cache sets.
inline ptrdiff_t row_stride(ptrdiff_t inner) { return (inner + 31) / 32 * 32 + 32; }

// Four numbers, or the last one to three of an array.
typedef double Quad __attribute__((vector_size(32)));
constexpr ptrdiff_t QUAD = 4;

inline Quad load_quad(const double* from, ptrdiff_t count) {
    Quad quad = {};
    if (count >= QUAD)
        std::memcpy(&quad, from, sizeof quad);
    else
        std::memcpy(&quad, from, count * sizeof(double));
    return quad;
}
inline void store_quad(double* to, Quad quad, ptrdiff_t count) {
    if (count >= QUAD)
        std::memcpy(to, &quad, sizeof quad);
    else
        std::memcpy(to, &quad, count * sizeof(double));
}

// What becomes of a product: totals, at their true scale, are put, divided by a number of their row, or added. Row r
// goes to `to + r / group * group_step + r % group * step`.
enum class Use { PUT, DIVIDE, ADD };

struct Sink {
    Use use;
    double* to;
    const double* column_grains;
    const double* divisors;
    ptrdiff_t step, group, group_step;

    template <Use USE>
    inline void put_quad(double* at, Quad totals, Quad grains, double grain, double divisor, ptrdiff_t present) const {
        Quad quad = totals * grain * grains;
        if (USE == Use::DIVIDE) quad /= divisor;
        if (USE == Use::ADD) quad = load_quad(at, present) + quad;
        store_quad(at, quad, present);
    }

    // Rows `first ...` of one panel.
    template <Use USE>
    void put(ptrdiff_t first, ptrdiff_t rows, ptrdiff_t column, ptrdiff_t count, const double* row_grains,
             const double* totals) const {
        Quad grains[COLUMNS / QUAD];
        for (ptrdiff_t i = 0; i < COLUMNS; i += QUAD)
            grains[i / QUAD] = load_quad(column_grains + column + i, std::max<ptrdiff_t>(0, count - i));
        for (ptrdiff_t r = 0; r < rows; ++r, totals += COLUMNS) {
            const ptrdiff_t row = first + r;
            double* at = to + row / group * group_step + row % group * step + column;
            const double grain = row_grains[r], divisor = USE == Use::DIVIDE ? divisors[row] : 1.0;
            if (count == COLUMNS)
                UNROLLED for (ptrdiff_t i = 0; i < COLUMNS; i += QUAD)
                    put_quad<USE>(at + i, load_quad(totals + i, QUAD), grains[i / QUAD], grain, divisor, QUAD);
            else
                for (ptrdiff_t i = 0; i < count; i += QUAD)
                    put_quad<USE>(at + i, load_quad(totals + i, QUAD), grains[i / QUAD], grain, divisor, count - i);
        }
    }
};

inline Sink put_into(double* to, const Matrix& matrix) {
    return {Use::PUT, to, matrix.grains, nullptr, 0, 1, matrix.outputs};
}

inline void multiply_narrow(const Rows& a, ptrdiff_t rows, const int16_t* panel, ptrdiff_t pairs, double* totals) {
    for (ptrdiff_t k = 0; k < pairs; k += NARROW_PAIRS)
        for_each_tile(rows, [&](auto size, ptrdiff_t row) {
            narrow_tile<size()>(
                a.high + row * a.stride + 2 * k, a.stride, panel + 2 * k * COLUMNS,
                std::min(NARROW_PAIRS, pairs - k), k > 0, totals + row * COLUMNS);
        });
}

// One block of at most EXACT_PAIRS.
inline void multiply_wide(
    const Rows& a, ptrdiff_t rows, const int16_t* high, const int16_t* low, ptrdiff_t first, ptrdiff_t stop,
    double* totals) {
    alignas(64) int16_t both[2 * WIDE_PAIRS * COLUMNS];
    for (ptrdiff_t k = first; k < stop; k += WIDE_PAIRS) {
        const ptrdiff_t pairs = std::min(WIDE_PAIRS, stop - k);
        const int16_t *h = high + 2 * k * COLUMNS, *l = low + 2 * k * COLUMNS;
        const bool add = k > first;
        if (rows == 1) {
            wide_row(a.high + 2 * k, a.low + 2 * k, h, l, pairs, add, totals);
            continue;
        }
        for (ptrdiff_t i = 0; i < 2 * pairs * COLUMNS; ++i) both[i] = static_cast<int16_t>(h[i] + l[i]);
        for_each_tile(rows, [&](auto size, ptrdiff_t row) {
            const ptrdiff_t at = row * a.stride + 2 * k;
            wide_tile<size()>(
                a.high + at, a.low + at, a.sum + at, a.stride, h, l, both, pairs, add, totals + row * COLUMNS);
        });
    }
}

}  // namespace
