// Command-line parsing for `dsv3` and `dsv3-run`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

/// Adds --version, which prints the versions of dsv3, the SDK, LibTorch and the compiler.
void add_version_flag(CLI::App& app);

/// Returns the flag with each '_' replaced by '-'.
std::string kebab_case(std::string flag);

/// Accepts decimal integers from `min` to `max`. CLI11 itself also reads octal numbers such as 010,
/// and replaces integers that are too large by the largest one.
CLI::Validator integer_between(int64_t min, int64_t max);

/// Accepts numbers from `min` to `max`, and neither NaN nor infinity.
CLI::Validator number_between(int64_t min, int64_t max);

/// Parses a size such as "500", "8G", "80GiB" or "500M". Returns it in bytes, or nullopt if it is
/// not a size or exceeds an exbibyte.
std::optional<int64_t> parse_bytes(const std::string& text);

/// Parses the command line. Flags may be typed with '-' or '_'. Throws CLI::Success for --help and
/// --version, and dsv3::Error for a usage error. Appends `hint` to messages about unknown flags and
/// commands of `app`, but not to those about its subcommands.
void parse_command_line(CLI::App& app, int argc, char** argv, const std::string& hint = "");
