"""The conformance suites find typical bugs: each mutation of a plugin of the tree must break a promise.

A mutation replaces one piece of a plugin's source, which is compiled and linked with the plugin's own commands.
DSV3_TEST_FULL=1 runs all of them, else a tenth, chosen by DSV3_TEST_SEED.
"""

import os
import pathlib
import random
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ["DSV3_BUILD_DIR"])
NINJA = pathlib.Path(sys.executable).parent / "ninja"

MLA, MHA = "attention/mla", "attention/mha"
MOE, SWIGLU = "feed_forward/moe", "feed_forward/swiglu"
# name: (component, source, what is there, what is put there, options of the check)
MUTATIONS = {
    "no_mask": (MHA, "mha.cpp", "dsv3::attend(q, k, v, seq, scale_)",
                "dsv3::attend(q, k, v, [&] { dsv3::Sequence s = seq; s.mask = at::Tensor(); return s; }(), scale_)",
                "heads=4"),
    "all_to_all_mask": (MHA, "mha.cpp", "dsv3::attend(q, k, v, seq, scale_)",
                        "dsv3::attend(q, k, v, [&] { dsv3::Sequence s = seq; if (!s.cache) s.mask = "
                        "at::ones({x.size(0), 1, x.size(1), x.size(1)}, at::kBool); return s; }(), scale_)",
                        "heads=4"),
    "absorbed_scale_missing": (MLA, "mla.cpp", "shared, shared, seq, scale_)", "shared, shared, seq, 1.0)", ""),
    "off_by_one_position": (MHA, "mha.cpp", "rotated(q, k, seq.positions)",
                            "rotated(q, k, seq.cache ? seq.positions + 1 + seq.positions : seq.positions)",
                            "heads=4"),
    "positions_of_the_row": (MLA, "mla.cpp", "kv[1].unsqueeze(2), seq.positions)",
                             "kv[1].unsqueeze(2), at::arange(x.size(1)).expand({x.size(0), x.size(1)}).contiguous())",
                             ""),
    "cache_before_rotation": (MLA, "mla.cpp", "at::cat({latent, k_rope.squeeze(2)}, -1)",
                              "at::cat({latent, kv[1]}, -1)", ""),
    "cache_too_small": (MHA, "mha.cpp", "return 2 * o_.kv_heads * o_.head_dim;",
                        "return o_.kv_heads * o_.head_dim;", "heads=4"),
    "flops_doubled": (MLA, "mla.cpp", "return 2.0 * seq * o_.heads", "return 4.0 * seq * o_.heads", ""),
    "saved_values_forgotten": (MHA, "mha.cpp", "return context().dims.hidden + 2 * q", "return 0 * q", "heads=4"),
    "double_count": (MOE, "moe.cpp", "if (seq.training && !seq.recompute) counts_", "if (seq.training) counts_", ""),
    "counts_in_validation": (MOE, "moe.cpp", "if (seq.training && !seq.recompute) counts_",
                             "if (!seq.recompute) counts_", ""),
    "side_loss_unscaled": (MOE, "moe.cpp", "o_.balance_alpha, seq.aux_scale)", "o_.balance_alpha, 1.0)",
                           "balance_alpha=0.1"),
    "routing_over_the_batch": (MOE, "routing.cpp", "choose(routing.scores + bias, rule)",
                               "choose(routing.scores + bias - routing.scores.mean(0), rule)", ""),
    "weights_without_gradient": (MOE, "routing.cpp", "routing.scores.gather(1, routing.chosen)",
                                 "routing.scores.detach().gather(1, routing.chosen)", ""),
    "bias_shared_by_layers": (MOE, "moe.cpp",
                              'bias_ = buffer("router.bias", {o_.routed}, at::kFloat, dsv3::Init::zeros());',
                              'static at::Tensor shared = at::zeros({o_.routed}); bias_ = shared;', ""),
    "half_the_gate": (SWIGLU, "swiglu.cpp", "dsv3::swiglu(", "dsv3::swiglu(0.5 * x.mean() + ", ""),
    "keys_not_rotated": ("position/rope", "rope.cpp", "dsv3::rotate(k, cos, sin, interleaved_)};", "k};", ""),
    "layouts_mixed": ("position/rope", "rope.cpp", "dsv3::rotate(k, cos, sin, interleaved_)};",
                      "dsv3::rotate(k, cos, sin, !interleaved_)};", ""),
    "counts_its_own_steps": ("optimizer/adamw", "adamw.cpp", "t = double(step.update);",
                             "t = double(++calls);\n    static int dummy = 0;\n    (void)dummy;", ""),
    "momentum_not_declared": ("optimizer/muon", "muon.cpp", "momentum(slices[i]->state[0], slices[i]->grad)",
                              "momentum(kept, slices[i]->grad)", ""),
    "decay_ignores_schedule": ("optimizer/muon", "muon.cpp", "const double lr = options_.lr * lr_factor;",
                               "const double lr = options_.lr;", ""),
    "gradients_not_dropped": ("strategy/single", "single.cpp", "if (unit.grad.defined()) unit.grad.zero_();", "", ""),
    "norm_without_root": ("strategy/single", "single.cpp", "return std::sqrt(sum);", "return sum;", ""),
    "bf16_master": ("strategy/single", "single.cpp", "if (unit.compute.defined()) unit.compute.copy_(unit.master);",
                    "if (unit.compute.defined()) unit.compute.copy_(unit.master), unit.master.copy_(unit.compute);",
                    ""),
    "rank_ignored": ("data/synthetic", "synthetic.cpp", "const int64_t first = rows_ + context_.rank * B;",
                     "const int64_t first = rows_;", ""),
    "world_not_counted": ("data/synthetic", "synthetic.cpp", "rows_ += B * context_.world;", "rows_ += B;", ""),
    "state_not_restored": ("data/synthetic", "synthetic.cpp", 'rows_ = state["rows"];', "", ""),
    "key_rows_forgotten": ("format/llama", "llama.cpp", "if (interleaved) k.rows = half_split_rows(s.kv_heads, s.head_dim);", "",
                           ""),
    "up_beside_gate": ("format/llama", "llama.cpp", "gate_up, s.inner);", "gate_up, s.inner - 1);", ""),
    "yarn_factor_forgotten": ("format/llama", "llama.cpp", 'rope.factor = option<double>(position, "factor");', "", ""),
    "field_not_read": ("format/deepseek_v3", "deepseek_v3.cpp", 'reader.boolean("norm_topk_prob", true)',
                       '(reader.ignore("norm_topk_prob"), true)', ""),
    "router_bias_forgotten": ("format/deepseek_v3", "names.cpp",
                              'add(there + "gate.e_score_correction_bias", {s_.experts}, here + "router.bias").keep_fp32 =\n'
                              "        true;", "", ""),
    "experts_in_one_place": ("format/deepseek_v3", "names.cpp", '"experts.down.weight", s_.expert_hidden, e);',
                             '"experts.down.weight", s_.expert_hidden, 0);', ""),
    "unknown_fields_pass": ("format/deepseek_v3", "deepseek_v3.cpp", "  reader.finish();\n", "", ""),
    "signed_bytes": ("tokenizer/bytes", "bytes.cpp", "static_cast<unsigned char>(text[i])", "text[i]", ""),
    "decay_from_the_start": ("schedule/wsd", "wsd.cpp", "std::min((double(step) - start)", "(2 * (double(step) - start)",
                             ""),
    "dies_of_refused_rows": ("tracker/csv", "csv.cpp", "writer_->write(rows);",
                             'if (rows.find("nan") != std::string::npos) throw std::runtime_error("nan");\n'
                             "    writer_->write(rows);", ""),
}
# Declarations that a mutation needs besides.
EXTRA = {
    "counts_its_own_steps": ("AdamWOptions options_;\n", "AdamWOptions options_;\n  mutable int calls = 0;\n"),
    "momentum_not_declared": ("    const at::Tensor& first = slices.front()->value;",
                              "    static std::map<std::string, at::Tensor> all;\n"
                              "    at::Tensor& kept = all.try_emplace(slices.front()->range.name, "
                              "at::zeros_like(slices.front()->grad)).first->second;\n"
                              "    const at::Tensor& first = slices.front()->value;"),
    "decay_from_the_start": ("(double(total) - start), 1.0);", "(double(total) - start));"),
}


def chosen():
    names = sorted(MUTATIONS)
    if os.environ.get("DSV3_TEST_FULL") == "1":
        return names
    seed = int(os.environ.get("DSV3_TEST_SEED", "0"))
    return random.Random(seed).sample(names, max(2, len(names) // 10))


def replaced(text, old, new):
    assert text.count(old) == 1, f"the mutation's place is there {text.count(old)} times: {old}"
    return text.replace(old, new)


def run(command):
    done = subprocess.run(command, shell=isinstance(command, str), cwd=BUILD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def build_mutant(name, folder):
    """The plugin's library with the mutation in it, made by the build's own commands."""
    component, file, old, new, _ = MUTATIONS[name]
    source = ROOT / "plugins" / component / file
    text = replaced(source.read_text(), old, new)
    if name in EXTRA:
        text = replaced(text, *EXTRA[name])
    mutant = folder / file
    mutant.write_text(text)
    library = f"lib/dsv3/plugins/libdsv3_{component.replace('/', '_')}.so"
    listed = subprocess.run([NINJA, "-t", "commands", library], cwd=BUILD, capture_output=True, text=True, check=True)
    commands = listed.stdout.splitlines()
    [compile_command] = [line for line in commands if f"-c {source}" in line]
    words = shlex.split(compile_command)
    made = words[words.index("-o") + 1]
    run(compile_command.replace(f"-c {source}", f"-I{source.parent} -c {mutant}")
        .replace(f"-o {made}", f"-o {folder / 'mutant.o'}").replace(f"-MF {made}.d", f"-MF {folder / 'mutant.d'}"))
    run(commands[-1].replace(made, str(folder / "mutant.o")).replace(f"-o {library}", f"-o {folder / 'mutant.so'}"))
    return folder / "mutant.so"


def check(library, component, options):
    arguments = [word for option in options.split() for word in ("--set", option)]
    return subprocess.run([BUILD / "bin" / "dsv3", "plugins", "check", library, "--component", component, *arguments],
                          capture_output=True, text=True, cwd="/", timeout=600)


@pytest.mark.parametrize("name", chosen())
def test_is_caught(name, tmp_path):
    component, *_, options = MUTATIONS[name]
    result = check(build_mutant(name, tmp_path), component, options)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "FAIL" in result.stdout
    print(result.stdout)


def test_there_are_enough_and_of_every_kind():
    assert len(MUTATIONS) >= 20
    kinds = {component.split("/")[0] for component, *_ in MUTATIONS.values()}
    assert len(kinds) == 10
