// dsv3 data prepare | inspect
#include <filesystem>
#include <iostream>
#include <memory>

#include <dsv3/runtime/data.h>
#include <dsv3/sdk/tokenizer.h>

#include "commands.h"

namespace {

struct PrepareArguments {
  dsv3::PrepareRequest request;
  std::string tokenizer, out;
  PluginOptions plugins;
};

/// `bytes`, or a tokenizer.json for the bpe plugin.
std::shared_ptr<const dsv3::Tokenizer> make_tokenizer(const std::string& name,
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
  arguments.request.tokenizer = make_tokenizer(arguments.tokenizer, plugins);
  arguments.request.out = arguments.out;
  const dsv3::PrepareResult result = dsv3::prepare_tokens(arguments.request);
  std::cout << arguments.out << ": " << result.documents << " documents, " << result.tokens
            << " tokens in " << result.shards << " shard(s), from " << result.text_bytes
            << " bytes of text\n"
            << "train on it with data={plugin: tokens, path: " << arguments.out << "}\n";
}

}  // namespace

void add_data_commands(CLI::App& app, int&) {
  CLI::App* data = app.add_subcommand("data", "Turns text into token shards, and looks at them");
  data->require_subcommand(1);

  CLI::App* command =
      data->add_subcommand("prepare", "Tokenises text once into shards for data plugin 'tokens'");
  auto arguments = std::make_shared<PrepareArguments>();
  dsv3::PrepareRequest& request = arguments->request;
  command->add_option("INPUT", request.inputs, ".txt and .jsonl files, and folders of them")
      ->required()
      ->type_name("PATH");
  command->add_option("--tokenizer", arguments->tokenizer, "a tokenizer.json, or the word bytes")
      ->required()
      ->type_name("FILE");
  command->add_option("--out", arguments->out, "folder to make")->required()->type_name("DIR");
  command->add_option("--shard-tokens", request.shard_tokens, "tokens a shard")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--field", request.format.field, "field of a .jsonl line with the text")
      ->capture_default_str();
  command
      ->add_option("--documents", request.format.documents, "where a document of a .txt file ends")
      ->capture_default_str()
      ->check(CLI::IsMember({"blank_line", "line", "file"}));
  arguments->plugins.add_to(*command);
  command->callback([arguments] { prepare(*arguments); });

  CLI::App* inspect =
      data->add_subcommand("inspect", "Says what a token file or a folder of shards holds");
  auto path = std::make_shared<std::string>();
  inspect->add_option("PATH", *path, "a shard, a .bin file, or a folder")
      ->required()
      ->type_name("PATH");
  inspect->callback([path] { std::cout << dsv3::inspect_tokens(*path); });
}
