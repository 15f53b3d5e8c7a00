// The transition tables of the page protocol: the one list of which state may follow which on which event. Lists for
// the preprocessor, so that the unit tests compare the code with them, pair by pair, and tests/sim/model_check the
// Promela model. A pair without a row is rejected: README.md, "Page protocol", says by which rule.
//
// X(from, event, to, seen): `seen` says who must be able to show the row: B both the model and the code's own
// explorer, C only the code (what it stands for is left out of the model: see README.md, "What is checked").
#pragma once

// What a list of names is turned into: enumerators, their number, their names.
#define HK_ENUMERATOR(name) k##name,
#define HK_PLUS_ONE(name) +1
#define HK_NAME_ENTRY(name) #name,

// clang-format off
#define HK_PAGE_STATES(X) \
  X(Absent) X(Shared) X(Owner) X(Exclusive) X(FetchRead) X(FetchWrite) X(Upgrade) X(OwnerUpgrade) \
  X(EvictOwner) X(EvictExclusive) X(EvictGone)

#define HK_PAGE_EVENTS(X) \
  X(Read) X(Write) X(Overwrite) X(Adopt) X(Drop) X(Evict) X(Pin) X(Unpin) X(HoldOver) \
  X(Answer) X(Nack) X(Ack) X(ForwardRead) X(ForwardWrite) X(ForwardAdopt) X(Invalidate) X(Peek) X(Peeked) \
  X(Release) X(EvictGranted) X(EvictDenied) X(EpochChange) X(Reconciled)

#define HK_DIRECTORY_STATES(X) \
  X(Dormant) X(Stored) X(Shared) X(Exclusive) X(Lost) X(Mirroring) X(Busy) X(Settling) X(Elsewhere)

#define HK_DIRECTORY_EVENTS(X) \
  X(Read) X(Write) X(Overwrite) X(Adopt) X(Evict) X(Done) X(Released) X(Mirrored) \
  X(Freeze) X(Thaw) X(MoveOut) X(Rebuild)

#define HK_PAGE_ROWS(X) \
  X(Absent, Read, FetchRead, B) X(Absent, Write, FetchWrite, B) X(Absent, Overwrite, FetchWrite, B) \
  X(Absent, Adopt, FetchWrite, B) X(Absent, Invalidate, Absent, B) X(Absent, Peek, Absent, B) \
  X(Absent, Peeked, Absent, B) X(Absent, Release, Absent, B) X(Absent, EpochChange, Absent, B) \
  X(Absent, Reconciled, Absent, B) X(Absent, Reconciled, Exclusive, B) X(Shared, Read, Shared, C) \
  X(Shared, Write, FetchWrite, B) X(Shared, Write, Upgrade, B) X(Shared, Overwrite, FetchWrite, B) \
  X(Shared, Overwrite, Upgrade, B) X(Shared, Drop, Absent, B) X(Shared, HoldOver, Absent, B) \
  X(Shared, HoldOver, Shared, B) X(Shared, Invalidate, Absent, B) X(Shared, Invalidate, Shared, B) \
  X(Shared, Peek, Shared, B) X(Shared, Peeked, Shared, B) X(Shared, Release, Shared, B) \
  X(Shared, EpochChange, Shared, B) X(Shared, Reconciled, Shared, B) X(Shared, Reconciled, Owner, B) \
  X(Owner, Read, Owner, C) X(Owner, Write, FetchWrite, C) X(Owner, Write, OwnerUpgrade, B) \
  X(Owner, Overwrite, FetchWrite, C) X(Owner, Overwrite, OwnerUpgrade, B) X(Owner, Evict, EvictOwner, B) \
  X(Owner, HoldOver, Absent, B) X(Owner, HoldOver, Owner, B) X(Owner, ForwardRead, Owner, B) \
  X(Owner, ForwardWrite, Absent, B) X(Owner, ForwardWrite, Owner, B) X(Owner, ForwardAdopt, Absent, B) \
  X(Owner, ForwardAdopt, Owner, B) X(Owner, Invalidate, Absent, B) X(Owner, Invalidate, Owner, B) \
  X(Owner, Peek, Owner, B) X(Owner, Peeked, Owner, B) X(Owner, Release, Owner, B) X(Owner, EpochChange, Owner, B) \
  X(Owner, Reconciled, Owner, B) X(Exclusive, Read, Exclusive, C) X(Exclusive, Write, Exclusive, C) \
  X(Exclusive, Overwrite, Exclusive, C) X(Exclusive, Evict, EvictExclusive, B) X(Exclusive, Pin, Exclusive, B) \
  X(Exclusive, Unpin, Absent, B) X(Exclusive, Unpin, Owner, B) X(Exclusive, Unpin, Exclusive, B) \
  X(Exclusive, HoldOver, Absent, B) X(Exclusive, HoldOver, Owner, B) X(Exclusive, HoldOver, Exclusive, B) \
  X(Exclusive, ForwardRead, Owner, B) X(Exclusive, ForwardRead, Exclusive, B) X(Exclusive, ForwardWrite, Absent, B) \
  X(Exclusive, ForwardWrite, Exclusive, B) X(Exclusive, ForwardAdopt, Absent, B) \
  X(Exclusive, ForwardAdopt, Exclusive, B) X(Exclusive, Invalidate, Absent, B) \
  X(Exclusive, Invalidate, Exclusive, B) X(Exclusive, Peek, Owner, B) X(Exclusive, Peek, Exclusive, B) \
  X(Exclusive, Peeked, Exclusive, B) X(Exclusive, Release, Exclusive, B) X(Exclusive, EpochChange, Exclusive, B) \
  X(Exclusive, Reconciled, Exclusive, B) X(FetchRead, Read, FetchRead, C) X(FetchRead, Write, FetchRead, C) \
  X(FetchRead, Overwrite, FetchRead, C) X(FetchRead, Answer, Absent, B) X(FetchRead, Answer, FetchRead, B) \
  X(FetchRead, Answer, Shared, B) X(FetchRead, Nack, Absent, B) X(FetchRead, Invalidate, FetchRead, B) \
  X(FetchRead, Peek, FetchRead, B) X(FetchRead, Peeked, FetchRead, B) X(FetchRead, Peeked, Absent, B) \
  X(FetchRead, Peeked, Shared, B) X(FetchRead, Release, FetchRead, B) X(FetchRead, EpochChange, Absent, B) \
  X(FetchWrite, Read, FetchWrite, C) X(FetchWrite, Write, FetchWrite, C) X(FetchWrite, Overwrite, FetchWrite, C) \
  X(FetchWrite, Answer, Owner, B) X(FetchWrite, Answer, Exclusive, B) X(FetchWrite, Answer, FetchWrite, B) \
  X(FetchWrite, Nack, Absent, B) X(FetchWrite, Ack, Exclusive, B) X(FetchWrite, Ack, FetchWrite, B) \
  X(FetchWrite, Invalidate, FetchWrite, B) X(FetchWrite, Peek, FetchWrite, B) X(FetchWrite, Peeked, FetchWrite, B) \
  X(FetchWrite, Release, FetchWrite, B) X(FetchWrite, EpochChange, Absent, B) X(Upgrade, Read, Upgrade, C) \
  X(Upgrade, Write, Upgrade, C) X(Upgrade, Overwrite, Upgrade, C) X(Upgrade, Answer, Exclusive, B) \
  X(Upgrade, Answer, Upgrade, B) X(Upgrade, Nack, Shared, B) X(Upgrade, Ack, Exclusive, B) \
  X(Upgrade, Ack, Upgrade, B) X(Upgrade, Invalidate, FetchWrite, B) X(Upgrade, Peek, Upgrade, B) \
  X(Upgrade, Peeked, Upgrade, B) X(Upgrade, Release, Upgrade, B) X(Upgrade, EpochChange, Shared, B) \
  X(OwnerUpgrade, Read, OwnerUpgrade, C) X(OwnerUpgrade, Write, OwnerUpgrade, C) \
  X(OwnerUpgrade, Overwrite, OwnerUpgrade, C) X(OwnerUpgrade, Answer, Exclusive, B) \
  X(OwnerUpgrade, Answer, OwnerUpgrade, B) X(OwnerUpgrade, Nack, Owner, B) X(OwnerUpgrade, Ack, Exclusive, B) \
  X(OwnerUpgrade, Ack, OwnerUpgrade, B) X(OwnerUpgrade, ForwardRead, OwnerUpgrade, B) \
  X(OwnerUpgrade, ForwardWrite, FetchWrite, B) X(OwnerUpgrade, ForwardAdopt, FetchWrite, B) \
  X(OwnerUpgrade, Invalidate, FetchWrite, B) X(OwnerUpgrade, Peek, OwnerUpgrade, B) \
  X(OwnerUpgrade, Peeked, OwnerUpgrade, C) X(OwnerUpgrade, Release, OwnerUpgrade, C) \
  X(OwnerUpgrade, EpochChange, Owner, B) X(EvictOwner, Read, EvictOwner, C) X(EvictOwner, Write, EvictOwner, C) \
  X(EvictOwner, Overwrite, EvictOwner, C) X(EvictOwner, ForwardRead, EvictOwner, B) \
  X(EvictOwner, ForwardWrite, EvictGone, B) X(EvictOwner, ForwardAdopt, EvictGone, B) \
  X(EvictOwner, Invalidate, EvictGone, B) X(EvictOwner, Peek, EvictOwner, C) X(EvictOwner, Peeked, EvictOwner, C) \
  X(EvictOwner, Release, EvictOwner, C) X(EvictOwner, EvictGranted, Absent, B) X(EvictOwner, EvictDenied, Owner, B) \
  X(EvictOwner, EpochChange, EvictOwner, B) X(EvictOwner, Reconciled, Absent, B) X(EvictOwner, Reconciled, Owner, B) \
  X(EvictExclusive, Read, EvictExclusive, C) X(EvictExclusive, Write, EvictExclusive, C) \
  X(EvictExclusive, Overwrite, EvictExclusive, C) X(EvictExclusive, ForwardRead, EvictOwner, B) \
  X(EvictExclusive, ForwardWrite, EvictGone, B) X(EvictExclusive, ForwardAdopt, EvictGone, B) \
  X(EvictExclusive, Invalidate, EvictGone, C) X(EvictExclusive, Peek, EvictExclusive, B) \
  X(EvictExclusive, Peeked, EvictExclusive, C) X(EvictExclusive, Release, EvictExclusive, C) \
  X(EvictExclusive, EvictGranted, Absent, B) X(EvictExclusive, EvictDenied, Exclusive, B) \
  X(EvictExclusive, EpochChange, EvictExclusive, B) X(EvictExclusive, Reconciled, Absent, B) \
  X(EvictExclusive, Reconciled, Owner, C) X(EvictExclusive, Reconciled, Exclusive, B) \
  X(EvictGone, Read, EvictGone, C) X(EvictGone, Write, EvictGone, C) X(EvictGone, Overwrite, EvictGone, C) \
  X(EvictGone, Invalidate, EvictGone, C) X(EvictGone, Peek, EvictGone, C) X(EvictGone, Peeked, EvictGone, C) \
  X(EvictGone, Release, EvictGone, B) X(EvictGone, EvictDenied, Absent, B) X(EvictGone, EpochChange, Absent, B)

#define HK_DIRECTORY_ROWS(X) \
  X(Dormant, Read, Dormant, B) X(Dormant, Read, Busy, B) X(Dormant, Write, Dormant, B) \
  X(Dormant, Write, Mirroring, B) X(Dormant, Write, Busy, B) X(Dormant, Overwrite, Dormant, C) \
  X(Dormant, Overwrite, Mirroring, B) X(Dormant, Overwrite, Busy, B) X(Dormant, Adopt, Dormant, B) \
  X(Dormant, Evict, Dormant, C) X(Dormant, Released, Dormant, C) X(Dormant, Freeze, Dormant, B) \
  X(Dormant, Thaw, Dormant, C) X(Dormant, Thaw, Mirroring, C) X(Dormant, Thaw, Busy, C) \
  X(Dormant, MoveOut, Elsewhere, B) X(Dormant, Rebuild, Dormant, B) \
  X(Stored, Read, Stored, C) X(Stored, Read, Busy, B) X(Stored, Write, Stored, C) X(Stored, Write, Mirroring, B) \
  X(Stored, Write, Busy, B) X(Stored, Overwrite, Stored, C) X(Stored, Overwrite, Mirroring, C) \
  X(Stored, Overwrite, Busy, C) X(Stored, Adopt, Stored, B) X(Stored, Evict, Stored, C) \
  X(Stored, Released, Stored, C) X(Stored, Freeze, Stored, C) X(Stored, Thaw, Stored, C) \
  X(Stored, Thaw, Mirroring, C) X(Stored, Thaw, Busy, C) X(Stored, MoveOut, Elsewhere, C) \
  X(Stored, Rebuild, Stored, B) \
  X(Shared, Read, Shared, B) X(Shared, Read, Busy, B) X(Shared, Write, Shared, B) X(Shared, Write, Mirroring, B) \
  X(Shared, Write, Busy, B) X(Shared, Overwrite, Shared, C) X(Shared, Overwrite, Mirroring, B) \
  X(Shared, Overwrite, Busy, B) X(Shared, Adopt, Shared, C) X(Shared, Adopt, Busy, B) X(Shared, Evict, Dormant, C) \
  X(Shared, Evict, Stored, B) X(Shared, Evict, Shared, B) X(Shared, Released, Shared, B) \
  X(Shared, Freeze, Shared, B) X(Shared, Thaw, Shared, C) X(Shared, Thaw, Mirroring, C) X(Shared, Thaw, Busy, C) \
  X(Shared, MoveOut, Elsewhere, B) X(Shared, Rebuild, Dormant, C) X(Shared, Rebuild, Shared, B) \
  X(Shared, Rebuild, Lost, C) \
  X(Exclusive, Read, Exclusive, B) X(Exclusive, Read, Busy, B) X(Exclusive, Write, Exclusive, B) \
  X(Exclusive, Write, Busy, B) X(Exclusive, Overwrite, Exclusive, C) X(Exclusive, Overwrite, Busy, B) \
  X(Exclusive, Adopt, Exclusive, C) X(Exclusive, Adopt, Busy, B) X(Exclusive, Evict, Dormant, C) \
  X(Exclusive, Evict, Stored, B) X(Exclusive, Evict, Exclusive, B) X(Exclusive, Released, Exclusive, B) \
  X(Exclusive, Freeze, Exclusive, B) X(Exclusive, Thaw, Exclusive, C) X(Exclusive, Thaw, Busy, C) \
  X(Exclusive, MoveOut, Elsewhere, B) X(Exclusive, Rebuild, Shared, B) X(Exclusive, Rebuild, Exclusive, B) X(Exclusive, Rebuild, Lost, B) \
  X(Lost, Read, Lost, B) X(Lost, Write, Lost, B) X(Lost, Overwrite, Lost, B) X(Lost, Adopt, Lost, B) \
  X(Lost, Evict, Lost, C) X(Lost, Released, Lost, C) X(Lost, Freeze, Lost, C) X(Lost, Thaw, Lost, C) \
  X(Lost, MoveOut, Elsewhere, C) X(Lost, Rebuild, Lost, C) \
  X(Mirroring, Read, Mirroring, B) X(Mirroring, Write, Mirroring, B) X(Mirroring, Overwrite, Mirroring, B) \
  X(Mirroring, Adopt, Mirroring, B) X(Mirroring, Evict, Mirroring, B) X(Mirroring, Released, Mirroring, B) \
  X(Mirroring, Mirrored, Busy, B) X(Mirroring, Freeze, Mirroring, B) X(Mirroring, Rebuild, Dormant, B) \
  X(Mirroring, Rebuild, Stored, C) X(Mirroring, Rebuild, Shared, C) \
  X(Busy, Read, Busy, B) X(Busy, Write, Busy, B) X(Busy, Overwrite, Busy, B) X(Busy, Adopt, Busy, B) \
  X(Busy, Evict, Busy, B) X(Busy, Done, Dormant, B) X(Busy, Done, Stored, B) X(Busy, Done, Shared, B) \
  X(Busy, Done, Exclusive, B) X(Busy, Done, Mirroring, B) X(Busy, Done, Busy, B) X(Busy, Done, Settling, B) \
  X(Busy, Released, Busy, B) X(Busy, Freeze, Busy, B) X(Busy, Thaw, Busy, C) X(Busy, Rebuild, Dormant, B) \
  X(Busy, Rebuild, Stored, B) X(Busy, Rebuild, Shared, B) X(Busy, Rebuild, Exclusive, B) X(Busy, Rebuild, Lost, B) \
  X(Settling, Read, Settling, B) X(Settling, Write, Settling, B) X(Settling, Overwrite, Settling, B) \
  X(Settling, Adopt, Settling, B) X(Settling, Evict, Settling, B) X(Settling, Released, Shared, B) \
  X(Settling, Released, Exclusive, B) X(Settling, Released, Mirroring, B) X(Settling, Released, Busy, B) \
  X(Settling, Freeze, Settling, B) X(Settling, Thaw, Settling, C) X(Settling, Rebuild, Dormant, C) \
  X(Settling, Rebuild, Shared, B) X(Settling, Rebuild, Exclusive, B) X(Settling, Rebuild, Lost, B) \
  X(Elsewhere, Read, Elsewhere, B) X(Elsewhere, Write, Elsewhere, B) X(Elsewhere, Overwrite, Elsewhere, C) \
  X(Elsewhere, Adopt, Elsewhere, C) X(Elsewhere, Evict, Elsewhere, C) X(Elsewhere, Rebuild, Dormant, B) \
  X(Elsewhere, Rebuild, Shared, B) X(Elsewhere, Rebuild, Exclusive, B) X(Elsewhere, Rebuild, Lost, B)
// clang-format on
