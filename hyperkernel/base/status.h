// Helpers around absl::Status: errors carry errno's name and the object that failed, and gain context on their way to
// main.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hk {

// Status for a failed system call: "WHAT: No such file or directory (ENOENT)". The code follows errno's meaning.
// `saved_errno` is errno as the call left it.
absl::Status ErrnoStatus(int saved_errno, std::string_view what);

// The same code with "CONTEXT: " before the message. OK stays OK.
absl::Status WithContext(const absl::Status& status, std::string_view context);

// The message without the code's name, as printed to operators.
std::string MessageOf(const absl::Status& status);

}  // namespace hk

// Returns the status of an expression from the enclosing function if it is not OK.
#define HK_RETURN_IF_ERROR(expression)                                            \
  do {                                                                            \
    if (absl::Status hk_status = (expression); !hk_status.ok()) return hk_status; \
  } while (false)

#define HK_CONCAT_INNER(a, b) a##b
#define HK_CONCAT(a, b) HK_CONCAT_INNER(a, b)

// Assigns the value of a StatusOr expression to `target`, or returns its status from the enclosing function.
#define HK_ASSIGN_OR_RETURN(target, expression) \
  HK_ASSIGN_OR_RETURN_INNER(HK_CONCAT(hk_status_or_, __LINE__), target, expression)
#define HK_ASSIGN_OR_RETURN_INNER(temporary, target, expression) \
  auto temporary = (expression);                                 \
  if (!temporary.ok()) return temporary.status();                \
  target = *std::move(temporary)
