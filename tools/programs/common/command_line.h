// Command-line parsing for `dsv3` and `dsv3-run`.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

/// Adds --version, which prints the versions of dsv3, the SDK, LibTorch and the compiler.
void add_version_flag(CLI::App& app);

/// Returns the flag with each '_' replaced by '-'.
std::string kebab_case(std::string flag);

/// Parses the command line. Flags may be typed with '-' or '_'. Throws CLI::Success for --help and
/// --version, and dsv3::Error for a usage error. Appends `hint` to messages about unknown flags and
/// commands of `app`, but not to those about its subcommands.
void parse_command_line(CLI::App& app, int argc, char** argv, const std::string& hint = "");
