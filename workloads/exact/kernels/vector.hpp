// Tiles of float64 products, for operands whose every partial sum is exact.

#pragma once

#include <cstddef>
#include <cstring>
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

// Without it, -O2 keeps the accumulators of a tile in memory.
#define UNROLLED _Pragma("GCC unroll 8")

namespace {

using std::ptrdiff_t;

#if defined(__AVX512BW__)
constexpr ptrdiff_t WIDTH = 8;
#elif defined(__AVX2__)
constexpr ptrdiff_t WIDTH = 4;
#else
constexpr ptrdiff_t WIDTH = 2;
#endif
// Columns of a tile.
constexpr ptrdiff_t RIGHT = 2 * WIDTH;

typedef double Vector __attribute__((vector_size(8 * WIDTH)));

inline Vector load_vector(const double* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}
inline void store_vector(double* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// Products and sums are exact here, so it doesn't matter whether this rounds once or twice.
inline Vector add_product(Vector sum, double a, Vector b) {
#if defined(__AVX512BW__)
    return (Vector)_mm512_fmadd_pd(_mm512_set1_pd(a), (__m512d)b, (__m512d)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return __builtin_ia32_vfmaddpd256(Vector{a, a, a, a}, b, sum);
#else
    return sum + a * b;
#endif
}

// Adds ROWS rows times RIGHT columns over `inner` of what they contract. Element (row, i) of the left side is
// a[row * ROW_STEP + i * INNER_STEP]; columns lie side by side.
template <int ROWS, ptrdiff_t ROW_STEP, ptrdiff_t INNER_STEP>
inline void add_tile(Vector (&sums)[ROWS][2], const double* a, const double* b, ptrdiff_t inner) {
    for (ptrdiff_t i = 0; i < inner; ++i) {
        const Vector first = load_vector(b + i * RIGHT), second = load_vector(b + i * RIGHT + WIDTH);
        UNROLLED for (int row = 0; row < ROWS; ++row) {
            const double x = a[row * ROW_STEP + i * INNER_STEP];
            sums[row][0] = add_product(sums[row][0], x, first);
            sums[row][1] = add_product(sums[row][1], x, second);
        }
    }
}

}  // namespace
