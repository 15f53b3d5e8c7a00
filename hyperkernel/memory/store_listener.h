// Who keeps account of what pages of guest memory hold, and so must know of every store to them: the storage replica.
#pragma once

#include "hyperkernel/base/types.h"

namespace hk {

// Thread-safe.
class StoreListener {
 public:
  virtual ~StoreListener() = default;
  // The bytes of the page are about to change; whoever changes them goes on when the call has returned. Comes from any
  // thread, with a lock of the memory held: must neither call the memory nor block. Comes also for pages that nobody
  // asked to have protected, and more than once.
  virtual void BeforeStore(Gfn page) = 0;
};

}  // namespace hk
