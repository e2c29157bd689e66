// Component options. Each option is declared once, next to the struct that stores it. The core
// checks an experiment's values against the declarations before it builds anything.
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

/// Types of options. Enumerators start at 1 so that 0 is never a valid type.
enum class OptionType { boolean = 1, integer, number, string, integers, numbers, strings };

/// A checked value. Its alternatives are in the order of `OptionType`. std::monostate means
/// "unset", which is allowed only for options with a std::optional member.
using OptionValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                                 std::vector<double>, std::vector<std::string>, std::monostate>;

/// Checked values by key. For absent keys, the options struct's default applies.
using OptionValues = std::map<std::string, OptionValue>;

/// One option, type-erased.
struct OptionSpec {
  std::string key;
  std::string doc;   ///< one-line description for `dsv3 plugins describe` and error messages
  std::string unit;  ///< "tokens", "steps" ...; empty = none; printed in docs/reference.md
  OptionType type = {};
  OptionValue default_value;  ///< default value, from a default-constructed options struct
  bool required = false;
  bool optional = false;   ///< the member is a std::optional
  std::string unset_word;  ///< keyword that sets an optional option to nullopt, e.g. `auto`; empty
                           ///< = none
  std::optional<double> min, max;                      ///< inclusive bounds of a number or integer
  std::vector<std::string> choices;                    ///< allowed strings; empty = any
  std::vector<std::pair<std::string, int64_t>> words;  ///< integers only: keywords and their
                                                       ///< values, e.g. `none`
  bool input_path = false;  ///< strings only: the values are paths of files or folders that must
                            ///< exist
  bool convention = false;  ///< implementations differ in this option, so checkpoints save and
                            ///< compare its value
  std::function<void(void* options, const OptionValue&)> store;
};

/// All options of one component, type-erased. Built by OptionSchema<T>.
struct Schema {
  std::vector<OptionSpec> options;
  /// Checks that involve several options, called with the filled options struct. They return an
  /// error message, or "" if the options are valid.
  std::vector<std::function<std::string(const void* options)>> checks;
  /// Returns a default-constructed options struct, which `store` fills and `checks` read.
  std::function<std::shared_ptr<void>()> make;
  bool needs_tokenizer = false;  ///< data plugins only

  const OptionSpec* find(const std::string& key) const {
    for (const OptionSpec& spec : options)
      if (spec.key == key) return &spec;
    return nullptr;
  }
};

namespace detail {
template <class V>
struct Member : std::false_type {
  using Value = V;
};
template <class V>
struct Member<std::optional<V>> : std::true_type {
  using Value = V;
};
}  // namespace detail

/// Refines an option that was added with `OptionSchema::add`.
class OptionRef {
 public:
  explicit OptionRef(OptionSpec& spec) : spec_(spec) {}
  OptionRef& min(double value) { return set(spec_.min, value); }
  OptionRef& max(double value) { return set(spec_.max, value); }
  OptionRef& choices(std::vector<std::string> values) { return set(spec_.choices, values); }
  OptionRef& required() { return set(spec_.required, true); }
  OptionRef& word(std::string name, int64_t value) {
    spec_.words.emplace_back(std::move(name), value);
    return *this;
  }
  /// Adds a keyword, such as `auto`, that sets an option with a std::optional member to nullopt.
  OptionRef& word(std::string name) {
    if (spec_.optional) return set(spec_.unset_word, name);
    throw Error("option '" + spec_.key + "' cannot be unset by '" + name +
                    "': its member is not a std::optional",
                ExitCode::plugin);
  }
  OptionRef& unit(std::string name) { return set(spec_.unit, name); }
  /// Declares that the string, or each string in the list, is the path of an existing file or
  /// folder that the component reads. `dsv3-run --check` reports a missing path but opens nothing.
  /// Relative paths start at the current folder; "" counts as not set.
  OptionRef& input_path() { return set(spec_.input_path, true); }
  /// Declares that implementations of the same method differ in this option. Checkpoints save its
  /// value, and loading a checkpoint into an experiment with a different value is an error.
  OptionRef& convention() { return set(spec_.convention, true); }

 private:
  template <class Field, class Value>
  OptionRef& set(Field& field, const Value& value) {
    field = value;
    return *this;
  }

  OptionSpec& spec_;
};

/// Describes the options struct `T`:
///   static void describe(dsv3::OptionSchema<MlaOptions>& s) {
///     s.add("heads", &MlaOptions::heads, "attention heads").min(1);
///   }
/// The struct's member initialisers are the only definition of the defaults. A std::optional member
/// is an option that may be unset.
template <class T>
class OptionSchema {
 public:
  template <class V>
  OptionRef add(std::string key, V T::*member, std::string doc) {
    using Value = typename detail::Member<V>::Value;
    static_assert(std::is_constructible_v<OptionValue, std::in_place_type_t<Value>, Value>,
                  "options are bool, int64_t, double, std::string, vectors of the last three, or "
                  "std::optional of one of these");
    OptionSpec spec;
    spec.key = std::move(key);
    spec.doc = std::move(doc);
    spec.default_value.emplace<Value>();
    spec.type = OptionType(spec.default_value.index() + 1);
    spec.optional = detail::Member<V>::value;
    spec.default_value = to_value(defaults_.*member);
    spec.store = [member](void* options, const OptionValue& value) {
      V& target = static_cast<T*>(options)->*member;
      if constexpr (detail::Member<V>::value)
        if (std::holds_alternative<std::monostate>(value)) return target.reset();
      target = std::get<Value>(value);
    };
    schema_.options.push_back(std::move(spec));
    return OptionRef(schema_.options.back());
  }

  /// Adds a check that involves several options. `check` returns an error message, or "" if they
  /// are valid.
  void check(std::function<std::string(const T&)> check) {
    schema_.checks.push_back([check = std::move(check)](const void* options) {
      return check(*static_cast<const T*>(options));
    });
  }

  /// Declares that a data plugin requires `data.tokenizer`, so that `dsv3-run --check` reports a
  /// missing one without opening any data.
  void needs_tokenizer() { schema_.needs_tokenizer = true; }

  Schema take() {
    schema_.make = [] { return std::static_pointer_cast<void>(std::make_shared<T>()); };
    return std::move(schema_);
  }

 private:
  template <class V>
  static OptionValue to_value(const V& member) {
    if constexpr (detail::Member<V>::value)
      return member ? OptionValue(*member) : OptionValue(std::monostate());
    else
      return member;
  }

  T defaults_{};
  Schema schema_;
};

/// Returns the schema that `T::describe` builds.
template <class T>
Schema schema_of() {
  OptionSchema<T> builder;
  T::describe(builder);
  return builder.take();
}

/// Returns a `T` filled with checked values.
template <class T>
T options_from(const Schema& schema, const OptionValues& values) {
  T options{};
  for (const OptionSpec& spec : schema.options)
    if (auto it = values.find(spec.key); it != values.end()) spec.store(&options, it->second);
  return options;
}

/// Options of a component that has no options.
struct NoOptions {
  static void describe(OptionSchema<NoOptions>&) {}
};

}  // namespace dsv3
