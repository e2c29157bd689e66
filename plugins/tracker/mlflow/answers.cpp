#include "answers.h"

#include <algorithm>
#include <filesystem>

namespace mlflow {
namespace {

constexpr size_t kLongestId = 128, kLongestPath = 2000;
constexpr std::string_view kProxied = "mlflow-artifacts:";

bool is_id_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

/// Returns null if the key is missing.
const Json* find(const Json& answer, const char* key) {
  if (!answer.is_object()) throw BadAnswer("not an object");
  const auto found = answer.find(key);
  return found == answer.end() || found->is_null() ? nullptr : &*found;
}

}  // namespace

const Json& object_in(const Json& answer, const char* key) {
  const Json* const value = find(answer, key);
  if (!value || !value->is_object()) throw BadAnswer(std::string("no object '") + key + "'");
  return *value;
}

Json array_in(const Json& answer, const char* key) {
  const Json* const value = find(answer, key);
  if (!value) return Json::array();
  if (!value->is_array()) throw BadAnswer(std::string("'") + key + "' is not a list");
  return *value;
}

std::string text_in(const Json& answer, const char* key) {
  const Json* const value = find(answer, key);
  if (!value) return "";
  if (!value->is_string())
    throw BadAnswer(std::string("'") + key + "' is of type " + value->type_name());
  return value->get<std::string>();
}

std::string id_in(const Json& answer, const char* key) {
  const std::string id = text_in(answer, key);
  if (id.empty() || id.size() > kLongestId || !std::ranges::all_of(id, is_id_character))
    throw BadAnswer(std::string("'") + key + "' is not an id");
  return id;
}

std::string artifact_path(const std::string& uri) {
  if (!uri.starts_with(kProxied)) return "";
  std::string path = uri.substr(kProxied.size());
  if (path.starts_with("//")) path.erase(0, std::min(path.find('/', 2), path.size()));
  path.erase(0, std::min(path.find_first_not_of('/'), path.size()));
  const bool is_safe =
      path.size() <= kLongestPath && std::ranges::none_of(path, [](unsigned char c) {
        return c < 0x20 || c == 0x7f ||
               std::string_view("\\%?#").find(char(c)) != std::string_view::npos;
      });
  const auto is_dots = [](const std::filesystem::path& part) {
    return part == ".." || part == ".";
  };
  if (!is_safe || std::ranges::any_of(std::filesystem::path(path), is_dots))
    throw BadAnswer("its artifact_uri is not a path");
  return path;
}

}  // namespace mlflow
