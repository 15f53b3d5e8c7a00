// Must not compile under -Wthread-safety: reads a guarded field without its lock.
#include "hyperkernel/base/mutex.h"

class Counter {
 public:
  int Get() { return value_; }

 private:
  hk::Mutex mutex_;
  int value_ ABSL_GUARDED_BY(mutex_) = 0;
};

int main() {
  return Counter().Get();
}
