// main() for every test executable. Catch2's own main returns 0 when no test case ran, so an
// executable without its source files, or a misspelled test name on the command line, would pass.
#define CATCH_CONFIG_RUNNER
#include <iostream>

#include <catch2/catch.hpp>

namespace {

bool runs_tests(const Catch::ConfigData& options) {
  return !options.showHelp && !options.libIdentify && !options.listTests && !options.listTags &&
         !options.listReporters && !options.listTestNamesOnly;
}

}  // namespace

int main(int argc, char** argv) {
  Catch::Session session;
  if (const int error = session.applyCommandLine(argc, argv)) return error;
  const Catch::Config& config = session.config();
  if (runs_tests(session.configData()) &&
      Catch::filterTests(Catch::getAllTestCasesSorted(config), config.testSpec(), config).empty()) {
    std::cerr << "error: " << argv[0] << " has no test case to run\n";
    return 1;
  }
  return session.run();
}
