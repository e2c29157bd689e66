// What a plugin registers: for each component its kind, name, summary, options and constructor.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <dsv3/sdk/options.h>

namespace dsv3 {

class Attention;
class FeedForward;
class Position;
class Optimizer;
class Schedule;
class Strategy;
class Tracker;
class Data;
class Tokenizer;
class Format;
struct LayerContext;
struct PositionContext;
struct StrategyContext;
struct RunContext;
struct DataContext;
struct TokenizerContext;

/// The kinds of component, as spelled in experiments, folders and registries.
enum class Kind {
  attention = 1,
  feed_forward,
  position,
  optimizer,
  schedule,
  strategy,
  tracker,
  data,
  tokenizer,
  format
};

/// "attention", "feed_forward", ...
const char* kind_name(Kind kind);
/// Throws dsv3::Error naming the known kinds.
Kind kind_from_name(const std::string& name);

template <class Base, class... Context>
using Factory = std::function<std::shared_ptr<Base>(const OptionValues&, const Context&...)>;

using AnyFactory =
    std::variant<Factory<Attention, LayerContext>, Factory<FeedForward, LayerContext>,
                 Factory<Position, PositionContext>, Factory<Optimizer>, Factory<Schedule>,
                 Factory<Strategy, StrategyContext>, Factory<Tracker, RunContext>,
                 Factory<Data, DataContext>, Factory<Tokenizer, TokenizerContext>, Factory<Format>>;

struct Registration {
  Kind kind;
  std::string name, summary;
  std::shared_ptr<const Schema> schema;
  AnyFactory factory;
};

/// Handed to a plugin's registration function. Every class `T` needs `using Options = ...;` with a
/// static `describe`, and a constructor (const Options&, const Context&) of its kind (optimizer,
/// schedule and format: only Options).
class Registrar {
 public:
  template <class T>
  void attention(std::string name, std::string summary) {
    add<T, Attention, LayerContext>(Kind::attention, std::move(name), std::move(summary));
  }
  template <class T>
  void feed_forward(std::string name, std::string summary) {
    add<T, FeedForward, LayerContext>(Kind::feed_forward, std::move(name), std::move(summary));
  }
  template <class T>
  void position(std::string name, std::string summary) {
    add<T, Position, PositionContext>(Kind::position, std::move(name), std::move(summary));
  }
  template <class T>
  void optimizer(std::string name, std::string summary) {
    add<T, Optimizer>(Kind::optimizer, std::move(name), std::move(summary));
  }
  template <class T>
  void schedule(std::string name, std::string summary) {
    add<T, Schedule>(Kind::schedule, std::move(name), std::move(summary));
  }
  template <class T>
  void strategy(std::string name, std::string summary) {
    add<T, Strategy, StrategyContext>(Kind::strategy, std::move(name), std::move(summary));
  }
  template <class T>
  void tracker(std::string name, std::string summary) {
    add<T, Tracker, RunContext>(Kind::tracker, std::move(name), std::move(summary));
  }
  template <class T>
  void data(std::string name, std::string summary) {
    add<T, Data, DataContext>(Kind::data, std::move(name), std::move(summary));
  }
  template <class T>
  void tokenizer(std::string name, std::string summary) {
    add<T, Tokenizer, TokenizerContext>(Kind::tokenizer, std::move(name), std::move(summary));
  }

  template <class T>
  void format(std::string name, std::string summary) {
    add<T, Format>(Kind::format, std::move(name), std::move(summary));
  }

  const std::vector<Registration>& registrations() const { return registrations_; }

 private:
  template <class T, class Base, class... Context>
  void add(Kind kind, std::string name, std::string summary) {
    auto schema = std::make_shared<const Schema>(schema_of<typename T::Options>());
    Factory<Base, Context...> factory = [schema](const OptionValues& values,
                                                 const Context&... context) {
      return std::make_shared<T>(options_from<typename T::Options>(*schema, values), context...);
    };
    registrations_.push_back({kind, std::move(name), std::move(summary), std::move(schema),
                              AnyFactory(std::move(factory))});
  }

  std::vector<Registration> registrations_;
};

}  // namespace dsv3
