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

inline Quad widen(const float* from, ptrdiff_t count) {
    Floats4 some = {};
    std::memcpy(&some, from, count >= LANES4 ? sizeof some : count * sizeof(float));
    return __builtin_convertvector(some, Quad);
}
inline void narrow(float* to, Quad quad, ptrdiff_t count) {
    const Floats4 some = __builtin_convertvector(quad, Floats4);
    std::memcpy(to, &some, count >= LANES4 ? sizeof some : count * sizeof(float));
}
inline Quad square_roots(Quad x) {
#if defined(__AVX__)
    return __builtin_ia32_sqrtpd256(x);
#else
    return Quad{__builtin_sqrt(x[0]), __builtin_sqrt(x[1]), __builtin_sqrt(x[2]), __builtin_sqrt(x[3])};
#endif
}

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

// Sums of columns over a grid of `bits`.
inline void sum_columns(const double* x, ptrdiff_t rows, ptrdiff_t width, int bits, double* sums) {
    constexpr ptrdiff_t STRIP = 64;
    for (ptrdiff_t first = 0; first < width; first += STRIP) {
        const ptrdiff_t count = std::min(STRIP, width - first);
        int64_t most[STRIP] = {};
        double constants[STRIP], totals[STRIP] = {};
        for (ptrdiff_t row = 0; row < rows; ++row)
            for (ptrdiff_t i = 0; i < count; ++i) {
                const auto found = static_cast<int64_t>(bits_of(x[row * width + first + i]) & MAGNITUDE);
                most[i] = found > most[i] ? found : most[i];
            }
        for (ptrdiff_t i = 0; i < count; ++i) constants[i] = rounder(static_cast<uint64_t>(most[i]), bits);
        for (ptrdiff_t row = 0; row < rows; ++row)
            for (ptrdiff_t i = 0; i < count; ++i)
                totals[i] += (x[row * width + first + i] + constants[i]) - constants[i];
        // One number isn't rounded.
        for (ptrdiff_t i = 0; i < count; ++i) sums[first + i] = rows == 1 ? x[first + i] + 0.0 : totals[i];
    }
}

// 1 / sqrt(mean(x**2) + epsilon) needs this root, of `count` numbers; the mean's sum is over a grid of `sum_bits`.
// Returns the largest magnitude's bits.
inline uint64_t root_of_row(const double* x, ptrdiff_t count, double epsilon, int sum_bits, double* root) {
    const uint64_t largest = largest_magnitude(x, count);
    const double most = from_bits(largest), constant = rounder(bits_of(most * most), sum_bits);
    Quad sums = {};
    for_quads(count, [&](ptrdiff_t i, ptrdiff_t present) {
        const Quad value = load_quad(x + i, present);
        sums += (value * value + constant) - constant;
    });
    // One number isn't rounded.
    const double sum = count == 1 ? x[0] * x[0] : sum_of(sums);
    *root = __builtin_sqrt(sum / static_cast<double>(count) + epsilon);
    return largest;
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

// out (rows, width) = x over the root of its row, times weights. Returns the largest magnitude's bits of x.
uint64_t p2p_rms_norm(const double* x, const double* weight, int64_t rows, int64_t width, double epsilon,
                      int64_t sum_bits, double* out) {
    uint64_t most = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const double* from = x + row * width;
        double root, *to = out + row * width;
        most = std::max(most, root_of_row(from, width, epsilon, static_cast<int>(sum_bits), &root));
        for_quads(width, [&](ptrdiff_t i, ptrdiff_t present) {
            store_quad(to + i, load_quad(from + i, present) / root * load_quad(weight + i, present), present);
        });
    }
    return most;
}

// Its gradients in x (rows, width) and in the weights. `products` is room for (rows, width) numbers; `largest` becomes
// the largest magnitudes' bits of the gradient and of x.
void p2p_rms_norm_backward(const double* grad, const double* x, const double* weight, int64_t rows, int64_t width,
                           double epsilon, int64_t sum_bits, int64_t row_bits, double* products, double* by_x,
                           double* by_weight, uint64_t* largest) {
    largest[0] = largest_magnitude(grad, rows * width);
    largest[1] = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const ptrdiff_t start = row * width;
        double root;
        largest[1] =
            std::max(largest[1], root_of_row(x + start, width, epsilon, static_cast<int>(sum_bits), &root));
        QuadBits most = {};
        for_quads(width, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad normal = load_quad(x + start + i, present) / root, slope = load_quad(grad + start + i, present);
            const Quad along = slope * load_quad(weight + i, present);
            store_quad(products + start + i, slope * normal, present);
            // Until the sum is known, the result holds what is divided by the root in the end.
            store_quad(by_x + start + i, normal, present);
            const QuadBits found = magnitudes(along * normal);
            most = found > most ? found : most;
        });
        const int64_t all = std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
        const double constant = rounder(static_cast<uint64_t>(all), static_cast<int>(sum_bits));
        Quad sums = {};
        for_quads(width, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad along = load_quad(grad + start + i, present) * load_quad(weight + i, present);
            sums += (along * load_quad(by_x + start + i, present) + constant) - constant;
        });
        const double sum = width == 1 ? grad[start] * weight[0] * by_x[start] + 0.0 : sum_of(sums);
        const double mean = sum / static_cast<double>(width);
        for_quads(width, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad along = load_quad(grad + start + i, present) * load_quad(weight + i, present);
            store_quad(by_x + start + i, (along - load_quad(by_x + start + i, present) * mean) / root, present);
        });
    }
    sum_columns(products, rows, width, static_cast<int>(row_bits), by_weight);
}

// Rotates heads (batch, heads, count, 2 half), `step` apart in each, into contiguous ones.
void p2p_rotary(const double* x, const int64_t* steps, const int64_t* sizes, const double* cosines, const double* sines,
                int64_t inverse, double* out) {
    const ptrdiff_t half = sizes[3];
    const Quad sign = Quad{} + (inverse ? -1.0 : 1.0);
    for (ptrdiff_t batch = 0; batch < sizes[0]; ++batch)
        for (ptrdiff_t head = 0; head < sizes[1]; ++head)
            for (ptrdiff_t position = 0; position < sizes[2]; ++position, out += 2 * half) {
                const double* from = x + batch * steps[0] + head * steps[1] + position * steps[2];
                for_quads(half, [&](ptrdiff_t i, ptrdiff_t present) {
                    const Quad cosine = load_quad(cosines + position * half + i, present);
                    const Quad sine = load_quad(sines + position * half + i, present) * sign;
                    const Quad low = load_quad(from + i, present), high = load_quad(from + half + i, present);
                    store_quad(out + i, low * cosine + high * -sine, present);
                    store_quad(out + half + i, high * cosine + low * sine, present);
                });
            }
}

struct AdamW {
    double beta1, rest1, beta2, rest2, correction1, correction2, epsilon, kept, rate;
};

// One step of AdamW on float32 state, each new value rounded to float32 once.
void p2p_adamw(const AdamW* settings, int64_t count, const float* parameter, const double* gradient, const float* mean,
               const float* variance, float* new_parameter, float* new_mean, float* new_variance) {
    const AdamW s = *settings;
    for_quads(count, [&](ptrdiff_t i, ptrdiff_t present) {
        const Quad slope = load_quad(gradient + i, present), old = widen(parameter + i, present);
        const Quad moved = widen(mean + i, present) * s.beta1 + slope * s.rest1;
        const Quad spread = widen(variance + i, present) * s.beta2 + slope * slope * s.rest2;
        const Quad update = moved / s.correction1 / (square_roots(spread / s.correction2) + s.epsilon);
        narrow(new_parameter + i, old * s.kept - update * s.rate, present);
        narrow(new_mean + i, moved, present);
        narrow(new_variance + i, spread, present);
    });
}

}  // extern "C"
