#include "hyperkernel/cli/completion.h"

#include <fmt/format.h>

namespace hk::cli {
namespace {

// One "path) words ;;" case for this command and each below it. `path` is the words so far, joined by spaces.
void AppendCases(const CLI::App& app, const std::string& path, const std::string& inherited, std::string* cases) {
  std::string options = inherited;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      if (options.find(" --" + name + " ") == std::string::npos) options += "--" + name + " ";
    }
  }
  std::string words;
  for (const CLI::App* child : app.get_subcommands(nullptr)) {
    if (!child->get_name().empty()) words += child->get_name() + " ";
  }
  *cases += fmt::format("    \"{}\") words=\"{}{}\" ;;\n", path, words, options.substr(1));
  for (const CLI::App* child : app.get_subcommands(nullptr)) {
    if (!child->get_name().empty())
      AppendCases(*child, path.empty() ? child->get_name() : path + " " + child->get_name(), options, cases);
  }
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  std::string cases;
  AppendCases(app, "", " ", &cases);
  const std::string name = app.get_name();
  return fmt::format(
      "# bash completion for {0}: source <({0} completion bash)\n"
      "_{0}() {{\n"
      "  local path=\"\" words=\"\" word i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=${{COMP_WORDS[i]}}\n"
      "    case $word in\n"
      "      -o|--output|--endpoint|--timeout|--tls-ca|--tls-cert|--tls-key) ((i++)) ;;\n"
      "      -*) ;;\n"
      "      *) path=\"${{path:+$path }}$word\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case ${{COMP_WORDS[COMP_CWORD - 1]}} in\n"
      "    -o|--output) COMPREPLY=($(compgen -W \"table json\" -- \"${{COMP_WORDS[COMP_CWORD]}}\")); return ;;\n"
      "    --tls-ca|--tls-cert|--tls-key) COMPREPLY=($(compgen -f -- \"${{COMP_WORDS[COMP_CWORD]}}\")); return ;;\n"
      "  esac\n"
      "  case $path in\n"
      "{1}"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"${{COMP_WORDS[COMP_CWORD]}}\"))\n"
      "}}\n"
      "complete -F _{0} {0}\n",
      name, cases);
}

}  // namespace hk::cli
