// dsv3 reference: prints docs/reference.md, which is generated from the core's schemas.
#include <array>
#include <iostream>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/plugins.h>

#include "commands.h"

namespace {

struct Row {
  const char *name, *detail, *meaning;  // `detail`: unit, or variable
};

constexpr std::array kStructure{
    Row{"dsv3", "", "version of the experiment format, currently 1; base files may omit it"},
    Row{"extends", "",
        "base files, relative to this file's folder; later ones override earlier ones"},
    Row{"conventions", "",
        "values of conventions by component, as in the presets; see checkpoints.md"},
    Row{"model.attention", "", "attention: one component, or a list of components with `layers`"},
    Row{"model.position", "", "positional encoding: one component"},
    Row{"model.feed_forward", "",
        "feed-forward: one component, or a list of components with `layers`"},
    Row{"optimizer", "", "optimizer: one component, or a list of groups with `role` or `match`"},
    Row{"schedule", "", "learning-rate schedule: one component"},
    Row{"strategy", "", "parallel strategy: one component"},
    Row{"data", "", "training data: one component"},
    Row{"data.tokenizer", "", "tokenizer: one component, or null"},
    Row{"tracker", "", "experiment trackers: one component, a list, or null"},
    Row{"callback", "", "observers that may stop the run: one component, a list, or null"},
    Row{"tags", "",
        "text by name, or nested maps: describes the run for people and searches, without effect "
        "on what it computes; see tracking.md"},
};

/// Keys of config.yaml that are not keys of experiments.
constexpr std::array kMachine{
    Row{"plugin_paths", "",
        "~/.config/dsv3/config.yaml or --config only: plugin libraries, registries "
        "or installations, relative to that file"},
    Row{"run_id", "", "run to resume, by name, folder or id; like `--run_id`"},
    Row{"tracking_uri", "`MLFLOW_TRACKING_URI`", "address of the MLflow server"},
    Row{"experiment_name", "`MLFLOW_EXPERIMENT_NAME`", "name of the MLflow experiment"},
    Row{"databricks_host", "`DATABRICKS_HOST`", "address of the Databricks workspace"},
    Row{"databricks_token", "`DATABRICKS_TOKEN`", "personal access token for that workspace"},
    Row{"workspace_id", "`DATABRICKS_WORKSPACE_ID`",
        "id of the workspace, if several have the same address"},
    Row{"unity_catalog", "`DATABRICKS_UNITY_CATALOG`",
        "CATALOG.SCHEMA of registered models in Databricks"},
};

constexpr std::array kComponentKeys{
    Row{"plugin", "", "name of the plugin; `KEY: NAME` is short for `KEY: {plugin: NAME}`"},
    Row{"library", "",
        "path of a plugin library that is not in any registry, relative to this file"},
    Row{"layers", "",
        "attention and feed-forward: layers that use the component, e.g. layer `3`, the range "
        "`0-1`, or the open-ended range `2-` (layer 2 to the last)"},
    Row{"role", "",
        "optimizer: roles of the group's parameters: matrix, embedding, head, norm, router, bias"},
    Row{"match", "", "optimizer: regular expression for the full names of the group's parameters"},
    Row{"name", "", "optimizer: name of the group in metrics and checkpoints"},
    Row{"timeout", "",
        "strategy: time in seconds after which a rank that waits for another one fails; default "
        "600"},
};

constexpr std::array kMetrics{
    Row{"train/loss", "nats per target",
        "cross-entropy of next-token prediction, mean over the step's targets"},
    Row{"train/total_loss", "nats per target",
        "training objective: train/loss + weighted MTP loss + z-loss"},
    Row{"train/mtp_loss", "nats per target",
        "cross-entropy of the MTP modules, mean over prediction depths, unweighted; only with MTP"},
    Row{"train/grad_norm", "", "gradient norm over all parameters, before clipping"},
    Row{"train/skipped", "steps",
        "1 for a step skipped by `train.not_finite: skip`; otherwise absent"},
    Row{"train/lr/GROUP", "",
        "learning rate of the optimizer group, including the schedule's factor"},
    Row{"val/loss", "nats per target",
        "cross-entropy of next-token prediction on the held-out set"},
    Row{"attention/max_logit", "",
        "largest attention score among 64 sampled queries per layer and micro-batch; maximum over "
        "the layers"},
    Row{"throughput/tokens_per_s", "tokens/s",
        "training tokens per second since the last logged line, without the time for validation, "
        "samples and checkpoints"},
    Row{"throughput/mfu", "fraction",
        "model FLOPs utilisation: the model's FLOP/s divided by the GPU's bf16 peak; only if the "
        "peak is known"},
    Row{"data/wait_fraction", "fraction",
        "fraction of the time since the last line that was spent waiting for data"},
    Row{"memory/peak_bytes", "bytes",
        "peak memory since the process started (tensors on a GPU, resident set on a CPU)"},
    Row{"system/cpu_utilization_percentage", "percent",
        "share of the time of all cores in which they were busy"},
    Row{"system/system_memory_usage_megabytes", "10^6 bytes",
        "memory of the machine in use: MemTotal - MemAvailable"},
    Row{"system/system_memory_usage_percentage", "percent", "the same, of the machine's memory"},
    Row{"system/disk_usage_megabytes", "10^6 bytes",
        "used space of the file system that contains the run folder"},
    Row{"system/disk_available_megabytes", "10^6 bytes", "space that users can still fill there"},
    Row{"system/disk_usage_percentage", "percent", "used space, of the used and available space"},
    Row{"system/network_receive_megabytes", "10^6 bytes",
        "received since the process started, without loopback"},
    Row{"system/network_transmit_megabytes", "10^6 bytes",
        "sent since the process started, without loopback"},
    Row{"system/gpu_N_memory_usage_megabytes", "10^6 bytes",
        "memory in use on GPU N, numbered as by nvidia-smi"},
    Row{"system/gpu_N_memory_usage_percentage", "percent", "the same, of the GPU's memory"},
    Row{"system/gpu_N_utilization_percentage", "percent",
        "share of the time in which a kernel was running"},
    Row{"system/gpu_N_power_usage_watts", "W", "electrical power"},
    Row{"system/gpu_N_power_usage_percentage", "percent", "the same, of the GPU's power limit"},
};

template <size_t N>
void print_table(const char* header, const std::array<Row, N>& rows, const char* detail = nullptr) {
  std::cout << "| " << header;
  if (detail) std::cout << " | " << detail;
  std::cout << " | meaning |\n|---|---|" << (detail ? "---|\n" : "\n");
  for (const Row& row : rows) {
    std::cout << "| `" << row.name << "` | ";
    if (detail) std::cout << row.detail << (*row.detail ? " | " : "| ");
    std::cout << row.meaning << " |\n";
  }
}

/// Prints the metrics of the plugins in this build or installation.
void print_component_metrics() {
  dsv3::Plugins plugins(dsv3::plugin_search_levels({}, {}));
  std::cout << "| metric | unit | component | meaning |\n|---|---|---|---|\n";
  for (const dsv3::PluginEntry& entry : plugins.entries()) {
    const auto* found = plugins.find_if_known(entry.kind, entry.name);
    if (!found) continue;
    for (const dsv3::MetricSpec& metric : found->schema->metrics)
      std::cout << "| `" << metric.name << "` | " << metric.unit << (metric.unit.empty() ? "" : " ")
                << "| " << dsv3::kind_name(entry.kind) << "/" << entry.name << " | " << metric.doc
                << " |\n";
  }
}

void print_reference() {
  std::cout << "# Reference\n\n"
               "Every key of an experiment that the core reads, and every metric it writes. The "
               "options of components "
               "are in\n[plugins.md](plugins.md). Generated by `ninja -C build update_readmes`; do "
               "not edit. "
               "`dsv3 reference` prints the same.\n\n## Structure\n\n";
  print_table("key", kStructure);
  std::cout << "\n## Component keys\n\nBesides the plugin's own options:\n\n";
  print_table("key", kComponentKeys);
  for (const auto& [section, schema] : dsv3::core_sections())
    std::cout << "\n## " << (section.empty() ? "Top level" : "`" + section + "`") << "\n\n"
              << dsv3::options_table(schema, true);
  std::cout << "\n## `config.yaml` and `.env`\n\n"
               "`config.yaml` may contain `output`, `tracker`, `hub.endpoint` and `log.level` as "
               "defaults for all experiments, and these\nkeys of the machine, which never become "
               "part of an experiment. The environment and `.env` may set any variable whose\nname "
               "starts with `MLFLOW_` or `DATABRICKS_`. "
               "[tracking.md](tracking.md#addresses-and-logins) lists them with their "
               "precedence.\n\n";
  print_table("key of config.yaml", kMachine, "variable");
  std::cout
      << "\n## Metrics\n\nLines of `metrics.jsonl` contain `step`, `tokens` (training tokens so "
         "far), "
         "`time` "
         "(seconds since 1970) and, every\n`train.log_every` steps and after a validation:\n\n";
  print_table("metric", kMetrics, "unit");
  std::cout
      << "\nBuilt-in components add these, combined over layers, micro-batches and ranks:\n\n";
  print_component_metrics();
}

}  // namespace

void add_reference_command(CLI::App& app, int&) {
  app.add_subcommand("reference",
                     "Print every configuration key of the core and every metric as Markdown")
      ->callback([] { print_reference(); });
}
