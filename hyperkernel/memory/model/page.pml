/* The page protocol and its directory as a model for spin: three nodes, PAGES pages, channels FIFO per class and peer.
 * Written by hand after README.md ("Page protocol"), not generated from the code; tests/sim/model_check generates table.pml from
 * protocol_table.h (numbers of states and events, and the rows), compiles this with the features of each configuration,
 * and compares the rows that are taken here with the table. A row that is not in the table is an assertion violation.
 *
 * node.pml, home.pml and deliver.pml have the steps, crash.pml what follows a loss.
 *
 * -D features: PAGES, OPS (of each node), TOTAL (of all); OVERWRITE ADOPT DROP EVICT HOLD PIN REHOME CRASH STORED BULK
 * PEEK (of page 0);
 * LIVE=2, LIVE=3: that many nodes ask without end, no versions, for the property `ends`. -DBUG_x: a planted bug.
 *
 * Versions stand for bytes: 0 is zero, each store makes the next. Assertions: a store happens only if nobody else may
 * read the page (single writer); what becomes readable is the last store (no stale read after an acknowledged write).
 * Every request ends: with OPS bounded each run ends, and spin reports a run that ends with a request under way (the
 * assertions at the end of `watch`); without bound, `ends` under weak fairness (LIVE).
 */
#include "table.pml"

#define N 3
#ifndef PAGES
#define PAGES 1
#endif
#ifndef OPS
#define OPS 2
#endif
#ifndef TOTAL
#define TOTAL 4
#endif
#define NONE 0
#define NOBODY 7

/* Messages. */
#define REQUEST 1
#define FORWARD 2
#define ANSWER 3
#define NACK 4
#define INVALIDATE 5
#define ACK 6
#define DONE 7
#define RELEASE 8
#define RELEASED 9
#define EVICT_ 10
#define EVICTGRANTED 11
#define EVICTDENIED 12
#define MIRRORED 13
#define PEEK_ 14
#define PEEKED 15
/* Kinds of request, rights, sources, reasons. */
#define READ 0
#define WRITE 1
#define OVER 2
#define TAKE 3
#define R_NONE 0
#define R_SHARED 1
#define R_OWNER 2
#define R_EXCLUSIVE 3
#define S_NONE 0
#define S_ZERO 1
#define S_STORED 2
#define S_PAYLOAD 3
#define S_PEEKED 4
/* What has become of a Peek. */
#define ASKED 1
#define HERE 2
#define REFUSED 3
#define MOVED 1
#define NOTHING 2
#define LOST 3

#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)
#define X(n) (pg * N + (n))

/* type, page, requester, kind or right, source or has_copy or reason or declined, acks, serial, version. A request that
 * peeks: whom + 1 in place of acks, what it has heard in place of serial. Peek and Peeked: a transaction there. */
#ifdef BULK
#define LANES 2   /* reads are prefetches: they and what answers them go by the bulk class */
#define LANE(k) ((k) == READ -> N * N : 0)
#else
#define LANES 1
#define LANE(k) 0
#endif
chan fault[LANES * N * N] = [4] of {byte, byte, byte, byte, byte, byte, byte, byte};
chan inval[N * N] = [4] of {byte, byte, byte, byte, byte, byte, byte, byte};
chan mirror = [PAGES] of {byte};

/* A page on a node. */
byte st[N * PAGES];
byte frame[N * PAGES];      /* version */
byte rser[N * PAGES];       /* retained: its serial, 0 is none */
byte rfor[N * PAGES];
byte rver[N * PAGES];
byte kind[N * PAGES];
bit got[N * PAGES];         /* answered */
byte gright[N * PAGES];
byte gsrc[N * PAGES];
byte gser[N * PAGES];
byte gver[N * PAGES];
byte need[N * PAGES];
byte acked[N * PAGES];
#if defined(HOLD) || defined(PIN)
bit held[N * PAGES];
bit pinned[N * PAGES];
byte dtype[N * PAGES];      /* deferred: event, 0 is none (Read is no revocation) */
byte dreq[N * PAGES];
byte dser[N * PAGES];
byte dacks[N * PAGES];
#endif
#ifdef PEEK
byte pk[N];                 /* the Peek of the request under way */
byte pver[N];
byte tx[N];                 /* of the last one */
byte heard[N];              /* the highest serial */
byte owned;                 /* of the last grant that made an owner or a writer */
#endif
byte ops[N];
byte total;
byte at[PAGES];             /* the home */
byte view[N * PAGES];       /* the home as each node knows it */
bit alive[N];

/* The entry. */
byte ds[PAGES];
byte downer[PAGES];
byte dcopy[PAGES];
bit ever[PAGES];
bit mirrored[PAGES];        /* what the second node knows */
bit frozen[PAGES];
bit moved[PAGES];
byte creq[PAGES];
byte ckind[PAGES];
bit chas[PAGES];
byte cser[PAGES];
#ifdef PEEK
byte casked;
byte csince;
#endif
byte before[PAGES];
byte after[PAGES];
byte aowner[PAGES];
byte acopy[PAGES];
bit leaves[PAGES];
byte leaver[PAGES];
bit rel[PAGES];
byte relnode[PAGES];
byte relser[PAGES];
byte serial[PAGES];
#ifdef PEEK
chan waiting[PAGES] = [N] of {byte, byte, bit, byte, byte};
#define AND_PEEK , ak, se
#else
chan waiting[PAGES] = [N] of {byte, byte, bit};
#define AND_PEEK
#endif

byte latest[PAGES];
byte stored[PAGES];
bit crashed;

/* Scratch: used within one step only. */
hidden byte pg, me, from, ty, rq, kd, fl, ak, se, ve, i, j, x, y, z, old, dold, ev;
hidden byte hp_f, hp_e, hp_t;

c_decl {
  static unsigned char hk_page_seen[HK_ROWS_MAX], hk_directory_seen[HK_ROWS_MAX];
  static int hk_registered;
  static void hk_report(void) {
    int row;
    for (row = 0; row < HK_PAGE_ROWS_COUNT; row++)
      if (hk_page_seen[row]) printf("row page %d\n", row);
    for (row = 0; row < HK_DIRECTORY_ROWS_COUNT; row++)
      if (hk_directory_seen[row]) printf("row directory %d\n", row);
  }
  static int hk_mark(const unsigned char rows[][3], int count, unsigned char *seen, int f, int e, int t) {
    int row;
    if (!hk_registered) { hk_registered = 1; atexit(hk_report); }
    for (row = 0; row < count; row++)
      if (rows[row][0] == f && rows[row][1] == e && rows[row][2] == t) { seen[row] = 1; return 1; }
    printf("no such row: %d %d %d\n", f, e, t);
    return 0;
  }
}
hidden byte in_table;
#define PROW(f, e, t) hp_f = f; hp_e = e; hp_t = t; \
  c_code { in_table = hk_mark(hk_page_rows, HK_PAGE_ROWS_COUNT, hk_page_seen, hp_f, hp_e, hp_t); }; assert(in_table)
#define DROW(f, e, t) hp_f = f; hp_e = e; hp_t = t; \
  c_code { in_table = hk_mark(hk_directory_rows, HK_DIRECTORY_ROWS_COUNT, hk_directory_seen, hp_f, hp_e, hp_t); }; \
  assert(in_table)

#define READABLE(s) (s == P_Shared || s == P_Owner || s == P_Exclusive || s == P_Upgrade || s == P_OwnerUpgrade)
#define EVICTING(s) (s == P_EvictOwner || s == P_EvictExclusive)
#define OWNING(s) (s == P_Owner || s == P_Exclusive || s == P_OwnerUpgrade || EVICTING(s))
#define PENDING(s) (s == P_FetchRead || s == P_FetchWrite || s == P_Upgrade || s == P_OwnerUpgrade)
#define OWNED(d) (d == D_Shared || d == D_Exclusive)
#define UNDERWAY(d) (d == D_Busy || d == D_Mirroring || d == D_Settling)

#include "node.pml"
#include "home.pml"
#include "deliver.pml"
#ifdef LIVE
#define MAY (alive[id])
#define SPENT skip
#else
#define MAY (alive[id] && ops[id] < OPS && total < TOTAL)
#define SPENT ops[id]++; total++
#endif
#if defined(HOLD) || defined(PIN)
#define CALM(n) (!held[n] && !pinned[n] && dtype[n] == 0)
#else
#define CALM(n) true
#endif

/* Wants of node `id` for page `p`. */
#define WISH(p)                                                                                                        \
  :: d_step { MAY && st[(p) * N + id] == P_Absent -> SPENT; me = id; pg = p; request(READ, 0); st[X(me)] = P_FetchRead; \
       PROW(P_Absent, E_Read, P_FetchRead) }                                                                           \
  :: d_step { MAY && st[(p) * N + id] == P_Absent -> SPENT; me = id; pg = p; request(WRITE, 0);                        \
       st[X(me)] = P_FetchWrite; PROW(P_Absent, E_Write, P_FetchWrite) }                                               \
  :: d_step { MAY && (st[(p) * N + id] == P_Shared || st[(p) * N + id] == P_Owner) -> SPENT; me = id; pg = p;          \
       old = st[X(me)]; want_more(); PROW(old, E_Write, st[X(me)]) }                                                   \
  :: d_step { MAY && st[(p) * N + id] == P_Exclusive -> SPENT; me = id; pg = p; store() }

#ifdef PEEK
#define PEEKING(o)                                                                                                     \
  :: d_step { MAY && st[id] == P_Absent && o != id && o != view[id] && alive[o] && heard[id] > 0 -> SPENT; me = id;    \
       pg = 0; request_peeking(o); st[X(me)] = P_FetchRead; PROW(P_Absent, E_Read, P_FetchRead) }
#endif

inline want_more() {
#if defined(HOLD) || defined(PIN)
  held[X(me)] = 0;
  perform();
#endif
  if
  :: st[X(me)] == P_Shared -> request(WRITE, 1); st[X(me)] = P_Upgrade
  :: st[X(me)] == P_Owner -> request(WRITE, 1); st[X(me)] = P_OwnerUpgrade
  :: else -> request(WRITE, 0); st[X(me)] = P_FetchWrite
  fi
}

proctype node(byte id) {
end:
  do
  WISH(0)
#if PAGES > 1
  WISH(1)
#endif
#ifdef PEEK
  PEEKING(0)
  PEEKING(1)
  PEEKING(2)
#endif
#ifdef OVERWRITE
  :: d_step { MAY && st[id] == P_Absent -> SPENT; me = id; pg = 0; request(OVER, 0); st[X(me)] = P_FetchWrite;
       PROW(P_Absent, E_Overwrite, P_FetchWrite) }
  :: d_step { MAY && (st[id] == P_Shared || st[id] == P_Owner) -> SPENT; me = id; pg = 0; old = st[X(me)]; want_more();
       PROW(old, E_Overwrite, st[X(me)]) }
#endif
#ifdef ADOPT
  :: d_step { MAY && st[id] == P_Absent -> SPENT; me = id; pg = 0; request(TAKE, 0); st[X(me)] = P_FetchWrite;
       PROW(P_Absent, E_Adopt, P_FetchWrite) }
#endif
#ifdef DROP
#ifdef BUG_OWNER_DROPS
  :: d_step { MAY && CALM(id) && (st[id] == P_Shared || st[id] == P_Owner) -> SPENT; st[id] = P_Absent; frame[id] = 0 }
#else
  :: d_step { MAY && CALM(id) && st[id] == P_Shared -> SPENT; st[id] = P_Absent; frame[id] = 0;
       PROW(P_Shared, E_Drop, P_Absent) }
#endif
#endif
#ifdef EVICT
  :: d_step { MAY && CALM(id) && (st[id] == P_Owner || st[id] == P_Exclusive) -> SPENT; me = id; pg = 0; old = st[id];
       stored[0] = frame[id];
       fault[me * N + view[X(me)]]!EVICT_, 0, me, 0, S_STORED, 0, 0, 0;
#ifdef BUG_EVICTION_DOES_NOT_WAIT
       st[id] = P_EvictGone; frame[id] = 0
#else
       if
       :: old == P_Owner -> st[id] = P_EvictOwner
       :: else -> st[id] = P_EvictExclusive
       fi;
       PROW(old, E_Evict, st[id])
#endif
     }
#endif
#ifdef HOLD
  :: d_step { alive[id] && held[id] -> me = id; pg = 0; old = st[id]; held[id] = 0; perform();
       PROW(old, E_HoldOver, st[id]) }
#endif
#ifdef PIN
  :: d_step { MAY && st[id] == P_Exclusive && !pinned[id] && dtype[id] == 0 -> SPENT; pinned[id] = 1;
       PROW(P_Exclusive, E_Pin, P_Exclusive) }
  :: d_step { alive[id] && pinned[id] -> me = id; pg = 0; old = st[id]; pinned[id] = 0; perform();
       PROW(old, E_Unpin, st[id]) }
#endif
#ifndef LIVE
  :: d_step { fault[0 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 0; deliver() }
#ifdef BULK
  :: d_step { fault[N * N + 0 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 0; deliver() }
#endif
  :: d_step { fault[1 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 1; deliver() }
#ifdef BULK
  :: d_step { fault[N * N + 1 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 1; deliver() }
#endif
  :: d_step { fault[2 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 2; deliver() }
#ifdef BULK
  :: d_step { fault[N * N + 2 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 2; deliver() }
#endif
  :: d_step { inval[0 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 0; deliver_invalidate() }
  :: d_step { inval[1 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 1; deliver_invalidate() }
  :: d_step { inval[2 * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = 2; deliver_invalidate() }
#endif
  od
}

#ifdef LIVE
/* One per channel: weak fairness is fairness to processes, and each message is to arrive. */
proctype line(byte f; byte id) {
end:
  do
  :: d_step { fault[f * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = f; deliver() }
  od
}
proctype invalidate_line(byte f; byte id) {
end:
  do
  :: d_step { inval[f * N + id]?ty, pg, rq, kd, fl, ak, se, ve -> me = id; from = f; deliver_invalidate() }
  od
}
#endif

#include "crash.pml"
#define EMPTY(c) (len(c[0]) + len(c[1]) + len(c[2]) + len(c[3]) + len(c[4]) + len(c[5]) + len(c[6]) + len(c[7]) + \
  len(c[8]) == 0)
#if defined(HOLD) || defined(PIN)
#define FREE (held[0] + held[1] + held[2] + pinned[0] + pinned[1] + pinned[2] == 0)
#else
#define FREE true
#endif
#ifdef BULK
#define BULK_EMPTY (len(fault[9]) + len(fault[10]) + len(fault[11]) + len(fault[12]) + len(fault[13]) + len(fault[14]) + \
  len(fault[15]) + len(fault[16]) + len(fault[17]) == 0)
#else
#define BULK_EMPTY true
#endif
#define QUIET (len(mirror) == 0 && BULK_EMPTY && EMPTY(fault) && EMPTY(inval) && FREE && !frozen[0])

proctype watch() {
end:
  do
  :: d_step { mirror?pg -> me = at[pg]; dold = ds[pg]; mirrored[pg] = 1; ever[pg] = 1; grant();
       DROW(dold, DE_Mirrored, ds[pg]) }
#ifdef REHOME
  :: d_step { !frozen[0] && !moved[0] -> frozen[0] = 1; DROW(ds[0], DE_Freeze, ds[0]) }
  :: d_step { frozen[0] && !UNDERWAY(ds[0]) && !rel[0] -> me = 0; pg = 0;
       do
       :: len(waiting[0]) > 0 -> waiting[0]?rq, kd, fl AND_PEEK; fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, MOVED, 0, 0, 0
       :: else -> break
       od;
       frozen[0] = 0; moved[0] = 1; at[0] = 1;
       DROW(ds[0], DE_MoveOut, D_Elsewhere) }
#endif
#ifdef CRASH
  :: d_step { !crashed -> x = 0; crash() }
  :: d_step { !crashed -> x = 1; crash() }
  :: d_step { !crashed -> x = 2; crash() }
#endif
#if !defined(LIVE)
  :: d_step { QUIET ->
       for (i : 0 .. N * PAGES - 1) {
         assert(!PENDING(st[i]) && !EVICTING(st[i]) && st[i] != P_EvictGone && rser[i] == 0)
       };
       for (i : 0 .. PAGES - 1) { assert(!UNDERWAY(ds[i]) && len(waiting[i]) == 0 && !rel[i]) };
     }
     break
#endif
  od
}

init {
  d_step {
    for (i : 0 .. N - 1) { alive[i] = 1 };
    for (i : 0 .. N * PAGES - 1) { st[i] = P_Absent };
    for (i : 0 .. PAGES - 1) { ds[i] = D_Dormant };
#if PAGES > 1
    at[1] = 1;
    for (i : 0 .. N - 1) { view[N + i] = 1 };
#endif
#ifdef STORED
    ds[0] = D_Stored; ever[0] = 1; mirrored[0] = 1; latest[0] = 1; stored[0] = 1;
#endif
  };
#ifdef LIVE
  atomic {
    run node(0); run node(2); run watch();
    run line(0, 0); run line(0, 2); run line(2, 0); run line(2, 2);
    run invalidate_line(0, 0); run invalidate_line(0, 2); run invalidate_line(2, 0); run invalidate_line(2, 2);
#if LIVE == 3
    run node(1);
    run line(0, 1); run line(1, 0); run line(1, 1); run line(1, 2); run line(2, 1);
    run invalidate_line(0, 1); run invalidate_line(1, 0); run invalidate_line(1, 1); run invalidate_line(1, 2);
    run invalidate_line(2, 1);
#endif
  }
#else
  atomic { run node(0); run node(1); run node(2); run watch() }
#endif
}

#ifdef LIVE
ltl ends { [] ((PENDING(st[0]) -> <> !PENDING(st[0])) && (PENDING(st[2]) -> <> !PENDING(st[2]))) }
#endif
