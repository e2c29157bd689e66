// Peak rates of NVIDIA GPUs.
#include <algorithm>
#include <array>
#include <cctype>
#include <sstream>
#include <string>
#include <vector>

#include "machine/machine.h"

namespace dsv3 {
namespace {

struct Peak {
  const char* name;
  double tflops;
};

// Dense bf16 tensor TFLOP/s with fp32 accumulation, from NVIDIA's datasheets and, for GeForce and
// RTX PRO, the appendices of the GA102, AD102 and GB202 architecture papers. Datasheets often print
// the rate with sparsity, which is twice as high. V100 and T4 do not support bf16, so the table
// contains their fp16 rate. The datasheets list 36 PFLOP/s with sparsity for eight GPUs in HGX B200
// and B300, and 360 PFLOP/s for 72 GPUs in GB200 and GB300 NVL72.
constexpr std::array kPeaks{
    Peak{"V100 PCIE", 112},
    Peak{"V100 SXM2", 125},
    Peak{"V100S PCIE", 130},
    Peak{"T4", 65},
    Peak{"A10", 125},
    Peak{"A40", 149.7},
    Peak{"A100", 312},
    Peak{"A800", 312},
    Peak{"RTX A6000", 154.8},
    Peak{"GeForce RTX 3090", 71},
    Peak{"GeForce RTX 3090 Ti", 80},
    Peak{"L4", 121},
    Peak{"L40", 181},
    Peak{"L40S", 362},
    Peak{"RTX 6000 Ada", 364.2},
    Peak{"GeForce RTX 4090", 165.2},
    Peak{"GeForce RTX 5090", 209.5},
    Peak{"RTX PRO 6000 Blackwell Workstation", 503.8},
    Peak{"RTX PRO 6000 Blackwell Max-Q Workstation", 438.9},
    Peak{"H20", 148},
    Peak{"H100", 989},
    Peak{"H100 PCIe", 756},
    Peak{"H100 NVL", 835},
    Peak{"H800", 989},
    Peak{"H800 PCIe", 756},
    Peak{"H200", 989},
    Peak{"H200 NVL", 835},
    Peak{"GH200", 989},
    Peak{"B200", 2250},
    Peak{"B300", 2250},
    Peak{"GB200", 2500},
    Peak{"GB300", 2500},
};

/// Splits a name into lower-case words at spaces and hyphens.
std::vector<std::string> words_of(std::string name) {
  for (char& c : name) c = c == '-' ? ' ' : char(std::tolower(static_cast<unsigned char>(c)));
  std::istringstream stream(name);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

/// Whether a word in a GPU's name has no effect on its peak rate: the brand, the form factor or the
/// memory. Other words, such as Laptop, Ti, D or MIG, denote a different GPU or a part of one. So
/// does PCIe for Hopper, but not for Ampere.
bool is_neutral(const std::string& word, bool pcie) {
  constexpr std::array kWords{"nvidia", "tesla", "edition", "generation", "ac"};
  if (std::find(kWords.begin(), kWords.end(), word) != kWords.end()) return true;
  if (word.starts_with("sxm") || word.starts_with("hbm")) return true;
  if (word == "pcie") return pcie;
  const size_t digits = word.find_first_not_of("0123456789");
  return digits != 0 && digits != word.npos &&
         (word.substr(digits) == "g" || word.substr(digits) == "gb");
}

bool matches(const std::vector<std::string>& name, const std::vector<std::string>& peak) {
  const auto begin = std::search(name.begin(), name.end(), peak.begin(), peak.end());
  if (begin == name.end()) return false;
  const bool pcie = peak.front().starts_with('a');
  const auto neutral = [&](const std::string& word) { return is_neutral(word, pcie); };
  return std::all_of(name.begin(), begin, neutral) &&
         std::all_of(begin + std::ptrdiff_t(peak.size()), name.end(), neutral);
}

}  // namespace

double peak_flops_of(const std::string& gpu_name) {
  const std::vector<std::string> name = words_of(gpu_name);
  for (const Peak& peak : kPeaks)
    if (matches(name, words_of(peak.name))) return peak.tflops * 1e12;
  return 0;
}

}  // namespace dsv3
