// Attention over batches of heads, forward and backward: what `workloads.exact.attend` does, a few queries at a time,
// so that scores and probabilities never leave the processor's cache. Positions that a query doesn't see are left out:
// they would only add zeros.

#pragma once

#include "decoder.hpp"
#include "float64.hpp"
#include "training.hpp"

extern "C" {

// (batch, heads, count, width) numbers, the last step 1. Python fills this and the next, so their fields are fixed.
struct Heads {
    double* x;
    int64_t batch_step, head_step, step, width;
};

struct Attention {
    int64_t batch, heads, key_heads, count, length, causal, bits, sum_bits;
    double scale;  // of scores in powers of two
    double factor;  // of slopes
};

}  // extern "C"

namespace {

inline double* at(const Heads& heads, ptrdiff_t batch, ptrdiff_t head) {
    return heads.x + batch * heads.batch_step + head * heads.head_step;
}

inline Side<double> rows_of(const Heads& heads, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t count) {
    return {at(heads, batch, head), count, heads.width, heads.step, 1};
}

// Each row's numbers times `scale`, rounded, into panels of the left side. Returns the largest magnitude's bits.
uint64_t pack_scaled(const Heads& heads, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t first, ptrdiff_t count,
                     double scale, int bits, double* row, double* to) {
    if (count < LEFT) std::memset(to, 0, panel_step(heads.width, LEFT) * sizeof(double));
    uint64_t most = 0;
    for (ptrdiff_t r = 0; r < count; ++r) {
        const double* x = at(heads, batch, head) + (first + r) * heads.step;
        for (ptrdiff_t i = 0; i < heads.width; ++i) row[i] = x[i] * scale;
        const uint64_t largest = largest_magnitude(row, heads.width);
        most = std::max(most, largest);
        put_row<LEFT>(row, heads.width, rounder(largest, bits), 1.0, to + r);
    }
    return most;
}

// Sums (rows, columns) of one panel of the left side with as many panels of the right side as it takes.
inline void multiply_panel(const double* left, const double* right, ptrdiff_t inner, ptrdiff_t used, ptrdiff_t rows,
                           ptrdiff_t columns, double* to, ptrdiff_t step) {
    for (ptrdiff_t k = 0; k < used; k += BLOCK_INNER)
        for (ptrdiff_t column = 0; column < columns; column += RIGHT)
            float64_tile(left + k * LEFT, right + column / RIGHT * panel_step(inner, RIGHT) + k * RIGHT,
                         std::min(BLOCK_INNER, used - k), to + column, step, rows, std::min(RIGHT, columns - column),
                         k > 0);
}

// Scores to rounded, scaled probabilities, in panels; returns their sum before scaling.
double mixing_weights(double* scores, ptrdiff_t length, ptrdiff_t visible, const double* scales, int bits, double* to) {
    const double total = probabilities(scores, length, visible);
    for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
        store_quad(scores + i, load_quad(scores + i, present) * load_quad(scales + i, present), present);
    });
    put_row<LEFT>(scores, length, rounder(largest_magnitude(scores, visible), bits), 1.0, to);
    return total;
}

// Scores to probabilities, and their gradients to the gradients of the scores, both in place.
void score_slopes(double* weights, double* slopes, ptrdiff_t length, ptrdiff_t visible, double factor, int sum_bits) {
    const double total = probabilities(weights, length, visible);
    QuadBits largest = {};
    for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
        const Quad weight = load_quad(weights + i, present) / total;
        store_quad(weights + i, weight, present);
        const QuadBits product = magnitudes(weight * load_quad(slopes + i, present));
        largest = product > largest ? product : largest;
    });
    double sum;
    if (length == 1) {
        // One number isn't rounded.
        sum = weights[0] * slopes[0] + 0.0;
    } else {
        const int64_t most = std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3]));
        const double constant = rounder(static_cast<uint64_t>(most), sum_bits);
        Quad sums = {};
        for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
            const Quad product = load_quad(weights + i, present) * load_quad(slopes + i, present);
            sums += (product + constant) - constant;
        });
        sum = sum_of(sums);
    }
    for_quads(visible, [&](ptrdiff_t i, ptrdiff_t present) {
        const Quad slope = load_quad(weights + i, present) * (load_quad(slopes + i, present) - sum);
        store_quad(slopes + i, slope * factor, present);
    });
    std::fill(slopes + visible, slopes + length, 0.0);
}

// Which operand was refused, in the order of `workloads.exact.kernels.training`; 0 for none.
struct Refusal {
    int64_t operand = 0;
    void note(int64_t number, uint64_t largest) {
        if (operand == 0 && largest > bits_of(CEILING)) operand = number;
    }
};
enum : int64_t { QUERIES = 1, KEYS, VALUES, GRADIENT, SLOPES, WEIGHTS };

class Heading {
  public:
    explicit Heading(const Attention& a)
        : a_(a),
          bits_(static_cast<int>(a.bits)),
          group_(a.heads / a.key_heads),
          rows_(group_ * a.count),
          step_((a.length + RIGHT - 1) / RIGHT * RIGHT) {}

    int64_t forward(const Heads& queries, const Heads& keys, const Heads& values, const Heads& out) {
        for (int pass = 0; pass < 2; ++pass) {
            take_scores(queries.width);
            right_ = arena_.take<double>(room_of(a_.length, keys.width, RIGHT));
            mixed_ = arena_.take<double>(room_of(values.width, a_.length, RIGHT));
            scales_ = arena_.take<double>(a_.length);
            weights_ = arena_.take<double>(panel_step(a_.length, LEFT));
            if (pass == 0 && !arena_.allocate()) return -1;
        }
        for (ptrdiff_t batch = 0; batch < a_.batch; ++batch)
            for (ptrdiff_t head = 0; head < a_.heads; ++head) {
                const ptrdiff_t key_head = head / group_;
                if (head % group_ == 0) {
                    const Side<double> side = rows_of(keys, batch, key_head, a_.length);
                    refusal_.note(KEYS, pack_rounded<RIGHT>(side, bits_, right_));
                    refusal_.note(VALUES, pack_values(values, batch, key_head));
                }
                for (ptrdiff_t first = 0; first < a_.count; first += LEFT)
                    mix(queries, out, batch, head, first, std::min(LEFT, a_.count - first));
            }
        return refusal_.operand;
    }

    int64_t backward(const Heads& grad, const Heads& queries, const Heads& keys, const Heads& values,
                     const Heads& by_queries, const Heads& by_keys, const Heads& by_values) {
        const ptrdiff_t width = queries.width, value_width = values.width;
        for (int pass = 0; pass < 2; ++pass) {
            take_scores(std::max(width, value_width));
            right_ = arena_.take<double>(room_of(a_.length, width, RIGHT));
            mixed_ = arena_.take<double>(room_of(a_.length, value_width, RIGHT));
            turned_ = arena_.take<double>(room_of(width, a_.length, RIGHT));
            weights_ = arena_.take<double>(panel_step(a_.length, LEFT));
            all_weights_ = arena_.take<double>(rows_ * a_.length);
            all_slopes_ = arena_.take<double>(rows_ * a_.length);
            left_ = arena_.take<double>(room_of(a_.length, rows_, LEFT));
            folded_ = arena_.take<double>(rows_ * std::max(width, value_width));
            contracted_ = arena_.take<double>(room_of(std::max(width, value_width), rows_, RIGHT));
            if (pass == 0 && !arena_.allocate()) return -1;
        }
        for (ptrdiff_t batch = 0; batch < a_.batch; ++batch)
            for (ptrdiff_t head = 0; head < a_.key_heads; ++head) {
                const Side<double> key_rows = rows_of(keys, batch, head, a_.length);
                const Side<double> columns{key_rows.x, width, a_.length, 1, keys.step};
                refusal_.note(KEYS, pack_rounded<RIGHT>(key_rows, bits_, right_));
                refusal_.note(KEYS, pack_rounded<RIGHT>(columns, bits_, turned_));
                const Side<double> value_rows = rows_of(values, batch, head, a_.length);
                refusal_.note(VALUES, pack_rounded<RIGHT>(value_rows, bits_, mixed_));
                for (ptrdiff_t each = 0; each < group_; ++each)
                    for (ptrdiff_t first = 0; first < a_.count; first += LEFT)
                        slope(grad, queries, by_queries, batch, head * group_ + each, first,
                              std::min(LEFT, a_.count - first));
                gather(all_slopes_, SLOPES, queries, QUERIES, by_keys, batch, head);
                gather(all_weights_, WEIGHTS, grad, GRADIENT, by_values, batch, head);
            }
        return refusal_.operand;
    }

  private:
    void take_scores(ptrdiff_t width) {
        row_ = arena_.take<double>(width);
        query_ = arena_.take<double>(panel_step(width, LEFT));
        scores_ = arena_.take<double>(LEFT * step_);
        grads_ = arena_.take<double>(LEFT * step_);
    }

    ptrdiff_t seen(ptrdiff_t query) const { return a_.causal ? a_.length - a_.count + query + 1 : a_.length; }

    // Value rows rounded by their own scale, which goes to `scales_`.
    uint64_t pack_values(const Heads& values, ptrdiff_t batch, ptrdiff_t head) {
        std::memset(mixed_, 0, room_of(values.width, a_.length, RIGHT) * sizeof(double));
        uint64_t most = 0;
        for (ptrdiff_t position = 0; position < a_.length; ++position) {
            const double* x = at(values, batch, head) + position * values.step;
            const uint64_t largest = largest_magnitude(x, values.width);
            most = std::max(most, largest);
            const double constant = rounder(largest, bits_);
            scales_[position] = power_of_two(constant);
            const double inverse = 1.0 / scales_[position];
            for (ptrdiff_t column = 0; column < values.width; ++column)
                mixed_[column / RIGHT * panel_step(a_.length, RIGHT) + position * RIGHT + column % RIGHT] =
                    ((x[column] + constant) - constant) * inverse;
        }
        return most;
    }

    // Whole tiles: their edges take longer.
    void fill_scores(const double* right, ptrdiff_t width, ptrdiff_t most, double* to) const {
        const ptrdiff_t columns = (most + RIGHT - 1) / RIGHT * RIGHT;
        multiply_panel(query_, right, width, width, LEFT, columns, to, step_);
    }

    void score(const Heads& queries, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t first, ptrdiff_t count) {
        refusal_.note(QUERIES, pack_scaled(queries, batch, head, first, count, a_.scale, bits_, row_, query_));
        fill_scores(right_, queries.width, seen(first + count - 1), scores_);
    }

    void mix(const Heads& queries, const Heads& out, ptrdiff_t batch, ptrdiff_t head, ptrdiff_t first,
             ptrdiff_t count) {
        const ptrdiff_t most = seen(first + count - 1);
        score(queries, batch, head, first, count);
        if (count < LEFT) std::memset(weights_, 0, most * LEFT * sizeof(double));
        double totals[LEFT];
        for (ptrdiff_t row = 0; row < count; ++row)
            totals[row] = mixing_weights(
                scores_ + row * step_, most, seen(first + row), scales_, bits_, weights_ + row);
        double* to = at(out, batch, head) + first * out.step;
        multiply_panel(weights_, mixed_, a_.length, most, count, out.width, to, out.step);
        for (ptrdiff_t row = 0; row < count; ++row)
            for (ptrdiff_t column = 0; column < out.width; ++column) to[row * out.step + column] /= totals[row];
    }

    // Probabilities and gradients of scores of a few queries, and the gradients of these queries.
    void slope(const Heads& grad, const Heads& queries, const Heads& by_queries, ptrdiff_t batch, ptrdiff_t head,
               ptrdiff_t first, ptrdiff_t count) {
        const ptrdiff_t most = seen(first + count - 1), place = (head % group_ * a_.count + first) * a_.length;
        double *weights = all_weights_ + place, *slopes = all_slopes_ + place;
        score(queries, batch, head, first, count);
        refusal_.note(GRADIENT, pack_scaled(grad, batch, head, first, count, 1.0, bits_, row_, query_));
        fill_scores(mixed_, grad.width, most, grads_);
        if (count < LEFT) std::memset(weights_, 0, most * LEFT * sizeof(double));
        for (ptrdiff_t row = 0; row < count; ++row) {
            double *scores = scores_ + row * step_, *by_scores = grads_ + row * step_;
            score_slopes(scores, by_scores, a_.length, seen(first + row), a_.factor, static_cast<int>(a_.sum_bits));
            const uint64_t largest = largest_magnitude(by_scores, most);
            refusal_.note(SLOPES, largest);
            put_row<LEFT>(by_scores, most, rounder(largest, bits_), 1.0, weights_ + row);
            std::memcpy(weights + row * a_.length, scores, a_.length * sizeof(double));
            std::memcpy(slopes + row * a_.length, by_scores, a_.length * sizeof(double));
        }
        double* to = at(by_queries, batch, head) + first * by_queries.step;
        multiply_panel(weights_, turned_, a_.length, most, count, by_queries.width, to, by_queries.step);
    }

    // out (length, width) = the columns of `mixing` (rows of all queries, length) times the rows of `of`.
    void gather(const double* mixing, int64_t mixing_number, const Heads& of, int64_t number, const Heads& out,
                ptrdiff_t batch, ptrdiff_t head) {
        const Side<double> side{mixing, a_.length, rows_, 1, a_.length};
        refusal_.note(mixing_number, pack_rounded<LEFT>(side, bits_, left_));
        for (ptrdiff_t each = 0; each < group_; ++each)
            for (ptrdiff_t query = 0; query < a_.count; ++query)
                std::memcpy(folded_ + (each * a_.count + query) * of.width,
                            at(of, batch, head * group_ + each) + query * of.step, of.width * sizeof(double));
        const Side<double> columns{folded_, of.width, rows_, 1, of.width};
        refusal_.note(number, pack_rounded<RIGHT>(columns, bits_, contracted_));
        const Panels64 sides{left_, contracted_, rows_};
        for (ptrdiff_t first = 0; first < a_.length; first += LEFT) {
            // Queries before this one see none of these positions.
            const ptrdiff_t start = a_.causal ? std::max<ptrdiff_t>(0, first - (a_.length - a_.count)) : 0;
            double* to = at(out, batch, head) + first * out.step;
            for (ptrdiff_t each = 0; each < group_; ++each)
                for (ptrdiff_t column = 0; column < out.width; column += RIGHT) {
                    const ptrdiff_t from = each * a_.count + start;
                    float64_tile(sides.row(first, from), sides.column(column, from), a_.count - start, to + column,
                                 out.step, std::min(LEFT, a_.length - first), std::min(RIGHT, out.width - column),
                                 each > 0);
                }
        }
    }

    const Attention a_;
    const int bits_;
    const ptrdiff_t group_, rows_, step_;
    Refusal refusal_;
    Arena arena_;
    double *row_ = nullptr, *query_ = nullptr, *scores_ = nullptr, *grads_ = nullptr, *right_ = nullptr;
    double *mixed_ = nullptr, *turned_ = nullptr, *scales_ = nullptr, *weights_ = nullptr, *left_ = nullptr;
    double *all_weights_ = nullptr, *all_slopes_ = nullptr, *folded_ = nullptr, *contracted_ = nullptr;
};

}  // namespace

extern "C" {

// Sums over positions and over the queries of a key head must be exact: at most `Precision.inner_max` of either.
// Both return 0, the number of the operand that was refused, or -1 for lack of memory.
int64_t p2p_attention(const Attention* settings, const Heads* operands, const Heads* out) {
    return Heading(*settings).forward(operands[0], operands[1], operands[2], *out);
}

int64_t p2p_attention_backward(const Attention* settings, const Heads* operands, const Heads* out) {
    return Heading(*settings).backward(operands[0], operands[1], operands[2], operands[3], out[0], out[1], out[2]);
}

}  // extern "C"
