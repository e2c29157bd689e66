// dsv3 generate
#include <algorithm>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <unistd.h>

#include <dsv3/runtime/generate.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "commands.h"
#include "common/command_line.h"
#include "common/standard_streams.h"
#include "generate_stats.h"

namespace {

using dsv3::Json;

constexpr size_t kMaxPromptBytes = 16 << 20;

[[noreturn]] void reject(const std::string& text) {
  throw dsv3::Error(text, dsv3::ExitCode::usage);
}

struct Arguments {
  dsv3::LoadRequest model;
  dsv3::GenerateOptions options;
  std::string path, prompt_file;
  std::vector<std::string> prompts, stops;
  int64_t seed = 0;
  bool speculate = false;
  const CLI::Option* speculation = nullptr;  // --speculate and --no-speculate
  bool ids = false, no_cache = false, stats = false, json = false;
  PluginOptions plugins;
};

/// Returns the rest of `in`, which may be endless.
std::string read_all(std::istream& in) {
  std::string text(kMaxPromptBytes + 1, '\0');
  in.read(text.data(), std::streamsize(text.size()));
  if (size_t(in.gcount()) > kMaxPromptBytes)
    reject("standard input has more than " + std::to_string(kMaxPromptBytes) +
           " bytes, which is too long for prompts");
  text.resize(size_t(in.gcount()));
  return text;
}

/// Waits for no writer of a FIFO.
std::string read_prompt_file(const std::string& path) try {
  return dsv3::fs::read(path, kMaxPromptBytes);
} catch (const dsv3::Error& error) {
  reject("--prompt-file: " + std::string(error.what()) +
         "; to pass text of a program, use standard input without --prompt-file");
}

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

/// Returns the prompts in --prompt and --prompt-file, one per line of the file. If there are none,
/// reads standard input, as one prompt or, with --ids, as one prompt per line.
std::vector<std::string> read_prompts(const Arguments& a) {
  std::vector<std::string> prompts = a.prompts;
  if (!a.prompt_file.empty()) {
    const std::vector<std::string> lines = lines_of(read_prompt_file(a.prompt_file));
    prompts.insert(prompts.end(), lines.begin(), lines.end());
    if (prompts.empty()) reject(a.prompt_file + " contains no prompts; write one per line");
  }
  if (!prompts.empty()) return prompts;
  if (isatty(STDIN_FILENO))
    std::cerr
        << "reading the prompt from standard input; end it with Ctrl-D (or pass --prompt TEXT)\n";
  std::string text = read_all(std::cin);
  if (a.ids) return lines_of(text);
  if (!text.empty() && text.back() == '\n') text.pop_back();  // added by `echo`
  return {text};
}

/// Parses a prompt given as a JSON list of token ids, such as "[1, 2, 3]".
std::vector<int32_t> parse_ids(const std::string& text) {
  const Json json = dsv3::parse_json(text, "prompt " + text.substr(0, 40));
  if (!json.is_array())
    reject("invalid prompt " + text + "; with --ids a prompt is a list of ids such as [1, 2, 3]");
  std::vector<int32_t> ids;
  for (const Json& id : json) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
      reject("invalid token id " + id.dump() + " in a prompt; ids are non-negative integers");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

/// Prints continuations: a single one as it is generated, several as they complete.
class Printer {
 public:
  Printer(const Arguments& a, const dsv3::Tokenizer* tokenizer, std::vector<std::string> prompts)
      : a_(a),
        tokenizer_(tokenizer),
        prompts_(std::move(prompts)),
        live_(prompts_.size() == 1 && !a.json),
        texts_(prompts_.size()),
        done_(prompts_.size()) {
    if (tokenizer)
      for (size_t i = 0; i < prompts_.size(); ++i) streams_.emplace_back(*tokenizer, a.stops);
    if (live_) std::cout << prompts_[0] << (tokenizer ? "" : " ") << std::flush;
  }

  /// Returns false if generation should stop.
  bool token(size_t i, int32_t id) {
    if (!tokenizer_) {
      add(i, (texts_[i].empty() ? "" : " ") + std::to_string(id));
      return true;
    }
    add(i, streams_[i].add(id));
    return !streams_[i].stopped();
  }

  /// Prints completed continuations in prompt order, up to the first incomplete one.
  void done(size_t i, const dsv3::Continuation& text) {
    if (tokenizer_) add(i, streams_[i].finish());
    done_[i] = text;
    for (; next_ < done_.size() && done_[next_]; ++next_) print(next_);
    std::cout << std::flush;
  }

 private:
  void add(size_t i, const std::string& text) {
    texts_[i] += text;
    if (live_) std::cout << text << std::flush;
  }

  void print(size_t i) {
    if (a_.json) return print_json(i);
    if (live_) {
      std::cout << '\n';
      return;
    }
    std::cout << "--- " << i + 1 << " of " << prompts_.size() << " ---\n"
              << prompts_[i] << (tokenizer_ ? "" : " ") << texts_[i] << '\n';
  }

  void print_json(size_t i) {
    const dsv3::Continuation& text = *done_[i];
    const bool eos = tokenizer_ && text.stop_id >= 0 && text.stop_id == tokenizer_->eos_id();
    const Json line{{"prompt", tokenizer_ ? Json(prompts_[i]) : Json::parse(prompts_[i])},
                    {"text", tokenizer_ ? Json(texts_[i]) : Json()},
                    {"ids", text.ids},
                    {"stop_reason", text.reason == dsv3::StopReason::length ? "length"
                                    : eos                                   ? "eos"
                                                                            : "stop"}};
    std::cout << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }

  const Arguments& a_;
  const dsv3::Tokenizer* tokenizer_;
  std::vector<std::string> prompts_;
  bool live_;  // streams a single continuation to standard output
  std::vector<dsv3::TextStream> streams_;
  std::vector<std::string> texts_;
  std::vector<std::optional<dsv3::Continuation>> done_;
  size_t next_ = 0;
};

std::vector<dsv3::Prompt> encode(const Arguments& a, const std::vector<std::string>& prompts,
                                 const dsv3::LoadedModel& loaded) {
  std::vector<dsv3::Prompt> encoded;
  size_t longest = 0;
  for (const std::string& prompt : prompts) {
    encoded.push_back(
        {a.ids ? parse_ids(prompt) : loaded.tokenizer->encode(prompt), uint64_t(a.seed)});
    longest = std::max(longest, encoded.back().ids.size());
  }
  const int64_t length = int64_t(longest) + a.options.tokens;
  if (length > loaded.experiment.train.sequence)
    dsv3::log::warning("the text may reach " + std::to_string(length) +
                       " tokens, but the model was trained with sequence length " +
                       std::to_string(loaded.experiment.train.sequence) +
                       "; quality may drop beyond that length");
  return encoded;
}

void check_stop_ids(const std::vector<int32_t>& ids, int64_t vocab) {
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab)
      reject("--stop-id " + std::to_string(id) + " is outside the model's vocabulary, 0 to " +
             std::to_string(vocab - 1));
}

void run(Arguments& a) {
  if (!isatty(STDOUT_FILENO)) set_output(Output::raw);
  a.model.path = a.path;
  a.model.with_tokenizer = !a.ids;
  if (a.ids && !a.stops.empty()) reject("--stop requires a tokenizer; with --ids use --stop-id");
  dsv3::Plugins plugins = a.plugins.open();
  const dsv3::LoadedModel loaded = dsv3::load_model(a.model, plugins);
  const dsv3::Tokenizer* tokenizer = loaded.tokenizer.get();
  if (!a.ids && !tokenizer)
    reject(a.path + " has no tokenizer; pass --tokenizer FILE, or use token ids with --ids");
  dsv3::GenerateOptions& options = a.options;
  options.cache = !a.no_cache;
  check_stop_ids(options.stop_ids, loaded.model->vocab());
  const bool can = loaded.model->mtp_depth() > 0 && options.cache;
  if (a.speculate && a.no_cache) reject("--speculate requires the KV cache; remove --no-cache");
  if (a.speculate && !can) reject(a.path + " has no MTP modules, which --speculate requires");
  options.speculate = a.speculation->count() > 0 ? a.speculate : can;
  if (tokenizer) {
    options.ids = tokenizer->vocab_size();
    if (tokenizer->eos_id() >= 0) options.stop_ids.push_back(tokenizer->eos_id());
  }
  const std::vector<std::string> prompts = read_prompts(a);
  const std::vector<dsv3::Prompt> encoded = encode(a, prompts, loaded);
  std::optional<Printer> printer;  // created late, so that generate() checks the prompts before
                                   // anything is printed
  const auto print = [&]() -> Printer& {
    if (!printer) printer.emplace(a, tokenizer, prompts);
    return *printer;
  };
  options.on_token = [&](size_t i, int32_t id) { return print().token(i, id); };
  options.on_done = [&](size_t i, const dsv3::Continuation& text) { print().done(i, text); };
  const dsv3::GenerateStats stats = dsv3::generate(*loaded.model, encoded, options).stats;
  if (a.stats)
    std::cerr << describe_stats(stats, loaded, factory_of(loaded.experiment, plugins), a.json)
              << std::flush;
}

void add_options(CLI::App& command, Arguments& a) {
  dsv3::Sampling& sampling = a.options.sampling;
  command.add_option("MODEL", a.path, "Run folder, checkpoint or Hugging Face folder")
      ->required()
      ->type_name("PATH");
  command.add_option("--prompt", a.prompts, "Text to continue; may be repeated [standard input]")
      ->allow_extra_args(false);
  command.add_option("--prompt-file", a.prompt_file, "File with one prompt per line")
      ->type_name("FILE");
  command.add_flag("--ids", a.ids,
                   "Read prompts as JSON lists of token ids, [1, 2, 3], and print ids");
  command.add_option("--tokens", a.options.tokens, "Maximum number of new tokens")
      ->capture_default_str()
      ->check(integer_between(1, 1 << 20));
  command
      .add_option("--temperature", sampling.temperature,
                  "Sampling temperature; 0 = always the most likely token")
      ->capture_default_str()
      ->check(number_between(0, 1000));
  command
      .add_option("--top-k", sampling.top_k,
                  "Sample only from this many of the most likely tokens; 0 = all")
      ->capture_default_str()
      ->check(integer_between(0, 1 << 24));
  command
      .add_option(
          "--top-p", sampling.top_p,
          "Sample from the smallest set of most likely tokens whose probabilities add up to this")
      ->capture_default_str()
      ->check(number_between(0, 1));
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "Values above 1 make tokens that are already in the text less likely")
      ->capture_default_str()
      ->check(number_between(0, 1000));
  command.add_option("--stop", a.stops, "Text that ends a continuation; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--stop-id", a.options.stop_ids,
                  "Token id that ends a continuation; may be repeated")
      ->allow_extra_args(false)
      ->check(integer_between(0, (1 << 24) - 1));
  command.add_option("--seed", a.seed, "Seed for sampling; every prompt uses the same one")
      ->capture_default_str()
      ->check(integer_between(int64_t{0}, std::numeric_limits<int64_t>::max()));
  a.speculation = command.add_flag("--speculate,!--no-speculate", a.speculate,
                                   "Draft tokens with the model's MTP modules [on if it has any]");
  command.add_flag("--no-cache", a.no_cache, "Recompute the whole sequence for every token");
  command.add_option("--batch", a.options.batch, "Number of prompts to process at once")
      ->capture_default_str()
      ->check(integer_between(1, 1 << 20));
  command.add_option("--device", a.model.device, "Device to run on")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--precision", a.model.precision, "Compute dtype")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}));
  command.add_option("--tokenizer", a.model.tokenizer, "A tokenizer.json instead of the model's")
      ->type_name("FILE");
  command.add_flag("--stats", a.stats,
                   "Print speed, cache size and accepted drafts to standard error");
  command.add_flag("--json", a.json,
                   "Print one JSON object per line: prompt, text, ids, stop_reason; with --stats, "
                   "one more object");
  a.plugins.add_to(command);
}

}  // namespace

void add_generate_command(CLI::App& app, int&) {
  const auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("generate", "Generate text from prompts");
  add_options(*command, *a);
  command->callback([a] { run(*a); });
}
