// The C interface of `workloads.exact.kernels`. Nothing here throws, keeps memory between calls or starts a
// thread; every array is the caller's.

#include "decoder.hpp"

extern "C" {

// How the layout of a matrix depends on the processor, for `workloads.exact.kernels`.
int64_t p2p_columns() { return COLUMNS; }
const char* p2p_instructions() { return INSTRUCTIONS; }

void p2p_set_table(const int64_t* table) { fraction_table = table; }

// Quantises `outputs` rows of `inputs` numbers into panels. Element (o, i) is x[o * output_step + i * input_step].
// Returns -1 when there is no memory, 1 when a number is NaN, Inf or above 2**500, else 0.
int64_t p2p_pack(const double* x, int64_t output_step, int64_t input_step, int64_t bits, Matrix* matrix) {
    Arena arena;
    Rows digits{};
    double* rows = nullptr;
    for (int pass = 0; pass < 2; ++pass) {
        digits = arena.take_rows(1, matrix->inputs, is_wide(static_cast<int>(bits)));
        rows = arena.take<double>(COLUMNS * matrix->inputs);
        if (pass == 0 && !arena.allocate()) return -1;
    }
    uint64_t largest = 0;
    for (int64_t first = 0; first < matrix->outputs; first += COLUMNS) {
        const int64_t present = std::min<int64_t>(COLUMNS, matrix->outputs - first);
        const double* from = x + first * output_step;
        if (input_step != 1)
            for (int64_t i = 0; i < matrix->inputs; ++i)
                for (int64_t o = 0; o < present; ++o)
                    rows[o * matrix->inputs + i] = from[o * output_step + i * input_step];
        for (int64_t o = 0; o < present; ++o) {
            const double* row = input_step == 1 ? from + o * output_step : rows + o * matrix->inputs;
            largest = std::max(largest, quantise_row(row, matrix->inputs, static_cast<int>(bits), digits));
            put_column(*matrix, first + o, digits);
        }
    }
    return largest > bits_of(CEILING);
}

// out (rows, outputs) = quantised x (rows, inputs) times the matrix; rows of x lie `step` numbers apart.
// Returns as `p2p_pack`.
int64_t p2p_multiply(const double* x, int64_t rows, int64_t step, int64_t bits, const Matrix* matrix, double* out) {
    Arena arena;
    Rows digits{};
    const ptrdiff_t block = std::min<ptrdiff_t>(rows, BLOCK_ROWS);
    for (int pass = 0; pass < 2; ++pass) {
        digits = arena.take_rows(block, matrix->inputs, is_wide(static_cast<int>(bits)));
        if (pass == 0 && !arena.allocate()) return -1;
    }
    uint64_t largest = 0;
    for (ptrdiff_t first = 0; first < rows; first += block) {
        const ptrdiff_t count = std::min<ptrdiff_t>(block, rows - first);
        for (ptrdiff_t row = 0; row < count; ++row)
            largest = std::max(
                largest,
                quantise_row(x + (first + row) * step, matrix->inputs, static_cast<int>(bits), digits.from(row)));
        multiply(digits, count, *matrix, sink(out + first * matrix->outputs, *matrix));
    }
    return largest > bits_of(CEILING);
}

int64_t p2p_forward(const Decoder* decoder, const Pass* pass) { return Run(*decoder, *pass).go(); }

}  // extern "C"
