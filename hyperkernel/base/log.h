// Structured logs: one line per event in logfmt ("key=value key=\"quoted value\""), with the node's name, the component
// and, where one is concerned, the guest (a field with the key "guest"). Values are escaped: what a peer or guest says
// cannot forge a line or a key. Thread-safe.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

namespace hk::log {

enum class Level { kDebug, kInfo, kWarning, kError };

// One key and its value. Keys are constants of ours: [a-z_]+.
struct Field {
  std::string_view key;
  std::string value;
};

// Sets the node's name and the least severe level printed. Lines go to standard error. Call once, before threads start;
// lines logged earlier have node=-.
void Init(std::string_view node, Level least);

// Reads "debug", "info", "warning" or "error"; false if it is none of them.
bool ParseLevel(std::string_view text, Level* level);

// Prints one line. `component` is a constant such as "membership".
void Write(Level level, std::string_view component, std::string_view message, std::initializer_list<Field> fields = {});

inline void Debug(std::string_view component, std::string_view message, std::initializer_list<Field> fields = {}) {
  Write(Level::kDebug, component, message, fields);
}
inline void Info(std::string_view component, std::string_view message, std::initializer_list<Field> fields = {}) {
  Write(Level::kInfo, component, message, fields);
}
inline void Warning(std::string_view component, std::string_view message, std::initializer_list<Field> fields = {}) {
  Write(Level::kWarning, component, message, fields);
}
inline void Error(std::string_view component, std::string_view message, std::initializer_list<Field> fields = {}) {
  Write(Level::kError, component, message, fields);
}

// "value" as logfmt wants it: bare if it has only [A-Za-z0-9._:/@%+-], else quoted with control characters, quotes and
// backslashes escaped. Exposed for tests.
std::string Quote(std::string_view value);

}  // namespace hk::log
