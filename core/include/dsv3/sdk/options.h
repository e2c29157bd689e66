// How a component says which options it takes: once, beside the struct that holds them.
// The core checks an experiment's values against this before anything is built.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <dsv3/sdk/error.h>

namespace dsv3 {

/// What `model.conventions` may be: implementations whose conventions an experiment can take over.
inline const std::vector<std::string>& implementations() {
  static const std::vector<std::string> names{"deepseek", "megatron", "torchtitan"};
  return names;
}

/// The types an option may have. Enumerators start at 1 so that 0 is never a valid type.
enum class OptionType { boolean = 1, integer, number, string, integers, numbers, strings };

/// A checked, typed value. The alternative always fits the option's `OptionType`.
using OptionValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                                 std::vector<double>, std::vector<std::string>>;

/// Checked values by key; keys that are absent keep the default of the options struct.
using OptionValues = std::map<std::string, OptionValue>;

/// One option, type-erased.
struct OptionSpec {
  std::string key;
  std::string doc;  ///< One line, for `dsv3 plugins describe` and error texts.
  OptionType type;
  OptionValue default_value;  ///< Read off a default-constructed options struct.
  bool required = false;
  std::optional<double> min, max;                      ///< Inclusive; numbers and integers only.
  std::vector<std::string> choices;                    ///< Strings only; empty = any.
  std::vector<std::pair<std::string, int64_t>> words;  ///< Integers only: `auto` and the like.
  bool convention = false;  ///< Implementations differ on it: saved in checkpoints and compared.
  std::map<std::string, OptionValue> by_implementation;  ///< of a convention; others: the default
  std::function<void(void* options, const OptionValue&)> store;
};

/// All options of one component, type-erased. Built by OptionSchema<T>.
struct Schema {
  std::vector<OptionSpec> options;
  /// Cross-option checks on the filled struct; each returns an error text or "".
  std::vector<std::function<std::string(const void* options)>> checks;
  /// A default-constructed options struct, for `store` and `checks`.
  std::function<std::shared_ptr<void>()> make;

  const OptionSpec* find(const std::string& key) const {
    for (const OptionSpec& spec : options)
      if (spec.key == key) return &spec;
    return nullptr;
  }
};

namespace detail {
template <class V>
constexpr OptionType option_type() {
  if constexpr (std::is_same_v<V, bool>)
    return OptionType::boolean;
  else if constexpr (std::is_same_v<V, int64_t>)
    return OptionType::integer;
  else if constexpr (std::is_same_v<V, double>)
    return OptionType::number;
  else if constexpr (std::is_same_v<V, std::string>)
    return OptionType::string;
  else if constexpr (std::is_same_v<V, std::vector<int64_t>>)
    return OptionType::integers;
  else if constexpr (std::is_same_v<V, std::vector<double>>)
    return OptionType::numbers;
  else {
    static_assert(std::is_same_v<V, std::vector<std::string>>,
                  "options are bool, int64_t, double, std::string, or vectors of the last three");
    return OptionType::strings;
  }
}
}  // namespace detail

/// Refines the option that `OptionSchema::add` just added.
class OptionRef {
 public:
  explicit OptionRef(OptionSpec& spec) : spec_(spec) {}
  OptionRef& min(double value) {
    spec_.min = value;
    return *this;
  }
  OptionRef& max(double value) {
    spec_.max = value;
    return *this;
  }
  OptionRef& choices(std::vector<std::string> values) {
    spec_.choices = std::move(values);
    return *this;
  }
  OptionRef& word(std::string name, int64_t value) {
    spec_.words.emplace_back(std::move(name), value);
    return *this;
  }
  OptionRef& required() {
    spec_.required = true;
    return *this;
  }
  /// Implementations differ on it. `by_implementation` holds what those of implementations() have
  /// that do not have the default, e.g. {{"torchtitan", "centered"}}; `model.conventions` sets it.
  /// Throws dsv3::Error for another name or type.
  OptionRef& convention(std::map<std::string, OptionValue> by_implementation = {}) {
    for (const auto& [name, value] : by_implementation) {
      bool known = false;
      for (const std::string& implementation : implementations()) known |= implementation == name;
      if (!known || value.index() != spec_.default_value.index())
        throw Error("option '" + spec_.key + "' gives a convention to '" + name + "', which is " +
                        (known ? "of another type than its default" : "no implementation known"),
                    ExitCode::plugin);
    }
    spec_.convention = true;
    spec_.by_implementation = std::move(by_implementation);
    return *this;
  }

 private:
  OptionSpec& spec_;
};

/// Describes the options struct `T`:
///   static void describe(dsv3::OptionSchema<MlaOptions>& s) {
///     s.add("heads", &MlaOptions::heads, "attention heads").min(1);
///   }
/// Defaults are the struct's member initialisers and stand nowhere else.
template <class T>
class OptionSchema {
 public:
  template <class V>
  OptionRef add(std::string key, V T::*member, std::string doc) {
    OptionSpec spec;
    spec.key = std::move(key);
    spec.doc = std::move(doc);
    spec.type = detail::option_type<V>();
    spec.default_value = OptionValue(defaults_.*member);
    spec.store = [member](void* options, const OptionValue& value) {
      static_cast<T*>(options)->*member = std::get<V>(value);
    };
    schema_.options.push_back(std::move(spec));
    return OptionRef(schema_.options.back());
  }

  /// Adds a check over several options; `check` returns an error text, or "" when all is well.
  void check(std::function<std::string(const T&)> check) {
    schema_.checks.push_back([check = std::move(check)](const void* options) {
      return check(*static_cast<const T*>(options));
    });
  }

  Schema take() {
    schema_.make = [] { return std::static_pointer_cast<void>(std::make_shared<T>()); };
    return std::move(schema_);
  }

 private:
  T defaults_{};
  Schema schema_;
};

/// The schema of `T`, from its static `describe`.
template <class T>
Schema schema_of() {
  OptionSchema<T> builder;
  T::describe(builder);
  return builder.take();
}

/// A `T` filled from checked values.
template <class T>
T options_from(const Schema& schema, const OptionValues& values) {
  T options{};
  for (const OptionSpec& spec : schema.options)
    if (auto it = values.find(spec.key); it != values.end()) spec.store(&options, it->second);
  return options;
}

/// Options of a component that takes none.
struct NoOptions {
  static void describe(OptionSchema<NoOptions>&) {}
};

}  // namespace dsv3
