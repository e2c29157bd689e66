// dsv3 data prepare | inspect
#include <filesystem>
#include <iostream>
#include <memory>

#include <dsv3/runtime/data.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/tokenizer.h>

#include "commands.h"
#include "common/command_line.h"

namespace {

struct PrepareArguments {
  dsv3::PrepareRequest request;
  std::string tokenizer, output;
  PluginOptions plugins;
};

/// Creates a tokenizer. `name` is `bytes`, or the path of a tokenizer.json for the bpe plugin.
std::shared_ptr<const dsv3::Tokenizer> open_tokenizer(const std::string& name,
                                                      dsv3::Plugins& plugins) {
  dsv3::ComponentSpec spec;
  spec.kind = dsv3::Kind::tokenizer;
  spec.plugin = name == "bytes" ? "bytes" : "bpe";
  if (spec.plugin == "bpe") spec.options["file"] = std::filesystem::absolute(name).string();
  spec.origin.source = "--tokenizer";
  return dsv3::make<dsv3::Tokenizer>(plugins, spec, dsv3::TokenizerContext{});
}

void prepare(PrepareArguments& arguments) {
  dsv3::Plugins plugins = arguments.plugins.open();
  arguments.request.tokenizer = open_tokenizer(arguments.tokenizer, plugins);
  arguments.request.out = arguments.output;
  const dsv3::PrepareResult result = dsv3::prepare_tokens(arguments.request);
  const std::string output = dsv3::printable_line(arguments.output);
  std::cout << output << ": " << result.documents << " documents, " << result.tokens
            << " tokens in " << result.shards << " shard(s), from " << result.text_bytes
            << " bytes of text\n"
            << "train on it with data=tokens "
            << dsv3::printable_line(dsv3::shell_quoted("data.path=" + arguments.output)) << '\n';
}

}  // namespace

void add_data_commands(CLI::App& app, int&) {
  CLI::App* data = app.add_subcommand("data", "Tokenize text into shards, and inspect shards");
  data->require_subcommand(1);

  CLI::App* command =
      data->add_subcommand("prepare", "Tokenize text into shards for the data plugin 'tokens'");
  auto arguments = std::make_shared<PrepareArguments>();
  dsv3::PrepareRequest& request = arguments->request;
  command->add_option("INPUT", request.inputs, ".txt and .jsonl files, or folders of them")
      ->required()
      ->type_name("PATH");
  command
      ->add_option("--tokenizer", arguments->tokenizer,
                   "Path to a tokenizer.json, or `bytes` for byte-level tokens")
      ->required()
      ->type_name("FILE");
  command->add_option("--output", arguments->output, "Folder to create")
      ->required()
      ->type_name("DIR");
  command->add_option("--shard-tokens", request.shard_tokens, "Tokens per shard")
      ->capture_default_str()
      ->check(integer_between(int64_t{1}, int64_t{1} << 40));
  command
      ->add_option("--field", request.format.field,
                   "Name of the .jsonl field that contains the text")
      ->capture_default_str();
  command
      ->add_option("--documents", request.format.documents, "Where a document ends in a .txt file")
      ->capture_default_str()
      ->check(CLI::IsMember({"blank_line", "line", "file"}));
  command
      ->add_option("--on-error", request.format.on_error, "fail on invalid documents, or skip them")
      ->capture_default_str()
      ->check(CLI::IsMember({"fail", "skip"}));
  arguments->plugins.add_to(*command);
  command->callback([arguments] { prepare(*arguments); });

  CLI::App* inspect =
      data->add_subcommand("inspect", "Describe a token file or a folder of shards");
  auto path = std::make_shared<std::string>();
  inspect->add_option("PATH", *path, "A shard, a .bin file or a folder")
      ->required()
      ->type_name("PATH");
  inspect->callback([path] { std::cout << dsv3::inspect_tokens(*path); });
}
