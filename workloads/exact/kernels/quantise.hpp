// Rounding rows to digits, and the elementwise functions between products: operation for operation what
// `workloads.exact.quantise` and `workloads.exact.functions` do in numpy.

#pragma once

#include "unpacked.hpp"

namespace {

constexpr uint64_t EXPONENT = 0x7ff0000000000000;
constexpr uint64_t MAGNITUDE = 0x7fffffffffffffff;
constexpr double ROW_FLOOR = 0x1p-500;
constexpr double CEILING = 0x1p500;

constexpr double LN2 = 0.6931471805599453;
constexpr double LOG2_E = 1.4426950408889634;
constexpr double EXP2_LIMIT = 1000.0;
constexpr int TABLE_BITS = 12;
constexpr double EXP2_ROUNDER = 0x1.8p52 / (1 << TABLE_BITS);
constexpr double PROBABILITY_ROUNDER = 0x1.8p22;

// 2**(j / 4096), as `workloads.exact.functions` makes it; set when the library is loaded.
const int64_t* fraction_table = nullptr;

inline uint64_t bits_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline double from_bits(uint64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline double power_of_two(double x) { return from_bits(bits_of(x) & EXPONENT); }

typedef int64_t QuadBits __attribute__((vector_size(32)));

inline QuadBits magnitudes(Quad x) { return (QuadBits)x & static_cast<int64_t>(MAGNITUDE); }

// Magnitudes compared as integers order Inf and NaN above all numbers, and need no special care.
__attribute__((noinline)) uint64_t largest_magnitude(const double* x, ptrdiff_t count) {
    QuadBits one = {}, two = {};
    ptrdiff_t i = 0;
    for (; i + 2 * QUAD <= count; i += 2 * QUAD) {
        const QuadBits a = magnitudes(load_quad(x + i, QUAD)), b = magnitudes(load_quad(x + i + QUAD, QUAD));
        one = a > one ? a : one;
        two = b > two ? b : two;
    }
    one = two > one ? two : one;
    int64_t result = std::max(std::max(one[0], one[1]), std::max(one[2], one[3]));
    for (; i < count; ++i) result = std::max<int64_t>(result, static_cast<int64_t>(bits_of(x[i]) & MAGNITUDE));
    return static_cast<uint64_t>(result);
}

// The constant c for which (x + c) - c rounds to the grain of a row with this largest magnitude.
inline double rounder(uint64_t largest, int bits) {
    const double magnitude = from_bits(std::max(largest, bits_of(ROW_FLOOR)));
    return power_of_two(magnitude) * std::ldexp(1.5, 53 - bits);
}
inline double grain_of(double rounder) { return power_of_two(rounder) * 0x1p-52; }

// Whether a norm takes numbers so large: it refuses NaN, Inf, and what rounds to above 2**500.
inline bool is_in_range(uint64_t largest, int bits) {
    const double magnitude = from_bits(largest), constant = rounder(largest, bits);
    return (magnitude + constant) - constant <= CEILING;
}

// Digits of one row whose rounder is known. The low mantissa bits of x + rounder are the rounded integer.
__attribute__((noinline)) void digits_of_row(const double* x, ptrdiff_t count, double rounder, const Rows& to) {
    int16_t *__restrict high = to.high, *__restrict low = to.low, *__restrict sum = to.sum;
    if (low == nullptr) {
        for (ptrdiff_t i = 0; i < count; ++i) high[i] = static_cast<int16_t>(bits_of(x[i] + rounder));
    } else {
        for (ptrdiff_t i = 0; i < count; ++i) {
            const int32_t whole = static_cast<int32_t>(bits_of(x[i] + rounder));
            const int32_t upper = (whole + (1 << (LOW_BITS - 1))) >> LOW_BITS;
            const int32_t lower = whole - upper * (1 << LOW_BITS);
            high[i] = static_cast<int16_t>(upper);
            low[i] = static_cast<int16_t>(lower);
            sum[i] = static_cast<int16_t>(upper + lower);
        }
    }
    if (count & 1) {
        high[count] = 0;
        if (low) low[count] = sum[count] = 0;
    }
}

// Quantises one row; returns its largest magnitude.
inline uint64_t quantise_row(const double* x, ptrdiff_t count, int bits, const Rows& to) {
    const uint64_t largest = largest_magnitude(x, count);
    const double constant = rounder(largest, bits);
    *to.grains = grain_of(constant);
    digits_of_row(x, count, constant, to);
    return largest;
}

// Two numbers' digits as they lie in a panel.
inline int32_t pair_of(int32_t first, int32_t second) {
    return static_cast<int32_t>((first & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(second) << 16));
}
inline int32_t whole_of(double x, double rounder) { return static_cast<int32_t>(bits_of(x + rounder)); }

// Digits of two inputs of one panel.
inline void pack_narrow(const double* first, const double* second, const double* rounders, int16_t* to) {
    alignas(64) int32_t digits[COLUMNS];
    for (int o = 0; o < COLUMNS; ++o)
        digits[o] = pair_of(whole_of(first[o], rounders[o]), whole_of(second[o], rounders[o]));
    std::memcpy(to, digits, sizeof digits);
}

inline void pack_wide(
    const double* first, const double* second, const double* rounders, int16_t* high, int16_t* low) {
    alignas(64) int32_t highs[COLUMNS], lows[COLUMNS];
    for (int o = 0; o < COLUMNS; ++o) {
        const int32_t one = whole_of(first[o], rounders[o]), two = whole_of(second[o], rounders[o]);
        const int32_t upper_one = (one + (1 << (LOW_BITS - 1))) >> LOW_BITS;
        const int32_t upper_two = (two + (1 << (LOW_BITS - 1))) >> LOW_BITS;
        highs[o] = pair_of(upper_one, upper_two);
        lows[o] = pair_of(one - upper_one * (1 << LOW_BITS), two - upper_two * (1 << LOW_BITS));
    }
    std::memcpy(high, highs, sizeof highs);
    std::memcpy(low, lows, sizeof lows);
}

// Quantises the outputs of one panel, from `first` on; returns their largest magnitude.
__attribute__((noinline)) uint64_t pack_panel(
    const double* x, int64_t output_step, int64_t input_step, int bits, const Matrix& matrix, int64_t first) {
    constexpr int64_t INPUTS = 32;
    const int64_t present = std::min<int64_t>(COLUMNS, matrix.outputs - first);
    const double* from = x + first * output_step;
    int64_t magnitudes[COLUMNS] = {};
    if (input_step == 1)
        for (int64_t o = 0; o < present; ++o)
            magnitudes[o] = static_cast<int64_t>(largest_magnitude(from + o * output_step, matrix.inputs));
    else
        for (int64_t i = 0; i < matrix.inputs; ++i)
            for (int64_t o = 0; o < present; ++o) {
                const int64_t found =
                    static_cast<int64_t>(bits_of(from[o * output_step + i * input_step]) & MAGNITUDE);
                magnitudes[o] = found > magnitudes[o] ? found : magnitudes[o];
            }
    alignas(64) double rounders[COLUMNS], block[INPUTS][COLUMNS] = {};
    uint64_t largest = 0;
    for (int64_t o = 0; o < COLUMNS; ++o) {
        largest = std::max(largest, static_cast<uint64_t>(magnitudes[o]));
        rounders[o] = rounder(static_cast<uint64_t>(magnitudes[o]), bits);
        matrix.grains[first + o] = grain_of(rounders[o]);
    }
    int16_t* high = matrix.high + first / COLUMNS * matrix.panel;
    int16_t* low = matrix.low ? matrix.low + first / COLUMNS * matrix.panel : nullptr;
    for (int64_t i = 0; i < matrix.inputs; i += INPUTS) {
        const int64_t count = std::min(INPUTS, matrix.inputs - i);
        if (output_step == 1)
            for (int64_t j = 0; j < count; ++j)
                std::memcpy(block[j], from + (i + j) * input_step, present * sizeof(double));
        else
            for (int64_t o = 0; o < present; ++o)
                for (int64_t j = 0; j < count; ++j) block[j][o] = from[o * output_step + (i + j) * input_step];
        // The second of a pair that isn't there is zero.
        if (count & 1) std::fill(block[count], block[count] + COLUMNS, 0.0);
        for (int64_t j = 0; j < count; j += 2) {
            int16_t* to = high + (i + j) * COLUMNS;
            if (low)
                pack_wide(block[j], block[j + 1], rounders, to, low + (i + j) * COLUMNS);
            else
                pack_narrow(block[j], block[j + 1], rounders, to);
        }
    }
    return largest;
}

// Puts one quantised output into its column of a panel.
inline void put_column(const Matrix& matrix, ptrdiff_t output, const Rows& row) {
    const ptrdiff_t at = output / COLUMNS * matrix.panel + output % COLUMNS * 2;
    for (ptrdiff_t i = 0; i < matrix.inputs; i += 2) {
        std::memcpy(matrix.high + at + i * COLUMNS, row.high + i, 4);
        if (matrix.low) std::memcpy(matrix.low + at + i * COLUMNS, row.low + i, 4);
    }
    matrix.grains[output] = *row.grains;
}

// So many squares of 2**26 fit int32.
constexpr ptrdiff_t SQUARES = 24;

// sqrt(mean(x ** 2) + epsilon) of a quantised row, in the profile's blocks.
inline double root_mean_square(const Rows& row, ptrdiff_t count, double epsilon) {
    const ptrdiff_t block = row.low ? 2 * EXACT_PAIRS : count;
    double mean = 0;
    for (ptrdiff_t first = 0; first < count; first += block) {
        const ptrdiff_t stop = std::min(count, first + block);
        int64_t squares = 0;
        if (row.low == nullptr)
            for (ptrdiff_t i = first; i < stop; i += SQUARES) {
                int32_t some = 0;
                for (ptrdiff_t j = i; j < std::min(stop, i + SQUARES); ++j)
                    some += int32_t(row.high[j]) * int32_t(row.high[j]);
                squares += some;
            }
        else
            for (ptrdiff_t i = first; i < stop; ++i) {
                const int64_t whole = int64_t(row.high[i]) * (1 << LOW_BITS) + row.low[i];
                squares += whole * whole;
            }
        mean += static_cast<double>(squares) * *row.grains * *row.grains;
    }
    mean *= 1.0 / static_cast<double>(count);
    return std::sqrt(mean + epsilon);
}

inline Quad larger(Quad a, Quad b) { return a < b ? b : a; }

inline Quad exp2_of(Quad x) {
    const Quad shifted = x + EXP2_ROUNDER;
    x = (x - (shifted - EXP2_ROUNDER)) * LN2 + 1.0;
    const QuadBits bits = (QuadBits)shifted, index = bits & ((1 << TABLE_BITS) - 1);
    const int64_t* table = fraction_table;
    const QuadBits entries = {table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
    return x * (Quad)(entries + (bits << (52 - TABLE_BITS)));
}

inline Quad silu_times(Quad gate, Quad up) {
    const Quad limit = Quad{} + EXP2_LIMIT;
    const Quad power = -larger(-larger(gate * -LOG2_E, -limit), -limit);
    return gate / (exp2_of(power) + 1.0) * up;
}

}  // namespace
