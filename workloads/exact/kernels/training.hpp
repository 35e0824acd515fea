// The elementwise parts of a training step: operation for operation what `workloads.exact.elementwise`,
// `workloads.exact.attend` and `workloads.exact.optimiser` do in torch, in one pass instead of dozens.

#pragma once

#include "quantise.hpp"

namespace {

constexpr ptrdiff_t LANES4 = 4;
constexpr double EXP_LIMIT = 693.0;
constexpr double WHOLE_ROUNDER = 0x1.8p52;

// Numbers of `workloads.exact.elementwise`, handed over because they come out of decimal arithmetic.
struct ExpConstants {
    double steps_per_e, step_high, step_low;
};

typedef float Floats4 __attribute__((vector_size(16)));

inline Quad smaller(Quad a, Quad b) { return b < a ? b : a; }

inline Quad table_power(Quad shifted) {
    const QuadBits bits = (QuadBits)shifted, index = bits & ((1 << TABLE_BITS) - 1);
    const int64_t* table = fraction_table;
    const QuadBits entries = {table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
    return (Quad)(entries + (bits << (52 - TABLE_BITS)));
}

// e**x with a relative error under 1e-15.
inline Quad exp_of(Quad x, const ExpConstants& constants) {
    const Quad limit = Quad{} + EXP_LIMIT;
    x = smaller(larger(x, -limit), limit);
    const Quad shifted = x * constants.steps_per_e + WHOLE_ROUNDER;
    const Quad step = shifted - WHOLE_ROUNDER;
    x = x - step * constants.step_high;
    x = x - step * constants.step_low;
    const Quad power = table_power(shifted);
    const Quad less_one = (x * (1.0 / 6.0) + 0.5) * (x * x) + x;
    return power + less_one * power;
}

template <typename Function>
inline void for_quads(ptrdiff_t count, Function function) {
    ptrdiff_t i = 0;
    for (; i + LANES4 <= count; i += LANES4) function(i, LANES4);
    if (i < count) function(i, count - i);
}

inline double sum_of(Quad x) { return (x[0] + x[1]) + (x[2] + x[3]); }
inline double largest_of(Quad x) { return std::max(std::max(x[0], x[1]), std::max(x[2], x[3])); }

// Overwrites scores by 2**(score - best), in multiples of 2**-30; what lies beyond `visible` becomes 0.
// Returns their sum, which is exact in any order.
inline double probabilities(double* scores, ptrdiff_t length, ptrdiff_t visible) {
    double best = scores[0];
    ptrdiff_t i = 0;
    if (visible >= LANES4) {
        Quad bests = load_quad(scores, LANES4);
        for (; i + LANES4 <= visible; i += LANES4) bests = larger(bests, load_quad(scores + i, LANES4));
        best = largest_of(bests);
    }
    for (; i < visible; ++i) best = std::max(best, scores[i]);
    Quad totals = {};
    for_quads(visible, [&](ptrdiff_t at, ptrdiff_t present) {
        const Quad powers = larger(load_quad(scores + at, present) - best, Quad{} - EXP2_LIMIT);
        const Quad weights = (exp2_of(powers) + PROBABILITY_ROUNDER) - PROBABILITY_ROUNDER;
        store_quad(scores + at, weights, present);
        // Lanes beyond the row hold powers of nothing.
        if (present == LANES4) totals += weights;
        else for (ptrdiff_t lane = 0; lane < present; ++lane) totals[lane] += weights[lane];
    });
    for (ptrdiff_t at = visible; at < length; ++at) scores[at] = 0.0;
    return sum_of(totals);
}

// How many positions a row sees: row r asks for query r % queries, the last of which sees all.
inline ptrdiff_t seen_by(ptrdiff_t row, ptrdiff_t length, ptrdiff_t queries, bool causal) {
    return causal ? length - queries + row % queries + 1 : length;
}

}  // namespace

extern "C" {

void p2p_silu(const ExpConstants* constants, const double* x, int64_t count, double* out) {
    for_quads(count, [&](ptrdiff_t i, ptrdiff_t present) {
        const Quad value = load_quad(x + i, present);
        store_quad(out + i, value / (exp_of(-value, *constants) + 1.0), present);
    });
}

void p2p_silu_backward(
    const ExpConstants* constants, const double* grad, const double* x, int64_t count, double* out) {
    for_quads(count, [&](ptrdiff_t i, ptrdiff_t present) {
        const Quad value = load_quad(x + i, present);
        const Quad gate = 1.0 / (exp_of(-value, *constants) + 1.0);
        store_quad(out + i, load_quad(grad + i, present) * (gate * (1.0 + value * (1.0 - gate))), present);
    });
}

// Scores (rows, length) of one key head to rounded, scaled probabilities, and their sums before scaling.
void p2p_attention_weights(double* scores, int64_t rows, int64_t length, int64_t queries, int64_t causal,
                           const double* scales, int64_t bits, double* totals) {
    for (ptrdiff_t row = 0; row < rows; ++row) {
        double* weights = scores + row * length;
        const ptrdiff_t visible = seen_by(row, length, queries, causal != 0);
        totals[row] = probabilities(weights, length, visible);
        for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
            store_quad(weights + i, load_quad(weights + i, present) * load_quad(scales + i, present), present);
        });
        const double constant = rounder(largest_magnitude(weights, visible), static_cast<int>(bits));
        for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
            store_quad(weights + i, (load_quad(weights + i, present) + constant) - constant, present);
        });
    }
}

// Scores to probabilities, and the gradients of these to the gradients of the scores, both in place.
void p2p_attention_slopes(double* scores, double* grads, int64_t rows, int64_t length, int64_t queries,
                          int64_t causal, double factor, int64_t sum_bits) {
    for (ptrdiff_t row = 0; row < rows; ++row) {
        double *weights = scores + row * length, *slopes = grads + row * length;
        const ptrdiff_t visible = seen_by(row, length, queries, causal != 0);
        const double total = probabilities(weights, length, visible);
        QuadBits largest = {};
        for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad weight = load_quad(weights + i, present) / total;
            store_quad(weights + i, weight, present);
            const QuadBits product = (QuadBits)(weight * load_quad(slopes + i, present)) & int64_t(MAGNITUDE);
            largest = product > largest ? product : largest;
        });
        const int64_t most = std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3]));
        const double constant = rounder(static_cast<uint64_t>(most), static_cast<int>(sum_bits));
        Quad sums = {};
        for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad product = load_quad(weights + i, present) * load_quad(slopes + i, present);
            sums += (product + constant) - constant;
        });
        const double sum = sum_of(sums);
        for_quads(length, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad slope = load_quad(weights + i, present) * (load_quad(slopes + i, present) - sum);
            store_quad(slopes + i, slope * factor, present);
        });
    }
}

// Rounds each row of a matrix to `bits` magnitude bits of its largest element, as `round_rows` does. One of the
// two steps of a matrix is 1. Returns the bits of the largest magnitude, NaN and Inf ordered above all numbers.
uint64_t p2p_round(const double* x, int64_t rows, int64_t inner, int64_t row_step, int64_t inner_step, int64_t bits,
                   double* out, int64_t out_row_step, int64_t out_inner_step, double* constants) {
    uint64_t most = 0;
    if (inner_step == 1 && out_inner_step == 1) {
        for (ptrdiff_t row = 0; row < rows; ++row) {
            const double* from = x + row * row_step;
            double* to = out + row * out_row_step;
            const uint64_t largest = largest_magnitude(from, inner);
            const double constant = rounder(largest, static_cast<int>(bits));
            most = std::max(most, largest);
            for_quads(inner, [&](ptrdiff_t i, ptrdiff_t present) {
                store_quad(to + i, (load_quad(from + i, present) + constant) - constant, present);
            });
        }
        return most;
    }
    // Rows lie side by side: maxima of all of them in one pass, kept as magnitudes until they are constants.
    std::memset(constants, 0, static_cast<size_t>(rows) * sizeof(double));
    for (ptrdiff_t i = 0; i < inner; ++i)
        for_quads(rows, [&](ptrdiff_t row, ptrdiff_t present) {
            const QuadBits bits_here = (QuadBits)load_quad(x + i * inner_step + row, present) & int64_t(MAGNITUDE);
            const QuadBits known = (QuadBits)load_quad(constants + row, present);
            store_quad(constants + row, (Quad)(bits_here > known ? bits_here : known), present);
        });
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const uint64_t largest = bits_of(constants[row]);
        most = std::max(most, largest);
        constants[row] = rounder(largest, static_cast<int>(bits));
    }
    for (ptrdiff_t i = 0; i < inner; ++i)
        for_quads(rows, [&](ptrdiff_t row, ptrdiff_t present) {
            const Quad constant = load_quad(constants + row, present);
            const Quad rounded = (load_quad(x + i * inner_step + row, present) + constant) - constant;
            store_quad(out + i * out_inner_step + row, rounded, present);
        });
    return most;
}

struct AdamW {
    double beta1, rest1, beta2, rest2, correction1, correction2, epsilon, kept, rate;
};

// One step of AdamW on float32 state, each new value rounded to float32 once.
void p2p_adamw(const AdamW* settings, int64_t count, const float* parameter, const double* gradient, const float* mean,
               const float* variance, float* new_parameter, float* new_mean, float* new_variance) {
    const AdamW s = *settings;
    for (ptrdiff_t i = 0; i < count; ++i) {
        const double slope = gradient[i];
        const double moved = double(mean[i]) * s.beta1 + slope * s.rest1;
        const double spread = double(variance[i]) * s.beta2 + slope * slope * s.rest2;
        const double update = moved / s.correction1 / (__builtin_sqrt(spread / s.correction2) + s.epsilon);
        new_parameter[i] = static_cast<float>(double(parameter[i]) * s.kept - update * s.rate);
        new_mean[i] = static_cast<float>(moved);
        new_variance[i] = static_cast<float>(spread);
    }
}

}  // extern "C"
