// A Llama decoder's pass over its layers: `workloads.llama.exact_model`, step for step.

#pragma once

#include <memory>

#include "quantise.hpp"

// Python fills these structures (`workloads.llama.fused_model`), so their fields are fixed.
struct Layer {
    Matrix query_key_value, output, gate_up, down;
    // Keys: a panel's columns are positions. Values: they are elements of the head, and pairs are positions.
    // Each as [sequence][head].
    int16_t *key_high, *key_low, *value_high, *value_low;
    double *key_grains, *value_grains;
};

struct Decoder {
    int64_t bits, layers, hidden, intermediate, query_heads, key_heads, head_dim;
    double epsilon, query_scale;
    const double* gain;
    const Layer* layer;
};

// So many positions of one sequence, which follow what the cache holds of it.
struct Span {
    int64_t sequence, start, count;
};

struct Pass {
    int64_t spans, rows, capacity;  // rows: of all spans; capacity: positions, whole panels of them
    const Span* span;
    double* stream;                 // (rows, hidden): the embeddings; overwritten
    const double *cosines, *sines;  // (rows, head_dim / 2)
    float* result;                  // (rows, hidden)
};

namespace {

// Scores of so many queries stay in the second-level cache.
constexpr ptrdiff_t ATTENTION_BYTES = 256 << 10;

class Arena {
  public:
    template <class T>
    T* take(ptrdiff_t count) {
        const ptrdiff_t at = size_;
        size_ += (count * static_cast<ptrdiff_t>(sizeof(T)) + 63) / 64 * 64;
        return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
    }
    Rows take_rows(ptrdiff_t rows, ptrdiff_t inner, bool wide) {
        const ptrdiff_t stride = row_stride(inner);
        int16_t* high = take<int16_t>(rows * stride);
        int16_t* low = wide ? take<int16_t>(rows * stride) : nullptr;
        int16_t* sum = wide ? take<int16_t>(rows * stride) : nullptr;
        return {high, low, sum, stride, take<double>(rows)};
    }
    // First everything is taken once to measure it, then again from memory.
    bool allocate() {
        raw_.reset(static_cast<char*>(std::malloc(size_ + 64)));
        memory_ = raw_.get();
        if (memory_) memory_ += 64 - reinterpret_cast<uintptr_t>(memory_) % 64;
        size_ = 0;
        return memory_ != nullptr;
    }

  private:
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> raw_;
    char* memory_ = nullptr;
    ptrdiff_t size_ = 0;
};

class Run {
  public:
    Run(const Decoder& decoder, const Pass& pass)
        : d_(decoder),
          p_(pass),
          wide_(is_wide(static_cast<int>(decoder.bits))),
          bits_(static_cast<int>(decoder.bits)),
          half_(decoder.head_dim / 2),
          heads_(decoder.query_heads + 2 * decoder.key_heads),
          group_(decoder.query_heads / decoder.key_heads),
          block_(std::min<ptrdiff_t>(BLOCK_ROWS, pass.rows)),
          stop_(last_stop(pass)) {
        const ptrdiff_t fitting = ATTENTION_BYTES / (8 * stop_) / group_;
        queries_ = std::clamp<ptrdiff_t>(fitting, 1, block_) * group_;
    }

    // 0, or one more than the number of the norm that a row out of range reached, or -1: no memory.
    int64_t go() {
        take();
        if (!arena_.allocate()) return -1;
        take();
        const ptrdiff_t rows = p_.rows;
        for (ptrdiff_t index = 0; index < d_.layers; ++index) {
            const Span* span = p_.span;
            ptrdiff_t offset = 0;
            for (ptrdiff_t first = 0; first < rows; first += block_) {
                const ptrdiff_t count = std::min(block_, rows - first);
                const Layer& layer = d_.layer[index];
                double* stream = p_.stream + first * d_.hidden;
                if (!norm(stream, count)) return 1 + 2 * index;
                project(layer.query_key_value, count);
                for (ptrdiff_t row = 0; row < count;) {
                    const ptrdiff_t length = std::min<ptrdiff_t>(count - row, span->count - offset);
                    attend(layer, span->sequence, span->start + offset, first, row, length);
                    row += length;
                    offset += length;
                    if (offset == span->count) ++span, offset = 0;
                }
                for (ptrdiff_t row = 0; row < count; ++row)
                    quantise_row(seen_ + row * query_size(), query_size(), bits_, digits_.from(row));
                add_product(layer.output, count, stream);
                if (!norm(stream, count)) return 2 + 2 * index;
                project(layer.gate_up, count);
                activate(count);
                add_product(layer.down, count, stream);
            }
        }
        for (ptrdiff_t first = 0; first < rows; first += block_) {
            const ptrdiff_t count = std::min(block_, rows - first);
            const double* stream = p_.stream + first * d_.hidden;
            if (!norm(stream, count)) return 1 + 2 * d_.layers;
            for (ptrdiff_t row = 0; row < count; ++row)
                for (ptrdiff_t i = 0; i < d_.hidden; ++i)
                    p_.result[(first + row) * d_.hidden + i] =
                        static_cast<float>(stream[row * d_.hidden + i] / means_[row] * d_.gain[i]);
        }
        return 0;
    }

  private:
    ptrdiff_t query_size() const { return d_.query_heads * d_.head_dim; }

    static ptrdiff_t last_stop(const Pass& pass) {
        ptrdiff_t stop = 0;
        for (ptrdiff_t i = 0; i < pass.spans; ++i)
            stop = std::max<ptrdiff_t>(stop, pass.span[i].start + pass.span[i].count);
        return stop;
    }

    void take() {
        const ptrdiff_t widest = std::max({d_.hidden, d_.intermediate, query_size()});
        digits_ = arena_.take_rows(block_, widest, wide_);
        means_ = arena_.take<double>(block_);
        wide_rows_ = arena_.take<double>(block_ * std::max(heads_ * d_.head_dim, 2 * d_.intermediate));
        seen_ = arena_.take<double>(block_ * query_size());
        query_ = arena_.take_rows(block_ * d_.query_heads, d_.head_dim, wide_);
        entry_ = arena_.take_rows(1, d_.head_dim, wide_);
        scores_ = arena_.take<double>(queries_ * stop_);
        weights_ = arena_.take_rows(queries_, stop_, wide_);
        totals_ = arena_.take<double>(queries_);
        unit_ = arena_.take<double>(d_.head_dim);
        if (unit_) std::fill(unit_, unit_ + d_.head_dim, 0x1p-52);
    }

    // Quantises the rows of the stream and their root mean squares; false where one is out of range.
    bool norm(const double* stream, ptrdiff_t count) {
        bool good = true;
        for (ptrdiff_t row = 0; row < count; ++row) {
            const Rows to = digits_.from(row);
            good &= is_in_range(quantise_row(stream + row * d_.hidden, d_.hidden, bits_, to), bits_);
            means_[row] = root_mean_square(to, d_.hidden, d_.epsilon);
        }
        return good;
    }

    // Normed rows times a matrix, into `wide_rows_`.
    void project(const Matrix& matrix, ptrdiff_t count) {
        multiply(digits_, count, matrix, {Use::DIVIDE, wide_rows_, matrix.grains, means_, 0, 1, matrix.outputs});
    }

    void add_product(const Matrix& matrix, ptrdiff_t count, double* stream) {
        multiply(digits_, count, matrix, {Use::ADD, stream, matrix.grains, nullptr, 0, 1, matrix.outputs});
    }

    void activate(ptrdiff_t count) {
        for (ptrdiff_t row = 0; row < count; ++row) {
            double* gate = wide_rows_ + row * 2 * d_.intermediate;
            const double* up = gate + d_.intermediate;
            for (ptrdiff_t i = 0; i < d_.intermediate; i += QUAD) {
                const ptrdiff_t present = d_.intermediate - i;
                store_quad(gate + i, silu_times(load_quad(gate + i, present), load_quad(up + i, present)), present);
            }
            quantise_row(gate, d_.intermediate, bits_, digits_.from(row));
        }
    }

    // Rotates one head by the position of its row of the pass; a query also takes the softmax's scale.
    void rotate(double* head, ptrdiff_t row, double scale) const {
        const double *cosines = p_.cosines + row * half_, *sines = p_.sines + row * half_;
        for (ptrdiff_t i = 0; i < half_; i += QUAD) {
            const ptrdiff_t present = half_ - i;
            const Quad cosine = load_quad(cosines + i, present) * scale, sine = load_quad(sines + i, present) * scale;
            const Quad low = load_quad(head + i, present), high = load_quad(head + half_ + i, present);
            store_quad(head + i, low * cosine - high * sine, present);
            store_quad(head + half_ + i, high * cosine + low * sine, present);
        }
    }

    Matrix keys_of(const Layer& layer, ptrdiff_t sequence, ptrdiff_t head) const {
        const ptrdiff_t at = sequence * d_.key_heads + head, panel = 2 * half_ * COLUMNS;
        const ptrdiff_t skip = at * (p_.capacity / COLUMNS) * panel;
        return {
            p_.capacity, d_.head_dim, panel, layer.key_high + skip, wide_ ? layer.key_low + skip : nullptr,
            layer.key_grains + at * p_.capacity};
    }

    Matrix values_of(const Layer& layer, ptrdiff_t sequence, ptrdiff_t head) const {
        const ptrdiff_t at = sequence * d_.key_heads + head, panel = p_.capacity * COLUMNS;
        const ptrdiff_t skip = at * ((d_.head_dim + COLUMNS - 1) / COLUMNS) * panel;
        return {
            d_.head_dim, p_.capacity, panel, layer.value_high + skip, wide_ ? layer.value_low + skip : nullptr,
            layer.value_grains + at * p_.capacity};
    }

    // Rows `first ...` of the block that begins at row `block` are positions `start ...` of one sequence.
    void attend(
        const Layer& layer, ptrdiff_t sequence, ptrdiff_t start, ptrdiff_t block, ptrdiff_t first, ptrdiff_t count) {
        const ptrdiff_t width = d_.head_dim;
        for (ptrdiff_t row = 0; row < count; ++row) {
            double* heads = wide_rows_ + (first + row) * heads_ * width;
            for (ptrdiff_t head = 0; head < d_.query_heads; ++head) {
                double* query = heads + head * width;
                rotate(query, block + first + row, d_.query_scale);
                const ptrdiff_t at = (head / group_ * count + row) * group_ + head % group_;
                quantise_row(query, width, bits_, query_.from(at));
            }
            for (ptrdiff_t head = 0; head < d_.key_heads; ++head) {
                double* key = heads + (d_.query_heads + head) * width;
                rotate(key, block + first + row, 1.0);
                const ptrdiff_t position = start + row;
                quantise_row(key, width, bits_, entry_);
                put_column(keys_of(layer, sequence, head), position, entry_);
                quantise_row(key + d_.key_heads * width, width, bits_, entry_);
                put_value(values_of(layer, sequence, head), position);
            }
        }
        for (ptrdiff_t head = 0; head < d_.key_heads; ++head)
            for (ptrdiff_t row = 0; row < count; row += queries_ / group_)
                attend_head(
                    layer, sequence, start, first, head, row, std::min(queries_ / group_, count - row), count);
    }

    void put_value(const Matrix& values, ptrdiff_t position) const {
        int16_t* high = values.high + position / 2 * 2 * COLUMNS + position % 2;
        int16_t* low = wide_ ? values.low + position / 2 * 2 * COLUMNS + position % 2 : nullptr;
        for (ptrdiff_t i = 0; i < d_.head_dim; ++i) {
            const ptrdiff_t at = i / COLUMNS * values.panel + i % COLUMNS * 2;
            high[at] = entry_.high[i];
            if (wide_) low[at] = entry_.low[i];
        }
        values.grains[position] = *entry_.grains;
    }

    void attend_head(
        const Layer& layer, ptrdiff_t sequence, ptrdiff_t start, ptrdiff_t first, ptrdiff_t head, ptrdiff_t row,
        ptrdiff_t count, ptrdiff_t all) {
        const ptrdiff_t rows = count * group_, stop = start + row + count;
        const Rows queries = query_.from((head * all + row) * group_);
        Matrix keys = keys_of(layer, sequence, head), values = values_of(layer, sequence, head);
        keys.outputs = values.inputs = stop;
        multiply(queries, rows, keys, put_into(scores_, keys));
        for (ptrdiff_t r = 0; r < rows; ++r)
            totals_[r] = weigh(scores_ + r * stop, stop - count + r / group_ + 1, values.grains, weights_.from(r), stop);
        // Values are stored without their grains, which the weights have taken with a factor of 2**52.
        double* to = seen_ + (first + row) * query_size() + head * group_ * d_.head_dim;
        multiply(
            weights_, rows, values, {Use::DIVIDE, to, unit_, totals_, d_.head_dim, group_, query_size()});
    }

    // Softmax of the scores that a query may see, times the values' grains, quantised; returns its total.
    double weigh(double* scores, ptrdiff_t seen, const double* grains, const Rows& to, ptrdiff_t stop) const {
        Quad bests = Quad{} + scores[0], totals = {};
        ptrdiff_t i = 0;
        for (; i + QUAD <= seen; i += QUAD) bests = larger(bests, load_quad(scores + i, QUAD));
        double best = std::max(std::max(bests[0], bests[1]), std::max(bests[2], bests[3]));
        for (; i < seen; ++i) best = std::max(best, scores[i]);
        for (i = 0; i < seen; i += QUAD) {
            const ptrdiff_t present = seen - i;
            const Quad powers = larger(load_quad(scores + i, present) - best, Quad{} - EXP2_LIMIT);
            Quad weights = (exp2_of(powers) + PROBABILITY_ROUNDER) - PROBABILITY_ROUNDER;
            store_quad(scores + i, weights * (load_quad(grains + i, present) * 0x1p52), present);
            for (ptrdiff_t j = present; j < QUAD; ++j) weights[j] = 0;
            totals += weights;
        }
        const double total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
        quantise_row(scores, seen, bits_, to);
        const ptrdiff_t rest = (stop + 1) / 2 * 2 - seen;
        std::memset(to.high + seen, 0, rest * sizeof(int16_t));
        if (wide_) {
            std::memset(to.low + seen, 0, rest * sizeof(int16_t));
            std::memset(to.sum + seen, 0, rest * sizeof(int16_t));
        }
        return total;
    }

    const Decoder& d_;
    const Pass& p_;
    const bool wide_;
    const int bits_;
    const ptrdiff_t half_, heads_, group_, block_, stop_;
    ptrdiff_t queries_;
    Arena arena_;
    Rows digits_{}, query_{}, entry_{}, weights_{};
    double *means_ = nullptr, *wide_rows_ = nullptr, *seen_ = nullptr, *scores_ = nullptr, *totals_ = nullptr;
    double* unit_ = nullptr;
};

}  // namespace
