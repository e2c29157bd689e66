// Encodes strings for tests/parity/test_tokenizer.py. The argument is the path of tokenizer.json.
// Each input line is a JSON string. Each output line is [ids, whether decoding them returns the
// string].
#include <iostream>

#include <nlohmann/json.hpp>

#include "plugin_library.h"

int main(int argc, char** argv) try {
  if (argc != 2) throw dsv3::Error("usage: tokenizer_driver tokenizer.json");
  const auto tokenizer = dsv3::tests::make_tokenizer("bpe", {{"file", std::string(argv[1])}});
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    const std::string text = nlohmann::json::parse(line).get<std::string>();
    const std::vector<int32_t> ids = tokenizer->encode(text);
    std::cout << nlohmann::json::array({ids, tokenizer->decode(ids) == text}).dump() << '\n';
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
