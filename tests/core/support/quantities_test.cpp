#include <catch2/catch.hpp>

#include <dsv3/runtime/quantities.h>

TEST_CASE("durations have at most two units") {
  using dsv3::format_duration;
  CHECK(format_duration(0) == "0 ms");
  CHECK(format_duration(0.0344) == "34 ms");
  CHECK(format_duration(0.9994) == "999 ms");
  CHECK(format_duration(0.9996) == "1.0 s");
  CHECK(format_duration(9.94) == "9.9 s");
  CHECK(format_duration(9.96) == "10 s");
  CHECK(format_duration(45.4) == "45 s");
  CHECK(format_duration(59.6) == "1m00s");
  CHECK(format_duration(200) == "3m20s");
  CHECK(format_duration(3599.6) == "1h00m");
  CHECK(format_duration(3725) == "1h02m");
  CHECK(format_duration(47 * 3600.0) == "47h00m");
  CHECK(format_duration(53 * 3600.0) == "2d05h");
}

TEST_CASE("bytes and FLOPs have three digits and a prefix") {
  using dsv3::format_bytes;
  using dsv3::format_flops;
  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(999) == "999 B");
  CHECK(format_bytes(999.6) == "1.00 kB");
  CHECK(format_bytes(9994) == "9.99 kB");
  CHECK(format_bytes(9996) == "10.0 kB");
  CHECK(format_bytes(99.96e6) == "100 MB");
  CHECK(format_bytes(589.4e6) == "589 MB");
  CHECK(format_bytes(85520809984.) == "85.5 GB");
  CHECK(format_bytes(9.4e12) == "9.40 TB");
  CHECK(format_flops(1.97e9) == "1.97 GFLOP");
  CHECK(format_flops(989e12) == "989 TFLOP");
  CHECK(format_flops(999.7e12) == "1.00 PFLOP");
}

TEST_CASE("counts are abbreviated from 10,000") {
  using dsv3::format_count;
  CHECK(format_count(9999) == "9999");
  CHECK(format_count(12345) == "12.3 k");
  CHECK(format_count(142.3e6) == "142.3 M");
  CHECK(format_count(1.97e9) == "1.97 B");
  CHECK(format_count(2e12) == "2.00 T");
}
