// Integer arithmetic that detects overflow.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace dsv3 {

/// Returns the product of `factors`; nullopt = it does not fit in an int64.
inline std::optional<int64_t> checked_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product)) return std::nullopt;
  return product;
}

}  // namespace dsv3
