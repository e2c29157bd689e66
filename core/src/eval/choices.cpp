// Scores multiple-choice questions in HellaSwag's format the same way as lm-evaluation-harness.
#include "eval/scorer.h"

namespace dsv3::eval {
namespace {

constexpr const char* kSpaces = " \t\n\v\f\r";

/// A question read from one line of the file, with its text cleaned up.
struct Item {
  std::string context;
  std::vector<std::string> endings;
  int64_t label = 0;
  std::string where;  // file:line
};

/// The token ids of a context followed by one possible ending. The ending starts at index `first`.
struct Candidate {
  std::vector<int64_t> ids;
  int64_t first = 0;
  double* log_likelihood = nullptr;  // where to store the ending's log-likelihood
};

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  throw Error(where + ": " + what, ExitCode::data);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t i = text.find(from); i != std::string::npos; i = text.find(from, i + to.size()))
    text.replace(i, from.size(), to);
}

/// Cleans up the WikiHow half of HellaSwag as lm-evaluation-harness does: removes surrounding white
/// space, "[...]" within a line, and double spaces. Replaces " [title]" with ". ".
std::string cleaned(std::string text) {
  text.erase(0, std::min(text.find_first_not_of(kSpaces), text.size()));
  text.erase(text.find_last_not_of(kSpaces) + 1);
  replace_all(text, " [title]", ". ");
  for (size_t open = text.find('['); open != std::string::npos; open = text.find('[', open)) {
    const size_t close = text.find_first_of("]\n", open);
    if (close != std::string::npos && text[close] == ']')
      text.erase(open, close + 1 - open);
    else
      ++open;
  }
  replace_all(text, "  ", " ");
  return text;
}

/// Capitalises the first letter and converts all others to lower case (ASCII only).
std::string capitalised(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = char(text[0] - 'a' + 'A');
  return text;
}

const Json& field(const Json& line, const char* key, const std::string& where) {
  if (!line.contains(key)) fail(where, std::string("no field '") + key + "'");
  return line[key];
}

std::string text_of(const Json& line, const char* key, const std::string& where) {
  const Json& value = field(line, key, where);
  if (!value.is_string()) fail(where, std::string("field '") + key + "' must be a string");
  return value;
}

/// Returns the index of the correct ending, given as a number or a string of digits.
int64_t label_of(const Json& line, size_t endings, const std::string& where) {
  const Json& label = field(line, "label", where);
  const std::string text = label.is_string() ? label.get<std::string>() : label.dump();
  const bool is_index = !text.empty() && text.size() < 10 &&
                        text.find_first_not_of("0123456789") == std::string::npos;
  if (!is_index || std::stoull(text) >= endings)
    fail(where, c10::str("label ", label.dump(), " is not one of the endings 0 to ", endings - 1));
  return std::stoll(text);
}

Item read_item(const Json& line, const std::string& where) {
  if (!line.is_object()) fail(where, "every line must be an object");
  Item item;
  item.where = where;
  if (!line.contains("ctx_a") && !line.contains("ctx"))
    fail(where, "no field 'ctx', and no fields 'ctx_a' and 'ctx_b'");
  std::string context = line.contains("ctx_a") ? text_of(line, "ctx_a", where) + " " +
                                                     capitalised(text_of(line, "ctx_b", where))
                                               : text_of(line, "ctx", where);
  if (line.contains("activity_label"))
    context = text_of(line, "activity_label", where) + ": " + context;
  item.context = cleaned(context);
  const Json& endings = field(line, "endings", where);
  if (!endings.is_array() || endings.size() < 2)
    fail(where, "'endings' must be a list of at least two strings");
  for (const Json& ending : endings) {
    if (!ending.is_string()) fail(where, "'endings' must be a list of at least two strings");
    item.endings.push_back(cleaned(ending.get<std::string>()));
    if (item.endings.back().empty()) fail(where, "an ending is empty");
  }
  item.label = label_of(line, endings.size(), where);
  return item;
}

Json parse_line(std::string_view line, const std::string& where) {
  try {
    return parse_json(line, "line");
  } catch (const Error& error) {
    // Replaces the "line:1" in the parser's "line:1:COLUMN: ..." with the file and line number.
    throw Error(where + std::string(error.what()).substr(std::string_view("line:1").size()),
                ExitCode::data);
  }
}

std::vector<Item> read_items(const Scorer& scorer, const std::string& file) {
  const fs::Mapping mapping(file);
  std::vector<Item> items;
  std::string_view rest = mapping.view();
  for (int64_t number = 1; !rest.empty() && !scorer.enough(std::ssize(items)); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.find_first_not_of(kSpaces) == std::string_view::npos) continue;
    const std::string where = file + ":" + std::to_string(number);
    items.push_back(read_item(parse_line(line, where), where));
  }
  if (items.empty()) throw Error(file + " has no questions", ExitCode::data);
  return items;
}

/// Encodes the context and the ending together, then splits the ids after as many as the context
/// alone has. The space between the two therefore belongs to the ending.
Candidate make_candidate(const Scorer& scorer, const Tokenizer& tokenizer, const Item& item,
                         const std::string& ending) {
  const std::string context = item.context.substr(0, item.context.find_last_not_of(kSpaces) + 1);
  const std::vector<int32_t> whole = tokenizer.encode(item.context + " " + ending);
  Candidate candidate{{whole.begin(), whole.end()}, std::ssize(tokenizer.encode(context))};
  if (candidate.first == 0) {
    if (tokenizer.eos_id() < 0)
      fail(item.where, "no context, and the tokenizer has no end-of-text id to use instead");
    candidate.ids.insert(candidate.ids.begin(), tokenizer.eos_id());
    candidate.first = 1;
  }
  for (const int64_t id : candidate.ids) scorer.check_id(id, item.where);
  const int64_t length = std::ssize(candidate.ids) - candidate.first;
  if (length < 1)
    fail(item.where, "the tokenizer merges the ending '" + ending + "' into the context");
  if (length > scorer.sequence)
    fail(item.where,
         c10::str("an ending has ", length, " tokens, but --sequence is ", scorer.sequence));
  return candidate;
}

/// Removes tokens from the start of a candidate that is too long. Returns whether it did.
bool truncate(Candidate& candidate, int64_t sequence) {
  const int64_t excess = std::ssize(candidate.ids) - (sequence + 1);
  if (excess <= 0) return false;
  candidate.ids.erase(candidate.ids.begin(), candidate.ids.begin() + excess);
  candidate.first -= excess;
  return true;
}

/// Computes the log-likelihoods of the endings in `rows`, whose first row must be the longest. Pads
/// on the right, because causal attention ignores what follows a token.
void score_rows(Model& model, std::span<const Candidate> rows) {
  const int64_t longest = std::ssize(rows[0].ids);
  const int64_t count = std::ssize(rows);
  Batch batch{at::zeros({count, longest}, at::kLong), {}};
  at::Tensor targets = at::full({count, longest - 1}, -1, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    const Candidate& row = rows[i];
    std::copy(row.ids.begin(), row.ids.end(),
              batch.tokens.mutable_data_ptr<int64_t>() + i * longest);
    std::copy(row.ids.begin() + row.first, row.ids.end(),
              targets.mutable_data_ptr<int64_t>() + i * (longest - 1) + row.first - 1);
  }
  const at::Tensor sums = model.token_losses(batch, targets).to(at::kDouble).sum(1).neg();
  for (int64_t i = 0; i < count; ++i) *rows[i].log_likelihood = sums.const_data_ptr<double>()[i];
}

}  // namespace

ChoiceScore score_choices(const Scorer& scorer, const std::string& file) {
  const Tokenizer& tokenizer = scorer.required_tokenizer("multiple choice");
  ChoiceScore score;
  score.source = file;
  std::vector<Candidate> candidates;
  for (const Item& item : read_items(scorer, file)) {
    Question& question = score.questions.emplace_back();
    question.label = item.label;
    question.log_likelihoods.resize(item.endings.size());
    for (const std::string& ending : item.endings) {
      Candidate& candidate =
          candidates.emplace_back(make_candidate(scorer, tokenizer, item, ending));
      candidate.log_likelihood = &question.log_likelihoods[question.bytes.size()];
      score.truncated += truncate(candidate, scorer.sequence);
      question.bytes.push_back(std::ssize(ending));
    }
  }
  // Batching candidates of similar length minimises padding.
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto& a, const auto& b) { return a.ids.size() > b.ids.size(); });
  for (size_t begin = 0; begin < candidates.size(); begin += size_t(scorer.batch))
    score_rows(scorer.model,
               {&candidates[begin], std::min(size_t(scorer.batch), candidates.size() - begin)});
  return score;
}

}  // namespace dsv3::eval
