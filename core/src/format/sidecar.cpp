#include "format/sidecar.h"

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

namespace dsv3 {

Sidecar read_sidecar(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kSidecarName;
  Sidecar sidecar;
  if (!std::filesystem::exists(file)) return sidecar;
  try {
    const Json json = read_json(file);
    if (json.at("dsv3") != 1) throw Error(file.string() + " is of another dsv3's format");
    sidecar.conventions = json.at("conventions").get<std::map<std::string, std::string>>();
    sidecar.tokenizers = json.at("tokenizers").get<std::set<std::string>>();
    sidecar.step = json.at("step").get<int64_t>();
  } catch (const Error& error) {
    throw Error(error.what(), ExitCode::checkpoint);
  } catch (const Json::exception& error) {
    throw Error(file.string() + ": " + error.what() + "; remove it to read the folder without it",
                ExitCode::checkpoint);
  }
  return sidecar;
}

std::string sidecar_text(const Sidecar& sidecar) {
  return Json{{"dsv3", 1},
              {"conventions", sidecar.conventions},
              {"tokenizers", sidecar.tokenizers},
              {"step", sidecar.step}}
             .dump(2) +
         "\n";
}

}  // namespace dsv3
