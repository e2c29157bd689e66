// Formats quantities for people. Files for programs, such as metrics.jsonl, contain plain numbers.
#pragma once

#include <string>

namespace dsv3 {

/// "34 ms", "5.2 s", "45 s", "3m20s", "1h02m", "2d05h"
std::string format_duration(double seconds);
/// "512 B", "1.44 kB", "589 MB", "85.5 GB": decimal units, three digits
std::string format_bytes(double bytes);
/// "512", "12.3 k", "142.3 M", "1.97 B" (10^9), "2.00 T"
std::string format_count(double count);
/// "6.21 MFLOP", "989 TFLOP". Append "/s" for a rate.
std::string format_flops(double flops);

}  // namespace dsv3
