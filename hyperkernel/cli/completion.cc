#include "hyperkernel/cli/completion.h"

#include <fmt/format.h>

#include <algorithm>

namespace hk::cli {
namespace {

// Options whose value is a file's name.
constexpr const char* kFileOptions[] = {"file", "tls-ca", "tls-cert", "tls-key"};

// What the script knows, as lines of bash's `case`.
struct Cases {
  std::string words;    // "PATH") subcommands and options
  std::string values;   // "PATH -o") skips an option's value
  std::string choices;  // "PATH -o") what that value may be
  std::string known;    // "PATH"|"PATH"...: the words that are commands
};

// "TEXT:{a,b}" as CLI11 describes an option: "a b"; empty if any value will do.
std::string ChoicesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t begin = type.find('{'), end = type.find('}');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return "";
  std::string choices = type.substr(begin + 1, end - begin - 1);
  std::replace(choices.begin(), choices.end(), ',', ' ');
  return choices;
}

bool IsFile(const CLI::Option& option) {
  for (const char* name : kFileOptions) {
    if (option.check_lname(name)) return true;
  }
  return false;
}

// The options of one command that take a value. The program's own are known after every command.
void AppendValues(const CLI::App& app, const std::string& path, Cases* cases) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_items_expected_min() == 0 || option->nonpositional() == false) continue;
    std::string pattern;
    const std::string prefix = path.empty() ? "*\" " : "\"" + path + " ";
    for (const std::string& name : option->get_lnames())
      pattern += (pattern.empty() ? "" : "|") + prefix + "--" + name + "\"";
    for (const std::string& name : option->get_snames())
      pattern += (pattern.empty() ? "" : "|") + prefix + "-" + name + "\"";
    cases->values += fmt::format("      {}) ((i++)) ;;\n", pattern);
    const std::string choices = ChoicesOf(*option);
    const std::string what = IsFile(*option) ? "-f" : choices.empty() ? "-W \"\"" : fmt::format("-W \"{}\"", choices);
    cases->choices += fmt::format("    {}) COMPREPLY=($(compgen {} -- \"$last\")); return ;;\n", pattern, what);
  }
}

// This command and each below it. `path` is the words so far, joined by spaces.
void AppendCases(const CLI::App& app, const std::string& path, const std::string& inherited, Cases* cases) {
  std::string options = inherited;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      if (options.find(" --" + name + " ") == std::string::npos) options += "--" + name + " ";
    }
  }
  AppendValues(app, path, cases);
  std::string words;
  for (const CLI::App* child : app.get_subcommands(nullptr)) {
    if (!child->get_name().empty()) words += child->get_name() + " ";
  }
  cases->words += fmt::format("    \"{}\") words=\"{}{}\" ;;\n", path, words, options.substr(1));
  for (const CLI::App* child : app.get_subcommands(nullptr)) {
    if (child->get_name().empty()) continue;
    const std::string below = path.empty() ? child->get_name() : path + " " + child->get_name();
    cases->known += fmt::format("{}\"{}\"", cases->known.empty() ? "" : "|", below);
    AppendCases(*child, below, options, cases);
  }
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  Cases cases;
  AppendCases(app, "", " ", &cases);
  const std::string name = app.get_name();
  // `path` grows by the words that are commands; others are arguments. After -- begins what is not ours.
  return fmt::format(
      "# bash completion for {0}: source <({0} completion bash)\n"
      "_{0}() {{\n"
      "  local path=\"\" words=\"\" word i last=\"${{COMP_WORDS[COMP_CWORD]}}\"\n"
      "  COMPREPLY=()\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=${{COMP_WORDS[i]}}\n"
      "    [ \"$word\" != -- ] || return\n"
      "    case \"$path $word\" in\n"
      "{2}"
      "    esac\n"
      "    case \"${{path:+$path }}$word\" in\n"
      "      {4}) path=\"${{path:+$path }}$word\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$path ${{COMP_WORDS[COMP_CWORD - 1]}}\" in\n"
      "{3}"
      "  esac\n"
      "  case $path in\n"
      "{1}"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$last\"))\n"
      "}}\n"
      "complete -F _{0} {0}\n",
      name, cases.words, cases.values, cases.choices, cases.known);
}

}  // namespace hk::cli
