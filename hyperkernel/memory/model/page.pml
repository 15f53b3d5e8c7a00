/* The page protocol and its directory as a model for spin: three nodes, PAGES pages, channels FIFO per class and peer.
 * Written from README.md ("Page protocol"), not from the code; tests/sim/model_check generates table.pml from
 * protocol_table.h (numbers of states and events, and the rows), compiles this with the features of each configuration,
 * and compares the rows that are taken here with the table. A row that is not in the table is an assertion violation.
 *
 * -D features: PAGES, OPS (of each node), TOTAL (of all); OVERWRITE ADOPT DROP EVICT HOLD PIN REHOME CRASH STORED BULK;
 * LIVE=2, LIVE=3: that many nodes ask without end, no versions, for the property `ends`. -DBUG_x: a planted bug (each is an #ifdef below).
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
#define MOVED 1
#define NOTHING 2
#define LOST 3

#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)
#define X(n) (pg * N + (n))

/* type, page, requester, kind or right, source or has_copy or reason, acks, serial, version */
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
chan waiting[PAGES] = [N] of {byte, byte, bit};

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

/* A store by me: nobody else may read. */
inline store() {
#ifndef LIVE
  assert(frame[X(me)] == latest[pg]);
  for (i : 0 .. N - 1) {
    if
    :: i != me && alive[i] -> assert(!READABLE(st[X(i)]))
    :: else
    fi
  };
  latest[pg]++;
  frame[X(me)] = latest[pg];
#endif
  skip
}

inline request(k, copy) {
  kind[X(me)] = k;
  fault[LANE(k) + me * N + view[X(me)]]!REQUEST, pg, me, k, copy, 0, 0, 0
}

#ifdef BUG_GRANT_BEFORE_LAST_ACK
#define ALL_ACKED true
#else
#define ALL_ACKED ((need[X(me)] & ~acked[X(me)]) == 0)
#endif
/* Everything of the request is here: install, Done, and the instruction that waited runs. */
inline install() {
  if
  :: got[X(me)] && ALL_ACKED ->
#ifndef LIVE
    if
    :: gsrc[X(me)] == S_PAYLOAD -> frame[X(me)] = gver[X(me)]
    :: gsrc[X(me)] == S_ZERO -> frame[X(me)] = 0
    :: gsrc[X(me)] == S_STORED -> frame[X(me)] = stored[pg]
    :: else
    fi;
#endif
    rser[X(me)] = 0; rfor[X(me)] = 0; rver[X(me)] = 0;
    x = kind[X(me)];
    if
    :: gright[X(me)] == R_EXCLUSIVE -> st[X(me)] = P_Exclusive
    :: gright[X(me)] == R_OWNER -> st[X(me)] = P_Owner
    :: else -> st[X(me)] = P_Shared
    fi;
    if
    :: x == OVER -> frame[X(me)] = latest[pg]; store()
    :: x == WRITE -> store()
    :: else -> assert(frame[X(me)] == latest[pg])
    fi;
    fault[me * N + view[X(me)]]!DONE, pg, me, 0, 0, 0, gser[X(me)], 0;
#if defined(HOLD)
    held[X(me)] = 1;
#endif
    kind[X(me)] = 0; got[X(me)] = 0; gright[X(me)] = 0; gsrc[X(me)] = 0; gser[X(me)] = 0; gver[X(me)] = 0;
    need[X(me)] = 0; acked[X(me)] = 0
  :: else
  fi
}

/* Gives the page to `rq`: what a Forward (ev) asks. */
inline serve() {
  if
  :: ev == E_ForwardRead ->
    fault[LANE(READ) + me * N + rq]!ANSWER, pg, rq, R_SHARED, S_PAYLOAD, ak, se, frame[X(me)];
#ifndef BUG_READER_WITHOUT_PROTECTION
    if
    :: st[X(me)] == P_Exclusive -> st[X(me)] = P_Owner
    :: st[X(me)] == P_EvictExclusive -> st[X(me)] = P_EvictOwner
    :: else
    fi
#endif
  :: else ->
    z = R_EXCLUSIVE;
    if
    :: ev == E_ForwardAdopt && st[X(me)] != P_Exclusive && st[X(me)] != P_EvictExclusive -> z = R_OWNER
    :: else
    fi;
    fault[me * N + rq]!ANSWER, pg, rq, z, S_PAYLOAD, ak, se, frame[X(me)];
    rser[X(me)] = se; rfor[X(me)] = rq; rver[X(me)] = frame[X(me)];
    gone()
  fi
}
inline gone() {
  frame[X(me)] = 0;
  if
  :: EVICTING(st[X(me)]) -> st[X(me)] = P_EvictGone
  :: st[X(me)] == P_Upgrade || st[X(me)] == P_OwnerUpgrade -> st[X(me)] = P_FetchWrite
  :: else -> st[X(me)] = P_Absent
  fi
}
/* Takes the copy away for `rq`, and says so to it. */
inline revoke() {
  if
  :: READABLE(st[X(me)]) || EVICTING(st[X(me)]) ->
    if
    :: OWNING(st[X(me)]) -> rser[X(me)] = se; rfor[X(me)] = rq; rver[X(me)] = frame[X(me)]
    :: else
    fi;
    gone()
  :: else
  fi;
  inval[me * N + rq]!ACK, pg, rq, 0, 0, 0, se, 0
}
/* The deferred revocation, if it waits for nothing any more. */
#if defined(HOLD) || defined(PIN)
inline perform() {
  if
  :: dtype[X(me)] != 0 && !held[X(me)] && !pinned[X(me)] ->
    ev = dtype[X(me)]; rq = dreq[X(me)]; se = dser[X(me)]; ak = dacks[X(me)];
    dtype[X(me)] = 0; dreq[X(me)] = 0; dser[X(me)] = 0; dacks[X(me)] = 0;
    if
    :: ev == E_Invalidate -> revoke()
    :: else -> serve()
    fi
  :: else
  fi
}
#endif
#define REVOCABLE_LATER \
  (st[X(me)] == P_Exclusive || (ev != E_ForwardRead && (st[X(me)] == P_Owner || st[X(me)] == P_Shared)))
#ifdef BUG_PIN_IGNORED
#define MUST_WAIT (held[X(me)])
#else
#define MUST_WAIT (held[X(me)] || pinned[X(me)])
#endif
/* A revocation that has come: now, or deferred. */
inline revocation() {
#if defined(HOLD) || defined(PIN)
  if
  :: REVOCABLE_LATER && MUST_WAIT ->
    assert(dtype[X(me)] == 0);
    dtype[X(me)] = ev; dreq[X(me)] = rq; dser[X(me)] = se; dacks[X(me)] = ak
  :: else ->
    assert(!pinned[X(me)]);
    if
    :: ev == E_Invalidate -> revoke()
    :: else -> serve()
    fi
  fi
#else
  if
  :: ev == E_Invalidate -> revoke()
  :: else -> serve()
  fi
#endif
}

/* ---- the home ---- */

inline invalidate_each(set) {
  y = set;
  for (j : 0 .. N - 1) {
    if
    :: HAS(y, j) -> inval[me * N + j]!INVALIDATE, pg, creq[pg], 0, 0, 0, cser[pg], 0
    :: else
    fi
  }
}
inline answer(right, source, set) {
  fault[LANE(ckind[pg]) + me * N + creq[pg]]!ANSWER, pg, creq[pg], right, source, set, cser[pg], 0
}
inline forward(set) {
  fault[LANE(ckind[pg]) + me * N + downer[pg]]!FORWARD, pg, creq[pg], ckind[pg], 0, set, cser[pg], 0
}
inline grant() {
#ifdef LIVE
  serial[pg] = (serial[pg] % 3) + 1;   /* no more than two are known at a time */
#else
  serial[pg]++;
#endif
  cser[pg] = serial[pg];
  ds[pg] = D_Busy;
  x = dcopy[pg];
  if
  :: OWNED(before[pg]) -> x = x | BIT(downer[pg])
  :: else
  fi;
  z = S_ZERO;
  if
  :: before[pg] == D_Stored -> z = S_STORED
  :: else
  fi;
  aowner[pg] = creq[pg]; acopy[pg] = 0; leaves[pg] = 0; leaver[pg] = 0;
  if
  :: ckind[pg] == READ ->
    acopy[pg] = x | BIT(creq[pg]);
    aowner[pg] = downer[pg];
    if
    :: OWNED(before[pg]) -> after[pg] = D_Shared; forward(0)
    :: else ->
      after[pg] = before[pg];
#ifdef BUG_READER_FORGOTTEN
      acopy[pg] = x;
#endif
      answer(R_SHARED, z, 0)
    fi
  :: ckind[pg] == TAKE ->
    after[pg] = before[pg];
    if
    :: before[pg] == D_Shared -> acopy[pg] = (x & ~BIT(downer[pg])) | BIT(creq[pg])
    :: else
    fi;
    leaves[pg] = 1; leaver[pg] = downer[pg];
    forward(0)
  :: else ->
    after[pg] = D_Exclusive;
    if
    :: OWNED(before[pg]) && downer[pg] != creq[pg] -> leaves[pg] = 1; leaver[pg] = downer[pg]
    :: else
    fi;
    x = x & ~BIT(creq[pg]);   /* those who lose their copy; whether the requester has one is told apart below */
    if
#ifdef BUG_TRUST_COPY
    :: chas[pg] || ckind[pg] == OVER ->
#else
    :: (chas[pg] && (HAS(dcopy[pg], creq[pg]) || (OWNED(before[pg]) && downer[pg] == creq[pg]))) || ckind[pg] == OVER ->
#endif
      answer(R_EXCLUSIVE, S_NONE, x);
      invalidate_each(x)
    :: else ->
      if
      :: OWNED(before[pg]) ->
        x = x & ~BIT(downer[pg]);
        forward(x);
        invalidate_each(x)
      :: else ->
        answer(R_EXCLUSIVE, z, x);
        invalidate_each(x)
      fi
    fi
  fi
}
/* Begins rq's request (kd, fl) or refuses it. */
inline begin() {
  if
  :: ds[pg] == D_Lost -> fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, LOST, 0, 0, 0
  :: ds[pg] != D_Lost && kd == TAKE && (!OWNED(ds[pg]) || downer[pg] == rq) ->
    fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, NOTHING, 0, 0, 0
  :: else ->
    assert(!(OWNED(ds[pg]) && downer[pg] == rq && (ds[pg] == D_Exclusive || !fl || kd == READ)));
    creq[pg] = rq; ckind[pg] = kd; chas[pg] = fl; before[pg] = ds[pg];
    if
#ifndef BUG_UNMIRRORED
    :: (kd == WRITE || kd == OVER) && !ever[pg] -> ds[pg] = D_Mirroring; mirror!pg
#endif
    :: else -> grant()
    fi
  fi
}
inline begin_waiting() {
  do
  :: len(waiting[pg]) > 0 && !UNDERWAY(ds[pg]) && !frozen[pg] -> waiting[pg]?rq, kd, fl; begin()
  :: else -> break
  od
}
inline settle() {
  if
#ifdef BUG_RELEASES_OVERTAKE
  :: true ->
#else
  :: !(leaves[pg] && rel[pg]) ->
#endif
    ds[pg] = after[pg]; downer[pg] = aowner[pg]; dcopy[pg] = acopy[pg];
    if
    :: leaves[pg] ->
      rel[pg] = 1; relnode[pg] = leaver[pg]; relser[pg] = cser[pg];
      fault[me * N + leaver[pg]]!RELEASE, pg, 0, 0, 0, 0, cser[pg], 0
    :: else
    fi;
    forget_current();
#ifndef BUG_QUEUE_FORGOTTEN
    begin_waiting()
#endif
#ifndef BUG_RELEASES_OVERTAKE
  :: else
#endif
  fi
}
inline forget_current() {
  creq[pg] = 0; ckind[pg] = 0; chas[pg] = 0; cser[pg] = 0; before[pg] = 0; after[pg] = 0; aowner[pg] = 0;
  acopy[pg] = 0; leaves[pg] = 0; leaver[pg] = 0;
  if
  :: !OWNED(ds[pg]) -> downer[pg] = 0
  :: else
  fi
}

/* A fault-class message has come to me. */
inline deliver() {
  old = st[X(me)];
  dold = ds[pg];
  if
  /* to the home */
  :: ty == REQUEST ->
    if
    :: at[pg] != me ->
      fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, MOVED, 0, 0, 0;
      DROW(D_Elsewhere, kd, D_Elsewhere)
    :: else ->
      ev = kd;
      if
      :: UNDERWAY(ds[pg]) || frozen[pg] ->
        assert(ds[pg] != D_Mirroring || creq[pg] != rq);   /* while Busy it may have overtaken its own Done */
#ifdef BUG_OVERTAKING_REFUSED
        assert(ds[pg] != D_Busy || creq[pg] != rq);
#endif
        waiting[pg]!rq, kd, fl
      :: else -> begin()
      fi;
      DROW(dold, ev, ds[pg])
    fi
  :: ty == DONE ->
    assert(at[pg] == me && ds[pg] == D_Busy && se == cser[pg]);
    ds[pg] = D_Settling;
    settle();
    DROW(dold, DE_Done, ds[pg])
  :: ty == RELEASED ->
    assert(at[pg] == me);
    if
    :: rel[pg] && relser[pg] == se ->
      rel[pg] = 0; relnode[pg] = 0; relser[pg] = 0;
      if
      :: ds[pg] == D_Settling -> settle()
      :: else
      fi;
      DROW(dold, DE_Released, ds[pg])
    :: else
#ifndef BUG_RELEASES_OVERTAKE
      -> assert(false)
#endif
    fi
  :: ty == EVICT_ ->
    if
    :: at[pg] != me -> fault[me * N + from]!EVICTDENIED, pg, 0, 0, 0, 0, 0, 0; DROW(D_Elsewhere, DE_Evict, D_Elsewhere)
    :: at[pg] == me && OWNED(ds[pg]) && downer[pg] == from && !frozen[pg] && !rel[pg] ->
      dcopy[pg] = dcopy[pg] & ~BIT(from);
      downer[pg] = 0;
      ds[pg] = D_Stored;
      fault[me * N + from]!EVICTGRANTED, pg, 0, 0, 0, 0, 0, 0;
      DROW(dold, DE_Evict, ds[pg])
    :: else ->
#ifdef BUG_EVICTS_WHILE_BUSY
      if
      :: ds[pg] == D_Busy && downer[pg] == from && OWNED(before[pg]) ->
        fault[me * N + from]!EVICTGRANTED, pg, 0, 0, 0, 0, 0, 0
      :: else -> fault[me * N + from]!EVICTDENIED, pg, 0, 0, 0, 0, 0, 0
      fi;
#else
      fault[me * N + from]!EVICTDENIED, pg, 0, 0, 0, 0, 0, 0;
#endif
      DROW(dold, DE_Evict, ds[pg])
    fi
  /* to a node */
  :: ty == FORWARD ->
    assert(OWNING(st[X(me)]));
    ev = E_ForwardRead + (kd == WRITE -> 1 : (kd == TAKE -> 2 : 0));
    z = ev;
    kd = z;
    revocation();
    PROW(old, kd, st[X(me)])
  :: ty == ANSWER ->
    assert(PENDING(st[X(me)]) && !got[X(me)]);
    if
    :: kind[X(me)] == WRITE -> assert((fl == S_NONE) == (st[X(me)] != P_FetchWrite))
    :: else
    fi;
    got[X(me)] = 1; gright[X(me)] = kd; gsrc[X(me)] = fl; need[X(me)] = ak; gser[X(me)] = se; gver[X(me)] = ve;
    install();
    PROW(old, E_Answer, st[X(me)])
  :: ty == NACK ->
    assert(PENDING(st[X(me)]));
    x = kind[X(me)];
    kind[X(me)] = 0;
    assert(fl != LOST || crashed);
    if
    :: st[X(me)] == P_Upgrade -> st[X(me)] = P_Shared
    :: st[X(me)] == P_OwnerUpgrade -> st[X(me)] = P_Owner
    :: else -> st[X(me)] = P_Absent
    fi;
    PROW(old, E_Nack, st[X(me)]);
    if
    :: fl == MOVED ->   /* again, at the new home */
      view[X(me)] = 1;
      y = (st[X(me)] != P_Absent);
      request(x, y);
      old = st[X(me)];
      if
      :: x == READ -> st[X(me)] = P_FetchRead
      :: st[X(me)] == P_Shared -> st[X(me)] = P_Upgrade
      :: st[X(me)] == P_Owner -> st[X(me)] = P_OwnerUpgrade
      :: else -> st[X(me)] = P_FetchWrite
      fi
    :: else
    fi
  :: ty == RELEASE ->
    z = (rser[X(me)] == se);
    if
    :: rser[X(me)] == se -> rser[X(me)] = 0; rfor[X(me)] = 0; rver[X(me)] = 0
    :: else
    fi;
#ifdef BUG_RELEASED_ONLY_IF_RETAINED
    if
    :: z -> fault[me * N + from]!RELEASED, pg, 0, 0, 0, 0, se, 0
    :: else
    fi;
#else
    fault[me * N + from]!RELEASED, pg, 0, 0, 0, 0, se, 0;
#endif
    PROW(old, E_Release, st[X(me)])
  :: ty == EVICTGRANTED ->
    assert(EVICTING(st[X(me)]));
    frame[X(me)] = 0;
    st[X(me)] = P_Absent;
    PROW(old, E_EvictGranted, st[X(me)])
  :: ty == EVICTDENIED ->
    if
    :: st[X(me)] == P_EvictOwner -> st[X(me)] = P_Owner
    :: st[X(me)] == P_EvictExclusive -> st[X(me)] = P_Exclusive
    :: else -> assert(st[X(me)] == P_EvictGone); st[X(me)] = P_Absent
    fi;
    PROW(old, E_EvictDenied, st[X(me)])
  fi
}
/* An invalidate-class message has come to me. */
inline deliver_invalidate() {
  old = st[X(me)];
  if
  :: ty == INVALIDATE ->
    ev = E_Invalidate;
    ak = 0;
    revocation();
    PROW(old, E_Invalidate, st[X(me)])
  :: else ->
    assert(PENDING(st[X(me)]) && !HAS(acked[X(me)], from));
    acked[X(me)] = acked[X(me)] | BIT(from);
    install();
    PROW(old, E_Ack, st[X(me)])
  fi
}

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

#ifdef CRASH
/* Node x is gone, and with it all that is under way, because the epoch changes. Survivors report; the home, or node 1
 * if it was the home, rebuilds; all in one step, because nothing else is done meanwhile. */
inline crash() {
  crashed = 1;
  alive[x] = 0;
  pg = 0;
  for (i : 0 .. LANES * N * N - 1) {
    do
    :: len(fault[i]) > 0 -> fault[i]?ty, z, rq, kd, fl, ak, se, ve
    :: else -> break
    od
  };
  for (i : 0 .. N * N - 1) {
    do
    :: len(inval[i]) > 0 -> inval[i]?ty, z, rq, kd, fl, ak, se, ve
    :: else -> break
    od
  };
  do
  :: len(mirror) > 0 -> mirror?z
  :: else -> break
  od;
  do
  :: len(waiting[0]) > 0 -> waiting[0]?rq, kd, fl
  :: else -> break
  od;
  /* What the home knows: dold the entry's state for the table, y what held at rest, z its owner. */
  dold = ds[0]; y = ds[0]; z = NOBODY;
  if
  :: at[0] == x ->
    dold = D_Elsewhere; y = D_Elsewhere; ever[0] = mirrored[0];
    at[0] = (x == 0 -> 1 : 0)
  :: else ->
    if
    :: ds[0] == D_Mirroring -> y = before[0]
    :: ds[0] == D_Settling -> y = after[0]; z = aowner[0]
    :: ds[0] == D_Busy ->
      if
      :: EVICTING(st[creq[0]]) && alive[creq[0]] -> y = after[0]; z = aowner[0]
      :: !(EVICTING(st[creq[0]]) && alive[creq[0]]) && (ckind[0] == READ || alive[creq[0]]) -> y = before[0]
      :: else
      fi
    :: else
    fi;
    if
    :: z == NOBODY && (OWNED(y) || (y == D_Busy && OWNED(before[0]))) -> z = downer[0]
    :: else
    fi
  fi;
  /* Every survivor gives up what is under way. */
  for (i : 0 .. N - 1) {
    view[i] = at[0];
    kind[i] = 0; got[i] = 0; gright[i] = 0; gsrc[i] = 0; gser[i] = 0; gver[i] = 0; need[i] = 0; acked[i] = 0;
    if
    :: !alive[i] -> st[i] = P_Absent; frame[i] = 0; rser[i] = 0; rfor[i] = 0; rver[i] = 0
    :: else ->
      old = st[i];
      if
      :: st[i] == P_FetchRead || st[i] == P_FetchWrite || st[i] == P_EvictGone -> st[i] = P_Absent
      :: st[i] == P_Upgrade -> st[i] = P_Shared
      :: st[i] == P_OwnerUpgrade -> st[i] = P_Owner
      :: else
      fi;
      PROW(old, E_EpochChange, st[i])
    fi
  };
  /* ak: who can read; kd: who is Exclusive, rq: Owner (by right, or by an eviction that this home has not granted);
   * se: the highest retained serial, ve: where. */
  ak = 0; kd = NOBODY; rq = NOBODY; se = 0; ve = NOBODY;
  for (i : 0 .. N - 1) {
    if
    :: alive[i] ->
      if
      :: st[i] == P_Exclusive || (st[i] == P_EvictExclusive && i == z) -> assert(kd == NOBODY); kd = i; ak = ak | BIT(i)
      :: st[i] == P_Owner || (st[i] == P_EvictOwner && i == z) -> rq = i; ak = ak | BIT(i)
      :: st[i] == P_Shared -> ak = ak | BIT(i)
      :: else
      fi;
      if
      :: rser[i] > se -> se = rser[i]; ve = i
      :: else
      fi
    :: else
    fi
  };
  if
  :: kd != NOBODY && ak != BIT(kd) -> assert(EVICTING(st[kd])); rq = kd; kd = NOBODY
  :: else
  fi;
  downer[0] = 0; dcopy[0] = 0;
  if
  :: kd != NOBODY -> ds[0] = D_Exclusive; downer[0] = kd
  :: kd == NOBODY && (y == D_Dormant || y == D_Stored) -> ds[0] = y; dcopy[0] = ak
  :: kd == NOBODY && !(y == D_Dormant || y == D_Stored) && ak != 0 ->
    ds[0] = D_Shared;
    dcopy[0] = ak;
    downer[0] = (rq != NOBODY -> rq : (HAS(ak, 0) -> 0 : (HAS(ak, 1) -> 1 : 2)))
  :: else ->
    if
#ifdef BUG_REVIVES_STALE
    :: ve != NOBODY ->
#else
    :: ve != NOBODY && alive[rfor[ve]] ->
#endif
      if
      :: st[rfor[ve]] == P_EvictExclusive -> ds[0] = D_Exclusive; downer[0] = rfor[ve]
      :: st[rfor[ve]] == P_EvictOwner -> ds[0] = D_Shared; downer[0] = rfor[ve]; dcopy[0] = BIT(rfor[ve])
      :: else -> ds[0] = D_Exclusive; downer[0] = ve
      fi
    :: else ->
#ifdef BUG_LOST_IS_ZERO
      ds[0] = D_Dormant
#else
      ds[0] = (ever[0] -> D_Lost : D_Dormant)
#endif
    fi
  fi;
  DROW(dold, DE_Rebuild, ds[0]);
  rel[0] = 0; relnode[0] = 0; relser[0] = 0; frozen[0] = 0;
  forget_current();
  /* Every survivor is told what it has. */
  for (i : 0 .. N - 1) {
    if
    :: alive[i] ->
      old = st[i];
      if
      :: OWNED(ds[0]) && downer[0] == i ->
        if
        :: st[i] == P_Absent -> frame[i] = rver[i]
        :: else
        fi;
        st[i] = (ds[0] == D_Exclusive -> P_Exclusive : P_Owner);
        assert(frame[i] == latest[0])
      :: EVICTING(st[i]) && !(OWNED(ds[0]) && downer[0] == i) -> st[i] = P_Absent; frame[i] = 0
      :: else -> assert(st[i] == P_Absent || (st[i] == P_Shared && HAS(dcopy[0], i) && frame[i] == latest[0]))
      fi;
      rser[i] = 0; rfor[i] = 0; rver[i] = 0;
      PROW(old, E_Reconciled, st[i])
    :: else
    fi
  };
  assert(ds[0] != D_Dormant || latest[0] == 0);
  assert(ds[0] != D_Stored || latest[0] == stored[0])
}
#endif

/* What happens beside the nodes: the second node's word, re-homing, a crash; and the end. */
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
       :: len(waiting[0]) > 0 -> waiting[0]?rq, kd, fl; fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, MOVED, 0, 0, 0
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
