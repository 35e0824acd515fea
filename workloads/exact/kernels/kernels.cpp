// The C interface of `workloads.exact.kernels`. Nothing here throws, keeps memory between calls or starts a
// thread; every array is the caller's.

#include "attention.hpp"

extern "C" {

// How the layout of a matrix depends on the processor, for `workloads.exact.kernels`.
int64_t p2p_columns() { return COLUMNS; }
const char* p2p_instructions() { return INSTRUCTIONS; }

void p2p_set_table(const int64_t* table) { fraction_table = table; }

// Quantises `outputs` rows of `inputs` numbers into panels. Element (o, i) is x[o * output_step + i * input_step],
// and one of the steps should be 1. Returns 1 when a number is NaN, Inf or above 2**500, else 0.
int64_t p2p_pack(const double* x, int64_t output_step, int64_t input_step, int64_t bits, Matrix* matrix) {
    uint64_t largest = 0;
    for (int64_t first = 0; first < matrix->outputs; first += COLUMNS)
        largest = std::max(largest, pack_panel(x, output_step, input_step, static_cast<int>(bits), *matrix, first));
    return largest > bits_of(CEILING);
}

// out (rows, outputs) = quantised x (rows, inputs) times the matrix; rows of x lie `step` numbers apart.
// Returns as `p2p_pack`.
int64_t p2p_multiply(const double* x, int64_t rows, int64_t step, int64_t bits, const Matrix* matrix, double* out) {
    Arena arena;
    Rows digits{};
    const ptrdiff_t block = std::min(rows, is_unpacked(rows, *matrix) ? UNPACKED_BLOCK_ROWS : BLOCK_ROWS);
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
        multiply(digits, count, *matrix, put_into(out + first * matrix->outputs, *matrix));
    }
    return largest > bits_of(CEILING);
}

// How likely each token of rows of logits is drawn, in units of 2**-30 of a row's best:
// round(2**30 * 2**max((logit - best) * scale, -1000)), as `workloads.lm.sampling` has it.
void p2p_weights(
    const double* logits, const double* best, int64_t rows, int64_t columns, double scale, int64_t* weights) {
    for (int64_t row = 0; row < rows; ++row, logits += columns, weights += columns)
        for (ptrdiff_t i = 0; i < columns; i += QUAD) {
            const ptrdiff_t present = columns - i;
            const Quad powers = larger((load_quad(logits + i, present) - best[row]) * scale, Quad{} - EXP2_LIMIT);
            // Adding 2**52 rounds to an integer, half to even, and leaves it in the lowest bits.
            const QuadBits bits = (QuadBits)(exp2_of(powers) * 0x1p30 + 0x1p52) & ((int64_t{1} << 52) - 1);
            for (ptrdiff_t j = 0; j < std::min<ptrdiff_t>(present, QUAD); ++j) weights[i + j] = bits[j];
        }
}

int64_t p2p_forward(const Decoder* decoder, const Pass* pass) { return Run(*decoder, *pass).go(); }

}  // extern "C"
