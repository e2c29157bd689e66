#include <unistd.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>

#include "call/call.h"
#include "config/diagnostics.h"
#include "eval/validation.h"
#include "machine/machine.h"
#include "train/training.h"

namespace dsv3 {
namespace {

/// Number of rows in the embedding while the vocabulary size is unknown. No other shape depends on
/// it.
constexpr int64_t kAnyVocab = 1024;

/// The strings in an option's value, which is a string or a list of strings.
std::vector<std::string> strings_of(const OptionValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return {*text};
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) return *list;
  return {};
}

/// Returns the reason why `path` cannot be read; "" = it is readable.
std::string why_unreadable(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return "no such file or folder";
  if (std::filesystem::is_directory(path, error) && std::filesystem::is_empty(path, error))
    return "the folder is empty";
  if (std::filesystem::is_regular_file(path, error) && std::filesystem::is_empty(path, error))
    return "the file is empty";
  return access(path.c_str(), R_OK) == 0 ? "" : "no permission to read";
}

class Preflight {
 public:
  Preflight(const Experiment& experiment, Plugins& plugins, PreflightScope scope, int64_t ranks)
      : experiment_(experiment),
        plugins_(plugins),
        world_(planned_communicator(ranks)),
        inputs_too_(scope != PreflightScope::configuration) {}

  /// Throws an error with all problems, if there are any.
  void check() {
    check_model(check_vocab());
    check_schedule();
    check_batch();
    const bool chosen = experiment_.strategy.plugin != kAutoStrategy;
    if (chosen)
      builds([&] {
        make<Strategy>(plugins_, experiment_.strategy,
                       StrategyContext{world_, at::kMeta, compute_dtype(experiment_.train)});
      });
    builds([&] { CallbackSet(experiment_, plugins_); });
    for (const ComponentSpec* spec : experiment_.components())
      if (chosen || spec != &experiment_.strategy) check_paths(*spec);
    if (plugins_.find(experiment_.data).schema->needs_tokenizer &&
        experiment_.tokenizer.plugin.empty())
      add(configuration_, experiment_.data.origin,
          label_of(experiment_.data) + "needs a tokenizer; add `tokenizer: {plugin: bytes}` or " +
              "another tokenizer to `data`");
    if (inputs_too_) {
      if (configuration_.empty() && inputs_.empty()) check_data();
      warn_about_unused_gpu(experiment_.train);
      try {
        require_device_ranks(device_of(experiment_.train), world_->size());
      } catch (const Error& error) {
        Origin origin = experiment_.origin("train.device");
        if (origin.source == "default") origin.source = "train.device: auto";
        add(inputs_, origin, error.what());
      }
    }
    if (configuration_.empty() && inputs_.empty()) return;
    const std::string inputs = inputs_.empty() ? "" : "missing or unusable inputs:\n" + inputs_;
    throw Error(configuration_ + (configuration_.empty() || inputs.empty() ? "" : "\n\n") + inputs,
                configuration_.empty() ? ExitCode::data : ExitCode::usage);
  }

 private:
  /// Appends `block`, the lines of one problem, unless `blocks` already contains it. Several layers
  /// may have the same problem.
  static void add(std::string& blocks, const std::string& block) {
    if (("\n" + blocks + "\n").find("\n" + block + "\n") != std::string::npos) return;
    blocks += (blocks.empty() ? "" : "\n") + block;
  }

  /// Appends an error in the format of configuration diagnostics. `text` states the problem and its
  /// cause, then "; " and the fix.
  static void add(std::string& blocks, const Origin& at, const std::string& text) {
    const size_t end = std::min(text.find("; "), text.size());
    add(blocks, at.text() + ": error: " + indented(text.substr(0, end)) + config::excerpt_of(at) +
                    (end < text.size() ? "\n  note: " + indented(text.substr(end + 2)) : ""));
  }

  /// Returns the source position of the component's `option` or, if it is not set, of the
  /// component.
  Origin origin_of(const ComponentSpec& spec, const std::string& option) const {
    for (const char* element : {".", ".0."})
      if (const Origin at = experiment_.origin(spec.path + element + option);
          at.source != "default")
        return at;
    // The resolved experiment records a list as one value, so "paths.1" is recorded as "paths".
    const size_t dot = option.rfind('.');
    return dot == option.npos ? spec.origin : origin_of(spec, option.substr(0, dot));
  }

  /// Adds an error about a component's options. If the message starts with an option's name,
  /// underlines that option.
  void add_option_problem(const ComponentSpec& spec, const std::string& text) {
    add(configuration_, origin_of(spec, text.substr(0, text.find_first_of(" :"))),
        label_of(spec) + text);
  }

  /// Adds an error about a component's input file. The message contains the position in that file.
  void add_input_problem(const ComponentSpec& spec, const std::string& text) {
    // A missing file has already been reported by check_paths.
    if (!inputs_too_ || !check_paths(spec)) return;
    Origin at = spec.origin;
    for (const OptionSpec& option : plugins_.find(spec).schema->options)
      if (option.input_path && spec.options.count(option.key)) at = origin_of(spec, option.key);
    add(inputs_, at.text() + ": error: " + label_of(spec) + indented(text));
  }

  static std::string label_of(const ComponentSpec& spec) {
    return std::string(kind_name(spec.kind)) + " '" + spec.plugin + "': ";
  }

  /// Runs `build` and reports errors from component constructors as problems. Returns false if
  /// there was one.
  template <class Build>
  bool builds(const Build& build) {
    try {
      build();
      return true;
    } catch (const ConstructorError& error) {
      if (error.code() == ExitCode::plugin) throw;  // the plugin is at fault, not the experiment
      if (error.code() == ExitCode::data)
        add_input_problem(error.spec, error.cause);
      else
        add_option_problem(error.spec, error.cause);
      return false;
    }
  }

  /// Reports the component's input paths that cannot be read. Returns false if one is unreadable or
  /// if input files must not be checked.
  bool check_paths(const ComponentSpec& spec) {
    bool readable = true;
    for (const OptionSpec& option : plugins_.find(spec).schema->options) {
      const auto value = spec.options.find(option.key);
      if (!option.input_path || value == spec.options.end()) continue;
      const std::vector<std::string> paths = strings_of(value->second);
      for (size_t i = 0; i < paths.size(); ++i) {
        if (paths[i].empty()) continue;
        readable = readable && inputs_too_;
        const std::string why = inputs_too_ ? why_unreadable(paths[i]) : "";
        if (why.empty()) continue;
        readable = false;
        const std::string key =
            option.key + (option.type == OptionType::strings ? "." + std::to_string(i) : "");
        add(inputs_, origin_of(spec, key),
            spec.path + "." + key + ": " + why + ": " + paths[i] +
                "; correct the path or create it");
      }
    }
    return readable;
  }

  /// Opens the training data, so that all errors in its files are found before the run starts.
  void check_data() {
    const TrainOptions& train = experiment_.train;
    builds([&] {
      make<Data>(plugins_, experiment_.data,
                 DataContext{.split = Split::train,
                             .micro_batch = train.micro_batch.value_or(1),
                             .sequence = train.sequence,
                             .seed = uint64_t(train.seed),
                             .vocab = vocab_of(experiment_, tokenizer_.get()),
                             .validation_share = experiment_.validation.share,
                             .tokenizer = tokenizer_});
    });
  }

  /// Returns the vocabulary size with which to build the model.
  int64_t check_vocab() {
    std::shared_ptr<const Tokenizer>& tokenizer = tokenizer_;
    const bool named = !experiment_.tokenizer.plugin.empty();
    if (named && check_paths(experiment_.tokenizer))
      builds([&] {
        tokenizer = make<Tokenizer>(plugins_, experiment_.tokenizer, TokenizerContext{});
      });
    if (named && !tokenizer) return experiment_.model.vocab.value_or(kAnyVocab);
    try {
      return vocab_of(experiment_, tokenizer.get());
    } catch (const Error& error) {
      if (error.code() != ExitCode::usage) throw;
      const Origin at = experiment_.origin("model.vocab");
      add(configuration_, at.source == "default" ? experiment_.data.origin : at, error.what());
      return kAnyVocab;
    }
  }

  /// Builds every layer, and the optimizers for their parameters. Skips layers that cannot be
  /// built, so that all layers are checked.
  void check_model(int64_t vocab) {
    bool complete = true;
    ModelFactory factory = factory_of(experiment_, plugins_);
    factory.rank_group = rank_groups(world_);
    const auto tried = [&](auto make_layer) {
      return [this, &complete, make_layer](const LayerContext& context) {
        decltype(make_layer(context)) layer;
        complete &= builds([&] { layer = make_layer(context); });
        return layer;
      };
    };
    factory.attention = tried(factory.attention);
    factory.feed_forward = tried(factory.feed_forward);
    const Model model(experiment_, vocab, factory, at::kMeta);
    for (const OptimizerGroup& group : experiment_.optimizer)
      complete &= builds([&] { make<Optimizer>(plugins_, group.component); });
    if (!complete) return;  // some parameters are unknown, because their layer could not be built
    try {
      const OptimizerSet optimizers(experiment_, plugins_, model.store());
    } catch (const Error& error) {
      if (error.code() != ExitCode::usage) throw;
      add(configuration_, error.what());
    }
    warn_about_slow_experts(model);
  }

  /// Warns about routed experts that LibTorch's grouped GEMM cannot multiply, because its rows must
  /// be multiples of 16 bytes long.
  void warn_about_slow_experts(const Model& model) const {
    if (!trains_on_gpu_in_bf16(experiment_.train)) return;
    for (const Parameter& parameter : model.store().parameters()) {
      const at::IntArrayRef sizes = parameter.tensor.sizes();
      if (parameter.spec.active >= 1 || sizes.size() != 3) continue;
      if (sizes[1] % 8 == 0 && sizes[2] % 8 == 0) continue;
      return log::warning(c10::str(
          experiment_.feed_forward.back().component.origin.text(), ": experts of shape ", sizes[1],
          " x ", sizes[2], " (", parameter.name,
          ") train slowly on a GPU, which multiplies them one by one and waits for their sizes; "
          "make model.hidden and the experts' hidden size multiples of 8"));
    }
  }

  /// Checks that the batch can be divided among the ranks.
  void check_batch() {
    try {
      micro_batch_of(experiment_.train, world_->size());
    } catch (const Error& error) {
      add(configuration_, experiment_.origin("train.batch"), error.what());
    }
  }

  void check_schedule() {
    std::string problem;
    builds([&] {
      problem = call(*make<Schedule>(plugins_, experiment_.schedule), "problem", &Schedule::problem,
                     total_steps(experiment_));
    });
    if (!problem.empty()) add_option_problem(experiment_.schedule, problem);
  }

  const Experiment& experiment_;
  Plugins& plugins_;
  const std::shared_ptr<Communicator> world_;
  const bool inputs_too_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // of check_vocab()
  std::string configuration_, inputs_;          // blocks
};

}  // namespace

int64_t vocab_of(const Experiment& experiment, const Tokenizer* tokenizer) {
  const std::optional<int64_t> vocab = experiment.model.vocab;
  if (!vocab && !tokenizer)
    throw Error("model.vocab is auto, but data has no tokenizer; set model.vocab to a number",
                ExitCode::usage);
  if (!vocab) return tokenizer->vocab_size();
  if (tokenizer && tokenizer->vocab_size() > *vocab)
    throw Error(c10::str("model.vocab is ", *vocab, ", but the tokenizer has ",
                         tokenizer->vocab_size(), " ids; raise model.vocab to ",
                         tokenizer->vocab_size(), " or more, or set it to auto"),
                ExitCode::usage);
  return *vocab;
}

int64_t vocab_of(const Experiment& experiment, Plugins& plugins) {
  if (experiment.model.vocab) return *experiment.model.vocab;
  try {
    return vocab_of(experiment,
                    make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{}).get());
  } catch (const Error& error) {
    throw Error("model.vocab is auto, which needs the tokenizer: " + std::string(error.what()) +
                    "; set model.vocab to a number for a dry run without it",
                error.code());
  }
}

void preflight(const Experiment& experiment, Plugins& plugins, PreflightScope scope,
               int64_t ranks) {
  Preflight(experiment, plugins, scope, ranks).check();
}

}  // namespace dsv3
