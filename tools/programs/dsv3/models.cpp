// dsv3 export | import | logits
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include <dsv3/runtime/convert.h>
#include <dsv3/runtime/evaluate.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>

#include "commands.h"
#include "common/command_line.h"
#include "common/output_file.h"

namespace {

int64_t shard_bytes(const std::string& text) {
  if (const auto bytes = parse_bytes(text)) return *bytes;
  throw dsv3::Error("invalid --shard-size '" + text + "'; expected a size such as 5G or 500M, or 0",
                    dsv3::ExitCode::usage);
}

void add_export(CLI::App& app) {
  struct Arguments {
    dsv3::ExportRequest request;
    std::string model, folder, shard_size = "5G";
    bool no_mtp = false;
    PluginOptions plugins;
  };
  const auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("export", "Export a model as a Hugging Face folder");
  command->add_option("MODEL", a->model, "Run folder (its newest checkpoint) or checkpoint")
      ->required()
      ->type_name("PATH");
  command->add_option("HF_DIR", a->folder, "Folder to create")->required()->type_name("DIR");
  command
      ->add_option("--format", a->request.format,
                   "Format plugin for the architecture; by default, the first one that can express "
                   "the model")
      ->type_name("FORMAT");
  command->add_flag("--no-mtp", a->no_mtp, "Leave out multi-token prediction modules");
  command
      ->add_option("--dtype", a->request.dtype,
                   "Dtype of the weights; auto = as imported, else fp32")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}));
  command
      ->add_option("--shard-size", a->shard_size,
                   "Maximum size of a weight file; 0 = write a single file")
      ->capture_default_str();
  command
      ->add_option("--tokenizer", a->request.tokenizer, "A tokenizer.json instead of the model's")
      ->type_name("FILE");
  a->plugins.add_to(*command);
  command->callback([a] {
    a->request.model = a->model;
    a->request.folder = a->folder;
    a->request.mtp = !a->no_mtp;
    a->request.shard_bytes = shard_bytes(a->shard_size);
    dsv3::Plugins plugins = a->plugins.open();
    const dsv3::ExportResult result = dsv3::export_model(a->request, plugins);
    std::cout << dsv3::printable_line(a->folder) << ": " << result.format << ", " << result.tensors
              << " tensors, " << result.bytes << " bytes in " << result.files << " file(s)\n";
    for (const std::string& note : result.notes)
      std::cout << "note: " << dsv3::printable_line(note) << '\n';
  });
}

void add_import(CLI::App& app) {
  struct Arguments {
    std::string folder, checkpoint;
    PluginOptions plugins;
  };
  const auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("import", "Import a Hugging Face folder as a checkpoint");
  command->add_option("HF_DIR", a->folder, "Folder with config.json and safetensors files")
      ->required()
      ->type_name("DIR");
  command->add_option("CKPT", a->checkpoint, "Checkpoint folder to create")
      ->required()
      ->type_name("DIR");
  a->plugins.add_to(*command);
  command->callback([a] {
    dsv3::Plugins plugins = a->plugins.open();
    for (const std::string& note : dsv3::import_model(a->folder, a->checkpoint, plugins))
      std::cout << "note: " << dsv3::printable_line(note) << '\n';
    const std::string checkpoint = dsv3::printable_line(a->checkpoint);
    std::cout << checkpoint << ": continue training with dsv3-run " << checkpoint
              << "/experiment.yaml --from " << checkpoint << " data.path=TEXT\n";
  });
}

/// Returns the folder that contains all files of a model: for a checkpoint in a run, the run
/// folder.
std::filesystem::path model_folder(const std::string& model) {
  std::error_code ignored;
  const auto folder = std::filesystem::weakly_canonical(model, ignored);
  return folder.parent_path().filename() == "checkpoints" ? folder.parent_path().parent_path()
                                                          : folder;
}

void add_logits(CLI::App& app) {
  struct Arguments {
    dsv3::LogitsRequest request;
    std::string model, tokens, output;
    PluginOptions plugins;
  };
  const auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("logits", "Write a model's logits for given tokens");
  command->add_option("MODEL", a->model, "Run folder, checkpoint or Hugging Face folder")
      ->required()
      ->type_name("PATH");
  command
      ->add_option("--tokens", a->tokens,
                   "JSON file with a list of token-id lists, all of the same length")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--output", a->output,
                   "safetensors file to write: fp32 logits [B, T, V] and, with MTP modules, "
                   "mtp_logits [depth, B, T, V]")
      ->required()
      ->type_name("FILE");
  command->add_option("--device", a->request.model.device, "Device to run on")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--precision", a->request.model.precision, "Compute dtype")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}));
  a->plugins.add_to(*command);
  command->callback([a] {
    a->request.model.path = a->model;
    a->request.tokens = a->tokens;
    std::vector<std::filesystem::path> inputs = a->plugins.files();
    inputs.insert(inputs.end(), {a->tokens, model_folder(a->model)});
    const OutputFile output(a->output, inputs);
    dsv3::Plugins plugins = a->plugins.open();
    std::string written;
    output.write([&](const std::filesystem::path& file) {
      a->request.out = file;
      written = dsv3::write_logits(a->request, plugins);
    });
    (output.is_standard_output() ? std::cerr : std::cout)
        << dsv3::printable_line(a->output) << ": " << written << '\n';
  });
}

}  // namespace

void add_model_commands(CLI::App& app, int&) {
  add_export(app);
  add_import(app);
  add_logits(app);
}
