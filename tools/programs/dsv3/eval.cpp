// dsv3 eval
#include <cstdio>
#include <iostream>
#include <memory>

#include <dsv3/runtime/evaluate.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>

#include "commands.h"
#include "common/command_line.h"

namespace {

struct Arguments {
  dsv3::EvalRequest request;
  std::string model;
  bool json = false;
  PluginOptions plugins;
};

/// Formats a value in `width` columns, or "-" if it is absent.
template <class Value>
std::string cell(const char* format, const std::optional<Value>& value, int width) {
  char text[64] = "-";
  if (value) std::snprintf(text, sizeof text, format, *value);
  const std::string shown = text;
  return std::string(std::max<int>(width - int(shown.size()), 0), ' ') + shown;
}

std::optional<long long> wide(const std::optional<int64_t>& value) {
  return value ? std::optional<long long>(*value) : std::nullopt;
}

void print_row(const char* what, const dsv3::TextScore& score) {
  std::cout << cell("%lld", wide(score.documents), 10) << cell("%lld", wide(score.tokens), 12)
            << cell("%lld", wide(score.bytes), 12) << cell("%.4f", std::optional(score.loss()), 10)
            << cell("%.4f", score.bits_per_byte(), 11) << "  " << what << ' '
            << dsv3::printable_line(score.source) << '\n';
}

void print_table(const std::string& model, const dsv3::Evaluation& result) {
  std::cout << dsv3::printable_line(model) << ": step " << result.step << ", " << result.precision
            << " on " << result.device << '\n';
  if (result.validation || !result.text.empty() || !result.shards.empty())
    std::cout << " documents      tokens       bytes      loss  bits/byte\n";
  if (result.validation) print_row("validation of", *result.validation);
  for (const dsv3::TextScore& score : result.text) print_row("text", score);
  for (const dsv3::TextScore& score : result.shards) print_row("shards", score);
  if (!result.choices.empty()) std::cout << " questions   truncated    accuracy  acc_norm\n";
  for (const dsv3::ChoiceScore& score : result.choices)
    std::cout << cell("%lld", wide(std::ssize(score.questions)), 10)
              << cell("%lld", wide(score.truncated), 12)
              << cell("%.4f", std::optional(score.accuracy(false)), 12)
              << cell("%.4f", std::optional(score.accuracy(true)), 10) << "  choices "
              << dsv3::printable_line(score.source) << '\n';
}

void check(const CLI::App& command, const dsv3::EvalRequest& request) {
  if (!request.text.empty() || !request.shards.empty() || !request.choices.empty()) return;
  for (const char* option : {"--sequence", "--batch", "--limit"})
    if (command.count(option) > 0)
      throw dsv3::Error(std::string(option) +
                            " requires --text, --shards or --choices; without any of these, "
                            "`dsv3 eval` repeats the run's validation unchanged",
                        dsv3::ExitCode::usage);
}

}  // namespace

void add_eval_commands(CLI::App& app, int&) {
  const auto a = std::make_shared<Arguments>();
  dsv3::EvalRequest& request = a->request;
  request.model.device = request.model.precision = "";
  request.model.keep_threads = true;
  CLI::App* command = app.add_subcommand(
      "eval",
      "Measure a model's loss, bits per byte and multiple-choice accuracy; by default, the loss "
      "on its run's validation split");
  command->add_option("MODEL", a->model, "Run folder, checkpoint or Hugging Face folder")
      ->required()
      ->type_name("PATH");
  command->add_option("--text", request.text, ".txt and .jsonl files, or folders of them")
      ->type_name("PATH");
  command->add_option("--shards", request.shards, "Folders of token shards, or token files")
      ->type_name("PATH");
  command->add_option("--choices", request.choices, "Questions in HellaSwag's format (.jsonl)")
      ->type_name("FILE");
  command
      ->add_option("--documents", request.format.documents, "Where a document ends in a .txt file")
      ->capture_default_str()
      ->check(CLI::IsMember({"blank_line", "line", "file"}));
  command
      ->add_option("--on-error", request.format.on_error, "fail on invalid documents, or skip them")
      ->capture_default_str()
      ->check(CLI::IsMember({"fail", "skip"}));
  command
      ->add_option("--field", request.format.field,
                   "Name of the .jsonl field that contains the text")
      ->capture_default_str();
  command
      ->add_option("--sequence", request.sequence,
                   "Maximum input length in tokens [the experiment's]")
      ->check(integer_between(int64_t{1}, int64_t{1} << 20));
  command->add_option("--batch", request.batch, "Number of rows per forward pass")
      ->capture_default_str()
      ->check(integer_between(int64_t{1}, int64_t{1} << 20));
  command
      ->add_option("--limit", request.limit,
                   "Maximum number of documents or questions from each source [all]")
      ->check(integer_between(int64_t{1}, int64_t{1} << 40));
  command->add_option("--device", request.model.device, "Device to run on [as in training]")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--precision", request.model.precision, "Compute dtype [as in training]")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}));
  command
      ->add_option("--tokenizer", request.model.tokenizer,
                   "A tokenizer.json instead of the model's")
      ->type_name("FILE");
  command->add_flag("--json", a->json,
                    "Print one JSON object, with every question's log-likelihoods");
  a->plugins.add_to(*command);
  command->callback([a, command] {
    check(*command, a->request);
    a->request.model.path = a->model;
    dsv3::Plugins plugins = a->plugins.open();
    const dsv3::Evaluation result = dsv3::evaluate(a->request, plugins);
    if (a->json)
      std::cout << dsv3::to_json(result).dump(1) << '\n';
    else
      print_table(a->model, result);
  });
}
