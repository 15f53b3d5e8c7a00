#include "hyperkernel/base/log.h"

#include <memory>

#include "fmt/format.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace hk::log {
namespace {

// Longest value printed; a hostile peer's error text must not fill the disk.
constexpr size_t kMaxValueBytes = 2048;

struct State {
  std::shared_ptr<spdlog::logger> logger;
  std::string node = "-";

  State() : logger(std::make_shared<spdlog::logger>("hk", std::make_shared<spdlog::sinks::stderr_sink_mt>())) {
    logger->set_pattern("ts=%Y-%m-%dT%H:%M:%S.%eZ level=%l %v", spdlog::pattern_time_type::utc);
    logger->flush_on(spdlog::level::trace);
  }
};

State& TheState() {
  // Never destroyed: threads of libraries may log while the process exits.
  static State& state = *new State;
  return state;
}

spdlog::level::level_enum ToSpdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

bool IsBare(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("._:/@%+-").find(c) != std::string_view::npos;
}

}  // namespace

void Init(std::string_view node, Level least) {
  State& state = TheState();
  state.node = Quote(node);
  state.logger->set_level(ToSpdlog(least));
}

bool ParseLevel(std::string_view text, Level* level) {
  if (text == "debug") return *level = Level::kDebug, true;
  if (text == "info") return *level = Level::kInfo, true;
  if (text == "warning") return *level = Level::kWarning, true;
  if (text == "error") return *level = Level::kError, true;
  return false;
}

std::string Quote(std::string_view value) {
  const bool cut = value.size() > kMaxValueBytes;
  if (cut) value = value.substr(0, kMaxValueBytes);
  bool bare = !value.empty() && !cut;
  for (char c : value) bare = bare && IsBare(c);
  if (bare) return std::string(value);
  std::string out = "\"";
  for (char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (cut) out += "...";
  return out + '"';
}

void Write(Level level, std::string_view component, std::string_view message, std::initializer_list<Field> fields) {
  State& state = TheState();
  if (!state.logger->should_log(ToSpdlog(level))) return;
  std::string line = fmt::format("node={} component={} msg={}", state.node, component, Quote(message));
  for (const Field& field : fields) line += fmt::format(" {}={}", field.key, Quote(field.value));
  state.logger->log(ToSpdlog(level), spdlog::string_view_t(line));
}

}  // namespace hk::log
