"""The conformance suite finds typical bugs: each mutation of a built-in plugin must fail a check.

A mutation rewrites part of a plugin's source (rewrite.py). The test compiles and links the result with the commands
that the build uses for the plugin. By default, it runs a random tenth of the mutations (seed: DSV3_TEST_SEED).
DSV3_TEST_FULL=1 runs all of them.
"""

import os
import pathlib
import random
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest
from rewrite import rewrite

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ["DSV3_BUILD_DIR"])
NINJA = pathlib.Path(sys.executable).parent / "ninja"


class Mutation(NamedTuple):
    component: str
    edits: list  # (pattern, replacement)
    options: str = ""  # of the check


def mutation(component, pattern, replacement, options=""):
    return Mutation(component, [(pattern, replacement)], options)


MLA, MHA = "attention/mla", "attention/mha"
MOE, SWIGLU = "feed_forward/moe", "feed_forward/swiglu"
ROPE, MUON, SINGLE = "position/rope", "optimizer/muon", "strategy/single"
DDP, ZERO, FSDP = "strategy/ddp", "strategy/zero", "strategy/fsdp"
FOLDERS = dict.fromkeys((DDP, ZERO, FSDP), "strategy/data_parallel")  # of components in a shared library
SYNTHETIC, LLAMA, DEEPSEEK_V3 = "data/synthetic", "format/llama", "format/deepseek_v3"
MUTATIONS = {
    "no_mask": mutation(
        MHA, "attend($q, $k, $v, $seq, $scale)",
        "attend($q, $k, $v, [&] { dsv3::Sequence s = $seq; s.packing = nullptr; return s; }(), $scale)", "heads=4"),
    "looks_ahead": mutation(
        MHA, "attend($q, $k, $v, $seq, $scale)",
        "attend($seq.cache ? $q : $q.flip(1), $seq.cache ? $k : $k.flip(1), $seq.cache ? $v : $v.flip(1), $seq, $scale)"
        ".flip(std::vector<int64_t>(!$seq.cache, 1))", "heads=4"),
    "absorbed_scale_missing": mutation(MLA, "attend($q, $k, $k, $seq, $scale)", "attend($q, $k, $k, $seq, {.scale = 1.0})"),
    "off_by_one_position": mutation(
        MHA, "rotated($q, $k, $seq.positions)",
        "rotated($q, $k, $seq.cache ? $seq.positions + 1 + $seq.positions : $seq.positions)", "heads=4"),
    "positions_of_the_row": mutation(
        MLA, "rotate($q, $k, $seq.positions)",
        "rotate($q, $k, at::arange($seq.positions.size(1)).expand_as($seq.positions).contiguous())"),
    "cache_before_rotation": Mutation(MLA, [
        ("rotate($q, $k, $seq.positions)", "rotate($q, $k, $seq.positions)"),
        ("append(at::cat({$latent, $rotated.squeeze(2)}, -1))", "append(at::cat({$latent, $k.squeeze(2)}, -1))")]),
    "cache_too_small": mutation(MHA, "cache_values_per_token() const { return 2 * $values; }",
                                "cache_values_per_token() const { return $values; }", "heads=4"),
    "host_read": mutation(SWIGLU, "down_(dsv3::swiglu($gate))", "down_(dsv3::swiglu($gate.add(0 * $gate.max().item<double>())))"),
    "double_count": mutation(MOE, "($seq.training && !$seq.recompute)", "($seq.training)"),
    "counts_in_validation": mutation(MOE, "($seq.training && !$seq.recompute)", "(!$seq.recompute)"),
    "side_loss_unscaled": mutation(MOE, "add_loss($y, $loss, $seq.aux_scale)", "add_loss($y, $loss, 1.0)",
                                   "balance_alpha=0.1"),
    "routing_over_the_batch": mutation(MOE, "choose($scores + $bias, $rule)",
                                       "choose($scores + $bias - $scores.mean(0), $rule)"),
    "weights_without_gradient": mutation(MOE, "= $scores.gather(1, $chosen);", "= $scores.detach().gather(1, $chosen);"),
    "bias_shared_by_layers": mutation(MOE, "bias_ = buffer($name, {$experts}, at::kFloat, $init);",
                                      "static at::Tensor shared = at::zeros({$experts}); bias_ = shared;"),
    "half_the_gate": mutation(SWIGLU, "down_(dsv3::swiglu($gate))", "down_(dsv3::swiglu($gate.mean().mul(0.5).add($gate)))"),
    "keys_not_rotated": mutation(
        ROPE, "{dsv3::rotate($q, $cos, $sin, $layout), dsv3::rotate($k, $cos, $sin, $layout)}",
        "{dsv3::rotate($q, $cos, $sin, $layout), $k}"),
    "layouts_mixed": mutation(
        ROPE, "{dsv3::rotate($q, $cos, $sin, $layout), dsv3::rotate($k, $cos, $sin, $layout)}",
        "{dsv3::rotate($q, $cos, $sin, $layout), dsv3::rotate($k, $cos, $sin, !$layout)}"),
    "counts_its_own_steps": mutation("optimizer/adamw", "double($step.update);",
                                     "double([] { static int64_t calls = 0; return ++calls; }());"),
    "momentum_not_declared": mutation(
        MUON, "momentum($slice->state[0], $slice->grad)",
        "momentum([&] { static std::map<std::string, at::Tensor> all; return all.try_emplace($slice->range.name, "
        "at::zeros_like($slice->grad)).first->second; }(), $slice->grad)"),
    "decay_ignores_schedule": mutation(MUON, "= options_.lr * $factor;", "= options_.lr;"),
    "gradients_not_dropped": mutation(SINGLE, "if ($unit.grad.defined()) $unit.grad.zero_();", ""),
    "norm_without_root": mutation(SINGLE, "return dsv3::norm_of($grads, context_.device);",
                                  "return dsv3::norm_of($grads, context_.device).square();"),
    "bf16_master": mutation(SINGLE, "$unit.compute.copy_($unit.master);",
                            "$unit.compute.copy_($unit.master), $unit.master.copy_($unit.compute);"),
    "norm_of_one_rank": mutation(DDP, "norms_->all_reduce_sum($squares);", ""),
    "gradients_not_summed": mutation(
        DDP, "if (!$unit.reduced && (last_ || $unit.unfinished > 0)) reduce($unit);",
        "if (!$unit.reduced && last_ && $unit.unfinished == 0) reduce($unit);"),
    "copies_not_refreshed": mutation(ZERO, "present_ = false; start_values();", "start_values();"),
    "values_not_gathered": mutation(
        FSDP, "gather_ = channels_->gather->start_all_gather(values_, own_part(values_));", ""),
    "results_not_sent": mutation(DDP, "results = start_results($round, $tensors);", ""),
    "shard_counted_twice": mutation(FSDP, "return reduced_.narrow(0, $count * $row, $count);",
                                    "return gradients_.defined() ? at::cat({reduced_, reduced_}) : reduced_;"),
    "rank_ignored": mutation(SYNTHETIC, "= $rows + context_.rank * $batch;", "= $rows;"),
    "world_not_counted": mutation(SYNTHETIC, "+= $batch * context_.world;", "+= $batch;"),
    "state_not_restored": mutation(SYNTHETIC, 'rows_ = $state["rows"];', ""),
    "key_rows_forgotten": mutation(LLAMA, "if ($interleaved) $k.rows = half_split_rows($sizes.kv_heads, $dim);", ""),
    "up_beside_gate": mutation(LLAMA, 'add($layer + "mlp.up_proj.weight", $shape, $source, $sizes.inner);',
                               'add($layer + "mlp.up_proj.weight", $shape, $source, $sizes.inner - 1);'),
    "yarn_factor_forgotten": mutation(LLAMA, '$rope.factor = $position.option<double>("factor");', ""),
    "field_not_read": mutation(DEEPSEEK_V3, '$reader.boolean("norm_topk_prob", $default)',
                               '($reader.ignore("norm_topk_prob"), $default)'),
    "router_bias_forgotten": mutation(
        DEEPSEEK_V3, 'add($layer + "gate.e_score_correction_bias", $shape, $source).keep_fp32 = true;', ""),
    "experts_in_one_place": mutation(
        DEEPSEEK_V3, 'gated($stored, $layer, "experts.gate_up.weight", "experts.down.weight", $width, $expert);',
        'gated($stored, $layer, "experts.gate_up.weight", "experts.down.weight", $width, 0);'),
    "unknown_fields_pass": mutation(DEEPSEEK_V3, "$reader.finish();", ""),
    "signed_bytes": mutation("tokenizer/bytes", "static_cast<unsigned char>($byte)", "$byte"),
    "decay_from_the_start": mutation("schedule/wsd", "std::min(($step - $start) / ($total - $start), 1.0)",
                                     "(2 * ($step - $start) / ($total - $start))"),
    "dies_of_rejected_rows": mutation(
        "tracker/csv", "$writer->write($rows); $writer->sync(); }",
        'if ($rows.find("nan") != std::string::npos) throw std::runtime_error("nan"); $writer->write($rows); $writer->sync(); }'),
}


def chosen():
    names = sorted(MUTATIONS)
    if os.environ.get("DSV3_TEST_FULL") == "1":
        return names
    seed = int(os.environ.get("DSV3_TEST_SEED", "0"))
    return random.Random(seed).sample(names, max(2, len(names) // 10))


def mutated(name):
    """Return the path of the source file that the mutation changes, and its mutated source."""
    component, edits, _ = MUTATIONS[name]
    folder = ROOT / "plugins" / FOLDERS.get(component, component)
    sources = {file: file.read_text() for file in sorted(folder.glob("*.cpp"))}
    [(source, text)] = rewrite(sources, edits).items()
    assert text != sources[source], name
    return source, text


def run(command):
    done = subprocess.run(command, shell=True, cwd=BUILD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def build_mutant(name, folder):
    """Build the plugin library with the mutation, using the build's commands."""
    component = MUTATIONS[name].component
    source, text = mutated(name)
    mutant = folder / source.name
    mutant.write_text(text)
    library = f"lib/dsv3/plugins/libdsv3_{FOLDERS.get(component, component).replace('/', '_')}.so"
    listed = subprocess.run([NINJA, "-t", "commands", library], cwd=BUILD, capture_output=True, text=True, check=True)
    commands = listed.stdout.splitlines()
    [compile_command] = [line for line in commands if f"-c {source}" in line]
    words = shlex.split(compile_command)
    output = words[words.index("-o") + 1]
    run(compile_command.replace(f"-c {source}", f"-I{source.parent} -c {mutant}")
        .replace(f"-o {output}", f"-o {folder / 'mutant.o'}").replace(f"-MF {output}.d", f"-MF {folder / 'mutant.d'}"))
    run(commands[-1].replace(output, str(folder / "mutant.o")).replace(f"-o {library}", f"-o {folder / 'mutant.so'}")
        .replace(f"-DLIBRARY={BUILD / library}", f"-DLIBRARY={folder / 'mutant.so'}"))
    return folder / "mutant.so"


def check(library, component, options):
    arguments = [word for option in options.split() for word in ("--set", option)]
    return subprocess.run([BUILD / "bin" / "dsv3", "plugins", "check", library, "--component", component, *arguments],
                          capture_output=True, text=True, cwd="/", timeout=600)


@pytest.mark.parametrize("name", chosen())
def test_the_suite_finds(name, tmp_path):
    component, _, options = MUTATIONS[name]
    result = check(build_mutant(name, tmp_path), component, options)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "FAIL" in result.stdout
    print(result.stdout)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_mutation_applies(name):
    mutated(name)


def test_mutations_cover_every_kind():
    assert len(MUTATIONS) >= 20
    kinds = {mutation.component.split("/")[0] for mutation in MUTATIONS.values()}
    assert len(kinds) == 10


SOURCE = "void f() {\n  g(a, b[1] + c); // g(a, d)\n  if (x) y.push(a,  b[1]);\n}\n"


@pytest.mark.parametrize("pattern, replacement, result", [
    ("g($first, $rest)", "h($rest)", "h(b [ 1 ] + c); // g(a, d)"),
    ("$y . push(a, b [1])", "$y.pop()", "if (x) y.pop();"),
    ("g ( a, $same /* any */ + c )", "$same", "  b [ 1 ]; //"),
])
def test_rewrite_ignores_layout_and_names(pattern, replacement, result):
    assert result in rewrite({"f.cpp": SOURCE}, [(pattern, replacement)])["f.cpp"]


@pytest.mark.parametrize("pattern", ["missing($x)", "push($x)", "$x(a, $y)", "g($x, $x)", "a"])
def test_a_pattern_that_does_not_match_once_is_an_error(pattern):
    with pytest.raises(AssertionError, match="must match exactly once"):
        rewrite({"f.cpp": SOURCE}, [(pattern, "")])
